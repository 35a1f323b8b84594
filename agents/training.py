"""What both training loops need: running means of losses, generators' states."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_SECONDS = 30.0
"""Losses are logged at least this often, in seconds; at episode ends in any case."""


class MetricMean:
    """Running means of scalars that stay on their device until they are asked for.

    A metric whose name has three parts (`autoencoder/iou/hand`) is a measurement that a batch may
    be unable to make: NaN, which is left out. Everywhere else NaN is kept, and stops the run.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor | int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            count = 1
            if name.count("/") > 1:
                count, value = value.isfinite(), value.nan_to_num(0.0, 0.0, 0.0)
            total = self.sums.get(name)
            self.sums[name] = value.clone() if total is None else total + value
            self.counts[name] = self.counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """The means since the last call; one transfer for all of them."""
        if not self.sums:
            return {}
        values = torch.stack([value.float() for value in self.sums.values()]).tolist()
        counts = [int(count) for count in self.counts.values()]
        means = {
            name: value / count
            for name, value, count in zip(self.sums, values, counts, strict=True)
            if count
        }
        self.sums, self.counts = {}, {}
        return means


def random_state() -> dict[str, Tensor]:
    """The state of PyTorch's generators, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
