"""Batches of the replay as an update takes them: frames and windows, shifted, ready to be copied.

Shape legend: B batch, T time, V cameras, H = W edge of their pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agents.replay import Replay

DYNAMICS_ENTRIES = ("image", "action", "reward", "is_first", "is_terminal")
"""What of the replay every dynamics update learns from."""


def translated(batch: dict[str, Tensor], shift: np.ndarray) -> dict[str, Tensor]:
    """A batch with its pictures moved, their edge pixels repeated where nothing comes from.

    With random shifts this is the augmentation of DrQ ("Image Augmentation Is All You Need",
    Kostrikov et al., 2020), which shifts pictures of 84 pixels by up to 4. A row takes a slice of
    its own: about 20 microseconds each, for the paper's 1,024 frames too.

    Args:
        batch: every entry (B, ...); pictures are those that begin with the shape of `image`
            (B, ..., H, W, 3) but for its channels. What lies between, times or cameras, moves
            alike.
        shift: (B, 2), pixels down and right; where all are 0 the batch comes back as it is.
    """
    if not shift.any():
        return batch
    places = batch["image"].shape[:-1]
    down = len(places) - 2
    height, width = places[-2:]
    pad = int(np.abs(shift).max())

    def moved(picture: Tensor) -> Tensor:
        padded = _edge_padded(_edge_padded(picture, pad, down), pad, down + 1)
        rows = [
            row.narrow(down - 1, top, height).narrow(down, left, width)
            for row, (top, left) in zip(padded, (pad - shift).tolist(), strict=True)
        ]
        return torch.stack(rows)

    return {
        name: moved(value) if value.shape[: down + 2] == places else value
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
        batch, window: number and length of a dynamics update's windows.
        device: what they are read for.
        random_shift: pixels by which the autoencoder's frames are shifted at most, either way.
        also: what windows hold beside `DYNAMICS_ENTRIES`.
    """

    def __init__(
        self,
        frames: int,
        batch: int,
        window: int,
        device: torch.device,
        random_shift: int = 0,
        also: Sequence[str] = (),
    ):
        self._frames, self._batch, self._window = frames, batch, window
        self._device, self._random_shift = device, random_shift
        self._entries = (*DYNAMICS_ENTRIES, *also)

    def frames(self, replay: Replay) -> dict[str, Tensor]:
        """Frames drawn independently, each shifted by itself, every entry (B, ...)."""
        index = replay.draw_frames(self._frames)
        shift = np.zeros((len(index), 2), np.int64)
        if self._random_shift:
            most = self._random_shift
            shift = replay.rng.integers(-most, most, shift.shape, endpoint=True)
        return self._pinned(translated(replay.single_frames(index), shift))

    def windows(self, replay: Replay) -> dict[str, Tensor]:
        """Windows of consecutive steps, every entry (B, T, ...)."""
        index = replay.draw_windows(self._batch, self._window)
        return self._pinned(replay.windows(index, self._entries))

    def _pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """In memory that a GPU copies from while it computes."""
        if self._device.type != "cuda":
            return batch
        return {n: v if v.is_cuda else v.pin_memory() for n, v in batch.items()}
