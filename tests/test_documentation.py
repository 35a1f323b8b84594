"""What Markdown files say is so: links lead somewhere; commands, options, tables are real."""

import contextlib
import functools
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import run
from commands.presets import filled

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Pages that tell how to use the toolkit as it is; notes and results keep what once was."""
README_BYTES = 8192
OPTION = re.compile(r"--[a-z][\w.-]*")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked() -> list[Path]:
    """Files of the repository; those that are there, where it is no clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    parts = (
        path for top in ROOT.iterdir() if top.name[0] != "." for path in (top, *top.rglob("*"))
    )
    return [path for path in parts if path.is_file()]


FILES = tracked()
PAGES = sorted(path for path in FILES if path.suffix == ".md")


def without_code(text: str) -> str:
    """Markdown without fenced blocks and inline code."""
    return INLINE.sub("", FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and pictures that are no addresses of other sites."""
    text = without_code(text)
    found = re.findall(r"\]\(\s*([^()\s]+)[^()]*\)", text)
    found += re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    names: dict[str, int] = {}
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} +(.*?) *#* *$", FENCE.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        count = names[name] = names.get(name, -1) + 1
        found.add(f"{name}-{count}" if count else name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_of_the_repository_and_a_heading_in_it(page):
    assert [target for target in links(page.read_text()) if not leads_somewhere(target, page)] == []


def leads_somewhere(target: str, page: Path) -> bool:
    """Whether the target of a link on a page is there, for whoever clones the repository."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if anchor and file.suffix == ".md":
        return file in FILES and anchor in anchors(file.read_text())
    return file in FILES or any(file in each.parents for each in FILES)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_tables_of_presets_are_those_of_the_code():
    """`python run.py presets --write docs/presets.md` makes them so."""
    text = (ROOT / "docs" / "presets.md").read_text()
    assert set(re.findall(r"<!-- presets: (\w+) -->", text)) == {
        "train", "dmc", "episodic", "dreamer", "imitate", "mask2act",
    }  # fmt: skip
    assert filled(text) == text


# Commands


def code(page: Path) -> Iterator[str]:
    """Lines of shell in blocks, and inline code, each as one line."""
    text = page.read_text()
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "bash", "shell"):
            yield from re.sub(r"\\\n\s*", "", block).splitlines()
    text = FENCE.sub("", text)
    blocks = re.findall(r"(?:^|\n)\n((?:    .*\n)+)", text)  # indented, after an empty line
    for block in blocks:
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    for span in INLINE.findall(text):
        yield " ".join(span.split())


def words(line: str) -> list[str]:
    """Words of a shell command without its comment."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def commands(page: Path, start: re.Pattern) -> list[tuple[str, list[str]]]:
    """What `start` names in each command that begins so, and the options after it."""
    found = []
    for line in code(page):
        for match in start.finditer(line):
            given = [w.partition("=")[0] for w in words(line[match.end() :]) if w.startswith("--")]
            if "--" in given:  # what follows are options of the runs of a sweep
                place = given.index("--")
                found.append(("train", given[place + 1 :]))
                given = given[:place]
            found.append((match[1], given))
    return found


@functools.cache
def known_options(command: str) -> frozenset[str]:
    """The options in a command's help."""
    everything = "--help-all" if command in ("train", "imitate") else "--help"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
        patch.setenv("COLUMNS", "400")
        others = {"train": "dreamer", "imitate": "mask2act"}
        named = [["--method", others[command]]] if command in others else []
        for method in ([], *named):
            with contextlib.suppress(SystemExit):
                run.main([command, *method, everything])
    return frozenset(OPTION.findall(text.getvalue())) | {"--help", everything}


@functools.cache
def program_options(source: Path) -> frozenset[str]:
    """Options that a program of results/ takes: fields of its classes, or what it adds by hand."""
    text = source.read_text()
    named = re.findall(r"^    ([a-z]\w*): \S", text, re.MULTILINE)
    by_hand = re.findall(r'add_argument\("(--[\w-]+)"', text)
    return frozenset(by_hand) | {"--" + name.replace("_", "-") for name in named}


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_command_exists_and_knows_its_options(page):
    for command, given in commands(page, re.compile(r"\brun\.py (\w[\w-]*)")):
        assert command in run.COMMANDS
        assert sorted(set(given) - known_options(command)) == [], command


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_program_of_results_exists_and_knows_its_options(page):
    for module, given in commands(page, re.compile(r"python -m (results\.[\w.]+)")):
        if module.endswith(".NAME"):
            continue
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert source in FILES, module
        assert sorted(set(given) - program_options(source)) == [], module


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_option_in_the_text_is_one_of_some_command(page):
    named = {
        option
        for span in map(str.split, INLINE.findall(FENCE.sub("", page.read_text())))
        if span[0].startswith("--")
        for option in OPTION.findall(" ".join(span))
    }
    known = frozenset().union(*map(known_options, run.COMMANDS))
    programs = [path for path in FILES if path.parent.parent == ROOT / "results"]
    known |= frozenset().union(
        *(program_options(path) for path in programs if path.suffix == ".py")
    )
    assert sorted(named - known) == []


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match[1] for line in code(page) if (match := re.match(r"\s*make ([a-z][\w-]*)", line))}
    assert sorted(named - targets) == []


def test_a_link_without_its_file_or_heading_is_seen():
    """The checks above can fail."""
    page = "# Two words\n[a](gone.md) `[b](code.md)` ![c](gone.png)\n\n## `run.py`, again\n"
    assert links(page) == ["gone.md", "gone.png"]
    readme = ROOT / "README.md"
    there = ("docs", "docs/training.md", "docs/training.md#the-demo", "#the-house")
    assert all(leads_somewhere(target, readme) for target in there)
    gone = ("gone.md", "docs/training.md#gone", "#gone", "../README.md")
    assert not any(leads_somewhere(target, readme) for target in gone)
    assert anchors(page) == {"two-words", "runpy-again"}
