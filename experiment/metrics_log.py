"""``metrics.jsonl`` of a run folder, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atomic_file import append, writing
from errors import UserError
from experiment.event_file import EventFile
from experiment.notes import note
from experiment.own_folder import open_own
from regular_file import read_bytes

LARGEST_STEP = 2**53
"""Beyond it, whole numbers are not exact everywhere."""
LARGEST_VALUE = 1e300
"""Beyond it, sums and pictures of values overflow."""


class MetricsLog:
    """Lines ``{"step", "time", name: value, ...}``, appended as training goes.

    TensorBoard's event files are a copy: where they cannot be written, the run goes on without.

    Args:
        folder: of the run, which also takes the event files.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self._file: io.FileIO | None = None
        self._events: EventFile | None = None
        self._purge_step: int | None = None

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Append one line, and the same scalars to TensorBoard.

        Args:
            step: environment steps, or updates, so far.
            seconds: of training so far.
            metrics: scalars by name, for example ``eval/success``; a value that is not finite is
                written as null, since JSON has no NaN.

        Raises:
            Unwritable: the line cannot be written; nothing of it is in the file then.
        """
        values = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"step": int(step), "time": round(seconds, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        with writing(self.path):
            append(self._open(), json.dumps(line, allow_nan=False).encode() + b"\n")
        self._show(lambda events: events.scalars(step, values))

    def show_picture(self, name: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """Show an RGB picture of ``size`` (H, W), as PNG, in TensorBoard."""
        with writing(self.path):
            self._open()
        self._show(lambda events: events.picture(step, name, png, *size))

    def position(self) -> int:
        """Bytes that are on the disk for good; goes into the checkpoint."""
        with writing(self.path):
            file = self._open()
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def cut(self, position: int, step: int) -> None:
        """Forget what was logged after a checkpoint, so that steps never go backwards.

        Args:
            position: ``position()`` at the checkpoint; 0 forgets everything.
            step: of the checkpoint; TensorBoard hides what lies after it.

        Raises:
            UserError: a line from before the checkpoint cannot be read; nothing is changed then.
        """
        self.close()
        self._purge_step = step + 1 if position else 0
        if not os.path.lexists(self.path):
            return
        rows = self._rows(read_bytes(self.path)[:position]) if position else []
        # A checkpoint forgets the episodes that other environments were in the middle of.
        while rows and rows[-1][1]["step"] > step:
            rows.pop()
        with writing(self.path), contextlib.closing(open_own(self.path)) as file:
            file.truncate(sum(length for length, _ in rows))

    def read(self) -> list[dict[str, Any]]:
        """The lines logged so far, oldest first; a last one without its end, which is being written
        or was cut off by a crash, is left out.

        Raises:
            UserError: the file cannot be read, or a line, which is named.
        """
        if not os.path.lexists(self.path):
            return []
        return [row for _, row in self._rows(read_bytes(self.path))]

    def close(self) -> None:
        """Finish both files; writing again opens them again."""
        for file in (self._file, self._events):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._file = self._events = None

    def _rows(self, content: bytes) -> list[tuple[int, dict[str, Any]]]:
        """Length in bytes and content of every whole line."""
        *lines, _ = content.split(b"\n")
        return [(len(line) + 1, self._row(line, i)) for i, line in enumerate(lines, start=1)]

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise self._damaged(number, "is not JSON") from None
        step = row.get("step") if isinstance(row, dict) else None
        if type(step) is not int or not 0 <= step <= LARGEST_STEP:
            raise self._damaged(number, "has no step that is a whole number from 0 on")
        for name, value in row.items():
            if value is not None and (
                type(value) not in (int, float) or not abs(value) <= LARGEST_VALUE
            ):
                raise self._damaged(number, f"has a value of {name!r:.60} that is no finite number")
        return row

    def _damaged(self, number: int, what: str) -> UserError:
        return UserError(
            f"{self.path} line {number} {what}; put an unharmed copy of the file in its place, or "
            "take that line out"
        )

    def _show(self, write: Callable[[EventFile], None]) -> None:
        if self._events is not None:
            try:
                write(self._events)
            except OSError as error:
                self._go_on_without_events(error)

    def _go_on_without_events(self, error: OSError) -> None:
        note(
            f"TensorBoard's event file in {self.folder} cannot be written ({error.strerror}); "
            "metrics.jsonl has the same numbers"
        )
        self._events = None

    def _open(self) -> io.FileIO:
        if self._file is None:
            self._file = open_own(self.path)
            content = self._file.readall()
            self._file.truncate(content.rfind(b"\n") + 1)
            try:
                self._events = EventFile(self.folder, self._purge_step)
            except OSError as error:
                self._go_on_without_events(error)
        return self._file
