"""Normalised actions, and receding-horizon execution of chunks of them.

Shape legend: D dimensions, E environments, K of them that are due, H actions of a chunk, A size of
an action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from errors import UserError

NARROW = 0.1
"""Percentiles closer than this share of the full range say too little about the rest of it."""
STILL = 1e-6
"""A dimension whose range is at most this (metres, radians, actions) never moved."""

EDGES = ("low", "high", "min", "max")
"""What statistics say of each dimension, `{name}_{edge}`."""


class Normaliser(nn.Module):
    """Maps each dimension's 1st and 99th percentile to −1 and 1, linearly, and back.

    What lies beyond the percentiles maps beyond ±1. A dimension that never moved maps to 0 and
    back to its constant.

    Args:
        low, high: (D,) the percentiles.
        minimum, maximum: (D,) the full range. It takes the percentiles' place in dimensions where
            they lie closer than a tenth of it: a gripper that is open for 99 % of the time has
            equal percentiles, and yet it closes.
        clip: the least and the greatest value that `denormalise` returns; None: whatever comes.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        low: Sequence[float] | Tensor,
        high: Sequence[float] | Tensor,
        minimum: Sequence[float] | Tensor | None = None,
        maximum: Sequence[float] | Tensor | None = None,
        clip: tuple[float, float] | None = None,
    ):
        super().__init__()
        low, high = (torch.as_tensor(edge, dtype=torch.float32) for edge in (low, high))
        if minimum is not None and maximum is not None:
            minimum = torch.as_tensor(minimum, dtype=torch.float32)
            maximum = torch.as_tensor(maximum, dtype=torch.float32)
            narrow = high - low < NARROW * (maximum - minimum)
            low, high = torch.where(narrow, minimum, low), torch.where(narrow, maximum, high)
        if not (low <= high).all():
            raise UserError(f"a low percentile is above the high one: {low} and {high}")
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.clip = clip

    @classmethod
    def of(
        cls,
        statistics: Mapping[str, Sequence[float]],
        name: str,
        clip: tuple[float, float] | None = None,
    ) -> Normaliser:
        """From the ``{name}_low``, ``_high``, ``_min`` and ``_max`` of a data set's statistics."""
        low, high, least, most = (statistics[f"{name}_{edge}"] for edge in EDGES)
        return cls(low, high, least, most, clip)

    def normalise(self, values: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        size = self.high - self.low
        moving = size > STILL
        scaled = 2.0 * ((values - self.low) / torch.where(moving, size, 1.0)) - 1.0
        return torch.where(moving, scaled, 0.0)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`, clipped. (..., D) → (..., D)."""
        # Exact at both ends, unlike low + share · (high − low).
        values = torch.lerp(self.low, self.high, (normalised + 1.0) / 2.0)
        return values if self.clip is None else values.clamp(*self.clip)


class ActionQueue:
    """Receding-horizon execution: E environments stepped together, each with its own chunk.

        due = queue.due(is_first)                  # once a step, before anything else
        if due.any():
            queue.fill(due, chunks of those that are due)
        action = queue.next()

    Args:
        environments: E.
        n_action_steps: actions of a chunk that are handed out before the environment is due again.
    """

    def __init__(self, environments: int, n_action_steps: int):
        self.n_action_steps = n_action_steps
        self._left = np.zeros(environments, dtype=np.int64)  # actions still to be handed out
        self._actions: np.ndarray | None = None  # (E, n_action_steps, A)

    def due(self, is_first: np.ndarray) -> np.ndarray:
        """Which environments need a new chunk: (E,) bool → (E,) bool.

        Those at the first step of an episode, whatever is left of their chunk, and those that have
        executed theirs.
        """
        self._left[np.asarray(is_first, dtype=bool)] = 0
        return self._left == 0

    def fill(self, due: np.ndarray, chunks: np.ndarray) -> None:
        """Give new chunks (K, H, A) to the K environments of `due` (E,) bool, in their order."""
        chunks = np.asarray(chunks, dtype=np.float32)
        if len(chunks) != due.sum() or chunks.shape[1] < self.n_action_steps:
            raise ValueError(
                f"{due.sum()} chunks of at least {self.n_action_steps} actions are due, not"
                f" {chunks.shape[0]} of {chunks.shape[1]}"
            )
        if self._actions is None:
            self._actions = np.zeros((len(due), self.n_action_steps, chunks.shape[2]), np.float32)
        self._actions[due] = chunks[:, : self.n_action_steps]
        self._left[due] = self.n_action_steps

    def next(self) -> np.ndarray:
        """The next action of every environment, (E, A) float32."""
        if self._actions is None or not self._left.all():
            raise ValueError("an environment is due a chunk and has none")
        places = self.n_action_steps - self._left
        self._left -= 1
        return self._actions[np.arange(len(places)), places]
