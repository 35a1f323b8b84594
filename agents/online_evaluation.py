"""Trained online agents, evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from agents.agent import Actor
from agents.evaluation import Keep, noise_seed
from agents.online_config import RunConfig
from agents.online_run import make_envs
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed, run_episodes


def final_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of `episodes` starts that training and its evaluations never use."""
    return [episode_seed(seed, FINAL_EVALUATION, index) for index in range(episodes)]


def evaluate(
    agent: Actor | None,
    config: RunConfig,
    seeds: Sequence[int],
    seed: int,
    record: bool = False,
    shift: str | None = None,
    ended: Keep | None = None,
) -> list[dict]:
    """One episode from each of `seeds`.

    Args:
        agent: None acts at random.
        config: of the run.
        seeds: of the starts, from `final_seeds`.
        seed: of the evaluation.
        record: keep the frames.
        shift: visual shifts to act under (`envs.shifts`); None leaves the run's own, if any.
        ended: as of `run_episodes`.

    Returns:
        As `run_episodes`.
    """
    if shift is not None:
        config = replace(config, environment=replace(config.environment, shift=shift))
    noise = noise_seed(seed, seeds, *final_seeds(seed, 1))
    envs = make_envs(config, min(len(seeds), config.evaluate_envs))
    torch.manual_seed(noise)  # of the model states that are sampled on the way
    try:
        if agent is None:
            agent = RandomAgent(envs.single_action_space, noise)
        return run_episodes(agent, envs, list(seeds), record, ended=ended)
    finally:
        envs.close()
