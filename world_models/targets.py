"""Prediction targets, the plug-in: what the autoencoder predicts for every pixel.

A target is a small class. The autoencoder asks it for `channels` (C values per pixel) and for
`loss(prediction, batch)`; people ask it for `to_image(prediction)`. Name your own on the command
line as `package.module:Class`; it is built with no arguments.

The autoencoder always *sees* the picture alone. What else a target wants to be told about a frame
while it learns, it names in `reads`, and the environments and the replay provide it.

Shape legend: B images, H = W image size, C channels of the target, K classes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from mask_classes import NAMES, PALETTE, UNLABELLED, colorize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics of an RGB image in [0, 1] (paper Table 1, "Image normalization")."""


class PredictionTarget(Protocol):
    """What a decoder is asked to predict for every pixel. May have members of `TargetExtras`."""

    channels: int

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss, a scalar, of `prediction` (B, H, W, C) float32 against the batch."""

    def to_image(self, prediction: Tensor) -> Tensor:
        """`prediction` (B, H, W, C) as pictures for people, (B, H, W, 3) uint8."""


class TargetExtras(Protocol):
    """What a target may have beside `PredictionTarget`; each member may be left out.

    The functions `reads`, `measure` and `target_image` of this module ask for them.
    """

    reads: Sequence[str]
    """Observations that `loss` needs beside `image`: "mask"."""

    def measure(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars for the log, without gradients; NaN for what this batch cannot tell."""

    def target_image(self, batch: dict[str, Tensor]) -> Tensor:
        """What `to_image` of a perfect prediction would be, where that is not the image."""


class Standardise(nn.Module):
    """uint8 images (B, H, W, 3) → float32 with ImageNet's mean 0 and standard deviation 1.

    Works on the flattened picture: broadcasting three numbers over the innermost axis costs a
    quarter of the autoencoder's time on a CPU, one multiply-add with a full-length row does not.
    """

    scale: Tensor
    shift: Tensor

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

    def denormalise(self, standardised: Tensor) -> Tensor:
        """float (..., 3) → uint8, clipped to what a picture can show."""
        image = (standardised - self.shift) / self.scale
        return image.round().clamp(0, 255).to(torch.uint8)


class PixelTarget(nn.Module):
    """The standardised picture under mean squared error over all pixels (paper eq. 13).

    Not a [0, 1] picture: that would weaken pixels about 20-fold against the reward.
    """

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise()

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (prediction - self.standardise(batch["image"])).square().mean()

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.standardise.denormalise(prediction)


