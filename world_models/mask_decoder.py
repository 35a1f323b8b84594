"""Mask2Act's decoder: a plan token and the mask of any object → where that object will be.

It is told which object by the object's own mask, so that it serves any number of objects, and what
moves by the plan alone: it never sees a picture. Learning gives plan tokens their meaning; acting
does without it.

Shape legend: B plans, N objects, K instants ahead, S picture edge, W plan width, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError

HALVINGS = 3


class MaskDecoder(nn.Module):
    """A U-shaped network on one binary mask, with the plan where it is smallest.

    Args:
        plan_width: W.
        size: S, a multiple of 8.
        instants: K, the masks that are foretold of each object.
        channels: C of maps of half the picture's size; each smaller one has twice as many, that of
            the picture's own size, which costs most, half.

    Raises:
        UserError: the size cannot be halved three times.
    """

    def __init__(self, plan_width: int, size: int, instants: int = 1, channels: int = 16):
        super().__init__()
        if size % 2**HALVINGS:
            raise UserError(f"masks of {size} pixels cannot be halved {HALVINGS} times")
        widths = [channels << level for level in range(HALVINGS)]  # of S/2, S/4, S/8
        self.down = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
            for inputs, outputs in zip([1, *widths], widths, strict=False)
        )
        self.plan = nn.Linear(plan_width, widths[-1] * (size // 2**HALVINGS) ** 2)
        self.fuse = nn.Conv2d(2 * widths[-1], widths[-1], 3, padding=1)
        smaller, skipped = widths[::-1], [*widths[-2::-1], 1]
        last = max(channels // 2, 1)
        larger = [*widths[-2::-1], last]
        self.up = nn.ModuleList(
            nn.Conv2d(inputs + before, outputs, 3, padding=1)
            for inputs, before, outputs in zip(smaller, skipped, larger, strict=True)
        )
        self.head = nn.Conv2d(last, instants, 1)

    def forward(self, plan: Tensor, mask: Tensor) -> Tensor:
        """The logits of the object's future masks.

        Args:
            plan: (B, W).
            mask: (B, N, S, S), 1 where the object is now.

        Returns:
            (B, N, K, S, S) float32; each object's depend on its own mask alone.
        """
        features, skipped = mask.flatten(0, 1)[:, None].to(plan.dtype), []
        for layer in self.down:
            skipped.append(features)
            features = F.gelu(layer(features))
        told = self.plan(plan).view(len(plan), *features.shape[1:])
        told = told.repeat_interleave(mask.shape[1], dim=0)
        features = F.gelu(self.fuse(torch.cat([features, told], dim=1)))
        for layer, before in zip(self.up, reversed(skipped), strict=True):
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = F.gelu(layer(torch.cat([features, before], dim=1)))
        return self.head(features).unflatten(0, mask.shape[:2]).float()


def soft_aggregation(logits: Tensor) -> Tensor:
    """Logits over background and objects from each object's own (Mask2Act eq. 3; XMem).

    With pₙ an object's probability, the background's is ∏(1 − pₙ); the classes' logits are
    ln(p / (1 − p)), so that softmax weighs them against each other.

    Args:
        logits: (B, N, ...) of each object; −inf for one that is not there.

    Returns:
        (B, 1 + N, ...), the background first.
    """
    background = F.logsigmoid(-logits).sum(1, keepdim=True)  # ln ∏(1 − p)
    background = background.clamp(max=-1e-7)
    odds = background - torch.log(-torch.expm1(background))  # ln p − ln(1 − p)
    return torch.cat([odds, logits], dim=1).clamp(-MOST, MOST)


MOST = 20.0
"""Of a logit: a probability of 2e-9 or 1 minus that."""


def bootstrapped_cross_entropy(logits: Tensor, label: Tensor, share: float) -> Tensor:
    """Mean cross-entropy over the hardest pixels of each picture (Mask2Act; XMem).

    Args:
        logits: (B, 1 + N, S, S).
        label: (B, S, S) int64, 0 the background; −1 counts nowhere.
        share: of the pixels that counts.

    Returns:
        A scalar.
    """
    losses = F.cross_entropy(logits, label, ignore_index=-1, reduction="none").flatten(1)
    if share < 1:
        losses = losses.topk(max(1, int(share * losses.shape[1])), dim=1).values
    return losses.mean()


def dice_loss(probability: Tensor, mask: Tensor, there: Tensor) -> Tensor:
    """1 − (2·Σpm + 1) / (Σp + Σm + 1), the mean over objects (XMem).

    Args:
        probability: (..., S, S) of each object.
        mask: (..., S, S), 0 or 1.
        there: (...) bool, which objects count.
    """
    overlap = (probability * mask).sum((-2, -1))
    both = probability.sum((-2, -1)) + mask.sum((-2, -1))
    losses = 1.0 - (2.0 * overlap + 1.0) / (both + 1.0)
    return (losses * there).sum() / there.sum().clamp(min=1)
