"""``metrics.jsonl`` of a run folder, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class MetricsLog:
    """Lines ``{"step", "time", name: value, ...}``, appended as training goes.

    Args:
        folder: of the run, which also takes TensorBoard's event files.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self._file: BinaryIO | None = None
        self._tensorboard: Any = None
        self._purge_step: int | None = None

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Append one line, and the same scalars to TensorBoard.

        Args:
            step: environment steps, or updates, so far.
            seconds: of training so far.
            metrics: scalars by name, for example ``eval/success``; a value that is not finite is
                written as null, since JSON has no NaN.
        """
        values = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"step": int(step), "time": round(seconds, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        file = self._open()
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def show_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Show a picture (H, W, 3) uint8 in TensorBoard."""
        self._open()
        self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def position(self) -> int:
        """Bytes that are on the disk for good; goes into the checkpoint."""
        file = self._open()
        os.fsync(file.fileno())
        return file.tell()

    def cut(self, position: int, step: int) -> None:
        """Forget what was logged after a checkpoint, so that steps never go backwards.

        Args:
            position: ``position()`` at the checkpoint; 0 forgets everything.
            step: of the checkpoint; TensorBoard hides what lies after it.
        """
        self.close()
        self._purge_step = step + 1 if position else 0
        if not self.path.exists():
            return
        data = self.path.read_bytes()[:position]
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        # A checkpoint forgets the episodes that other environments were in the middle of.
        while lines and json.loads(lines[-1])["step"] > step:
            lines.pop()
        os.truncate(self.path, sum(map(len, lines)))

    def read(self) -> list[dict[str, Any]]:
        """The lines logged so far, oldest first; a line cut off by a crash is left out."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def close(self) -> None:
        """Finish both files; writing again opens them again."""
        for file in (self._file, self._tensorboard):
            if file is not None:
                file.close()
        self._file = self._tensorboard = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            # Imports a second's worth of modules that an evaluation does not need.
            from torch.utils.tensorboard import SummaryWriter

            self._file = open(self.path, "a+b")  # noqa: SIM115 (held until close)
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            self._file.truncate(whole)
            self._file.seek(whole)
            self._tensorboard = SummaryWriter(str(self.folder), purge_step=self._purge_step)
        return self._file
