"""The configuration of an imitation run, and how its agent sees a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from agents.mask2act_config import Mask2ActConfig
from agents.mask_world_model_config import MaskWorldModelConfig
from envs.alignment import Alignment
from envs.environment_config import Quality
from envs.own_names import imported_by
from envs.recording_header import SHORT_CAMERA_NAMES, Recording
from errors import UserError, refuse_below
from experiment.config_values import check_numbers
from experiment.seed import check_seed

AgentConfig = MaskWorldModelConfig | Mask2ActConfig


@dataclass(frozen=True)
class RunConfig:
    """A whole imitation run, whatever its method: both stages, demonstrations, evaluation. Steps
    are updates."""

    MAY_GROW: ClassVar[str] = "policy_steps"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_seconds"})
    LOADS: ClassVar = {"task": imported_by}

    data: tuple[str, ...]
    """Demonstration files, or folders of them."""
    task: str
    """What is evaluated: task ids separated by commas, or a suite (libero/object, metaworld/mt10);
    an environment of your own is gym:ENV_ID or package.module:callable."""
    agent: AgentConfig
    """The agent."""
    method: str = ""
    """What learns: mask-world-model, or mask2act."""
    videos: int = 0
    """Demonstrations of each task that stage 1 learns from; 0: all. Which ones, the seed decides
    (written to demonstrations.json in the run folder)."""
    demonstrations: int = 0
    """Demonstrations of each task that stage 2 learns from, some of those of stage 1 where it has
    more; 0: all."""
    filter_key: str | None = None
    """One of each file's own lists of demonstrations to learn from (robomimic's filter keys, train
    for example); None is all of them."""
    obs_alignment: Alignment | None = None
    """Whether pictures show what was seen before or after the action of their row, of files that do
    not say it and whose states do not tell."""
    dynamics_steps: int = 100_000
    """Updates of stage 1, the world model or planner."""
    policy_steps: int = 100_000
    """Updates of stage 2, the policy or executor; a larger number continues a finished run."""
    seed: int = 0
    """Seed of everything random: initial weights, windows, noise, evaluation."""
    device: str = "auto"
    """torch device; auto takes CUDA when there is one."""
    threads: int = 0
    """CPU threads of the learner; 0 leaves PyTorch's choice."""
    dynamics_from: str = ""
    """Run folder whose finished stage 1 is taken over in place of learning it here."""
    batch: int = 128
    """Windows an update (paper: 128)."""
    micro_batch: int = 0
    """Windows computed at once; the gradients of the parts are averaged, however much of them is
    padding. 0: the whole batch."""
    workers: int = 1
    """Processes that read windows from the files; 0 reads them in between updates."""
    quality: Quality | None = None
    """Render quality of evaluation; None is that of the data."""
    evaluate_every: int = 10_000
    """Updates of stage 2 between evaluations in the simulator; there is one at the end."""
    evaluate_episodes: int = 10
    """Episodes of each task an evaluation."""
    evaluate_envs: int = 2
    """Environments that evaluate at the same time, each in a process of its own."""
    report_every: int = 2_000
    """Updates of stage 1 between pictures of predictions."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""

    def __post_init__(self):
        refuse_below(
            1, self, "batch", "evaluate_every", "evaluate_episodes", "evaluate_envs", "report_every"
        )
        refuse_below(
            0, self, "dynamics_steps", "policy_steps", "micro_batch", "workers", "threads",
            "videos", "demonstrations",
        )  # fmt: skip
        check_seed(self.seed)
        check_numbers(self)
        if self.micro_batch and self.batch % self.micro_batch:
            raise UserError(
                f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})"
            )
        if self.dynamics_from and not self.agent.predicts:
            raise UserError(
                "an agent that predicts nothing has no stage 1; leave out dynamics_from"
            )

    @property
    def first_stage_steps(self) -> int:
        """Updates of stage 1 in this run; none without a prediction or with another run's."""
        return self.dynamics_steps if self.agent.predicts and not self.dynamics_from else 0


@dataclass(frozen=True)
class ImitationConfig(RunConfig):
    """A run of Mask World Model."""

    agent: MaskWorldModelConfig = field(default_factory=MaskWorldModelConfig)
    """The agent."""
    method: Literal["mask-world-model"] = "mask-world-model"
    """What learns: mask-world-model, or mask2act."""


@dataclass(frozen=True)
class Mask2ActRunConfig(RunConfig):
    """A run of Mask2Act."""

    agent: Mask2ActConfig = field(default_factory=Mask2ActConfig)
    """The agent."""
    method: Literal["mask2act"] = "mask2act"
    """What learns: mask-world-model, or mask2act."""


METHODS: dict[str, type[RunConfig]] = {
    "mask-world-model": ImitationConfig,
    "mask2act": Mask2ActRunConfig,
}
"""Configurations by what `--method` of `run.py imitate` says."""


@dataclass(frozen=True)
class View:
    """How a task is shown to the agent: as the demonstrations show it."""

    camera: str
    """Names of the simulator, separated by commas."""
    size: int
    """Picture edge, pixels."""
    quality: str
    action_repeat: int

    @classmethod
    def of(cls, recording: Recording) -> View:
        """As a demonstration file shows its task."""
        full = {short: name for name, short in SHORT_CAMERA_NAMES.items()}
        names = ",".join(full.get(camera, camera) for camera in recording.cameras)
        return cls(names, recording.size, recording.quality, recording.action_repeat)

    @property
    def cameras(self) -> int:
        """How many."""
        return len(self.camera.split(","))

    def options(
        self, shift: str = "", quality: str | None = None, masks: bool = False
    ) -> dict[str, Any]:
        """Of `envs.make`: RGB and proprioception; masks for pictures for people, never to act."""
        return {
            "camera": self.camera,
            "size": self.size,
            "quality": quality or self.quality,
            "action_repeat": self.action_repeat,
            "proprio": True,
            "masks": masks,
            "shift": shift,
        }
