"""Where a report goes: the page is OUT.md, what belongs to it is in the folder OUT."""

from __future__ import annotations

from pathlib import Path

from errors import UserError


def page_of(out: Path) -> Path:
    """OUT.md, whose folder OUT is there from now on.

    Raises:
        UserError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {out} ({error.strerror})") from error
    return out.parent / f"{out.name}.md"
