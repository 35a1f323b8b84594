"""Options and names that the commands around run folders share."""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated

import tyro

LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255, and what lies beside it has a longer one."""

Trust = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME"), tyro.conf.UseAppendAction]
"""What a run folder's configuration may load from outside the toolkit, `--trust NAME` for each."""


def as_name(text: str) -> str:
    """A text, a task's id for example, as a part of a file's name."""
    return re.sub(r"[^\w.+-]", "-", text)


def default_logdir(parts: Sequence[str]) -> str:
    """The run folder of a run whose name has these parts.

    A name that no file system takes, of thirty tasks for example, is cut and ends with a digest of
    the whole: the same run, the same folder.
    """
    name = as_name("-".join(parts))
    whole = name.encode()
    if len(whole) > LONGEST_NAME:
        digest = hashlib.sha256(whole).hexdigest()[:16]
        kept = whole[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
        name = f"{kept}-{digest}"
    return f"runs/{name}"
