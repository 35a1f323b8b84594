"""What a sweep is doing, as a table that stays in its place, or as lines from time to time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiment.sweep import Run, SweepFolder

TAIL = 65_536
"""Bytes of a run's metrics that are read."""
ROWS = 30
"""Runs in the table at most, of those at work and of those that failed."""
EVERY = 30.0
"""Seconds between lines where there is no terminal."""


class Progress(NamedTuple):
    """How far a run is."""

    step: int = 0
    score: float | None = None
    """Of its last evaluation: success if there is such a thing, else the return."""
    per_second: float = 0.0
    """Steps, over its last lines."""


def progress(folder: Path) -> Progress:
    """How far the run of a folder is, by the last lines of its metrics."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return Progress()
    rows = [row for row in map(_row, lines) if row is not None]
    if not rows:
        return Progress()
    scores = [row.get("eval/success", row.get("eval/return")) for row in rows]
    known = [score for score in scores if score is not None]
    first, last = rows[0], rows[-1]
    seconds = last["time"] - first["time"]
    rate = (last["step"] - first["step"]) / seconds if seconds > 0 else 0.0
    return Progress(int(last["step"]), known[-1] if known else None, max(0.0, rate))


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics; None for one that was cut off."""
    try:
        row = json.loads(line)
        return row if {"step", "time"} <= row.keys() else None
    except (ValueError, AttributeError):
        return None


class SweepTable:
    """A context in which a sweep is shown.

    Args:
        folder: of the sweep.
        planned: names of the runs that this sweep is about.
    """

    def __init__(self, folder: SweepFolder, planned: Iterable[str]):
        self.folder, self.planned = folder, list(planned)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._here else None
        self._said = self._failures = 0.0

    @property
    def _here(self) -> bool:
        """Whether somebody looks at a terminal."""
        return sys.stdout.isatty()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, t: TracebackType | None):
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def refresh(self) -> None:
        """Show what has become of it by now."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            return
        failed = sum(run.status == "failed" for run in self._runs())
        now = time.monotonic()
        if now - self._said > EVERY or failed > self._failures:
            self._said, self._failures = now, failed
            print(self.line(), flush=True)

    def _runs(self) -> list[Run]:
        return [self.folder.runs[name] for name in self.planned]

    def _working(self) -> list[tuple[Run, str, Progress]]:
        """Runs at work, the machine of each, and how far it is."""
        found = []
        for entry in os.scandir(self.folder.path):
            name = entry.name.removesuffix(".running")
            if name != entry.name and name in self.folder.runs:
                try:
                    host = Path(entry.path).read_text(encoding="utf-8").strip()
                except OSError:
                    continue  # it has just ended
                run = self.folder.runs[name]
                if run.status == "queued":
                    found.append((run, host, progress(self.folder.path / name)))
        return sorted(found, key=lambda each: each[0].name)

    def counts(self, working: int) -> str:
        """How many runs there are of each kind."""
        runs = self._runs()
        done = sum(run.status == "done" for run in runs)
        failed = sum(run.status == "failed" for run in runs)
        queued = len(runs) - done - failed - working
        return f"{done} done, {working} at work, {max(0, queued)} queued, {failed} failed"

    def line(self) -> str:
        """All of it in one line, and one for each failure."""
        working = self._working()
        parts = [f"{run.name} {how.step:,}" for run, _, how in working[:4]]
        text = f"sweep: {self.counts(len(working))}{self._left(working)}"
        failures = [f"  failed: {r.name}: {r.error}" for r in self._runs() if r.status == "failed"]
        return "\n".join([f"{text}  ({'; '.join(parts)})" if parts else text, *failures[-ROWS:]])

    def _left(self, working: list[tuple[Run, str, Progress]]) -> str:
        """Hours until all is done at the present rate, as far as that can be told."""
        rate = sum(how.per_second for _, _, how in working)
        left = sum(run.steps for run in self._runs() if run.status == "queued")
        left -= sum(how.step for _, _, how in working)
        known = all(run.steps for run in self._runs())
        return f", {left / rate / 3600:.1f} h left" if rate > 0 and known else ""

    def table(self) -> Group:
        """What a terminal shows."""
        working = self._working()
        table = Table(title=f"{self.folder.path}: {self.counts(len(working))}{self._left(working)}")
        for heading in ("run", "machine", "step", "last score", "hours left"):
            table.add_column(heading, justify="left" if heading in ("run", "machine") else "right")
        for run, host, how in working[:ROWS]:
            left = run.steps - how.step
            hours = f"{left / how.per_second / 3600:.1f}" if how.per_second and run.steps else "–"
            of = f" of {run.steps:,}" if run.steps else ""
            score = "–" if how.score is None else f"{how.score:.3g}"
            table.add_row(run.name, host, f"{how.step:,}{of}", score, hours)
        failed = [run for run in self._runs() if run.status == "failed"][-ROWS:]
        lines = [Text(f"failed: {run.name}: {run.error}", style="red") for run in failed]
        return Group(table, *lines)
