"""The online loop: act, remember, learn; on one page. Also loading and evaluating what it made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from agents.masked_world_model import MaskedWorldModel, MaskedWorldModelConfig
from agents.online_run import OnlineRun, load_checked, make_agent, make_envs
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed, run_episodes
from agents.run_folder import RunFolder
from envs import EnvironmentConfig, action_repeat
from errors import UserError
from world_models.targets import make_target, reads

POSITIVE = (
    "steps", "num_envs", "prefill", "random_hold", "update_every", "replay_capacity",
    "evaluate_first", "evaluate_every", "evaluate_episodes", "evaluate_envs",
)  # fmt: skip
"""Fields of `OnlineConfig` of which less than one makes no sense."""


@dataclass(frozen=True)
class OnlineConfig:
    """A whole online run. Steps are environment steps unless a field says agent steps
    (environment steps = agent steps × action repeat)."""

    FREE: ClassVar[frozenset[str]] = frozenset(
        {"agent.compile", "agent.overlap", "replay_memory", "checkpoint_seconds"}
    )

    task: str
    """What to learn, as "suite/name"; `run.py tasks` lists them."""
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
    """Training environments stepped together, each in a process of its own."""
    episode_steps: int = 0
    """End training episodes, as a time limit would, at the first agent step that reaches this many
    environment steps: more starts for the same steps, but a task that takes longer never succeeds
    in training. 0: where the task ends (paper). Evaluations and episodes of `recorded` are not
    cut."""
    agent: MaskedWorldModelConfig = field(default_factory=MaskedWorldModelConfig)
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
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seed", "threads", "episode_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0.0 <= self.random_share <= 1.0:
            raise UserError(f"random_share must be between 0 and 1, not {self.random_share}")
        needed = reads(make_target(self.agent.autoencoder.target))  # refuses an unknown target
        if "mask" in needed and not (self.render_masks or self.recorded):
            raise UserError(
                "the target needs masks: leave render_masks on, or name a run folder or "
                "demonstrations that have them with --recorded"
            )
        picture, eye = self.environment.size, self.agent.autoencoder.image_size
        if picture != eye:
            raise UserError(
                f"environment.size is {picture} but agent.autoencoder.image_size is {eye}; "
                "give both the same"
            )


def train(config: OnlineConfig, folder: RunFolder) -> None:
    """Train until `config.steps`, from the folder's checkpoint where it has one.

    Raises:
        UserError: a loss is not finite, or the folder's checkpoint or replay cannot be used.
    """
    run = None
    try:
        run = OnlineRun(config, folder)
        run.resume()
        while run.steps < config.steps:
            run.collector.begin(run.act())
            run.learn()
            run.remember(run.collector.finish())
        run.conclude()
    except UserError:
        folder.abandon()
        raise
    finally:
        if run is not None:
            run.close()


def load_agent(
    logdir: Path | str, device: str = "auto"
) -> tuple[MaskedWorldModel, OnlineConfig, int]:
    """The agent of a run folder's checkpoint, its configuration, and its environment steps.

    Raises:
        UserError: no such folder, no checkpoint in it, or one that cannot be read.
    """
    config = RunFolder.read_config(logdir, OnlineConfig)
    state = RunFolder.open(logdir).load_checkpoint("cpu")
    if state is None:
        raise UserError(f"{logdir} has no checkpoint yet; train longer with the same command")
    agent = make_agent(config, state["action"], device)
    load_checked(agent, state, config, RunFolder.open(logdir).checkpoint_path)
    return agent, config, state["step"]


class AgentActor:
    """A trained agent that records demonstrations (``envs.recording.Actor``).

    Args:
        logdir: its run folder.
        environment: in which it acts; must show what the agent was trained on.
        noise: standard deviation of what is added to its actions, the last (the gripper) excepted.

    Raises:
        UserError: no agent there; the environment differs from the one it was trained in.
    """

    def __init__(self, logdir: Path | str, environment, noise: float = 0.0):
        self._agent, config, _ = load_agent(logdir)
        trained = config.environment
        asked = {
            "size": (environment.config.size, trained.size),
            "action repeat": (
                environment.action_repeat,
                action_repeat(config.task, trained.action_repeat),
            ),
            "number of actions": (environment.action_space.shape[0], self._agent.behaviour.action),
            "number of cameras": (len(environment.cameras), 1),
        }
        for name, (here, there) in asked.items():
            if here != there:
                raise UserError(
                    f"the agent of {logdir} was trained with {name} {there}, not {here}"
                )
        self._noise = noise

    def begin(self, seed: int) -> None:
        """Start an episode; its noise and sampled model states are a function of `seed`."""
        self._rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self._state, self._first = None, True

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """(A,) float32 in [-1, 1]."""
        several = {"image": observation["image"][None], "is_first": np.array([self._first])}
        self._first = False
        action, self._state = self._agent.policy(several, self._state, explore=False)
        action = np.array(action[0])
        action[:-1] += self._noise * self._rng.standard_normal(len(action) - 1)
        return action.clip(-1, 1)


def evaluate(
    agent: MaskedWorldModel | None,
    config: OnlineConfig,
    episodes: int,
    seed: int,
    record: bool = False,
    shift: str | None = None,
) -> list[dict]:
    """`episodes` episodes on starts that training and its evaluations never use.

    Args:
        agent: None acts at random.
        config: of the run.
        episodes: how many.
        seed: of the starts.
        record: keep the frames.
        shift: visual shifts to act under (`envs.shifts`); None leaves the run's own, if any.

    Returns:
        As `run_episodes`.
    """
    if shift is not None:
        config = replace(config, environment=replace(config.environment, shift=shift))
    envs = make_envs(config, min(episodes, config.evaluate_envs))
    torch.manual_seed(seed)  # of the model states that are sampled on the way
    try:
        if agent is None:
            agent = RandomAgent(envs.single_action_space, seed)
        seeds = [episode_seed(seed, FINAL_EVALUATION, index) for index in range(episodes)]
        return run_episodes(agent, envs, seeds, record)
    finally:
        envs.close()
