"""Plan targets, the plug-in of the planner: what its tokens have to foretell.

A target is a small module: what it reads of a window, a head on the plan token, a loss. Name your
own as `package.module:Class`; it is built as `Class(width, size)` with the width of a plan token
and the picture edge in pixels. Stage 1 trains planner and head; acting needs the plan alone.

Shape legend: B windows, H steps, W width, S picture edge, N objects or points, K future instants.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from mask_classes import FIXTURE, GOAL, HAND, OBJECT, PALETTE, ROBOT, SECOND, UNLABELLED
from world_models.layers import MLP
from world_models.mask_decoder import (
    MaskDecoder,
    bootstrapped_cross_entropy,
    dice_loss,
    soft_aggregation,
)

Reads = dict[str, tuple[str, Sequence[int], Sequence[int]]]
"""By name in the batch: what the third-person camera has ("rgb", "mask", "tracks", "visible",
"effector"), at which steps relative to the present one, and at which instants ahead of each."""


class PlanTarget(Protocol):
    """What a planner is asked to foretell; an `nn.Module` that holds its head."""

    def reads(self, steps: Sequence[int]) -> Reads:
        """What `loss` needs of a window whose H steps these are, the last one 0. Of several
        instants ahead, batches have those of the first step, then those of the second, ..."""

    def loss(
        self, plan: Tensor, batch: dict[str, Tensor], encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar, and metrics, for plan tokens (B, H, W).

        `encode` makes features (..., W) of pictures (..., S, S, 3), with averaged weights.
        """

    def draw(self, plan: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What came and what was foretold at the present step, for people: twice (B, K, S, S, 3)
        uint8."""

    # A target may also have `film(plan, batch)`, for evaluation's videos: from plans (B, W) of the
    # present step, `view` (B, H, S, S, 3) and `mask` (B, H, S, S) pictures (B, K, S, S, 3) uint8.


# ------------------------------------------------------------------------------- object masks

OBJECTS: dict[str, tuple[int, ...]] = {
    "robot": (ROBOT, HAND),
    "object": (OBJECT,),
    "second": (SECOND,),
    "goal": (GOAL,),
    "fixture": (FIXTURE,),
}
"""The objects of a task by name: the classes of a semantic mask that show each."""


class MaskPlan(nn.Module):
    """Where each object will be some steps ahead (Mask2Act section 3.2).

    Bootstrapped cross-entropy over background and objects, and Dice, 1:1.

    Args:
        width: W.
        size: S.
        ahead: steps Δ to each of the K masks that are foretold.
        objects: names of `OBJECTS`; a window has those of them that it shows.
        most: how many at most, the first ones named.
        decoded: of how many steps of a window, drawn at random, masks are decoded an update; 0:
            of all.
    """

    updates: Tensor

    def __init__(
        self,
        width: int,
        size: int,
        ahead: Sequence[int] = (4,),
        objects: Sequence[str] = tuple(OBJECTS),
        most: int = 2,
        decoded: int = 0,
    ):
        super().__init__()
        self.ahead, self.most, self.decoded = list(ahead), most, decoded
        self.classes = [OBJECTS[name] for name in objects]
        self.decoder = MaskDecoder(width, size, len(self.ahead))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._done = 0  # the same number, known without waiting for the device while learning
        self.register_load_state_dict_post_hook(MaskPlan._count)

    def reads(self, steps: Sequence[int]) -> Reads:
        return {
            "mask": ("mask", steps, [0]),
            "mask_ahead": ("mask", steps, self.ahead),
        }

    def objects(self, mask: Tensor) -> Tensor:
        """Which object each pixel shows.

        Args:
            mask: (..., S, S) class ids.

        Returns:
            (..., candidates, S, S) bool, one for each object that the target was made for.
        """
        shown = [torch.stack([mask == each for each in ids]).any(0) for ids in self.classes]
        return torch.stack(shown, dim=-3)

    def chosen(self, mask: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first `most` objects that are there now.

        Args:
            mask: (B, S, S) class ids now.
            ahead: (B, K, S, S) then.

        Returns:
            (B, N, S, S) bool now, (B, N, K, S, S) bool then, and (B, N) bool: whether there is
            such an object.
        """
        now, then = self.objects(mask), self.objects(ahead).transpose(1, 2)
        there = now.any(-1).any(-1)  # (B, candidates)
        order = there.float().sort(dim=1, descending=True, stable=True).indices[:, : self.most]
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        return now[rows, order], then[rows, order], there[rows, order]

    def logits(self, plan: Tensor, objects: Tensor, there: Tensor) -> Tensor:
        """Of background and objects, (B, 1 + N, K, S, S), from plans (B, W)."""
        each = self.decoder(plan, objects)
        return soft_aggregation(each.masked_fill(~there[:, :, None, None, None], -torch.inf))

    def loss(
        self, plan: Tensor, batch: dict[str, Tensor], encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy + Dice; metrics: both, the objects' mean IoU, and that of masks that stay
        where they are."""
        windows, steps = plan.shape[:2]
        count = min(self.decoded or steps, steps)
        rows = torch.arange(windows, device=plan.device)[:, None]
        kept = torch.arange(steps, device=plan.device).expand(windows, -1)
        if count < steps:
            kept = torch.rand(windows, steps, device=plan.device).topk(count, dim=1).indices
        plan, mask = plan[rows, kept].flatten(0, 1), batch["mask"][rows, kept].flatten(0, 1)
        ahead = batch["mask_ahead"].unflatten(1, (-1, len(self.ahead)))[rows, kept].flatten(0, 1)
        now, then, there = self.chosen(mask, ahead)
        logits = self.logits(plan, now, there)
        label = _label(then)
        label = torch.where(ahead == UNLABELLED, -1, label)  # (B·steps, K, S, S)
        hard = bootstrapped_cross_entropy(_each(logits), label.flatten(0, 1), self._share())
        known = label[:, None] >= 0
        counted = there[:, :, None].expand(then.shape[:3])
        dice = dice_loss(logits.softmax(1)[:, 1:] * known, then.float(), counted)
        if self.training:
            self.updates += 1
            self._done += 1
        metrics = {"cross_entropy": hard.detach(), "dice": dice.detach()}
        return hard + dice, metrics | self._measured(logits.detach(), now, then, there)

    def _count(self, keys: object) -> None:
        self._done = int(self.updates)

    def _share(self) -> float:
        """Of the pixels that count: all at first, then ever harder ones."""
        # Averaged weights learn nothing themselves; their number is copied to them.
        done = self._done if self.training else int(self.updates)
        return 1.0 + (HARDEST - 1.0) * min(1.0, done / WARMUP)

    @staticmethod
    def _measured(logits: Tensor, now: Tensor, then: Tensor, there: Tensor) -> dict[str, Tensor]:
        """Intersection over union of the objects, and what it is if nothing moves."""

        def iou(left: Tensor, right: Tensor) -> Tensor:
            both = (left & right).sum((-2, -1)) / (left | right).sum((-2, -1))
            counted = there[:, :, None] & (left | right).any(-1).any(-1)
            return torch.where(counted, both, torch.nan).nanmean()  # to select is to wait

        numbers = torch.arange(1, logits.shape[1], device=logits.device)[:, None, None, None]
        foretold = _strongest(logits)[:, None] == numbers
        return {"iou/objects": iou(foretold, then), "iou/still": iou(now[:, :, None], then)}

    @torch.no_grad()
    def draw(self, plan: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Masks at every instant over a darkened picture of now; where they came is outlined in
        what was foretold."""
        ahead = batch["mask_ahead"].unflatten(1, (-1, len(self.ahead)))[:, -1]
        _, then, _ = self.chosen(batch["mask"][:, -1], ahead)
        true = _label(then)
        foretold = self.film(plan[:, -1], batch)
        return overlay(batch["view"][:, -1:], true), outlined(foretold, true)

    @torch.no_grad()
    def film(self, plan: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """As `PlanTarget.film`, of what `mask` (B, H, S, S) shows now."""
        mask = batch["mask"][:, -1]
        now, _, there = self.chosen(mask, mask[:, None])
        label = _strongest(self.logits(plan, now, there))
        return overlay(batch["view"][:, -1:], label)


def _label(objects: Tensor) -> Tensor:
    """(B, N, ...) bool → (B, ...) int64: the first object that is there, from 1, or 0."""
    label = torch.zeros_like(objects[:, 0], dtype=torch.int64)
    for number in range(objects.shape[1], 0, -1):
        label = torch.where(objects[:, number - 1], number, label)
    return label


def _strongest(logits: Tensor) -> Tensor:
    """`argmax` over dimension 1, several times as fast on a CPU, where that is strided."""
    return _label(logits == logits.amax(1, keepdim=True)) - 1


def _each(logits: Tensor) -> Tensor:
    """(B, C, K, S, S) → (B·K, C, S, S)."""
    return logits.transpose(1, 2).flatten(0, 1)


WARMUP = 2_000
"""Updates until only the hardest pixels count."""
HARDEST = 0.15
"""Share of the pixels that counts in the end."""


def overlay(picture: Tensor, label: Tensor) -> Tensor:
    """Labels (B, K, S, S), 0 nothing, in colours over pictures (B, 1, S, S, 3) uint8."""
    colours = torch.from_numpy(PALETTE).to(picture.device)
    colour = colours[label.long() % len(colours)]
    return torch.where(label[..., None] > 0, picture // 3 + colour // 3 * 2, picture // 2)


def outlined(picture: Tensor, label: Tensor) -> Tensor:
    """Pictures (B, K, S, S, 3) uint8 with a white line where labels (B, K, S, S) change."""
    edge = torch.zeros_like(label, dtype=torch.bool)
    edge[..., 1:, :] |= label[..., 1:, :] != label[..., :-1, :]
    edge[..., 1:] |= label[..., 1:] != label[..., :-1]
    return picture.masked_fill(edge[..., None], 255)


# ----------------------------------------------------------------------------- other futures


class FeaturePlan(nn.Module):
    """The features of future pictures (PLEX): those of the averaged encoder, which has no
    shortcut to the same features for all pictures, as the latest one has.

    Args:
        width: W.
        size: S.
        ahead: steps to each of the K pictures.
    """

    def __init__(self, width: int, size: int, ahead: Sequence[int] = (4,)):
        super().__init__()
        self.ahead = list(ahead)
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width * len(self.ahead))
        )

    def reads(self, steps: Sequence[int]) -> Reads:
        return {"view_ahead": ("rgb", steps, self.ahead)}

    def foretold(self, plan: Tensor) -> Tensor:
        """(..., W) → (..., K, W), of length 1."""
        return F.normalize(self.head(plan).unflatten(-1, (len(self.ahead), -1)), dim=-1)

    def loss(
        self, plan: Tensor, batch: dict[str, Tensor], encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative cosine similarity, + 1; `spread` is the features' mean deviation over pictures:
        0 where the encoder tells none from another."""
        with torch.no_grad():
            target = F.normalize(encode(batch["view_ahead"]), dim=-1)  # (B, H·K, W)
        loss = 1.0 - (self.foretold(plan).flatten(1, 2) * target).sum(-1).mean()
        return loss, {"spread": target.flatten(0, -2).std(0).mean() * target.shape[-1] ** 0.5}

    @torch.no_grad()
    def draw(self, plan: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The last of the future pictures, and the one of these whose features are nearest to the
        foretold."""
        future = batch["view_ahead"][:, -1]
        features = F.normalize(batch["encoded_ahead"], dim=-1)
        nearest = (self.foretold(plan[:, -1])[:, -1] @ features.T).argmax(1)
        return future[:, None], future[nearest][:, None]


class TrajectoryPlan(nn.Module):
    """The path of the end effector in the picture from now on (MimicPlay).

    Args:
        width: W.
        size: S.
        instants: points of the path after the present one; K is one more.
        stride: steps between them.
    """

    def __init__(self, width: int, size: int, instants: int = 8, stride: int = 2):
        super().__init__()
        self.size = size
        self.ahead = [stride * instant for instant in range(instants + 1)]
        self.head = MLP(width, width, 1, 2 * len(self.ahead))

    def reads(self, steps: Sequence[int]) -> Reads:
        return {"effector_ahead": ("effector", steps, self.ahead)}

    def path(self, plan: Tensor) -> Tensor:
        """(..., W) → (..., K, 2) pixels."""
        return self.size * (0.5 + self.head(plan).unflatten(-1, (-1, 2)))

    def loss(
        self, plan: Tensor, batch: dict[str, Tensor], encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute distance in picture edges; `still`: that of a path that stays."""
        true = batch["effector_ahead"].unflatten(1, (-1, len(self.ahead)))
        error = (self.path(plan) - true).abs().mean() / self.size
        return error, {"still": (true - true[:, :, :1]).abs().mean() / self.size}

    @torch.no_grad()
    def draw(self, plan: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The path drawn into the picture of now."""
        true = batch["effector_ahead"].unflatten(1, (-1, len(self.ahead)))[:, -1]
        return dotted(batch["view"][:, -1], true)[:, None], self.film(plan[:, -1], batch)

    @torch.no_grad()
    def film(self, plan: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """As `PlanTarget.film`."""
        return dotted(batch["view"][:, -1], self.path(plan))[:, None]


class PointPlan(nn.Module):
    """Where points of the picture will be (ATM): tracks of points that are asked for by their
    place.

    Args:
        width: W.
        size: S.
        instants: K.
        stride: steps between them.
        points: asked for at each step of a window.
    """

    def __init__(self, width: int, size: int, instants: int = 4, stride: int = 4, points: int = 32):
        super().__init__()
        self.size, self.points = size, points
        self.ahead = [stride * (instant + 1) for instant in range(instants)]
        self.ask = nn.Linear(2 * 2 * FREQUENCIES, width)
        self.head = MLP(2 * width, width, 2, 2 * instants)

    def reads(self, steps: Sequence[int]) -> Reads:
        return {
            "tracks": ("tracks", steps, [0]),
            "visible": ("visible", steps, [0]),
            "tracks_ahead": ("tracks", steps, self.ahead),
        }

    def foretold(self, plan: Tensor, points: Tensor) -> Tensor:
        """Displacements (..., N, K, 2) in picture edges.

        Args:
            plan: (..., W).
            points: (..., N, 2) pixels now.
        """
        frequency = torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=plan.device)
        angle = (points / self.size)[..., None] * frequency
        place = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
        asked = F.gelu(self.ask(place.to(plan.dtype)))
        told = plan[..., None, :].expand(*asked.shape[:-1], -1)
        return self.head(torch.cat([asked, told], -1)).unflatten(-1, (-1, 2))

    def loss(
        self, plan: Tensor, batch: dict[str, Tensor], encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute distance in picture edges, over points that are seen now."""
        now, seen = batch["tracks"], batch["visible"]
        true = batch["tracks_ahead"].unflatten(1, (-1, len(self.ahead))) - now[:, :, None]
        true = true.transpose(2, 3) / self.size  # (B, H, N, K, 2)
        if now.shape[2] > self.points:
            kept = torch.randperm(now.shape[2], device=now.device)[: self.points]
            now, seen, true = now[:, :, kept], seen[:, :, kept], true[:, :, kept]
        error = (self.foretold(plan, now) - true).abs().mean((-2, -1))
        count = seen.sum().clamp(min=1)
        still = (true.abs().mean((-2, -1)) * seen).sum() / count
        return (error * seen).sum() / count, {"still": still}

    @torch.no_grad()
    def draw(self, plan: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The points seen now with where they go."""
        now, seen = batch["tracks"][:, -1], batch["visible"][:, -1]
        picture = batch["view"][:, -1]
        true = batch["tracks_ahead"].unflatten(1, (-1, len(self.ahead)))[:, -1].transpose(1, 2)
        foretold = now[:, :, None] + self.size * self.foretold(plan[:, -1], now)
        hidden = ~seen[:, :, None, None].expand_as(true)
        true = true.masked_fill(hidden, -1.0).flatten(1, 2)
        foretold = foretold.masked_fill(hidden, -1.0).flatten(1, 2)
        return dotted(picture, true)[:, None], dotted(picture, foretold)[:, None]

    @torch.no_grad()
    def film(self, plan: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """As `PlanTarget.film`: where the points of a grid go."""
        edge = (torch.arange(GRID, device=plan.device) + 0.5) * self.size / GRID
        grid = torch.cartesian_prod(edge, edge).expand(len(plan), -1, -1)
        foretold = grid[:, :, None] + self.size * self.foretold(plan, grid)
        return dotted(batch["view"][:, -1], foretold.flatten(1, 2))[:, None]


FREQUENCIES = 6
"""Sines and cosines that say where a point is."""
GRID = 6
"""Points a side of the grid that a film asks for."""


def dotted(picture: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, 2) in pixels (x, y) drawn into pictures (B, S, S, 3) uint8, later ones
    brighter; those outside are left out."""
    drawn, size = picture // 2, picture.shape[-2]
    place = points.round().long()
    inside = ((place >= 0) & (place < size)).all(-1)
    for number in range(points.shape[1]):
        rows = inside[:, number].nonzero()[:, 0]
        colour = torch.tensor([255, 80 + 175 * number // points.shape[1], 0], dtype=torch.uint8)
        x, y = place[rows, number].unbind(-1)
        drawn[rows, y, x] = colour.to(drawn.device)
    return drawn


PLANS: dict[str, type[nn.Module]] = {
    "masks": MaskPlan,
    "features": FeaturePlan,
    "trajectory": TrajectoryPlan,
    "points": PointPlan,
}
"""Targets of plan tokens. Beside them a method knows `none` and `video`, which need no tokens."""


def classes_named(name: str) -> tuple[str, ...]:
    """What a plan would import: itself, where it is a class of the user's own."""
    return (name,) if ":" in name else ()


def plan_target_class(name: str) -> type[nn.Module]:
    """The class called `name`: one of `PLANS`, or `package.module:Class`.

    Raises:
        UserError: no such target, or the class lacks what a target needs.
    """
    if name in PLANS:
        return PLANS[name]
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise UserError(
            f"unknown plan {name!r}; use one of {', '.join(PLANS)}, package.module:Class"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"plan {name!r} cannot be imported: {reason}") from error
    missing = [part for part in ("reads", "loss", "draw") if not hasattr(found, part)]
    if missing:
        raise UserError(
            f"plan {name!r} lacks {', '.join(missing)}; see world_models/plan_targets.py"
        )
    return cast(type[nn.Module], found)
