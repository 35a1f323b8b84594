"""Where a report goes: the page is OUT.md, what belongs to it is in the folder OUT."""

from __future__ import annotations

from pathlib import Path

from errors import UserError


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
