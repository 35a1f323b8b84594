"""The configuration of an imitation run, and how its agent sees a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from agents.mask2act_config import Mask2ActConfig
from agents.mask_world_model_config import MaskWorldModelConfig
from envs.alignment import Alignment
from envs.environment_config import Quality
from envs.own_names import imported_by
from envs.recording_header import SHORT_CAMERA_NAMES, Recording, in_units
from errors import UserError, refuse_below
from experiment.config_values import check_numbers
from experiment.seed import check_seed

AgentConfig = MaskWorldModelConfig | Mask2ActConfig
NO_TASK = "none"
"""What `task` says where there is no simulator to evaluate in."""
HELD_OUT = 0.1
"""Share of the demonstrations that is held out where there is no simulator."""


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
    none: there is no simulator of it, held-out demonstrations are evaluated; an environment of your
    own is gym:ENV_ID or package.module:callable."""
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
    held_out: float | None = None
    """Demonstrations of each task that nothing is learned from, and that losses, action error and
    predictions are measured on: below 1 a share, from 1 on how many. Which ones, the seed decides
    (written to demonstrations.json). None: a tenth with task none, otherwise none."""
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
    """Run folder whose finished stage 1 is taken over in place of learning it here
    (dynamics_steps then says nothing)."""
    post_training_steps: int = 0
    """Updates of stage 1 on this run's data that go on from where dynamics_from's ended; 0: it is
    taken over as it is."""
    picture_size: int = 0
    """Edge that the data's pictures must have, pixels; 0: any."""
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
            "videos", "demonstrations", "post_training_steps", "picture_size",
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
        if self.post_training_steps and not self.dynamics_from:
            raise UserError(
                "post_training_steps goes on with the stage 1 of another run; name that one with"
                " dynamics_from, or give dynamics_steps to learn from nothing"
            )
        if self.held_out is not None and (
            self.held_out < 0 or (self.held_out > 1 and self.held_out % 1)
        ):
            raise UserError(
                f"held_out is a share below 1, or a whole number of demonstrations, not"
                f" {self.held_out}"
            )
        if self.task == NO_TASK and not self.held_out_share:
            raise UserError(
                f"with task {NO_TASK} only held-out demonstrations can be evaluated; give held_out"
                f" more than 0, or leave it out ({HELD_OUT:g})"
            )

    @property
    def first_stage_steps(self) -> int:
        """Updates of stage 1 in this run; none without a prediction or with another run's as it
        is."""
        if not self.agent.predicts:
            return 0
        return self.post_training_steps if self.dynamics_from else self.dynamics_steps

    @property
    def held_out_share(self) -> float:
        """Of the demonstrations, or their number, as `envs.episode_choice.hold_out` takes it."""
        if self.held_out is None:
            return HELD_OUT if self.task == NO_TASK else 0.0
        return self.held_out


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
    proprio: bool = True
    """Whether proprioception is seen."""
    fps: float | None = None
    """Steps a second, of demonstrations that say it."""
    action_low: tuple[float, ...] = ()
    """What −1 of each action stands for (`Recording.action_low`), of demonstrations whose actions
    were brought into [−1, 1]; empty otherwise."""
    action_high: tuple[float, ...] = ()
    """What 1 stands for."""

    @classmethod
    def of(cls, recording: Recording) -> View:
        """As a demonstration file shows its task."""
        full = {short: name for name, short in SHORT_CAMERA_NAMES.items()}
        names = ",".join(full.get(camera, camera) for camera in recording.cameras)
        return cls(
            names,
            recording.size,
            recording.quality,
            recording.action_repeat,
            recording.proprio_size > 0,
            recording.fps,
            recording.action_low,
            recording.action_high,
        )

    def in_units(self, actions: np.ndarray) -> np.ndarray:
        """An agent's actions (..., A) in [−1, 1], in the units of whoever recorded the
        demonstrations: what a robot is told."""
        return in_units(actions, self.action_low, self.action_high)

    def plain(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in vars(self).items()}

    @property
    def in_simulator(self) -> dict[str, Any]:
        """What decides how a simulator shows a task."""
        shown = {n: getattr(self, n) for n in ("camera", "size", "quality", "action_repeat")}
        return shown if self.proprio else shown | {"proprio": False}

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
            "proprio": self.proprio,
            "masks": masks,
            "shift": shift,
        }
