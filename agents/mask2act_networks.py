"""What learns in Mask2Act: planner and plan target of stage 1, executor of stage 2.

Shape legend: B windows, N tokens, W width.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from agents.data_spec import DataSpec
from agents.executor import Executor
from agents.mask2act_config import Mask2ActConfig
from errors import UserError
from world_models.mask_dynamics import MaskDynamics
from world_models.plan_targets import FeaturePlan, MaskPlan, PlanTarget, plan_target_class
from world_models.planner import Planner


class TokenPool(nn.Module):
    """Tokens (B, N, W) → (B, W): an average with learned weights."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.score(tokens).softmax(1) * tokens).sum(1)


class Networks(nn.Module):
    """Everything that learns, so that its average is one module too.

    `planner` foretells through `target`, which acting does without; `pool` makes one token of a
    video model's.
    """

    def __init__(self, config: Mask2ActConfig, data_spec: DataSpec, caption_width: int):
        super().__init__()
        self.planner: Planner | MaskDynamics | None = None
        self.target: nn.Module | None = None
        self.pool: TokenPool | None = None
        steps, size = config.n_obs_steps, data_spec.size
        if config.plan == "video":
            self.planner = MaskDynamics(config.dynamics, 1, caption_width)
            self.pool = TokenPool(self.planner.width)
        elif config.plan != "none":
            self.planner = Planner(config.planner, steps, size, caption_width)
            self.target = make_target(config, self.planner.width, size)
        shared = isinstance(self.planner, Planner) and not config.executor.own_view
        plan_width = (
            config.planner.transformer.width if self.planner is None else self.planner.width
        )
        self.plan_width = plan_width
        self.executor = Executor(
            config.executor,
            steps,
            data_spec.cameras,
            size,
            data_spec.action_size,
            data_spec.proprio_size,
            plan_width,
            plan_width if shared else 0,
        )

    @property
    def foretelling(self) -> tuple[Planner, PlanTarget]:
        """Planner and target, where plan tokens foretell something."""
        assert isinstance(self.planner, Planner)
        return self.planner, cast(PlanTarget, self.target)


def make_target(config: Mask2ActConfig, width: int, size: int) -> nn.Module:
    """The plan target of a configuration: the head that stage 1 learns with.

    Raises:
        UserError: as `plan_target_class`, or a user's class cannot be made.
    """
    kind = plan_target_class(config.plan)
    if kind is MaskPlan:
        return MaskPlan(
            width,
            size,
            config.ahead,
            config.objects,
            config.most_objects,
            config.decoded_steps,
        )
    if kind is FeaturePlan:
        return FeaturePlan(width, size, config.ahead)
    try:
        return kind(width, size)
    except UserError:
        raise
    except Exception as error:  # whatever a user's constructor raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"plan {config.plan!r} cannot be made: {reason}") from error
