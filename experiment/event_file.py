"""TensorBoard's copy of what a run logs."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomic_file import append

_numbers = itertools.count()


class EventFile:
    """An event file of a run, made anew; what is written is in it at once.

    TensorBoard's own writer writes in a thread, where a full disk becomes a traceback.

    Args:
        folder: of the run.
        first_step: TensorBoard hides what other files of the folder have from this step on.

    Raises:
        OSError: it cannot be made or written; likewise the methods.
    """

    def __init__(self, folder: Path, first_step: int | None = None):
        # Half a second to import, and an evaluation writes no events.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = RecordWriter
        self._file = _new(folder)
        with contextlib.ExitStack() as closed_on_error:
            closed_on_error.callback(self._file.close)
            self._write(file_version="brain.Event:2")
            if first_step is not None:
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(step=first_step, session_log=start)
            closed_on_error.pop_all()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars by name."""
        each = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=each))

    def picture(self, step: int, name: str, png: bytes, height: int, width: int) -> None:
        """A picture, RGB, as PNG."""
        image = self._summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        shown = self._summary.Value(tag=name, image=image)
        self._write(step=step, summary=self._summary(value=[shown]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        record = io.BytesIO()
        event = self._event(wall_time=time.time(), **fields)
        self._writer(record).write(event.SerializeToString())
        append(self._file, record.getvalue())


def _new(folder: Path) -> io.FileIO:
    """A file of TensorBoard's naming, by which it sorts, that was not there before."""
    while True:
        name = (int(time.time()), socket.gethostname(), os.getpid(), next(_numbers))
        path = folder / "events.out.tfevents.{:010}.{}.{}.{:06}".format(*name)
        with contextlib.suppress(FileExistsError):
            return io.FileIO(path, "x")
