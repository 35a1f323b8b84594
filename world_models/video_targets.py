"""Prediction targets of the video model, the plug-in: the future as pictures in [−1, 1].

The video model predicts latents of pictures, whatever they show. A target turns the batch's future
into such pictures (`encode`), says how well the VAE redraws them (`loss`), and reads pictures that
the model predicted (`decode`). Name your own on the command line as `package.module:Class`; it is
built with no arguments.

Shape legend: B windows, V cameras, F future frames, H×W picture size.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from mask_classes import NAMES, PALETTE, UNLABELLED
from world_models.targets import MaskTarget, class_iou, make_target


class VideoTarget(Protocol):
    """What a video model is asked to predict.

    May have `reads` and `measure` of `targets.TargetExtras` as well. With `reads = ("mask",)`, the
    batch's `future` holds masks; without, it holds the camera's pictures. `measure` is given
    pictures like those of `loss`.
    """

    channels: int
    """The VAE draws colours: always 3."""

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's `future` as pictures (B, V, F, H, W, 3), float32 in [−1, 1]."""

    def decode(self, picture: Tensor) -> Tensor:
        """What pictures (..., H, W, 3) mean: class ids (..., H, W) or RGB (..., H, W, 3), uint8."""

    def loss(self, picture: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss, a scalar, of the redrawn pictures (B, V, F, H, W, 3) where `future_valid`."""

    def to_image(self, picture: Tensor) -> Tensor:
        """Pictures (..., H, W, 3) for people, uint8."""


def to_unit(image: Tensor) -> Tensor:
    """uint8 → float32 in [−1, 1], any shape."""
    return image.float() / 127.5 - 1.0


def to_uint8(picture: Tensor) -> Tensor:
    """The inverse of `to_unit`, clipped to what a picture can show."""
    return ((picture.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of `values`; `weight` has the same shape. 0 where all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


class PixelVideoTarget(nn.Module):
    """The camera's own future: the baseline that mask prediction is compared with."""

    channels = 3

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        return to_unit(batch["future"])

    def decode(self, picture: Tensor) -> Tensor:
        return to_uint8(picture)

    def loss(self, picture: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean absolute difference."""
        difference = (picture - self.encode(batch)).abs().mean(-1)
        valid = batch["future_valid"][:, None, :, None, None]
        return weighted_mean(difference, valid.expand(difference.shape).float())

    def to_image(self, picture: Tensor) -> Tensor:
        return to_uint8(picture)


class MaskVideoTarget(nn.Module):
    """The classes of the future's pixels, each class id one corner of the colour cube {−1, 1}³.

    Bit i of the id says which side channel i is on, so the nearest of the eight colours is found
    from three signs. A pixel that nobody labelled is drawn in the cube's centre, equally far from
    all of them; it counts in no loss, though the video model cannot but see it.
    """

    channels = 3
    reads = ("mask",)
    corners: Tensor
    palette: Tensor

    def __init__(self) -> None:
        super().__init__()
        ids = torch.arange(2**self.channels)[:, None]
        corners = 2.0 * (ids >> torch.arange(self.channels) & 1) - 1.0
        table = torch.zeros(UNLABELLED + 1, self.channels)
        table[: len(NAMES)] = corners[: len(NAMES)]
        self.classes = MaskTarget()
        self.register_buffer("corners", table, persistent=False)
        self.register_buffer("palette", torch.from_numpy(PALETTE), persistent=False)

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        return self.corners[batch["future"].long()]

    def decode(self, picture: Tensor) -> Tensor:
        bits = (picture > 0).to(torch.uint8)
        return bits[..., 0] + 2 * bits[..., 1] + 4 * bits[..., 2]

    def loss(self, picture: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Absolute difference + cross-entropy over −‖colour − corner‖², a mean over labelled pixels
        in which a class weighs as the inverse root of its share, as online (`MaskTarget`): a hand
        of 20 pixels is redrawn with IoU .41 in place of .35 after 1,180 updates.

        For corners of a cube that softmax over eight falls apart into three of two: ‖x − c‖² is
        −2·x·c plus what all corners share, hence −ln p(c) = Σ_i ln(1 + exp(−4·x_i·c_i)).
        """
        corner = self.encode(batch)
        difference = (picture - corner).abs().mean(-1)
        cross_entropy = F.softplus(-4.0 * picture * corner).sum(-1)
        mask = torch.where(self._labelled(batch), batch["future"], UNLABELLED)
        weight = self.classes.weights(self.classes.counts(mask)).to(picture.dtype)
        table = F.pad(weight, (0, UNLABELLED + 1 - len(weight)))  # nothing for the unlabelled
        return weighted_mean(difference + cross_entropy, table[mask.long()])

    def _labelled(self, batch: dict[str, Tensor]) -> Tensor:
        """Pixels that count, (B, V, F, H, W) bool."""
        valid = batch["future_valid"][:, None, :, None, None]
        return (batch["future"] != UNLABELLED) & valid

    @torch.no_grad()
    def measure(self, picture: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Intersection over union of each class, and the mean of those there: `iou/mean`."""
        mask = torch.where(self._labelled(batch), batch["future"], UNLABELLED)
        iou = class_iou(self.decode(picture).long(), mask)
        names = [f"iou/{name.replace(' ', '_')}" for name in NAMES]
        return {**dict(zip(names, iou.unbind(), strict=True)), "iou/mean": iou.nanmean()}

    def to_image(self, picture: Tensor) -> Tensor:
        return self.palette[self.decode(picture).long()]


VIDEO_TARGETS: dict[str, type[VideoTarget]] = {
    "pixels": PixelVideoTarget,
    "masks": MaskVideoTarget,
}


def make_video_target(name: str) -> VideoTarget:
    """The video target called `name`: one of `VIDEO_TARGETS`, or `package.module:Class`.

    Raises:
        UserError: no such target, or the class lacks what a target needs.
    """
    if name in VIDEO_TARGETS:
        return VIDEO_TARGETS[name]()
    target = make_target(name)
    missing = [part for part in ("encode", "decode") if not callable(getattr(target, part, None))]
    if missing:
        raise UserError(
            f"target {name!r} cannot be predicted as a video: it lacks {' and '.join(missing)}; "
            "see world_models/video_targets.py"
        )
    if target.channels != 3:
        raise UserError(f"a video target has 3 channels; target {name!r} has {target.channels}")
    return cast(VideoTarget, target)
