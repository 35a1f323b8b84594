"""Running episodes: the collector of training data, evaluation, and the random policy.

Shape legend: n environments stepped together, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.agent import Actor
from envs.environment import OneHot
from envs.vector import VectorEnvironment

TRAINING, EVALUATION, FINAL_EVALUATION = 0, 1, 2
"""Streams of episode seeds that never meet: evaluation is on starts never trained on."""


def episode_seed(seed: int, stream: int, *index: int) -> int:
    """The 32-bit environment seed of an episode, a function of the run's seed and its place."""
    return int(np.random.SeedSequence([seed, stream, *index]).generate_state(1)[0])


class RandomAgent:
    """Uniform actions in the action space; where a bound is infinite, standard normal ones; of
    one-hot actions any.

    Args:
        action_space: of one environment.
        seed: of the generator `rng`.
        extreme: finite bounds themselves, either with probability a half, in place of uniform
            actions between them.
    """

    def __init__(self, action_space, seed: int = 0, extreme: bool = False):
        self.space = action_space
        self.rng = np.random.default_rng(seed)
        self.extreme = extreme

    def policy(self, observation: dict, state, explore: bool) -> tuple[np.ndarray, None]:
        """Actions (n, A) float32; reads nothing but how many are wanted."""
        shape = (len(observation["is_first"]), *self.space.shape)
        if isinstance(self.space, OneHot):
            chosen = self.rng.integers(shape[1], size=shape[0])
            return np.eye(shape[1], dtype=np.float32)[chosen], None
        low, high = self.space.low, self.space.high
        bounded = np.isfinite(low) & np.isfinite(high)
        share = self.rng.random(shape)
        share = share.round() if self.extreme else share
        between = np.where(bounded, low, 0) + np.where(bounded, high - low, 0) * share
        action = np.where(bounded, between, self.rng.standard_normal(shape))
        return action.astype(np.float32), None


