"""Pictures of several cameras as one picture, each below the one before.

World models that learn online see one picture; where there are several cameras it is theirs
together. Shape legend: V cameras, S edge of a camera's picture, C channels.
"""

from __future__ import annotations

from torch import Tensor

AXES = {"image": 3, "mask": 2}
"""Of one camera's picture, by the name that batches have for it."""


def stacked(picture: Tensor, axes: int = 3) -> Tensor:
    """Pictures (..., V, S, S, C) of cameras → (..., V·S, S, C); with 2 axes masks, without C."""
    return picture.flatten(-1 - axes, -axes)


def views_stacked(batch: dict[str, Tensor], views: int) -> dict[str, Tensor]:
    """A batch with `image` (..., V, S, S, 3) and `mask` (..., V, S, S) as one picture each,
    (..., V·S, S, 3) and (..., V·S, S); as it is where there is one camera, and no axis V."""
    if views == 1:
        return batch
    return {n: stacked(v, AXES[n]) if n in AXES else v for n, v in batch.items()}


def as_channels(picture: Tensor, views: int) -> Tensor:
    """One picture (n, V·S, S, C) → (n, S, S, V·C): cameras beside each other in channels."""
    if views == 1:
        return picture
    return picture.unflatten(1, (views, -1)).permute(0, 2, 3, 1, 4).flatten(3)


def from_channels(picture: Tensor, views: int) -> Tensor:
    """The inverse of `as_channels`."""
    if views == 1:
        return picture
    return picture.unflatten(3, (views, -1)).permute(0, 3, 1, 2, 4).flatten(1, 2)
