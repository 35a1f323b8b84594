"""The configuration of an online run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from agents.dreamer_config import DreamerConfig
from agents.masked_world_model_config import MaskedWorldModelConfig
from envs import EnvironmentConfig
from envs.own_names import imported_by
from errors import UserError, refuse_below
from experiment.config_values import check_numbers
from experiment.seed import check_seed
from world_models.targets import make_target, reads

AgentConfig = MaskedWorldModelConfig | DreamerConfig

POSITIVE = (
    "steps", "num_envs", "prefill", "random_hold", "update_every", "replay_capacity",
    "evaluate_first", "evaluate_every", "evaluate_episodes", "evaluate_envs",
)  # fmt: skip
"""Fields of `RunConfig` of which less than one makes no sense."""


@dataclass(frozen=True)
class RunConfig:
    """A whole online run, whatever its method. Steps are environment steps unless a field says
    agent steps (environment steps = agent steps × action repeat)."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {
            "agent.compile",
            "replay_memory",
            "checkpoint_seconds",
            "environment.name",
            "environment.score_bounds",
        }  # fmt: skip
    )
    LOADS: ClassVar = {"task": imported_by}

    task: str
    """What to learn, as "suite/name"; `run.py tasks` lists them. An environment of your own is
    gym:ENV_ID or package.module:callable."""
    method: str = ""
    """What learns: masked-world-model, or dreamer."""
    steps: int = 500_000
    """Environment steps to train for (paper F: 500,000 for easy Meta-World tasks)."""
    seed: int = 0
    """Seed of everything random: episodes, initial weights, exploration, sampling."""
    device: str = "auto"
    """torch device of the agent; auto takes CUDA when there is one."""
    threads: int = 0
    """CPU threads of the learner; 0 leaves PyTorch's choice."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """How the task is seen."""
    num_envs: int = 1
    """Training environments stepped together, each in a process of its own; one call of the policy
    serves all (published code: 1)."""
    episode_steps: int = 0
    """End training episodes, as a time limit would, at the first agent step that reaches this many
    environment steps: more starts for the same steps, but a task that takes longer never succeeds
    in training. 0: where the task ends (paper). Evaluations and episodes of `recorded` are not
    cut."""
    agent: AgentConfig = field(default_factory=MaskedWorldModelConfig)
    """The agent."""
    prefill: int = 5000
    """Agent steps of random exploration before anything is learned."""
    random_hold: int = 1
    """Agent steps for which each random action is held (paper: 1). Independent actions barely
    leave the start; held ones reach the objects and show what a steady push does."""
    random_actions: Literal["uniform", "extreme"] = "uniform"
    """uniform in the action space (paper), or extreme: every dimension at its lower or upper bound,
    which crosses a scene in an episode."""
    random_share: float = 0.0
    """Share of the blocks of `random_hold` agent steps that stay random after the prefill, as in
    εz-greedy exploration (Dabney et al., 2021): it shows the models what a nearly right policy
    never does. The paper has none; evaluations never do."""
    update_every: int = 5
    """Agent steps, over all environments together, per update of every part (paper E.1)."""
    replay_capacity: int = 1_000_000
    """Frames the replay keeps; on disk, used as they come."""
    replay_memory: Literal["auto", "disk", "device"] = "auto"
    """Where samples are taken from: the files on the disk, or a copy of all frames in the memory of
    the device. auto: the device if it is a GPU with room for twice as much."""
    recorded: tuple[str, ...] = ()
    """Run folders whose replay is learned from as well, from the start, or demonstration files of
    the task (`run.py collect`, `annotate`); their frames are no steps of this run. Frames without
    masks teach a target of masks nothing and everything else."""
    offline: bool = False
    """Learn from `recorded` alone: no training episodes, only evaluations. `steps` and the steps of
    evaluations then count updates; there is no prefill."""
    render_masks: bool = True
    """Let the simulator draw the masks that a target learns from; otherwise only `recorded` frames
    have any, as on a real robot."""
    prioritise_ends: bool = False
    """Draw an episode's last window more often (paper's code: Meta-World and RLBench)."""
    evaluate_first: int = 10_000
    """Step of the first evaluation (paper: 10,000 on Meta-World)."""
    evaluate_every: int = 20_000
    """Steps between evaluations (paper: 20,000)."""
    evaluate_episodes: int = 10
    """Episodes per evaluation (paper: 10 on Meta-World, 5 on DMC)."""
    evaluate_envs: int = 5
    """Environments an evaluation steps together."""
    checkpoint_seconds: float = 60.0
    """Checkpoint at the first episode boundary this long after the last one."""

    def __post_init__(self) -> None:
        refuse_below(1, self, *POSITIVE)
        refuse_below(0, self, "threads", "episode_steps")
        check_seed(self.seed)
        check_numbers(self)
        if not 0.0 <= self.random_share <= 1.0:
            raise UserError(f"random_share must be between 0 and 1, not {self.random_share}")
        needed = reads(make_target(self.agent.target))  # refuses an unknown target
        if "mask" in needed and not (self.render_masks or self.recorded):
            raise UserError(
                "the target needs masks: leave render_masks on, or name a run folder or "
                "demonstrations that have them with --recorded"
            )
        if self.offline and not self.recorded:
            raise UserError("offline learns from recorded data alone; name it with --recorded")
        picture, eye = self.environment.size, self.agent.image_size
        if picture != eye:
            raise UserError(
                f"environment.size is {picture} but agent.{self.agent.SEES}.image_size is {eye}; "
                "give both the same"
            )


@dataclass(frozen=True)
class OnlineConfig(RunConfig):
    """A run of Masked World Models."""

    method: Literal["masked-world-model"] = "masked-world-model"
    """What learns: masked-world-model, or dreamer."""
    agent: MaskedWorldModelConfig = field(default_factory=MaskedWorldModelConfig)
    """The agent."""


@dataclass(frozen=True)
class DreamerRunConfig(RunConfig):
    """A run of DreamerV2."""

    method: Literal["dreamer"] = "dreamer"
    """What learns: masked-world-model, or dreamer."""
    agent: DreamerConfig = field(default_factory=DreamerConfig)
    """The agent."""


METHODS: dict[str, type[RunConfig]] = {
    "masked-world-model": OnlineConfig,
    "dreamer": DreamerRunConfig,
}
"""Configurations by what `--method` of `run.py train` says."""
