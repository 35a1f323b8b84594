"""Trained agents, of online runs and of imitation, that record demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.agent import Actor, TaskDescription
from agents.imitation_loading import load_agent as load_imitator
from agents.online_loading import load_agent as load_online_agent
from envs import action_repeat
from envs.environment_config import ORIENTATIONS, Orientation, camera_names
from envs.own import OwnEnvironment
from envs.simulation import MujocoEnvironment
from errors import UserError
from experiment.run_folder import RunFolder


class Trained(NamedTuple):
    """An agent out of a run folder, and what it takes and gives."""

    actor: Callable[[int], Actor]
    """Makes what acts in one episode, given the episode's seed."""
    camera: str
    """Names of the simulator, separated by commas."""
    size: int
    """Picture edge, pixels."""
    action_repeat: int
    actions: int
    """Size of an action."""
    proprio: int | None = None
    """Size of the proprioception; None: it is not read."""
    orientation: Orientation = "upright"
    """Of the pictures."""


class Demonstrator:
    """A trained agent that records demonstrations (``envs.recording.Actor``).

    Args:
        logdir: its run folder.
        environment: in which it acts; must show what the agent was trained on, pictures upright.
        noise: standard deviation of what is added to its actions, the last (the gripper) excepted.
        trusted: what its configuration may load from outside (``ConfigRecord.load``).

    Raises:
        UserError: no agent there; the environment differs from the one it was trained in.
    """

    def __init__(
        self,
        logdir: Path | str,
        environment: MujocoEnvironment | OwnEnvironment,
        noise: float = 0.0,
        trusted: Collection[str] = (),
    ):
        load = _imitator if RunFolder.open(logdir).of_imitation else _online_agent
        self._trained = load(logdir, environment, trusted)
        _check(str(logdir), self._trained, environment)
        self._noise = noise

    def begin(self, seed: int) -> None:
        """Start an episode; its noise and sampled model states are a function of `seed`."""
        self._rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self._actor = self._trained.actor(seed)
        self._state, self._first = None, True

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """(A,) float32 in [-1, 1]."""
        one = {name: value[None] for name, value in observation.items()}
        if self._trained.orientation != "upright":
            turn, image = ORIENTATIONS[self._trained.orientation], observation["image"]
            turned = turn(image) if image.ndim == 3 else np.stack([turn(view) for view in image])
            one["image"] = turned[None]
        one["is_first"] = np.array([self._first])
        self._first = False
        action, self._state = self._actor.policy(one, self._state, explore=False)
        action = np.array(action[0])
        action[:-1] += self._noise * self._rng.standard_normal(len(action) - 1)
        return action.clip(-1, 1)


def _online_agent(
    logdir: Path | str, environment: MujocoEnvironment | OwnEnvironment, trusted: Collection[str]
) -> Trained:
    agent, config, _ = load_online_agent(logdir, trusted=trusted)
    seen = config.environment
    return Trained(
        lambda seed: agent,
        str(environment.default_camera)
        if seen.camera is None
        else ",".join(camera_names(seen.camera)),
        seen.size,
        action_repeat(config.task, seen.action_repeat),
        agent.action,
        orientation=seen.orientation,
    )


def _imitator(
    logdir: Path | str, environment: MujocoEnvironment | OwnEnvironment, trusted: Collection[str]
) -> Trained:
    agent, _, view, _ = load_imitator(logdir, trusted=trusted)

    def actor(seed: int) -> Actor:
        return agent.actor(TaskDescription(environment.task, environment.instruction), seed)

    sizes = agent.data_spec.action_size, agent.data_spec.proprio_size
    return Trained(actor, view.camera, view.size, view.action_repeat, *sizes)


def _check(name: str, trained: Trained, environment: MujocoEnvironment | OwnEnvironment) -> None:
    """Refuse an environment that shows or takes something else than the agent is used to."""
    options: dict[str, tuple[Any, Any]] = {
        "camera": (",".join(environment.cameras), trained.camera),
        "size": (environment.config.size, trained.size),
        "action-repeat": (environment.action_repeat, trained.action_repeat),
    }
    for option, (here, there) in options.items():
        if here != there:
            raise UserError(
                f"the agent of {name} was trained with {option.replace('-', ' ')} {there}, not"
                f" {here}; give --environment.{option} {there}"
            )
    proprio = environment.observation_space["proprio"]
    sizes = {
        "an action": (environment.action_space.shape, trained.actions),
        "proprioception": (proprio.shape, trained.proprio),
    }
    for what, (here, there) in sizes.items():
        if there is not None and here != (there,):
            raise UserError(
                f"the agent of {name} was trained with {there} numbers of {what}, unlike"
                f" {environment.name}; record another task"
            )
