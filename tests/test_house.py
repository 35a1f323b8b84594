"""The house: who may import whom, how long a file may be, and what a comment may cite.

Every Python file is read, not run: an import counts wherever it stands, at the top, inside a
function, or as ``importlib.import_module("...")``.
"""

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

GROUND = {"errors", "mask_classes", "atomic_file", "regular_file", "versions"}
PARTS = {"world_models", "envs", "experiment"}
MAY_IMPORT = {
    **{name: {"errors"} - {name} for name in GROUND},
    "world_models": GROUND,
    "envs": GROUND,
    "experiment": GROUND,
    "agents": GROUND | PARTS,
    "analysis": GROUND | PARTS,
    "commands": GROUND | PARTS | {"agents", "analysis"},
    "run": GROUND | PARTS | {"agents", "analysis", "commands"},
    "results": GROUND | PARTS | {"agents", "analysis", "commands"},
    "examples": GROUND | PARTS | {"agents", "analysis", "commands"},
}
"""What a folder or file at the root may import beside itself. Tests may import everything."""

LOADS_MUJOCO = "it imports mujoco, and `import envs` loads no simulator"
SLOW_OR_OPTIONAL = {
    ("agents/__init__.py", "agents.policy"): "it imports every agent, and no other module needs it",
    ("envs/dmc.py", "envs.semantics"): LOADS_MUJOCO,
    ("envs/libero.py", "envs.semantics"): LOADS_MUJOCO,
    ("envs/metaworld.py", "envs.semantics"): LOADS_MUJOCO,
    ("envs/panda.py", "envs.semantics"): LOADS_MUJOCO,
    ("envs/simulation.py", "envs.rendering"): LOADS_MUJOCO,
    ("results/benchmarks/sweep.py", "experiment.hardware"): "it loads PyTorch, which a sweep lacks",
}
"""Imports of our own modules inside functions, ("file", "module"): the reason. ``commands/`` and
``run.py`` need none: there they keep PyTorch and simulators out of ``--help``."""

LONGEST = 500
"""Lines of a file; a longer one wants to be two."""


class Import(NamedTuple):
    """One import of a module, or of a name in it."""

    module: str
    name: str | None
    line: int
    inside_function: bool


