"""The plug-in: what a world model predicts.

A target is a small class. The autoencoder asks it for `channels` (C values per pixel) and for
`loss(prediction, batch)`; people ask it for `to_image(prediction)`. Name your own on the command
line as `package.module:Class`; it is built with no arguments.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import torch
from torch import Tensor, nn

from errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics of an RGB image in [0, 1] (paper Table 1, "Image normalization")."""


class PredictionTarget(Protocol):
    """What a decoder is asked to predict for every pixel."""

    channels: int

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss, a scalar, of `prediction` (B, H, W, C) float32 against the batch."""

    def to_image(self, prediction: Tensor) -> Tensor:
        """`prediction` (B, H, W, C) as pictures for people, (B, H, W, 3) uint8."""


class Standardise(nn.Module):
    """uint8 images (B, H, W, 3) → float32 with ImageNet's mean 0 and standard deviation 1.

    Works on the flattened picture: broadcasting three numbers over the innermost axis costs a
    quarter of the autoencoder's time on a CPU, one multiply-add with a full-length row does not.
    """

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.shape[-3] * image.shape[-2]
        flat = image.flatten(-3).float()
        standardised = torch.addcmul(self.shift.repeat(pixels), flat, self.scale.repeat(pixels))
        return standardised.view(image.shape)

    def undo(self, standardised: Tensor) -> Tensor:
        """float (..., 3) → uint8, clipped to what a picture can show."""
        image = (standardised - self.shift) / self.scale
        return image.round().clamp(0, 255).to(torch.uint8)


class PixelTarget(nn.Module):
    """The standardised picture under mean squared error over all pixels (paper eq. 13).

    Not a [0, 1] picture: that would weaken pixels about 20-fold against the reward (spec).
    """

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise()

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (prediction - self.standardise(batch["image"])).square().mean()

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.standardise.undo(prediction)


TARGETS: dict[str, type] = {"pixels": PixelTarget}


def make_target(name: str) -> PredictionTarget:
    """The target called `name`: one of `TARGETS`, or `package.module:Class`.

    Raises:
        UserError: no such target, or the class lacks what a target needs.
    """
    if name in TARGETS:
        return TARGETS[name]()
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        raise UserError(
            f"unknown target {name!r}; use one of {', '.join(TARGETS)}, or package.module:Class"
        )
    try:
        target = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"target {name!r} cannot be made: {error}") from error
    missing = [part for part in ("channels", "loss", "to_image") if not hasattr(target, part)]
    if missing:
        raise UserError(f"target {name!r} lacks {', '.join(missing)}; see world_models/targets.py")
    return target
