"""The planner of Mask2Act: observations and a task → one plan token a step.

Mask2Act (section 3.2): a GPT-style transformer over the last observations of the third-person
camera. What a plan token has to foretell is a plan target's business (`plan_targets.py`).

Shape legend: B windows, H steps of history, S picture edge, W width, L words, C their width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from errors import UserError, refuse_above
from world_models.image_encoder import InstructionSummary
from world_models.layers import MOST_LAYERS
from world_models.resnet import ResNet18, ResNetConfig


@dataclass(frozen=True)
class CausalTransformerConfig:
    """Sizes of a GPT-style transformer. Mask2Act names none: those of PLEX's kind are ours."""

    width: int = 256
    """Width W of a token, a multiple of `heads`."""
    layers: int = 6
    """Blocks."""
    heads: int = 8
    """Attention heads."""
    dropout: float = 0.1
    """Share of activations dropped while learning."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise UserError(
                f"a transformer of width {self.width}, {self.layers} layers and {self.heads} heads"
                " cannot be: the width must be a multiple of the heads"
            )
        refuse_above(MOST_LAYERS, self, "layers")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, not {self.dropout}")


@dataclass(frozen=True)
class PlannerConfig:
    """The planner."""

    image_encoder: ResNetConfig = field(default_factory=ResNetConfig)
    """Of every picture (ResNet-18)."""
    transformer: CausalTransformerConfig = field(default_factory=CausalTransformerConfig)
    """Over the steps."""
    task: Literal["goal", "instruction"] = "goal"
    """What says which task it is: the last picture of a demonstration, or its words."""


class CausalTransformer(nn.Module):
    """Blocks in which a token attends to tokens of its own and of earlier steps.

    Args:
        config: sizes.
        steps: most steps H.
    """

    def __init__(self, config: CausalTransformerConfig, steps: int):
        super().__init__()
        self.step_token = nn.Parameter(0.02 * torch.randn(steps, 1, config.width))
        block = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False
        )

    def forward(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        """What becomes of the tokens.

        Args:
            tokens: (B, H, K, W), K of every step.
            before: (B, N, W), tokens that every step may attend to.

        Returns:
            (B, H, K, W).
        """
        batch, steps, each, width = tokens.shape
        sequence = (tokens + self.step_token[:steps]).flatten(1, 2)
        if before is not None:
            sequence = torch.cat([before, sequence], dim=1)
        first = sequence.shape[1] - steps * each
        step = torch.arange(-first, steps * each, device=tokens.device).clamp(min=-1)
        step = torch.where(step < 0, -1, step // each)
        later = step[None, :] > step[:, None]  # true where attention is not allowed
        out = self.blocks(sequence, mask=later, is_causal=False)  # or it looks at every number
        return out[:, first:].unflatten(1, (steps, each))


class PictureEncoder(nn.Module):
    """Pictures (..., S, S, 3) uint8 → a token each (..., W): ResNet-18, then all of its last map.

    Args:
        config: of the ResNet.
        size: S.
        width: W.
    """

    def __init__(self, config: ResNetConfig, size: int, width: int):
        super().__init__()
        self.resnet = ResNet18(config)
        self.project = nn.Linear(self.resnet.channels * config.grid(size) ** 2, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        features = self.resnet(image.flatten(0, -4)).flatten(1)
        return self.norm(self.project(features)).view(*image.shape[:-3], -1)


class Planner(nn.Module):
    """Pictures of the third-person camera and a task → a plan token for every step.

    Args:
        config: sizes.
        steps: most steps H of history.
        size: picture edge S, pixels.
        caption_width: width C of the words.
    """

    def __init__(self, config: PlannerConfig, steps: int, size: int, caption_width: int):
        super().__init__()
        self.config, self.width = config, config.transformer.width
        self.encoder = PictureEncoder(config.image_encoder, size, self.width)
        self.task: nn.Module = nn.Linear(self.width, self.width)
        if config.task == "instruction":
            self.task = InstructionSummary(caption_width, self.width, 1)
        self.transformer = CausalTransformer(config.transformer, steps)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Plan tokens and what the encoder made of the pictures, (B, H, W) each.

        Args:
            batch: ``view`` (B, H, S, S, 3) uint8, oldest first; ``goal`` (B, S, S, 3) uint8, or
                ``text`` (B, L, C) and ``text_mask`` (B, L) bool.
        """
        picture = self.encoder(batch["view"])
        return self.plan(picture, self.task_token(batch)), picture

    def plan(self, picture: Tensor, task: Tensor) -> Tensor:
        """Plan tokens (B, H, W) from encoded pictures (B, H, W) and the task's token (B, 1, W)."""
        return self.transformer(picture[:, :, None], task)[:, :, 0]

    def task_token(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, 1, W) of ``goal``, or of ``text`` and ``text_mask``; see `forward`."""
        if self.config.task == "instruction":
            return self.task(batch["text"], batch["text_mask"])
        return self.task(self.encoder(batch["goal"]))[:, None]
