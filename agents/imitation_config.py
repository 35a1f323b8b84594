"""The configuration of an imitation run, and how its agent sees a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from agents.mask_world_model_config import MaskWorldModelConfig
from envs.alignment import Alignment
from envs.environment_config import Quality
from envs.recording_header import SHORT_CAMERA_NAMES, Recording
from errors import UserError, refuse_below
from experiment.config_values import check_numbers
from experiment.seed import check_seed
from world_models.targets import reads
from world_models.video_targets import make_video_target

STAGES = ("dynamics", "policy")
"""Stages of learning, in order: to predict, then to act on what is predicted."""


@dataclass(frozen=True)
class ImitationConfig:
    """A whole imitation run: both stages on the same demonstrations. Steps are updates."""

    MAY_GROW: ClassVar[str] = "policy_steps"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_seconds"})

    data: tuple[str, ...]
    """Demonstration files, or folders of them."""
    task: str
    """What is evaluated: task ids separated by commas, or a suite (libero/object, metaworld/mt10).
    """
    filter_key: str | None = None
    """One of each file's own lists of demonstrations to learn from (robomimic's filter keys, train
    for example); None is all of them."""
    obs_alignment: Alignment | None = None
    """Whether pictures show what was seen before or after the action of their row, of files that do
    not say it and whose states do not tell."""
    dynamics_steps: int = 100_000
    """Updates of stage 1, the world model."""
    policy_steps: int = 100_000
    """Updates of stage 2, the policy; a larger number continues a finished run."""
    seed: int = 0
    """Seed of everything random: initial weights, windows, noise, evaluation."""
    device: str = "auto"
    """torch device; auto takes CUDA when there is one."""
    threads: int = 0
    """CPU threads of the learner; 0 leaves PyTorch's choice."""
    agent: MaskWorldModelConfig = field(default_factory=MaskWorldModelConfig)
    """The agent."""
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
        refuse_below(0, self, "dynamics_steps", "policy_steps", "micro_batch", "workers", "threads")
        check_seed(self.seed)
        check_numbers(self)
        if self.micro_batch and self.batch % self.micro_batch:
            raise UserError(
                f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})"
            )
        if self.agent.world_model != "video" and self.dynamics_from:
            raise UserError(
                f"world_model {self.agent.world_model} has no stage 1 to take over; leave out"
                " dynamics_from"
            )
        if self.target == "masks" and self.agent.dynamics.future_frames < 1:
            raise UserError("future_frames must be at least 1")

    @property
    def target(self) -> str:
        """What windows hold as their future: "masks", "pixels" or "none"."""
        if self.agent.world_model != "video":
            return "none"
        target = make_video_target(self.agent.dynamics.target)
        return "masks" if "mask" in reads(target) else "pixels"

    @property
    def first_stage_steps(self) -> int:
        """Updates of stage 1 in this run; none without a world model or with another run's."""
        skipped = self.agent.world_model != "video" or self.dynamics_from
        return 0 if skipped else self.dynamics_steps


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

    def options(self, shift: str = "", quality: str | None = None) -> dict[str, Any]:
        """Of `envs.make`: RGB and proprioception, never a mask."""
        return {
            "camera": self.camera,
            "size": self.size,
            "quality": quality or self.quality,
            "action_repeat": self.action_repeat,
            "proprio": True,
            "masks": False,
            "shift": shift,
        }
