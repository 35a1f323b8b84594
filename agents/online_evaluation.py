"""Trained online agents at work: evaluated, and recording demonstrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from agents.agent import Actor
from agents.online_config import OnlineConfig
from agents.online_loading import load_agent
from agents.online_run import make_envs
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed, run_episodes
from envs import action_repeat
from errors import UserError


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
            "number of actions": (environment.action_space.shape[0], self._agent.action),
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
    agent: Actor | None,
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
