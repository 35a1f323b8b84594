"""The configuration of Mask World Model: both stages, their optimisers, and what the data fixes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agents.device import Precision
from agents.diffusion_policy import DiffusionPolicyConfig
from envs.windows import WindowConfig
from errors import UserError
from world_models.image_encoder import ImageEncoderConfig
from world_models.layers import OptimizerConfig
from world_models.mask_dynamics import MaskDynamicsConfig


@dataclass(frozen=True)
class ImitationAgentConfig:
    """Mask World Model: stage 1 (dynamics) and stage 2 (policy). The defaults are the paper's."""

    world_model: Literal["video", "none", "blind"] = "video"
    """video: the policy acts on a video model of the future; none: on an image encoder learned with
    it, the baseline that tells a gain from a good policy head; blind: the same on black pictures,
    what proprioception and words achieve alone."""
    language: str = "words"
    """Encoder of the instruction: words (no download) or t5:FOLDER_OR_NAME."""
    dynamics: MaskDynamicsConfig = field(default_factory=MaskDynamicsConfig)
    """Stage 1."""
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    """In place of stage 1 where world_model is none."""
    policy: DiffusionPolicyConfig = field(default_factory=DiffusionPolicyConfig)
    """Stage 2."""
    history: int = 4
    """Frames seen, the present one included (paper: 4)."""
    stride: int = 4
    """Steps between frames, of history and future."""
    train_backbone: bool = True
    """Whether stage 2 goes on training the transformer of stage 1 (paper's table: trainable; its
    text: freeze or reuse). The VAE is frozen in any case."""
    dynamics_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            3e-4, epsilon=1e-8, clip=1.0, weight_decay=3e-9, warmup=1000, betas=(0.9, 0.95)
        )
    )
    """Of stage 1 (paper; AdamW's decay 1e-5 is multiplied by the learning rate, this one is
    not)."""
    policy_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            5e-5, epsilon=1e-8, clip=1.0, weight_decay=5e-10, warmup=1000, betas=(0.9, 0.95)
        )
    )
    """Of stage 2 (paper)."""
    averaging: float = 0.999
    """Decay of the average of the weights that acts and is evaluated; 0: the latest weights."""
    precision: Precision = "auto"
    """Of the networks (paper: bfloat16, as auto is where the device has arithmetic for it); losses
    are float32."""

    def __post_init__(self):
        if not 0 <= self.averaging < 1:
            raise UserError(f"averaging must be at least 0 and below 1, not {self.averaging}")

    def windows(self) -> WindowConfig:
        """What a training window holds."""
        return WindowConfig(
            self.history, self.dynamics.future_frames, self.stride, self.policy.chunk
        )


@dataclass(frozen=True)
class Interface:
    """What the data fixes: cameras, picture edge in pixels, action and proprioception sizes."""

    cameras: int
    size: int
    action_size: int
    proprio_size: int