class Source(NamedTuple):
    """A Python file of this repository."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Its dotted name: "envs" for envs/__init__.py."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def part(self) -> str:
        """The folder or file at the root that it belongs to."""
        return self.module.partition(".")[0]


def source(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text, path))


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file that is in the repository or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    there = sorted(path for path in set(listed) if (ROOT / path).exists())
    return tuple(source(path, (ROOT / path).read_text()) for path in there)


def parts() -> list[Source]:
    """The files with a place in the house: all but tests and setup.py."""
    return [file for file in sources() if file.part in MAY_IMPORT]


@cache
def imports(file: Source) -> tuple[Import, ...]:
    """Every import in a file, wherever it stands."""
    package = file.module if file.path.endswith("__init__.py") else file.module.rpartition(".")[0]

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, inside)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            module = ".".join([*above, node.module or ""] if node.level else [node.module or ""])
            for alias in node.names:
                yield Import(module.rstrip("."), alias.name, node.lineno, inside)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Import(first.value, None, node.lineno, inside)
        function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside or isinstance(node, function))

    return tuple(visit(file.tree, False))


def _called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", None) or getattr(function, "id", "")


def ours(modules: set[str], found: Import) -> str | None:
    """The module of `modules` that an import reads; None for what others have made."""
    inner = f"{found.module}.{found.name}"
    if inner in modules:
        return inner
    return found.module if found.module in modules else None


def circles(files: list[Source]) -> list[str]:
    """Every way from a file back to itself that the search meets, as "a -> b -> a"."""
    modules = {file.module for file in files}
    arrows = {
        file.module: sorted({m for i in imports(file) if (m := ours(modules, i))} - {file.module})
        for file in files
    }
    found, done = [], set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for following in arrows[module]:
                walk(following, [*way, module])
            done.add(module)

    for module in arrows:
        walk(module, [])
    return found


def forbidden_arrows(files: list[Source]) -> list[str]:
    """Imports that `MAY_IMPORT` does not allow."""
    found = []
    for file in files:
        for one in imports(file):
            part = one.module.partition(".")[0]
            known = part in MAY_IMPORT or part == "tests"
            if known and part != file.part and part not in MAY_IMPORT[file.part]:
                found.append(f"{file.path}:{one.line} imports {one.module}")
    return found


def private_names(files: list[Source]) -> list[str]:
    """Names with a leading underscore that a file takes from another module of ours."""
    found, modules = [], {file.module for file in files}
    for file in files:
        named = {}
        for one in imports(file):
            module = ours(modules, one)
            if one.name and one.name.startswith("_") and module:
                found.append(f"{file.path}:{one.line} imports {one.module}.{one.name}")
            if module and module != file.module:
                named[one.name or one.module] = module
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
                owner = ast.unparse(node.value)
                if named.get(owner, "").endswith(owner):
                    found.append(f"{file.path}:{node.lineno} reads {owner}.{node.attr}")
    return found


def hidden_imports(files: list[Source]) -> set[tuple[str, str]]:
    """("file", "module") of every import of ours inside a function."""
    modules = {file.module for file in files}
    return {
        (file.path, module)
        for file in files
        for one in imports(file)
        if one.inside_function and (module := ours(modules, one))
    }


def mentions(file: Source, *dotted: str) -> list[str]:
    """Where a file reads or writes one of the names, such as "sys.path"."""
    last = {name.rpartition(".")[2] for name in dotted}
    return [
        f"{file.path}:{node.lineno} {ast.unparse(node)}"
        for node in ast.walk(file.tree)
        if isinstance(node, (ast.Name, ast.Attribute))
        and getattr(node, "attr", getattr(node, "id", None)) in last
        and ast.unparse(node) in dotted
    ]


def without_encoding(file: Source) -> list[str]:
    """Where a file reads or writes text in the encoding of the locale."""
    found = []
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        text = isinstance(node.func, ast.Attribute) and _called(node) in ("read_text", "write_text")
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
            text = "b" not in mode
        if text:
            found.append(f"{file.path}:{node.lineno} {ast.unparse(node)}")
    return found


def nothing(found: list[str]) -> None:
    """Fail with a line for each of `found`."""
    if found:
        pytest.fail("\n".join(sorted(found)), pytrace=False)


def remarks(file: Source) -> Iterator[tuple[int, str]]:
    """Comments and docstrings, with the line each starts at."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.lineno, str(node.value.value)
    lines = iter(file.text.splitlines(keepends=True))
    for token in tokenize.generate_tokens(lambda: next(lines, "")):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


# ------------------------------------------------------------------------- the rules


def test_no_file_imports_a_file_that_imports_it():
    nothing(circles(parts()))


def test_arrows_between_folders_point_one_way():
    nothing(forbidden_arrows(parts()))


def test_every_folder_has_a_place():
    """A new folder of the package is put into `MAY_IMPORT`."""
    assert {file.part for file in sources()} - {"setup", "tests"} == set(MAY_IMPORT)


def test_nothing_outside_results_and_tests_imports_results():
    others = [file for file in sources() if file.part not in ("results", "tests")]
    importing = [
        f"{file.path}:{one.line}"
        for file in others
        for one in imports(file)
        if one.module.partition(".")[0] == "results"
    ]
    nothing(importing)


def test_no_import_is_for_type_checkers_only():
    names = "TYPE_CHECKING", "typing.TYPE_CHECKING"
    nothing([line for file in sources() for line in mentions(file, *names)])


def test_no_file_patches_the_import_path():
    nothing([line for file in sources() for line in mentions(file, "sys.path")])


