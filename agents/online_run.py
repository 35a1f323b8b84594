"""What an online run holds, and its bookkeeping: counters, logs, evaluations, checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

import envs
from agents.agent import OnlineAgent
from agents.device import choose_device
from agents.online_config import RunConfig
from agents.online_loading import make_agent
from agents.recorded_episodes import open_source
from agents.reenactment import Reenactment
from agents.replay import Entry, Replay, entries_for, free_memory
from agents.rollout import (
    EVALUATION,
    Collector,
    RandomAgent,
    episode_seed,
    run_episodes,
)
from agents.training import TrainingRun, load_checked, random_state, set_random_state
from agents.transfer import take_over
from envs.environment import OneHot
from envs.vector import VectorEnvironment
from errors import UserError
from experiment.checkpoint import expect, fitting
from experiment.progress import Progress
from experiment.run_folder import RunFolder
from mask_classes import UNLABELLED
from world_models.targets import make_target, reads


def training_view(config: RunConfig) -> dict:
    """Options of `envs.make` for training: also what the target has to be told while it learns."""
    options = dict(vars(config.environment))
    options["masks"] |= needs_masks(config) and config.render_masks
    return options


def needs_masks(config: RunConfig) -> bool:
    """Whether what the world model predicts is learned from masks."""
    return "mask" in reads(make_target(config.agent.target))


def make_envs(config: RunConfig, count: int, training: bool = False) -> VectorEnvironment:
    """`count` environments of the run's task, each in a process of its own.

    Acting takes the pictures alone, so only those that `training` learns from draw masks.

    Raises:
        UserError: as `envs.make_vector`.
    """
    view = training_view(config) if training else {**vars(config.environment), "masks": False}
    return envs.make_vector(config.task, count, **view)


def entries_of(config: RunConfig, environments: VectorEnvironment) -> dict[str, Entry]:
    """What the run's replay holds."""
    entries = entries_for(environments.single_observation_space, environments.single_action_space)
    if needs_masks(config):
        entries["mask"] = Entry(entries["image"].shape[:-1], "uint8")
    return entries