class MaskTarget(nn.Module):
    """The semantic class of every pixel under weighted cross-entropy.

    A class weighs as the inverse square root of its share of the batch's pixels, so that a gripper
    of 20 pixels counts and the background does not vanish. Pixels that nobody has labelled
    (`mask_classes.UNLABELLED`) count nowhere.
    """

    channels = len(NAMES)
    reads = ("mask",)
    palette: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("palette", torch.from_numpy(PALETTE), persistent=False)

    def counts(self, mask: Tensor) -> Tensor:
        """Pixels of each class in masks of any shape, (K,) float32."""
        ids = mask.flatten().long()
        counts = torch.zeros(UNLABELLED + 1, device=mask.device)
        return counts.scatter_add_(0, ids, torch.ones_like(ids, dtype=counts.dtype))[: len(NAMES)]

    def weights(self, counts: Tensor) -> Tensor:
        """Weight of each class given its pixels, (K,) float32; 0 where there are none."""
        share = counts / counts.sum().clamp(min=1.0)
        return torch.where(counts > 0, share.clamp(min=1e-12).rsqrt(), 0.0)

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        mask = labels(batch)
        counts = self.counts(mask)
        weight = self.weights(counts)
        # Classes first: a softmax over eight neighbours in memory takes four times as long.
        logits = prediction.flatten(0, -2).T.contiguous()[None]
        loss = F.cross_entropy(
            logits,
            mask.reshape(1, -1).long(),
            weight=weight,
            ignore_index=UNLABELLED,
            reduction="sum",
        )
        return loss / (counts @ weight).clamp(min=1.0)  # 0 where nothing is labelled

    @torch.no_grad()
    def measure(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Intersection over union of each class over the batch, and the mean of the classes that
        are there: `iou/hand`, `iou/mean`."""
        iou = class_iou(prediction.argmax(-1), labels(batch))
        names = [f"iou/{name.replace(' ', '_')}" for name in NAMES]
        return {**dict(zip(names, iou.unbind(), strict=True)), "iou/mean": iou.nanmean()}

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.palette[prediction.argmax(-1)]

    def target_image(self, batch: dict[str, Tensor]) -> Tensor:
        mask = labels(batch)
        return torch.from_numpy(colorize(mask.cpu().numpy())).to(mask.device)


def labels(batch: dict[str, Tensor]) -> Tensor:
    """The batch's masks. Raises UserError when it has none."""
    if "mask" not in batch:
        raise UserError(
            "the target masks learns from masks and these frames have none; "
            "record them with masks=True"
        )
    return batch["mask"]


def class_iou(predicted: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of every class over all labelled pixels.

    Args:
        predicted: class ids, int64.
        mask: class ids of the same shape; `UNLABELLED` pixels do not count.

    Returns:
        (K,) float32, NaN for a class that is neither predicted nor there.
    """
    classes = len(NAMES)
    labelled = mask != UNLABELLED
    pairs = torch.where(labelled, mask.long() * classes + predicted, classes**2)
    counts = torch.zeros(classes**2 + 1, device=pairs.device)
    counts.scatter_add_(0, pairs.flatten(), torch.ones_like(pairs.flatten(), dtype=counts.dtype))
    counts = counts[:-1].view(classes, classes)
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


class WeightedSum(nn.Module):
    """Several targets predicted by one decoder, each with its own channels.

    Args:
        parts: (name, weight, target); the loss is the sum of weight · loss.
    """

    def __init__(self, parts: Sequence[tuple[str, float, PredictionTarget]]):
        super().__init__()
        self.names = [name for name, _, _ in parts]
        self.weights = [weight for _, weight, _ in parts]
        self.targets = [target for _, _, target in parts]
        # Those with tensors of their own move to the device with the model.
        self.modules_among = nn.ModuleList(t for t in self.targets if isinstance(t, nn.Module))
        self.sizes = [target.channels for target in self.targets]
        self.channels = sum(self.sizes)
        self._losses: list[Tensor] = []
        self.reads = tuple(dict.fromkeys(name for t in self.targets for name in reads(t)))

    def _each(self, prediction: Tensor) -> list[tuple[PredictionTarget, Tensor]]:
        return list(zip(self.targets, prediction.split(self.sizes, dim=-1), strict=True))

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        losses = [target.loss(part, batch) for target, part in self._each(prediction)]
        self._losses = [loss.detach() for loss in losses]
        weighted = (weight * loss for weight, loss in zip(self.weights, losses, strict=True))
        return sum(weighted, start=prediction.new_zeros(()))

    @torch.no_grad()
    def measure(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each target's own loss in the last call of `loss`, by its name, and what it measures."""
        measured = {
            f"loss/{name}": loss for name, loss in zip(self.names, self._losses, strict=True)
        }
        for target, part in self._each(prediction):
            measured |= measure(target, part, batch)
        return measured

    def to_image(self, prediction: Tensor) -> Tensor:
        """The targets' pictures side by side, (B, H, n·W, 3)."""
        return torch.cat([target.to_image(part) for target, part in self._each(prediction)], dim=2)

    def target_image(self, batch: dict[str, Tensor]) -> Tensor:
        """The target images side by side; for a target without one, the image itself."""
        images = [target_image(target, batch) for target in self.targets]
        return torch.cat([batch["image"] if t is None else t for t in images], dim=2)


# What a target may leave out.


def reads(target: PredictionTarget) -> tuple[str, ...]:
    """Observations that the target's loss needs beside `image`."""
    return tuple(getattr(target, "reads", ()))


def measure(
    target: PredictionTarget, prediction: Tensor, batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The target's scalars for the log, each under a name of its own."""
    measured = target.measure(prediction, batch) if hasattr(target, "measure") else {}
    return {
        name if "/" in name else f"target/{name}": torch.as_tensor(value)
        for name, value in measured.items()
    }


def target_image(target: PredictionTarget, batch: dict[str, Tensor]) -> Tensor | None:
    """Pictures (B, H, W, 3) of what it should have predicted; None where that is the image."""
    return target.target_image(batch) if hasattr(target, "target_image") else None


TARGETS: dict[str, type[PredictionTarget]] = {"pixels": PixelTarget, "masks": MaskTarget}


def make_target(name: str) -> PredictionTarget:
    """The target called `name`.

    Args:
        name: one of `TARGETS`, `package.module:Class`, or a weighted sum of such:
            `pixels+masks`, `pixels:1+masks:0.5`.

    Raises:
        UserError: no such target, the class lacks what a target needs, or a weight is not positive.
    """
    parts = _parts(name)
    if len(parts) == 1 and parts[0][1] == 1.0:
        return _make_one(parts[0][0])
    return WeightedSum([(part, weight, _make_one(part)) for part, weight in parts])


def classes_named(name: str) -> tuple[str, ...]:
    """What `make_target` would import: the parts of `name` that are `package.module:Class`.

    Raises:
        UserError: there can be no such target, or a weight is not positive.
    """
    classes = tuple(part for part, _ in _parts(name) if part not in TARGETS)
    for part in classes:
        _module_and_class(part)
    return classes


def _module_and_class(name: str) -> tuple[str, str]:
    """`package.module:Class` → ("package.module", "Class"). Raises UserError for anything else."""
    module, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), class_name)):
        raise UserError(
            f"unknown target {name!r}; use one of {', '.join(TARGETS)}, package.module:Class, or "
            "a sum of them such as pixels:1+masks:0.5"
        )
    return module, class_name


def _parts(name: str) -> list[tuple[str, float]]:
    return [_parse(part.strip()) for part in name.split("+")]


def _parse(part: str) -> tuple[str, float]:
    """`masks:0.5` → ("masks", 0.5); the weight is 1 where none is given."""
    name, _, last = part.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        return part, 1.0
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"the weight of target {name!r} must be above 0, not {last}")
    return name, weight


def _make_one(name: str) -> PredictionTarget:
    if name in TARGETS:
        return TARGETS[name]()
    module_name, class_name = _module_and_class(name)
    try:
        target = getattr(importlib.import_module(module_name), class_name)()
    except (Exception, SystemExit) as error:  # whatever a user's module or constructor raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"target {name!r} cannot be made: {reason}") from error
    missing = [part for part in ("channels", "loss", "to_image") if not hasattr(target, part)]
    if missing:
        raise UserError(f"target {name!r} lacks {', '.join(missing)}; see world_models/targets.py")
    if not (callable(target.loss) and callable(target.to_image)):
        raise UserError(f"target {name!r}: loss and to_image must be methods")
    if isinstance(wanted := getattr(target, "reads", ()), str) or set(wanted) - {"mask"}:
        raise UserError(f'target {name!r} reads {wanted!r}; it can read ("mask",)')
    if type(target.channels) is not int or target.channels < 1:
        raise UserError(
            f"target {name!r} has channels = {target.channels!r}; it must be a whole number above 0"
        )
    return target