def test_text_is_utf8_whatever_the_locale():
    files = [file for file in sources() if file.part != "tests"]
    nothing([line for file in files for line in without_encoding(file)])


def test_names_with_an_underscore_stay_in_their_module():
    nothing(private_names(parts()))


def test_imports_inside_functions_have_a_reason():
    inner = [file for file in parts() if file.part not in ("commands", "run")]
    found, allowed = hidden_imports(inner), set(SLOW_OR_OPTIONAL)
    nothing([f"{path} imports {module} inside a function" for path, module in found - allowed])
    nothing([f"no longer: {path} imports {module}" for path, module in allowed - found])


def test_a_file_that_is_too_long_becomes_two():
    long = [
        f"{file.path} has {lines} lines"
        for file in sources()
        if (lines := len(file.text.splitlines())) > LONGEST
    ]
    nothing(long)


def test_remarks_cite_nothing_that_is_not_in_the_repository():
    outside = r"\bdesign\.md|\bstyle\.md|\(spec\b|\bthe spec\b|\bshared/specs"
    cited = re.compile(outside, re.IGNORECASE)
    files = re.compile(rf"\b(?:{'|'.join(MAY_IMPORT)}|tests|docs)/[\w/.-]*\.(?:py|md)\b")
    found = []
    for file in sources():
        if file.path == "tests/test_house.py":
            continue
        for line, remark in remarks(file):
            missing = [path for path in files.findall(remark) if not (ROOT / path).exists()]
            found += [f"{file.path}:{line} {name}" for name in cited.findall(remark) + missing]
    nothing(found)


# ------------------------------------------------------------------------- the reader itself

TOP = "import envs.b\n"
INSIDE = "def f():\n    from envs import b\n"
NAMED = "import importlib\ndef f():\n    importlib.import_module('envs.b')\n"
GUARDED = "import typing\nif typing.TYPE_CHECKING:\n    from envs.b import B\n"


@pytest.mark.parametrize(
    "text", [TOP, INSIDE, NAMED, GUARDED, "from . import b", "from .b import B"]
)
def test_a_circle_is_found_wherever_its_import_stands(text):
    files = [source("envs/a.py", text), source("envs/b.py", "from envs import a")]
    assert circles(files) == ["envs.a -> envs.b -> envs.a"]


def test_a_circle_of_three_is_found_and_a_shared_import_is_none():
    a, b, c = (source(f"envs/{name}.py", f"import envs.{n}") for name, n in ("ab", "bc", "ca"))
    assert circles([a, b, c]) == ["envs.a -> envs.b -> envs.c -> envs.a"]
    top = source("envs/a.py", "import envs.b, envs.c")
    assert circles([top, b, source("envs/c.py", "import math")]) == []


def test_an_arrow_upwards_is_found():
    files = [source("envs/a.py", INSIDE), source("agents/b.py", "import envs.a")]
    assert forbidden_arrows(files) == []
    files.append(source("envs/c.py", "def f():\n    from agents.b import B"))
    assert forbidden_arrows(files) == ["envs/c.py:2 imports agents.b"]


def test_a_private_name_is_found_by_its_import_and_behind_its_module():
    files = [
        source("results/a.py", "from envs.b import _c\nfrom envs import b\nb._d(self._e)"),
        source("envs/b.py", "import numpy as np\nnp._x"),
    ]
    assert private_names(files) == [
        "results/a.py:1 imports envs.b._c",
        "results/a.py:3 reads b._d",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text('x')", True),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'a', encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("read_text(path)", False),
        ("RunFolder.open(path)", False),
    ],
)
def test_text_in_the_encoding_of_the_locale_is_found(text, found):
    assert bool(without_encoding(source("envs/a.py", text))) == found


def test_an_import_inside_a_function_is_told_from_one_at_the_top():
    files = [source("envs/a.py", INSIDE), source("envs/b.py", TOP)]
    assert hidden_imports(files) == {("envs/a.py", "envs.b")}
