"""The runs that a report is about, and where it goes: the page is OUT.md, what belongs to it is in
the folder OUT, or in OUT.json where that is numbers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError


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
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.touch()
    except OSError as error:
        raise UserError(f"cannot write {error.filename} ({error.strerror})") from error
    return page


def write_report(out: Path, report: str, numbers: Any) -> None:
    """Write OUT.md and OUT.json.

    Raises:
        UserError: they cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(report)
        out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {error.filename} ({error.strerror})") from error
