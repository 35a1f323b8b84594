"""Whole runs of a tiny agent in the real simulator, and what they leave in their folders.

An episode of Meta-World is 500 environment steps; at 20 of them per agent step it is over soon.
"""

import json
import os
import shutil
import signal
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from agents.online import train
from agents.online_config import DreamerRunConfig, OnlineConfig
from agents.online_run import OnlineRun
from agents.presets import preset
from envs import EnvironmentConfig
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from tests.agents.tiny_agent import SIZE, TINY, TINY_DREAMER

EPISODE = 500
STEPS, REPEAT = 4 * EPISODE, 20
PREFILL, UPDATE_EVERY = EPISODE // REPEAT, 4
# Updates are made while a step is taken, for the steps before it.
UPDATES = (STEPS // REPEAT - 1 - PREFILL) // UPDATE_EVERY


def tiny(**changes) -> OnlineConfig:
    """Checkpoints at every boundary and after every pretraining update."""
    agent = replace(
        TINY, autoencoder_batch=8, batch=2, window=8, autoencoder_pretraining=3, joint_pretraining=2
    )
    config = replace(
        preset("cpu", "metaworld/window-close"),
        steps=STEPS,
        threads=1,
        environment=EnvironmentConfig(size=SIZE, action_repeat=REPEAT, quality="fast"),
        episode_steps=0,
        agent=agent,
        prefill=PREFILL,
        update_every=UPDATE_EVERY,
        replay_capacity=500,
        evaluate_first=2 * EPISODE,
        evaluate_every=EPISODE,
        evaluate_episodes=1,
        evaluate_envs=1,
        checkpoint_seconds=0.0,
    )
    return replace(config, **changes)


def tiny_dreamer(**changes) -> DreamerRunConfig:
    """The same run of DreamerV2, with as many updates on the prefill."""
    run = {field.name: getattr(tiny(), field.name) for field in fields(DreamerRunConfig)}
    agent = replace(TINY_DREAMER, batch=2, window=8, pretraining=5)
    return DreamerRunConfig(**{**run, "method": "dreamer", "agent": agent, **changes})


class Photographed(RunFolder):
    """Copies itself after every checkpoint: what the disk holds if the process dies right then."""

    def save_checkpoint(self, state):
        super().save_checkpoint(state)
        album = self.path.parent / f"{self.path.name}-album"
        shutil.copytree(self.path, album / f"{len(list(album.glob('*'))):02}")


def train_until(step, config, folder):
    """`train`, with SIGTERM when that step is about to be taken."""

    class Watched(OnlineRun):
        def act(self):
            if self.steps == step - REPEAT:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.online.OnlineRun", Watched)
        train(config, folder)


def wait_for(condition, process, seconds=60):
    """Wait for something that a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Still:
    """A policy that does nothing."""

    def begin(self, seed):
        pass

    def action(self, observation):
        return np.zeros(2, np.float32)


def run(path, config, kind=RunFolder):
    with kind.create_or_resume(path, config) as folder:
        train(config, folder)
    return path


def album_of(path):
    """What `Photographed` kept of a run: the step of each of its checkpoints, and the folder."""
    pictures = sorted((path.parent / f"{path.name}-album").glob("*"))
    return [(checkpoint(picture)["step"], picture) for picture in pictures]


def lines(path):
    """metrics.jsonl without what the clock decides."""
    clock = ("time", "updates_per_second")
    return [
        {name: value for name, value in json.loads(line).items() if name not in clock}
        for line in (path / "metrics.jsonl").read_text().splitlines()
    ]


def records(path):
    written = (path / "replay" / "episodes.jsonl").read_text().splitlines()
    return [json.loads(line) for line in written]


def checkpoint(path):
    state = load_checkpoint(path / "checkpoint.pt")
    return {name: state[name] for name in ("agent", "replay", "random", "evaluated", "step")}


def equal(left, right):
    """Equality of nested states, tensors to the bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def differences(left, right):
    """Which parts of two checkpoints are not the same to the bit."""
    left, right = checkpoint(left), checkpoint(right)
    return [name for name in left if not equal(left[name], right[name])]


def never_backwards(path):
    steps = [line["step"] for line in lines(path)]
    return steps == sorted(steps)
