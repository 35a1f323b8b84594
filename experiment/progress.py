"""Progress of work that takes a while: a bar on a terminal, a line from time to time in a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

EVERY = 30.0
"""Seconds between lines."""


def to_file() -> bool:
    """Whether somebody reads standard output later, or standard error has no room for a bar."""
    return not (sys.stdout.isatty() and sys.stderr.isatty())


class Progress(tqdm):
    """A progress bar; where standard output or standard error is no terminal, also a line on
    standard output every 30 s.

    Args:
        name: what is done.
        total: how much there is of it, if known.
        unit: what is counted, in the singular.
        initial: how much is done already.
        **bar: further arguments of ``tqdm``.
    """

    def __init__(self, name: str, total: int | None, unit: str, initial: int = 0, **bar: Any):
        self.name, self.counted = name, unit
        self.began = self.said = time.monotonic()
        super().__init__(
            total=total,
            initial=initial,
            desc=name,
            unit=unit,
            dynamic_ncols=True,
            disable=None,  # no bar where standard error is no terminal
            **bar,
        )

    def count(self, _: object = None) -> None:
        """Count one more, whatever it is."""
        self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more."""
        if self.disable:  # tqdm counts nothing then
            self.n += n or 0
        shown = super().update(n)
        now = time.monotonic()
        if now - self.said > EVERY and to_file():
            self.said = now
            of = "" if self.total is None else f" of {self.total}"
            seconds = f"{now - self.began:.0f} s"
            print(f"{self.name}: {self.counted} {self.n:g}{of}  ({seconds})", flush=True)
        return shown