@dataclass
class Unfinished:
    """An episode that is being collected."""

    frames: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By entry of the replay, one value a frame; empty until the reset."""
    env_steps: list[int] = field(default_factory=list)
    """Environment steps of each agent step."""
    success: list[bool] = field(default_factory=list)
    """Of each agent step, where the suite has such a thing."""


class Collector:
    """Steps environments and cuts what happens into episodes, as the replay keeps them.

    `begin(action)` lets the environments move in their own processes while the caller learns;
    `finish()` waits for them.

    Args:
        envs: as from `envs.make_vector`.
        seed: of the run.
        started: episodes that were begun before.
        stream: of the episodes' seeds.
        limit: environment steps after which an episode is cut, as a time limit would; 0: the
            task's own limit alone.
        actions: (t, A) of an episode that is gone on with, in one environment: they are taken
            again, from the same start.
    """

    def __init__(
        self,
        envs: VectorEnvironment,
        seed: int,
        started: int = 0,
        stream: int = TRAINING,
        limit: int = 0,
        actions: np.ndarray | None = None,
    ):
        self.envs, self.seed, self.stream, self.limit = envs, seed, stream, limit
        self.started = started  # episodes begun in this run, the ordinal of the next one's seed
        self.episodes = [Unfinished() for _ in range(envs.num_envs)]
        self.seeds: list[int | None] = [None] * envs.num_envs
        self.observation = self._reset(np.ones(envs.num_envs, bool))
        for action in () if actions is None else actions:
            self.begin(action[None])
            if self.finish():  # not the same environment: this one is over
                self.restart()
                break

    def _reset(self, which: np.ndarray) -> dict[str, np.ndarray]:
        seeds: list[int | None] = [None] * self.envs.num_envs
        for index in np.flatnonzero(which).tolist():
            seeds[index] = self.seeds[index] = episode_seed(self.seed, self.stream, self.started)
            self.started += 1
        observation, _ = self.envs.reset(seed=seeds, options={"reset_mask": which})
        assert isinstance(self.envs.action_space, spaces.Box)
        action = np.zeros(self.envs.action_space.shape, np.float32)
        nothing = np.zeros(self.envs.num_envs)
        for index in np.flatnonzero(which).tolist():
            self.episodes[index] = Unfinished()
        self._record(observation, action, nothing, which, nothing.astype(bool), which)
        return {**observation, "is_first": which}

    def _record(self, observation, action, reward, is_first, is_terminal, which) -> None:
        step = {
            **observation,
            "action": action,
            "reward": reward,
            "is_first": is_first,
            "is_terminal": is_terminal,
        }
        for index in np.flatnonzero(which).tolist():
            for name, value in step.items():
                self.episodes[index].frames.setdefault(name, []).append(np.array(value[index]))

    @property
    def agent_steps(self) -> int:
        """Agent steps of the unfinished episodes."""
        return sum(len(episode.env_steps) for episode in self.episodes)

    @property
    def env_steps(self) -> int:
        """Environment steps of the unfinished episodes."""
        return sum(sum(episode.env_steps) for episode in self.episodes)

    @property
    def begun(self) -> int:
        """Episodes begun, less those that a resume begins again: those that have seen no action
        yet, and the `unfinished` one."""
        untouched = sum(bool(e.frames) and not e.env_steps for e in self.episodes)
        return self.started - untouched - (self.unfinished() is not None)

    def unfinished(self) -> np.ndarray | None:
        """The actions (t, A) of the episode that one environment is in the middle of; None between
        episodes, and of several environments, whose unfinished episodes a resume begins anew."""
        if len(self.episodes) > 1 or not self.episodes[0].env_steps:
            return None
        return np.stack(self.episodes[0].frames["action"][1:])

    def begin(self, action: np.ndarray) -> None:
        """Send actions (n, A); the environments start moving."""
        self._action = action
        self.envs.step_async(action)

    def finish(self) -> list[tuple[dict[str, np.ndarray], dict]]:
        """Wait for the step that `begin` started.

        Returns:
            Episodes that ended with it, each as arrays (L + 1, ...) and its index record.
        """
        observation, reward, terminated, truncated, info = self.envs.step_wait()
        nothing = np.zeros(self.envs.num_envs, bool)
        self._record(observation, self._action, reward, nothing, terminated, ~nothing)
        for index, episode in enumerate(self.episodes):
            episode.env_steps.append(int(info["env_steps"][index]))
            if "success" in info:
                episode.success.append(bool(info["success"][index]))
        ended = terminated | truncated
        if self.limit:
            ended |= np.array([sum(e.env_steps) >= self.limit for e in self.episodes])
        self.observation = {**observation, "is_first": nothing}
        self._ended = ended
        return [self._cut(index) for index in np.flatnonzero(ended).tolist()]

    def restart(self) -> bool:
        """Reset the environments whose episodes ended, once the caller is done with those; True:
        there is always another."""
        if self._ended.any():
            fresh = self._reset(self._ended)
            for name, value in fresh.items():
                self.observation[name][self._ended] = value[self._ended]
        return True

    def cut(self) -> list[tuple[dict[str, np.ndarray], dict]]:
        """End all unfinished episodes here, as a time limit would. For the end of a run."""
        running = [i for i, episode in enumerate(self.episodes) if episode.env_steps]
        return [self._cut(index) for index in running]

    def _cut(self, index: int) -> tuple[dict[str, np.ndarray], dict]:
        episode, self.episodes[index] = self.episodes[index], Unfinished()
        record = {
            "env_steps": sum(episode.env_steps),
            "return": float(np.sum(episode.frames["reward"])),
            "success": any(episode.success) if episode.success else None,
            "seed": self.seeds[index],
        }
        return {name: np.stack(values) for name, values in episode.frames.items()}, record


@dataclass
class Evaluated:
    """What `run_episodes` notes of one episode on the way."""

    seed: int
    return_: float = 0.0
    success: bool | None = None
    length: int = 0
    frames: list[np.ndarray] = field(default_factory=list)

    def result(self, record: bool) -> dict[str, Any]:
        """As `run_episodes` returns it; with `frames` if asked."""
        result = {
            "seed": self.seed,
            "return": self.return_,
            "success": self.success,
            "length": self.length,
        }
        return result | ({"frames": np.stack(self.frames)} if record else {})


def run_episodes(
    agent: Actor,
    envs: VectorEnvironment,
    seeds: list[int],
    record: bool = False,
    options: dict[str, Any] | None = None,
    until_success: bool = False,
    ended: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """One episode per seed, several at a time, with the agent's evaluation policy.

    Args:
        agent: has `policy(observation, state, explore)`.
        envs: as from `envs.make_vector`.
        seeds: environment seeds, one per episode.
        record: keep the frames.
        options: of every reset.
        until_success: end an episode at its first success, where returns do not matter.
        ended: called with each episode, as returned, when it has ended.

    Returns:
        Per episode, in the order of the seeds: `seed`, `return`, `length` (environment steps),
        `success` (any step of the episode succeeded; None where the suite has no such thing),
        and `frames` (L + 1, H, W, 3) uint8 when recorded, several cameras beside each other.
    """
    count = envs.num_envs
    episodes = [Evaluated(seed) for seed in seeds]
    waiting = list(episodes)
    playing: list[Evaluated | None] = [None] * count
    state, over = None, np.ones(count, bool)
    observation: dict[str, np.ndarray] = {}
    while True:
        reset_seeds: list[int | None] = [None] * count
        for index in np.flatnonzero(over).tolist():
            episode = playing[index] = waiting.pop(0) if waiting else None
            # A worker without an episode of its own idles through one that nobody counts.
            reset_seeds[index] = 0 if episode is None else episode.seed
        if all(episode is None for episode in playing):
            break
        if over.any():
            fresh, _ = envs.reset(seed=reset_seeds, options={**(options or {}), "reset_mask": over})
            for name, value in fresh.items():
                observation.setdefault(name, value.copy())[over] = value[over]
        if record:
            for index, episode in enumerate(playing):
                if episode is not None:
                    episode.frames.append(_frame(observation["image"][index]))
        action, state = agent.policy({**observation, "is_first": over}, state, explore=False)
        observation, reward, terminated, truncated, info = envs.step(action)
        over = terminated | truncated
        if until_success and "success" in info:
            over |= np.asarray(info["success"], bool)
        for index, episode in enumerate(playing):
            if episode is None:
                continue
            episode.return_ += float(reward[index])
            episode.length += int(info["env_steps"][index])
            if "success" in info:
                episode.success = bool(episode.success) or bool(info["success"][index])
            if record and over[index]:
                episode.frames.append(_frame(observation["image"][index]))
            if ended is not None and over[index]:
                ended(episode.result(record))
    return [episode.result(record) for episode in episodes]


def _frame(image: np.ndarray) -> np.ndarray:
    """What is shown of a picture (H, W, 3), or of those (V, H, W, 3) of several cameras."""
    return image.copy() if image.ndim == 3 else np.concatenate(list(image), axis=1)
