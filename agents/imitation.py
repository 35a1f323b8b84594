"""The imitation loop: learn to predict, then to act, from demonstrations; on one page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gymnasium.vector import VectorEnv

import envs
from agents.imitation_agent import ImitationAgent, ImitationAgentConfig, check_agreement
from agents.imitation_loading import load_state
from agents.imitation_run import ImitationRun, View
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed, run_episodes
from agents.run_folder import RunFolder
from envs.simulation import Quality
from errors import UserError


@dataclass(frozen=True)
class ImitationConfig:
    """A whole imitation run: both stages on the same demonstrations. Steps are updates."""

    GROWING: ClassVar[str] = "policy_steps"
    FREE: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_seconds"})

    data: tuple[str, ...]
    """Demonstration files, or folders of them."""
    task: str
    """What is evaluated: task ids separated by commas, or a suite (libero/object, metaworld/mt10).
    """
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
    agent: ImitationAgentConfig = field(default_factory=ImitationAgentConfig)
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
        for name in ("batch", "evaluate_every", "evaluate_episodes", "evaluate_envs",
                     "report_every"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("dynamics_steps", "policy_steps", "micro_batch", "workers", "seed",
                     "threads"):  # fmt: skip
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
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
        from world_models.targets import reads
        from world_models.video_targets import make_video_target

        target = make_video_target(self.agent.dynamics.target)
        return "masks" if "mask" in reads(target) else "pixels"

    @property
    def first_stage_steps(self) -> int:
        """Updates of stage 1 in this run; none without a world model or with another run's."""
        skipped = self.agent.world_model != "video" or self.dynamics_from
        return 0 if skipped else self.dynamics_steps


def imitate(config: ImitationConfig, folder: RunFolder) -> None:
    """Learn both stages, from the folder's checkpoint where it has one.

    Raises:
        UserError: the data cannot be used, a loss is not finite, or the folder's checkpoint is
            another run's.
    """
    run = None
    try:
        run = ImitationRun(config, folder)
        run.resume()
        while run.updates < config.first_stage_steps:
            run.learn("dynamics", run.next_batches())
            run.report_if_due()
        run.begin_policy()
        while run.updates < config.first_stage_steps + config.policy_steps:
            run.learn("policy", run.next_batches())
            run.evaluate_if_due()
        run.conclude()
    except UserError:
        folder.abandon()
        raise
    finally:
        if run is not None:
            run.close()


def load_agent(
    logdir: Path | str, device: str = "auto"
) -> tuple[ImitationAgent, ImitationConfig, View, int]:
    """The agent of a run folder's checkpoint, its configuration, how it sees, and its updates.

    Raises:
        UserError: no such folder, no checkpoint in it, one that cannot be read, or whose second
            stage has not begun.
    """
    config = RunFolder.read_config(logdir, ImitationConfig)
    agent, state = load_state(logdir, config, device)
    if state["stage"] != "policy":
        raise UserError(
            f"{logdir} has made {state['updates']} updates of its world model and has no policy"
            " yet; let the same command go on"
        )
    return agent, config, View(**state["view"]), state["updates"]


@contextlib.contextmanager
def opened(
    view: View, task: str, environments: int, shift: str = "", quality: str | None = None
) -> Iterator[VectorEnv]:
    """Environments of one task in processes of their own, closed at the end.

    Args:
        view: how the agent sees the task: RGB and proprioception, never a mask.
        task: id.
        environments: how many.
        shift: visual shifts to act under (`envs.shifts`).
        quality: of the pictures; None is that of the data.
    """
    vector = envs.make_vector(task, environments, **view.options(shift=shift, quality=quality))
    try:
        yield vector
    finally:
        vector.close()


def evaluate(
    agent: ImitationAgent | None,
    vector: VectorEnv,
    task: str,
    episodes: int,
    seed: int,
    instruction: str | None = None,
    film: list | None = None,
) -> list[dict]:
    """Closed-loop episodes of one task, on starts that no evaluation during training uses.

    Each ends at its first success. LIBERO by its protocol: episode k starts from the benchmark's
    recorded state `seed` + k.

    Args:
        agent: None acts at random.
        vector: from `opened`.
        task: id.
        episodes: how many.
        seed: of the starts and of the agent's noise.
        instruction: what the agent is told; None is the task's own.
        film: takes frames (H, W, 3) of what is seen and predicted in the first environment.

    Returns:
        As `run_episodes`.

    Raises:
        UserError: the task does not fit the agent; more episodes than LIBERO has recorded states.
    """
    recorded = envs.recorded_starts(task)
    if recorded and episodes > recorded:
        raise UserError(
            f"--episodes is {episodes}; LIBERO has {recorded} recorded starts of a task, and one"
            " met twice is no new episode"
        )
    seeds = [
        seed + index if recorded else episode_seed(seed, FINAL_EVALUATION, index)
        for index in range(episodes)
    ]
    options = {"init_state": "seed"} if recorded else None
    return run_task(agent, vector, seeds, seed, options, instruction, film)


def run_task(
    agent: ImitationAgent | None,
    vector: VectorEnv,
    seeds: Sequence[int],
    seed: int,
    options: dict | None = None,
    instruction: str | None = None,
    film: list | None = None,
) -> list[dict]:
    """Episodes from `seeds`, each until its first success; `options`: of every reset."""
    space = vector.single_action_space
    if agent is None:
        actor = RandomAgent(space, seed)
    else:
        check_agreement(agent.interface, vector.single_observation_space, space)
        told = vector.get_attr("instruction")[0] if instruction is None else instruction
        actor = agent.actor(told, seed, film is not None)
    episodes = run_episodes(actor, vector, list(seeds), options=options, until_success=True)
    if film is not None:
        film += actor.film or []
    return episodes
