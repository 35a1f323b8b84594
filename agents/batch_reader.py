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


class Draw(NamedTuple):
    """What the autoencoder learns from: places in the replay, (B,) or (B, T), and by how many
    pixels down and right the pictures of each of the B are shifted, (B, 2)."""

    index: np.ndarray
    shift: np.ndarray


class Frames(NamedTuple):
    """Of the replay: those the autoencoder learns from (none where its update is not due), and
    the windows of the dynamics' update."""

    single: dict[str, Tensor] | None
    windows: dict[str, Tensor]


def translated(batch: dict[str, Tensor], shift: np.ndarray) -> dict[str, Tensor]:
    """A batch with its pictures moved, their edge pixels repeated where nothing comes from.

    With random shifts this is the augmentation of DrQ ("Image Augmentation Is All You Need",
    Kostrikov et al., 2020), which shifts pictures of 84 pixels by up to 4. A row takes a slice of
    its own: about 20 microseconds each, for the paper's 1,024 frames too.

    Args:
        batch: every entry (B, T, ...); pictures are those that begin with the (H, W) of `image`
            (B, T, H, W, 3).
        shift: (B, 2), pixels down and right; where all are 0 the batch comes back as it is.
    """
    if not shift.any():
        return batch
    height, width = batch["image"].shape[2:4]
    pad = int(np.abs(shift).max())

    def moved(picture: Tensor) -> Tensor:
        padded = _edge_padded(_edge_padded(picture, pad, 2), pad, 3)
        corners = (pad - shift).tolist()
        rows = [
            padded[row, :, top : top + height, left : left + width]
            for row, (top, left) in enumerate(corners)
        ]
        return torch.stack(rows)

    return {
        name: moved(value) if value.shape[2:4] == (height, width) else value
        for name, value in batch.items()
    }


def _edge_padded(value: Tensor, pad: int, dim: int) -> Tensor:
    """`value` with its first and last slice along `dim` repeated `pad` times more. Of bytes too, on
    a GPU too, where torch.nn.functional.pad had no replicate padding of them in older versions."""
    first, last = value.narrow(dim, 0, 1), value.narrow(dim, -1, 1)
    before, after = (edge.repeat_interleave(pad, dim) for edge in (first, last))
    return torch.cat([before, value, after], dim)


class BatchReader:
    """Draws and reads batches.

    Args:
        frames: how many the autoencoder learns from in an update.
        frames_window: how many of them are consecutive; ``frames`` is a multiple of it.
        batch, window: number and length of a dynamics update's windows.
        device: what they are read for.
        random_shift: pixels by which the autoencoder's frames are shifted at most, either way.
    """

    def __init__(
        self,
        frames: int,
        frames_window: int,
        batch: int,
        window: int,
        device: torch.device,
        random_shift: int = 0,
    ):
        self._frames, self._frames_window = frames, frames_window
        self._batch, self._window = batch, window
        self._device, self._random_shift = device, random_shift
        self.prefetch = device.type == "cuda"
        """Read while the device computes."""
        self.thread: ThreadPoolExecutor | None = None
        """What reads ahead, once it has been asked to."""

    def draw_windows(self, replay: Replay) -> np.ndarray:
        """Places of the windows of a dynamics update, (B, T)."""
        return replay.draw_windows(self._batch, self._window)

    def windows(self, replay: Replay, index: np.ndarray) -> dict[str, Tensor]:
        """What a dynamics update learns from, each (B, T, ...)."""
        return replay.windows(index, DYNAMICS_ENTRIES)

    def draw_frames(self, replay: Replay) -> Draw:
        """The frames the autoencoder learns from: (B,), or windows (B/T, T)."""
        if self._frames_window == 1:
            index = replay.draw_frames(self._frames)
        else:
            rows = self._frames // self._frames_window
            index = replay.draw_windows(rows, self._frames_window)
        most, size = self._random_shift, (len(index), 2)
        if not most:  # nothing is drawn
            return Draw(index, np.zeros(size, np.int64))
        return Draw(index, replay.rng.integers(-most, most, size, endpoint=True))

    def frames(self, replay: Replay, draw: Draw) -> dict[str, Tensor]:
        """What the autoencoder learns from, each (B, ...)."""
        if draw.index.ndim == 1:
            batch = {n: v[:, None] for n, v in replay.single_frames(draw.index).items()}
        else:
            batch = replay.windows(draw.index)
        batch = self._pinned(translated(batch, draw.shift))
        return {name: value.flatten(0, 1) for name, value in batch.items()}

    def start(self, replay: Replay, with_frames: bool) -> Callable[[], Frames]:
        """Draw windows, and frames if they are wanted; the function that has them.

        With ``prefetch`` they are read meanwhile: from the disk in a thread of its own, from the
        device's memory before the device has anything else to do.
        """
        drawn = self.draw_frames(replay) if with_frames else None
        windows = self.draw_windows(replay)

        def read() -> Frames:
            single = None if drawn is None else self.frames(replay, drawn)
            return Frames(single, self._pinned(self.windows(replay, windows)))

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
