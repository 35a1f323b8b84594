"""The configuration of Mask World Model: both stages, their optimisers, and what the data fixes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from agents.device import Precision
from agents.diffusion_policy import DiffusionPolicyConfig
from envs.windows import WindowConfig
from errors import UserError
from world_models.image_encoder import ImageEncoderConfig
from world_models.language import weights_named
from world_models.layers import OptimizerConfig
from world_models.mask_dynamics import MaskDynamicsConfig

LONGEST_HISTORY = 1000
"""Steps from the oldest frame that is seen to the present one: no episode is longer."""


@dataclass(frozen=True)
class MaskWorldModelConfig:
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
    n_obs_steps: int = 4
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
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which acts and is evaluated; 0: the latest
    weights."""
    precision: Precision = "auto"
    """Of the networks (paper: bfloat16, as auto is where the device has arithmetic for it); losses
    are float32."""

    LOADS: ClassVar = {"language": weights_named}
    FIRST_STAGE: ClassVar = ("world_model", "dynamics", "n_obs_steps", "stride", "language")
    """Fields that have to be alike for one run to take over another's stage 1."""
    RENAMED: ClassVar = {"history": "n_obs_steps", "averaging": "ema_decay"}

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be at least 0 and below 1, not {self.ema_decay}")
        if self.n_obs_steps < 1 or self.stride < 1:
            raise UserError("n_obs_steps and stride must be at least 1")
        if (self.n_obs_steps - 1) * self.stride > LONGEST_HISTORY:
            raise UserError(
                f"n_obs_steps {self.n_obs_steps} and stride {self.stride} reach more than"
                f" {LONGEST_HISTORY} steps back"
            )

    @property
    def predicts(self) -> bool:
        """Whether there is a stage 1."""
        return self.world_model == "video"

    def windows(self) -> WindowConfig:
        """What a training window holds."""
        return WindowConfig(
            self.n_obs_steps, self.dynamics.future_frames, self.stride, self.policy.chunk
        )