class OnlineRun(TrainingRun):
    """One online run in one folder: its environments, agent, replay and counters.

    Every counter is derived from the replay (episodes ever stored) plus the unfinished episodes.
    After a kill, the run goes once more through the episodes that finished since the checkpoint
    and learns as it did (`Reenactment`), before it goes on in the environments.
    """

    shown = ("train/success", "train/return", "eval/success", "eval/return")

    def __init__(self, config: RunConfig, folder: RunFolder, trusted: Collection[str] = ()):
        super().__init__(config, folder)
        self.trusted = trusted
        torch.manual_seed(config.seed)
        choose_device(config.device)  # before anything is drawn: the GPU that learns does it
        self.envs = make_envs(config, config.num_envs, training=True)
        self.evaluation_envs: VectorEnvironment | None = None
        entries = entries_of(config, self.envs)
        self.action = entries["action"].shape[0]
        self.proprio = entries["proprio"].shape[0] if "proprio" in entries else 0
        self.discrete = isinstance(self.envs.single_action_space, OneHot)
        self.agent: OnlineAgent = make_agent(
            config, self.action, config.device, self.proprio, self.discrete
        )
        if config.agent.compile:
            self.agent.compile_updates()
        self.random_agent = RandomAgent(
            self.envs.single_action_space, extreme=config.random_actions == "extreme"
        )
        self.replay = Replay(
            folder.path / "replay",
            entries,
            config.replay_capacity,
            prioritise_ends=config.prioritise_ends,
            seed=config.seed,
        )
        self.agent_state: Any = None
        self.collector: Collector | Reenactment

    # Counters

    @property
    def steps(self) -> int:
        """Environment steps taken so far."""
        return self.replay.env_steps + self.collector.env_steps

    position = steps

    @property
    def agent_steps(self) -> int:
        """Agent steps taken so far, over all environments together."""
        return self.replay.agent_steps + self.collector.agent_steps

    @property
    def updates_made(self) -> int:
        """Updates so far, pretraining included."""
        return self.agent.updates + self.agent.pretrained

    @property
    def acting(self) -> bool:
        """Whether an episode has begun and not ended."""
        return self.collector.agent_steps > 0

    @property
    def updates_due(self) -> int:
        """Updates the agent should have made in the loop by now."""
        return max(0, self.agent_steps - self.config.prefill) // self.config.update_every

    def counters(self) -> dict[str, float]:
        """Updates by part."""
        return {f"updates/{name}": n for name, n in self.agent.update_counts().items()}

    # Starting

    def resume(self) -> None:
        """Continue from the checkpoint, if any, and from the episodes in the replay."""
        if self._keep_on_device():
            self.replay.keep_on(self.agent.device)
        state = self.load_checkpoint(replay=dict, step=int)
        step = started = 0
        unfinished: dict[str, Any] | None = None
        if state is None:
            take_over(self.agent, self.config, self.trusted)
            self.replay.forget_after(sum("recorded" in record for record in self.replay.records))
        else:
            load_checked(self.agent, state, self.config.task, self.folder.checkpoint_path)
            state = {"started": 0, **state}  # older ones do not say
            expect(state, self.folder.checkpoint_path, started=int)
            with fitting(self.folder.checkpoint_path):
                self.replay.load_state_dict(state["replay"])
                step, started = state["step"], state["started"]
                unfinished = self._checked_unfinished(state.get("unfinished"))
                set_random_state(state["random"], self.agent.device)
            self.evaluated = state["evaluated"]
        self.replay.check()
        self._warn_of_few_steps()
        self.start_log(state, step)
        counts = self.agent.parameter_counts()
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(f"parameters: {parts}; {sum(counts.values()):,} in all", flush=True)
        self.copy_recorded()
        self.start_acting(started, unfinished)
        if not self.config.offline:
            self.note_graphics(self.envs, first=state is None)
        self.start_bar(self.config.steps, self.config.task)
        between_episodes = state is not None and not self.acting
        if between_episodes and self.evaluation_due:  # the checkpoint is from just before it
            self.evaluate()
            self.checkpoint()

    def start_acting(self, started: int, unfinished: dict[str, Any] | None) -> None:
        """Begin episodes, or go on with an `unfinished` one, after `started` others."""
        actions = None if unfinished is None else unfinished["actions"]
        if self.replay.later:
            self.collector = Reenactment(self.replay, started, actions)
        else:
            self.collector = self._collector(started, actions)
        if unfinished is not None and self.collector.agent_steps:
            self.agent_state = unfinished["agent_state"]

    def _checked_unfinished(self, kept: dict[str, Any] | None) -> dict[str, Any] | None:
        """What a checkpoint holds of an episode that was going on: the `actions` (t, A) taken in it
        and the `agent_state` at its end, on the agent's device, None where it acted at random.

        Raises:
            ValueError: they are another task's or another agent's; other errors where they are
                something else.
        """
        if kept is None:
            return None
        if not isinstance(kept, dict):
            raise TypeError("an unfinished episode is no dict")
        actions, state = kept["actions"].float().numpy(), kept["agent_state"]
        if actions.ndim != 2 or actions.shape[1] != self.action or not len(actions):
            raise ValueError(f"actions of an unfinished episode have shape {actions.shape}")
        if state is not None:
            state = {name: value.to(self.agent.device) for name, value in state.items()}
            # What does not fit is to be found out here, not in the loop.
            seen = {
                name: np.zeros((1, *entry.shape), entry.dtype)
                for name, entry in self.replay.entries.items()
            }
            self.agent.policy(seen, state, False)
        return {"actions": actions, "agent_state": state}

    def _collector(self, started: int, actions: np.ndarray | None = None) -> Collector:
        """Of episodes that have not been begun yet, but for one of which `actions` were taken."""
        begun = max(len(self.replay.records), started)
        limit = self.config.episode_steps
        return Collector(self.envs, self.config.seed, begun, limit=limit, actions=actions)

    def restart(self) -> None:
        """Begin new episodes where some have ended."""
        if not self.collector.restart():
            self.collector, self.agent_state = self._collector(self.collector.begun), None

    def _keep_on_device(self) -> bool:
        """Whether samples are taken from the device's memory."""
        asked, device = self.config.replay_memory, self.agent.device
        if asked == "auto":
            return device.type == "cuda" and 2 * self.replay.bytes_when_full < free_memory(device)
        return asked == "device"

    def _warn_of_few_steps(self) -> None:
        repeat = envs.action_repeat(self.config.task, self.config.environment.action_repeat)
        if self.config.steps <= self.config.prefill * repeat and not self.config.offline:
            print(
                f"note: nothing is learned in {self.config.steps} environment steps, the prefill "
                f"alone takes {self.config.prefill * repeat}; give more --steps or less --prefill",
                flush=True,
            )

    def copy_recorded(self) -> None:
        """Take over the episodes of `recorded`, or those that a killed start has left out."""
        if any("recorded" not in record for record in self.replay.records + self.replay.later):
            return
        done = len(self.replay.records)
        cameras = self.envs.get_attr("cameras")[0]
        sources = [
            open_source(name, self.config, cameras, self.trusted) for name in self.config.recorded
        ]
        if needs_masks(self.config) and not self.config.render_masks:
            without = [source.name for source in sources if not source.has_masks]
            if len(without) == len(sources):
                raise UserError(
                    f"{', '.join(without)} has no masks and none are drawn: leave render_masks on, "
                    "record a run that has them, or annotate the files"
                )
        recorded = ((source.name, *pair) for source in sources for pair in source.episodes())
        for name, episode, record in itertools.islice(recorded, done, None):
            no_steps = {"agent_steps": 0, "env_steps": 0, "recorded": name}
            self._keep(episode, {**record, **no_steps})

    # Acting and remembering

    @property
    def exploring(self) -> bool:
        """Whether the prefill still goes on; it ends with an episode."""
        return self.replay.agent_steps < self.config.prefill

    def act(self) -> np.ndarray:
        """Actions (n, A) for the training environments: at random during the prefill and in a
        share of the blocks after it, otherwise the agent's."""
        observation = self.collector.observation
        # A function of seed and block: a resumed run draws the same.
        block = self.agent_steps // (self.config.random_hold * self.config.num_envs)
        rng = self.random_agent.rng = np.random.default_rng([self.config.seed, block])
        random, _ = self.random_agent.policy(observation, None, explore=True)
        if self.exploring:
            return random
        action, self.agent_state = self.agent.policy(observation, self.agent_state, explore=True)
        interrupted = rng.random(len(action)) < self.config.random_share
        if interrupted.any():
            action[interrupted] = random[interrupted]
            self.agent_state = self.agent.acted(self.agent_state, action)
        if not np.isfinite(action).all():
            self.log({})  # a loss that went wrong says more than an action can
            raise self.not_finite("the actor's action")
        if isinstance(self.collector, Reenactment):
            done = self.collector.action  # on a GPU, what is chosen may be another action
            if not np.array_equal(action, done):
                self.agent_state = self.agent.acted(self.agent_state, done)
        return action

    def store(self, episodes: list[tuple[dict[str, np.ndarray], dict]]) -> None:
        """Keep episodes that ended in the replay, and log them."""
        for episode, record in episodes:
            if self.replay.later:  # that is where this one comes from
                self.replay.recall()
            else:
                self._keep(episode, record)
            self.log(episode_metrics(record))
        if self.bar is not None:
            self.bar.n = min(self.steps, self.config.steps)
            self.bar.update(0)

    def _keep(self, episode: dict[str, np.ndarray], record: dict) -> None:
        """Keep one episode, unlabelled where it has no masks."""
        if "mask" in self.replay.entries and "mask" not in episode:
            shape = (len(episode["reward"]), *self.replay.entries["mask"].shape)
            episode = {**episode, "mask": np.full(shape, UNLABELLED, np.uint8)}
        self.replay.add_episode(episode, **record)

    # Learning

    @property
    def pretraining_due(self) -> bool:
        """Whether the prefill is over and updates on it are left."""
        return not self.exploring and self.agent.pretrained < self.agent.pretraining_updates

    def pretrain(self) -> None:
        """The updates on the prefill that are left, with checkpoints."""
        total, done = self.agent.pretraining_updates, self.agent.pretrained
        with Progress("pretraining", total, "update", done) as bar:
            for metrics in self.agent.pretrain(self.replay):
                bar.update()
                self.learned(metrics)
                if self.checkpoint_due:
                    self.checkpoint()
                self.stop_if_requested()
        self.log({})

    def learn(self) -> None:
        """The updates that are due."""
        while not self.exploring and self.agent.updates < self.updates_due:
            self.learned(self.agent.update(self.replay))

    def catch_up(self) -> bool:
        """What is left to learn when the last step has been taken; whether there was any."""
        if self.pretraining_due:
            self.pretrain()
        owed = not self.exploring and self.agent.updates < self.updates_due
        self.learn()
        self.log({})  # a loss that is not finite must not reach the evaluation
        return owed

    # Evaluation and checkpoint

    @property
    def evaluation_due(self) -> bool:
        """Whether a scheduled step has passed since the last evaluation."""
        first, every = self.config.evaluate_first, self.config.evaluate_every
        scheduled = first + (self.steps - first) // every * every
        return self.steps >= first and self.evaluated < scheduled

    def evaluate(self) -> None:
        """Evaluate, log, and refresh curve and prediction video, with a checkpoint before that: an
        evaluation that is stopped begins anew, and nothing else is lost. Training's randomness is
        left as it was."""
        self.checkpoint()
        config = self.config
        if self.evaluation_envs is None:
            count = min(config.evaluate_episodes, config.evaluate_envs)
            self.evaluation_envs = make_envs(config, count)
        seeds = [
            episode_seed(config.seed, EVALUATION, self.steps, index)
            for index in range(config.evaluate_episodes)
        ]
        kept = random_state(self.agent.device)
        torch.manual_seed(seeds[0])
        bar = Progress("evaluation", len(seeds), "episode", leave=False)
        with bar, self.stop.at_once():  # nothing is learned meanwhile
            results = run_episodes(self.agent, self.evaluation_envs, seeds, ended=bar.count)
        set_random_state(kept, self.agent.device)
        metrics = {"eval/return": float(np.mean([result["return"] for result in results]))}
        if results[0]["success"] is not None:
            metrics["eval/success"] = float(np.mean([result["success"] for result in results]))
        self.evaluated = self.steps
        self.log(metrics)
        self.folder.update_curve()
        if self.agent.updates + self.agent.pretrained:
            for name, frames in self.agent.report(self.replay).items():
                self.folder.show_video(name, frames, fps=10)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of an online run."""
        actions = self.collector.unfinished()
        unfinished = None
        if actions is not None:
            unfinished = {"actions": torch.from_numpy(actions), "agent_state": self.agent_state}
        return {
            **self.learned_state(),
            "started": self.collector.begun,
            "unfinished": unfinished,
            "step": self.replay.env_steps if unfinished is None else self.steps,
        }

    def learned_state(self) -> dict[str, Any]:
        """What a checkpoint holds of agent and replay."""
        return {
            "agent": self.agent.state_dict(),
            "action": self.action,
            "proprio": self.proprio,
            "discrete": self.discrete,
            "replay": self.replay.state_dict(),
        }

    def close(self) -> None:
        """Give back the environments' processes and the terminal."""
        super().close()
        for environments in (self.envs, self.evaluation_envs):
            if environments is not None:
                environments.close()


def episode_metrics(record: dict) -> dict[str, float]:
    """What the log says of a finished training episode."""
    metrics = {"train/return": record["return"], "train/length": record["env_steps"]}
    if record["success"] is not None:
        metrics["train/success"] = float(record["success"])
    return metrics
