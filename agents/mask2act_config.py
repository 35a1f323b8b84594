"""The configuration of Mask2Act: planner, executor, and what a plan foretells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from agents.device import Precision
from agents.executor import ExecutorConfig
from agents.mask_world_model_config import LONGEST_HISTORY
from errors import UserError, refuse_below
from world_models.language import weights_named
from world_models.layers import OptimizerConfig
from world_models.mask_dynamics import MaskDynamicsConfig
from world_models.plan_targets import OBJECTS, PLANS, classes_named
from world_models.planner import PlannerConfig

WITHOUT_TOKENS = ("none", "video")
"""Plans that no plan token foretells: no plan at all, and the features of a video model."""


@dataclass(frozen=True)
class Mask2ActConfig:
    """Mask2Act: stage 1 (planner) on video without actions, stage 2 (executor) on a few
    demonstrations. The defaults are the paper's size where it names one."""

    plan: str = "masks"
    """What stage 1 foretells: masks (Mask2Act), none (plans are zero: behavioural cloning),
    features (PLEX), trajectory (MimicPlay), points (ATM), video (UniPi), or
    package.module:Class."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Stage 1."""
    dynamics: MaskDynamicsConfig = field(default_factory=lambda: MaskDynamicsConfig("pixels"))
    """Stage 1 where the plan is video: the model of the future that is planned with."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Stage 2."""
    n_obs_steps: int = 8
    """Steps h that are seen, the present one included (ours: the paper does not say)."""
    stride: int = 1
    """Environment steps between them."""
    ahead: tuple[int, ...] = (4,)
    """Steps from now to each of the masks that are foretold, or the features (ours)."""
    objects: tuple[str, ...] = tuple(OBJECTS)
    """Which objects are tracked, the more important first: of robot, object, second, goal,
    fixture."""
    most_objects: int = 2
    """How many of those that a picture shows (paper: 3 in LIBERO, 2 in Meta-World)."""
    decoded_steps: int = 0
    """Of how many steps of a window, drawn at random, masks are decoded an update, which takes most
    of its time; 0: of all of them."""
    language: str = "words"
    """Encoder of the instruction, where the planner's task is one: words (no download) or
    t5:FOLDER_OR_NAME."""
    planner_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            3e-4, epsilon=1e-8, clip=1.0, weight_decay=3e-5, warmup=500, betas=(0.9, 0.95)
        )
    )
    """Of stage 1 (ours)."""
    executor_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            3e-4, epsilon=1e-8, clip=1.0, weight_decay=3e-5, warmup=500, betas=(0.9, 0.95)
        )
    )
    """Of stage 2 (ours)."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which acts and is evaluated; 0: the latest
    weights."""
    precision: Precision = "auto"
    """Of the networks; losses are float32."""

    LOADS: ClassVar = {"plan": classes_named, "language": weights_named}
    FIRST_STAGE: ClassVar = (
        "plan", "planner", "dynamics", "n_obs_steps", "stride", "ahead", "objects",
        "most_objects", "language",
    )  # fmt: skip
    """Fields that have to be alike for one run to take over another's stage 1."""

    def __post_init__(self) -> None:
        if ":" not in self.plan and self.plan not in (*PLANS, *WITHOUT_TOKENS):
            known = ", ".join([*PLANS, *WITHOUT_TOKENS])
            raise UserError(
                f"unknown plan {self.plan!r}; use one of {known}, or package.module:Class"
            )
        refuse_below(1, self, "n_obs_steps", "stride", "most_objects")
        refuse_below(0, self, "decoded_steps")
        if not self.ahead or min(self.ahead) < 1 or max(self.ahead) > LONGEST_HISTORY:
            raise UserError(
                f"ahead must be one or several numbers from 1 to {LONGEST_HISTORY}, not"
                f" {' '.join(map(str, self.ahead)) or 'none'}"
            )
        if (self.n_obs_steps - 1) * self.stride > LONGEST_HISTORY:
            raise UserError(
                f"n_obs_steps {self.n_obs_steps} and stride {self.stride} reach more than"
                f" {LONGEST_HISTORY} steps back"
            )
        unknown = [name for name in self.objects if name not in OBJECTS]
        if unknown or not self.objects:
            raise UserError(
                f"objects must be some of {', '.join(OBJECTS)}, not {', '.join(unknown) or 'none'}"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be at least 0 and below 1, not {self.ema_decay}")

    @property
    def predicts(self) -> bool:
        """Whether there is a stage 1."""
        return self.plan != "none"

    @property
    def steps(self) -> list[int]:
        """The steps that are seen relative to the present one, (h,), the last 0."""
        return [-self.stride * back for back in range(self.n_obs_steps - 1, -1, -1)]
