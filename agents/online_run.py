"""What an online run holds, and its bookkeeping: counters, logs, evaluations, checkpoints."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from tqdm import tqdm

import envs
from agents.device import keep_freed_memory
from agents.online_config import OnlineConfig
from agents.online_loading import load_checked, make_agent
from agents.recorded_episodes import open_source
from agents.replay import Entry, Replay, entries_for, free_memory
from agents.rollout import (
    EVALUATION,
    Collector,
    RandomAgent,
    episode_seed,
    run_episodes,
)
from agents.training import LOG_SECONDS, MetricMean, random_state, set_random_state
from errors import UserError
from experiment.run_folder import RunFolder
from mask_classes import UNLABELLED
from world_models.targets import make_target, reads


def training_view(config: OnlineConfig) -> dict:
    """Options of `envs.make` for training: also what the target has to be told while it learns."""
    options = dict(vars(config.environment))
    options["masks"] |= needs_masks(config) and config.render_masks
    return options


def needs_masks(config: OnlineConfig) -> bool:
    """Whether what the world model predicts is learned from masks."""
    return "mask" in reads(make_target(config.agent.autoencoder.target))


def make_envs(config: OnlineConfig, count: int, training: bool = False) -> VectorEnv:
    """`count` environments of the run's task, each in a process of its own.

    Acting takes the picture alone, so only those that `training` learns from draw masks.

    Raises:
        UserError: as `envs.make_vector`; also several cameras.
    """
    view = training_view(config) if training else {**vars(config.environment), "masks": False}
    made = envs.make_vector(config.task, count, **view)
    if len(made.single_observation_space["image"].shape) > 3:
        made.close()
        raise UserError(
            f"an agent that learns online sees one camera, but {config.task} shows several; name"
            " one with --environment.camera"
        )
    return made


def entries_of(config: OnlineConfig, environments: VectorEnv) -> dict[str, Entry]:
    """What the run's replay holds."""
    entries = entries_for(environments.single_observation_space, environments.single_action_space)
    if needs_masks(config):
        entries["mask"] = Entry(entries["image"].shape[:2], "uint8")
    return entries


