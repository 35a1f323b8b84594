"""Recording demonstrations of RLBench's own planner, in the format of the other suites."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import envs
from envs.demonstration_writer import DemonstrationWriter
from envs.environment_config import EnvironmentConfig
from envs.recording import PATIENCE, demonstration_seed, file_attributes
from envs.recording_header import short_name
from envs.rlbench import JOINTS, RLBench, observed
from envs.workers import Worker
from errors import UserError

TARGET = "joint_position_action"
"""Of an observation of a demonstration: what led to it, (8,): the joints' targets in radians, and
how far the gripper is to open, from 0 to 1."""
MADE_BY = "RLBench's planner"
PACKAGES = ("numpy", "rlbench", "pyrep")


def actions_of(observations: Sequence[Any]) -> np.ndarray:
    """Actions (T, 8) float64 that lead from each observation of a demonstration (T + 1) to the
    next, as ``RLBench`` takes them: the planner's targets less where the joints were, and 1 for an
    open gripper or -1.

    Raises:
        UserError: this RLBench does not record what its planner commanded.
    """
    actions = []
    for before, after in zip(observations[:-1], observations[1:], strict=True):
        target = after.misc.get(TARGET)
        if target is None:
            raise UserError(
                f"the RLBench installed here records no {TARGET}; install a newer one"
                " (docs/rlbench.md)"
            )
        moved = np.asarray(target[:JOINTS], np.float64) - before.joint_positions
        actions.append([*moved, 1.0 if target[JOINTS] > 0.5 else -1.0])
    return np.clip(np.array(actions, np.float64).reshape(-1, JOINTS + 1), -1, 1)


def episode_of(
    observations: Sequence[Any],
    rewards: Sequence[float],
    cameras: Sequence[str],
    config: EnvironmentConfig,
    classes: Mapping[int, int],
) -> dict[str, np.ndarray]:
    """A demonstration as arrays (T, ...) by dataset: what was seen when each action was taken.

    Args:
        observations: of RLBench, T + 1.
        rewards: that came with all but the first, T.
        cameras: that saw it.
        config: how they did; masks and proprioception are recorded.
        classes: class ids by handle.
    """
    steps: dict[str, list[np.ndarray]] = {}
    for observation in observations[:-1]:
        seen = observed(observation, cameras, config, classes)
        steps.setdefault("obs/proprio", []).append(seen["proprio"])
        for number, camera in enumerate(cameras):
            for name, kind in (("image", "rgb"), ("mask", "mask")):
                view = seen[name][number] if len(cameras) > 1 else seen[name]
                steps.setdefault(f"obs/{short_name(camera)}_{kind}", []).append(view)
    recorded = {name: np.stack(values) for name, values in steps.items()}
    recorded["actions"] = actions_of(observations)
    recorded["rewards"] = np.asarray(rewards, np.float32)
    recorded["dones"] = np.zeros(len(recorded["actions"]), np.uint8)
    recorded["dones"][-1] = 1
    return recorded


class Planner:
    """RLBench's planner at one task; lives in a process of its own.

    Args:
        task: id.
        config: how it is seen.
    """

    def __init__(self, task: str, config: EnvironmentConfig):
        environment = envs.make(task, **vars(config))
        assert isinstance(environment, RLBench)
        self.environment = environment

    def record(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, object]] | None:
        """A demonstration from the start of a seed, as arrays and attributes; None where the
        planner fails."""
        environment = self.environment
        _, info = environment.reset(seed=seed)
        # A thing that is held at the end is then part of the gripper: the start counts.
        classes = environment.scene_classes()
        made = environment.demonstrate()
        if made is None:
            return None
        observations, rewards = made
        classes = environment.scene_classes() | classes
        recorded = episode_of(
            observations, rewards, environment.cameras, environment.config, classes
        )
        note = {
            "seed": seed,
            "success": True,
            "variation": info["variation"],
            "language_instruction": info["instruction"],
        }
        return recorded, note


def collect(
    task: str,
    episodes: int,
    path: str | os.PathLike,
    config: EnvironmentConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda kept, attempts: None,
) -> None:
    """Record demonstrations of the planner, one row a control step, in a process of their own.

    Started again after being stopped, it goes on behind the last episode kept.

    Args:
        task: id.
        episodes: how many.
        path: of the file, ``.hdf5``.
        config: how the task is seen; masks and proprioception are recorded whatever it says.
        seed: episode k starts from ``demonstration_seed(seed, k)``.
        progress: called after every episode with those kept and those tried.

    Raises:
        UserError: an action is to be repeated; the file exists; ``PATIENCE`` demonstrations in a
            row fail; the simulator's process dies; what ``make`` raises.
    """
    if config.action_repeat not in (None, 1):
        raise UserError(
            "RLBench's planner acts at every control step; leave --environment.action-repeat out"
        )
    options = {field: getattr(config, field) for field in config.__dataclass_fields__}
    options |= {"masks": True, "proprio": True, "orientation": "upright", "action_repeat": 1}
    seen = EnvironmentConfig(**options)
    described = envs.make(task, **options)  # starts no simulator
    attributes = file_attributes(task, described, seed, 0, MADE_BY, PACKAGES)
    described.close()
    with DemonstrationWriter(path, attributes) as writer:
        worker = Worker(f"RLBench's planner of {task}", functools.partial(Planner, task, seen))
        try:
            worker.answer()
            attempts, failures = writer.attempts, 0
            while writer.episodes < episodes:
                worker.ask("record", demonstration_seed(seed, attempts))
                made = worker.answer()
                attempts += 1
                failures = 0 if made is not None else failures + 1
                if made is not None:
                    writer.add(*made, attempts)
                else:
                    writer.tried(attempts)
                progress(writer.episodes, attempts)
                if failures >= PATIENCE:
                    raise UserError(
                        f"{task}: the planner failed in the last {failures} of {attempts} episodes;"
                        f" there are {writer.episodes} demonstrations in {writer.partial}"
                    )
        finally:
            worker.end()
