"""The runs that a report is about, and where it goes: the page is OUT.md, what belongs to it is in
the folder OUT, or in OUT.json where that is numbers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atomic_file import atomic_file, writing
from errors import UserError

LONGEST_NAME = 200
"""Bytes of a file's name without its ending; file systems take 255 with it."""


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name, without an ending, for each of `names`, no two the same.

    Slashes and colons become dashes; what is too long is cut. Of names that are the same after
    that, or the same but for capitals, which some file systems do not tell apart, all but the first
    in order get a number.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(set(names)):
        plain = re.sub("[/:]", "-", name).encode()[:LONGEST_NAME].decode(errors="ignore")
        count, chosen = 1, plain
        while chosen.lower() in taken:
            count += 1
            chosen = f"{plain}-{count}"
        taken.add(chosen.lower())
        found[name] = chosen
    return found


def make_folder(path: Path) -> None:
    """Make a folder that may be there already.

    Raises:
        UserError: it cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file into a folder that is made where it is missing; text is UTF-8.

    Raises:
        UserError: it cannot be written; what was there before still is.
    """
    make_folder(path.parent)
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def run_folders(inputs: Sequence[str]) -> list[Path]:
    """The run folders that a report tells apart by their names.

    Raises:
        UserError: there are none, or two are called the same.
    """
    paths = [Path(path) for path in inputs]
    if not paths:
        raise UserError("name at least one run folder")
    if len({path.name for path in paths}) < len(paths):
        raise UserError("two of the run folders have the same name, by which the report tells them")
    return paths


def page_of(out: Path) -> Path:
    """OUT.md, which can be written and whose folder OUT is there from now on.

    Raises:
        UserError: it cannot be made, or OUT is no name of a folder.
    """
    if out.suffix == ".md" or not out.name:
        raise UserError(f"--out {out}: name a folder; the page is written beside it, as FOLDER.md")
    page = out.parent / f"{out.name}.md"
    make_folder(out)
    with writing(page):
        page.touch()
    return page


def write_report(out: Path, report: str, numbers: Any) -> None:
    """Write OUT.md and OUT.json.

    Raises:
        UserError: they cannot be written.
    """
    write_file(out.with_suffix(".md"), report)
    write_file(out.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
