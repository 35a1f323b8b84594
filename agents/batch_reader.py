"""What an update reads of the replay: drawn first, then read, ahead of time where that saves some.

Shape legend: B batch, T time, H = W image size.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.replay import Replay

DYNAMICS_ENTRIES = ("image", "action", "reward", "is_first", "is_terminal")
"""What of the replay a dynamics update learns from."""


class Frames(NamedTuple):
    """Of the replay: those the autoencoder learns from (none where its update is not due),
    and the windows that are encoded after that, with their places."""

    single: dict[str, Tensor] | None
    windows: dict[str, Tensor]
    index: np.ndarray


class BatchReader:
    """Draws and reads batches.

    Args:
        frames: how many the autoencoder learns from in an update.
        frames_window: how many of them are consecutive; ``frames`` is a multiple of it.
        batch, window: number and length of a dynamics update's windows.
        device: what they are read for.
    """

    def __init__(
        self, frames: int, frames_window: int, batch: int, window: int, device: torch.device
    ):
        self._frames, self._frames_window = frames, frames_window
        self._batch, self._window = batch, window
        self._device = device
        self.prefetch = device.type == "cuda"
        """Read while the device computes."""
        self.thread: ThreadPoolExecutor | None = None
        """What reads ahead, once it has been asked to."""

    def draw_windows(self, replay: Replay) -> np.ndarray:
        """Places of the windows of a dynamics update."""
        return replay.draw_windows(self._batch, self._window)

    def windows(self, replay: Replay, index: np.ndarray) -> dict[str, Tensor]:
        """What a dynamics update learns from, each (B, T, ...)."""
        return replay.windows(index, DYNAMICS_ENTRIES)

    def draw_frames(self, replay: Replay) -> np.ndarray:
        """Places of the frames the autoencoder learns from: (B,), or windows (B/T, T)."""
        if self._frames_window == 1:
            return replay.draw_frames(self._frames)
        return replay.draw_windows(self._frames // self._frames_window, self._frames_window)

    def frames(self, replay: Replay, index: np.ndarray) -> dict[str, Tensor]:
        """What the autoencoder learns from, each (B, ...)."""
        if index.ndim == 1:
            return self._pinned(replay.single_frames(index))
        batch = self._pinned(replay.windows(index))
        return {name: value.flatten(0, 1) for name, value in batch.items()}

    def start(self, replay: Replay, with_frames: bool) -> Callable[[], Frames]:
        """Draw windows, and frames if they are wanted; the function that has them.

        With ``prefetch`` they are read meanwhile: from the disk in a thread of its own, from the
        device's memory before the device has anything else to do.
        """
        drawn = self.draw_frames(replay) if with_frames else None
        index = self.draw_windows(replay)

        def read() -> Frames:
            single = None if drawn is None else self.frames(replay, drawn)
            return Frames(single, self._pinned(self.windows(replay, index)), index)

        if replay.device is not None:
            frames = read()
            return lambda: frames
        if not self.prefetch:
            return read
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1)
        return self.thread.submit(read).result

    def _pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """In memory that a GPU copies from while it computes."""
        if self._device.type != "cuda":
            return batch
        return {n: v if v.is_cuda else v.pin_memory() for n, v in batch.items()}
