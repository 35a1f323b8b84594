"""Mask2Act's executor: observations, robot state and plan tokens → actions.

It is told no task (section 3.3): what is to be done is in the plan. A GPT-style transformer like
the planner's; the last token of a step gives its action, under mean squared error.

Shape legend: B windows, V cameras, H steps, S picture edge, D proprioception, A action, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from world_models.planner import CausalTransformer, CausalTransformerConfig, PictureEncoder
from world_models.resnet import ResNetConfig


@dataclass(frozen=True)
class ExecutorConfig:
    """The executor. Mask2Act names no sizes: ours are the planner's."""

    image_encoder: ResNetConfig = field(default_factory=ResNetConfig)
    """Of the pictures that it encodes for itself."""
    transformer: CausalTransformerConfig = field(default_factory=CausalTransformerConfig)
    """Over the steps."""
    own_view: bool = False
    """Whether it learns an encoder of the third-person camera for itself, too; otherwise it takes
    what the planner's frozen one makes of it (Mask2Act section 3.4). Without a planner it must."""


class Executor(nn.Module):
    """Pictures of all cameras, proprioception and a plan token of every step → its action.

    Args:
        config: sizes.
        steps: most steps H of history.
        cameras: V, the third-person one first.
        size: picture edge S, pixels.
        action: A.
        proprio: D.
        plan_width: width of a plan token.
        view_width: width of what the planner's encoder makes of the third-person picture; 0: the
            executor encodes it for itself.
    """

    def __init__(
        self,
        config: ExecutorConfig,
        steps: int,
        cameras: int,
        size: int,
        action: int,
        proprio: int,
        plan_width: int,
        view_width: int,
    ):
        super().__init__()
        width = config.transformer.width
        self.encoded = 1 if view_width else 0  # cameras that others have encoded
        self.encoders = nn.ModuleList(
            PictureEncoder(config.image_encoder, size, width) for _ in range(self.encoded, cameras)
        )
        self.view = nn.Linear(view_width, width) if view_width else None
        self.proprio = nn.Linear(proprio, width)
        self.plan = nn.Linear(plan_width, width)
        self.kind_token = nn.Parameter(0.02 * torch.randn(cameras + 2, width))
        self.transformer = CausalTransformer(config.transformer, steps)
        self.action = nn.Linear(width, action)

    def forward(
        self, image: Tensor, proprio: Tensor, plan: Tensor, view: Tensor | None = None
    ) -> Tensor:
        """The normalised action of every step, (B, H, A) float32.

        Args:
            image: (B, V, H, S, S, 3) uint8, oldest first.
            proprio: (B, H, D), normalised.
            plan: (B, H, plan_width).
            view: (B, H, view_width), what the planner's encoder makes of the first camera.
        """
        return self.act(self.encode(image), proprio, plan, view)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Tokens (B, H, W) of each camera that it encodes for itself, of (B, V, H, S, S, 3)."""
        pictures = image[:, self.encoded :].unbind(1)
        return [encode(each) for encode, each in zip(self.encoders, pictures, strict=True)]

    def act(
        self, pictures: Sequence[Tensor], proprio: Tensor, plan: Tensor, view: Tensor | None
    ) -> Tensor:
        """As `forward`, with the pictures as `encode` makes them."""
        seen = list(pictures)
        if self.view is not None:
            assert view is not None
            seen.insert(0, self.view(view))
        tokens = torch.stack([*seen, self.proprio(proprio), self.plan(plan)], dim=2)
        out = self.transformer(tokens + self.kind_token.to(tokens.dtype))
        return self.action(out[:, :, -1]).float()