class OnlineRun:
    """One training run in one folder.

    Every counter is derived from the replay (episodes ever stored) plus the unfinished episodes,
    so that after a kill the episodes that finished since the last checkpoint still count, and the
    updates they owe are made up for.
    """

    def __init__(self, config: OnlineConfig, folder: RunFolder):
        self.config, self.folder = config, folder
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.envs = make_envs(config, config.num_envs, training=True)
        self.evaluation_envs: VectorEnv | None = None
        self.bar: tqdm | None = None
        space = self.envs.single_action_space
        self.agent = make_agent(config, space.shape[0], config.device)
        if config.agent.compile:
            self.agent.compile_updates()
        self.random_agent = RandomAgent(space, extreme=config.random_actions == "extreme")
        self.replay = Replay(
            folder.path / "replay",
            entries_of(config, self.envs),
            config.replay_capacity,
            prioritise_ends=config.prioritise_ends,
            seed=config.seed,
        )
        self.metrics = MetricMean()
        self.agent_state: tuple | None = None
        self.evaluated = 0  # step of the last evaluation
        self.latest: dict[str, str] = {}  # shown at the end of the progress bar
        self.checkpointed = self.logged = time.monotonic()
        self.updates_logged = 0

    def _keep_on_device(self) -> bool:
        """Whether samples are taken from the device's memory."""
        asked, device = self.config.replay_memory, self.agent.device
        if asked == "auto":
            return device.type == "cuda" and 2 * self.replay.bytes_when_full < free_memory(device)
        return asked == "device"

    # Counters

    @property
    def steps(self) -> int:
        """Environment steps taken so far."""
        return self.replay.env_steps + self.collector.env_steps

    @property
    def agent_steps(self) -> int:
        """Agent steps taken so far, over all environments together."""
        return self.replay.agent_steps + self.collector.agent_steps

    @property
    def updates_due(self) -> int:
        """Updates the agent should have made by now."""
        return max(0, self.agent_steps - self.config.prefill) // self.config.update_every

    # The parts of the loop, in order

    def resume(self) -> None:
        """Continue from the checkpoint, if any, and from the episodes in the replay."""
        if self._keep_on_device():
            self.replay.keep_on(self.agent.device)
        state = self.folder.load_checkpoint("cpu")
        if state is None:
            state = {"metrics_position": 0, "step": 0, "seconds": 0.0, "replay": {"episodes": 0}}
        else:
            load_checked(self.agent, state, self.config, self.folder.checkpoint_path)
            self.replay.load_state_dict(state["replay"])
            self.evaluated = state["evaluated"]
            set_random_state(state["random"])
        repeat = envs.action_repeat(self.config.task, self.config.environment.action_repeat)
        if self.config.steps <= self.config.prefill * repeat:
            print(
                f"note: nothing is learned in {self.config.steps} environment steps, the prefill "
                f"alone takes {self.config.prefill * repeat}; give more --steps or less --prefill",
                flush=True,
            )
        self.folder.cut_metrics(state["metrics_position"], state["step"])
        self.folder.start_clock(state["seconds"])
        counts = self.agent.parameter_counts()
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(f"parameters: {parts}; {sum(counts.values()):,} in all", flush=True)
        self.copy_recorded()
        known = state["replay"]["episodes"]
        step = sum(record["env_steps"] for record in self.replay.records[:known])
        for record in self.replay.records[known:]:  # finished after the checkpoint: kept
            if "recorded" in record:
                continue
            step += record["env_steps"]
            self.folder.log(step, episode_metrics(record))
        started = max(len(self.replay.records), state.get("started", 0))
        self.collector = Collector(
            self.envs, self.config.seed, started, limit=self.config.episode_steps
        )
        self.updates_logged = self.agent.updates + self.agent.pretrained
        self.bar = tqdm(
            total=self.config.steps,
            initial=self.steps,
            unit="step",
            desc=self.config.task,
            mininterval=0.5,
            dynamic_ncols=True,
            disable=None,  # silent where standard error is not a terminal; `say` speaks then
        )

    def copy_recorded(self) -> None:
        """Take over the episodes of `recorded`, or those that a killed start has left out."""
        if any("recorded" not in record for record in self.replay.records):
            return
        done = len(self.replay.records)
        camera = self.envs.get_attr("cameras")[0][0]
        sources = [open_source(name, self.config, camera) for name in self.config.recorded]
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
            self.store(episode, **{**record, **no_steps})

    def store(self, episode: dict[str, np.ndarray], **record) -> None:
        """Keep an episode in the replay, unlabelled where it has no masks."""
        if "mask" in self.replay.entries and "mask" not in episode:
            shape = (len(episode["reward"]), *self.replay.entries["mask"].shape)
            episode = {**episode, "mask": np.full(shape, UNLABELLED, np.uint8)}
        self.replay.add_episode(episode, **record)

    @property
    def exploring(self) -> bool:
        """Whether the prefill still goes on; it ends with an episode."""
        return self.replay.agent_steps < self.config.prefill

    def act(self) -> np.ndarray:
        """Actions (n, A) for the training environments: at random during the prefill and in a
        share of the blocks after it, otherwise the agent's."""
        self.pretrain()
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
            raise UserError(
                f"the actor's action is not finite at step {self.steps}; {self._last_checkpoint()}"
            )
        return action

    def pretrain(self) -> None:
        """Whatever is left of the updates on the prefill, once it is over."""
        total = self.agent.pretraining_updates
        if self.exploring or self.agent.pretrained >= total:
            return
        with tqdm(
            total=total, initial=self.agent.pretrained, desc="pretraining", unit="update",
            dynamic_ncols=True, disable=None,
        ) as bar:  # fmt: skip
            for metrics in self.agent.pretrain(self.replay):
                bar.update()
                self._learned(metrics)
                self.checkpoint_if_due()
        self.log({})

    def learn(self) -> None:
        """The updates that are due."""
        while not self.exploring and self.agent.updates < self.updates_due:
            self._learned(self.agent.update(self.replay))

    def _learned(self, metrics: dict[str, Tensor]) -> None:
        """Take in the metrics of one update."""
        self.metrics.add(metrics)
        if time.monotonic() - self.logged > LOG_SECONDS:
            self.log({})

    def remember(self, episodes: list[tuple[dict, dict]]) -> None:
        """Store episodes that just ended; evaluate and checkpoint at this boundary if due."""
        self.bar.n = min(self.steps, self.config.steps)
        self.bar.update(0)
        if not episodes:
            return
        for episode, record in episodes:
            self.store(episode, **record)
            self.log(episode_metrics(record))
        if self.steps < self.config.steps:
            self.evaluate_if_due()
            self.checkpoint_if_due()
            self.collector.restart()

    def conclude(self) -> None:
        """End of the budget: keep the unfinished episodes, make up for what is owed, evaluate."""
        for episode, record in self.collector.cut():
            self.store(episode, **record)
            self.log(episode_metrics(record))
        self.pretrain()
        owed = self.agent.updates < self.updates_due and not self.exploring
        self.learn()
        self.log({})  # a loss that is not finite must not reach the evaluation
        if self.evaluated < self.steps or owed:
            self.evaluate()
            self.checkpoint()

    # Log, evaluation, checkpoint

    def log(self, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl: `metrics`, the mean losses since the last line, counters.

        Raises:
            UserError: a loss is not finite.
        """
        losses = self.metrics.take()
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise UserError(
                f"{', '.join(wrong)} is not finite at step {self.steps}, update "
                f"{self.agent.updates}; {self._last_checkpoint()}"
            )
        if not (metrics or losses):
            return
        now = time.monotonic()
        done = self.agent.updates + self.agent.pretrained
        rate = (done - self.updates_logged) / max(1e-9, now - self.logged)
        self.logged, self.updates_logged = now, done
        counters = {f"updates/{name}": n for name, n in self.agent.update_counts().items()}
        if losses:
            counters["updates_per_second"] = rate
        self.folder.log(self.steps, {**metrics, **losses, **counters})
        for name in ("train/success", "train/return", "eval/success", "eval/return"):
            if name in metrics:
                self.latest[name] = f"{metrics[name]:.3g}"
        self.bar.set_postfix({**self.latest, "updates/s": f"{rate:.1f}"}, refresh=False)
        self.say(f"step {self.steps} of {self.config.steps}", metrics)

    def say(self, what: str, metrics: dict[str, float]) -> None:
        """A line for logs that are not a terminal, where the progress bar is silent."""
        if self.bar.disable and metrics:
            values = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            print(f"{what}  {values}  ({self.folder.elapsed:.0f} s)", flush=True)

    def evaluate_if_due(self) -> None:
        """Evaluate when a scheduled step has passed since the last evaluation."""
        first, every = self.config.evaluate_first, self.config.evaluate_every
        if self.steps >= first:
            scheduled = first + (self.steps - first) // every * every
            if self.evaluated < scheduled:
                self.evaluate()

    def evaluate(self) -> None:
        """Evaluate, log, and refresh curve and prediction video; training's randomness is
        left as it was."""
        config = self.config
        if self.evaluation_envs is None:
            count = min(config.evaluate_episodes, config.evaluate_envs)
            self.evaluation_envs = make_envs(config, count)
        seeds = [
            episode_seed(config.seed, EVALUATION, self.steps, index)
            for index in range(config.evaluate_episodes)
        ]
        kept = random_state()
        torch.manual_seed(seeds[0])
        results = run_episodes(self.agent, self.evaluation_envs, seeds)
        set_random_state(kept)
        metrics = {"eval/return": float(np.mean([result["return"] for result in results]))}
        if results[0]["success"] is not None:
            metrics["eval/success"] = float(np.mean([result["success"] for result in results]))
        self.evaluated = self.steps
        self.log(metrics)
        self.folder.update_curve()
        if self.agent.updates + self.agent.pretrained:
            for name, frames in self.agent.report(self.replay).items():
                self.folder.write_video(name, frames, fps=10)

    def checkpoint_if_due(self) -> None:
        if time.monotonic() - self.checkpointed > self.config.checkpoint_seconds:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write a checkpoint, unless a loss since the last one was not finite."""
        self.log({})
        self.folder.save_checkpoint(
            {
                "agent": self.agent.save(),
                "action": self.agent.behaviour.action,
                "task": self.config.task,
                "replay": self.replay.state_dict(),
                "random": random_state(),
                "evaluated": self.evaluated,
                "started": self.collector.started - self.collector.untouched,
                "step": self.replay.env_steps,
                "seconds": self.folder.elapsed,
                "metrics_position": self.folder.metrics_position(),
            }
        )
        self.checkpointed = time.monotonic()

    def _last_checkpoint(self) -> str:
        path = self.folder.checkpoint_path
        if path.exists():
            return (
                f"the last good checkpoint is {path}; use it, or start another --logdir with "
                "smaller learning rates"
            )
        return "there is no checkpoint yet; start another --logdir with smaller learning rates"

    def close(self) -> None:
        """Give back the environments' processes and the terminal."""
        if self.bar is not None:
            self.bar.close()
        for environments in (self.envs, self.evaluation_envs):
            if environments is not None:
                environments.close()


def episode_metrics(record: dict) -> dict[str, float]:
    """What the log says of a finished training episode."""
    metrics = {"train/return": record["return"], "train/length": record["env_steps"]}
    if record["success"] is not None:
        metrics["train/success"] = float(record["success"])
    return metrics
