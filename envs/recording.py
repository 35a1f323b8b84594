"""Recording demonstrations of a policy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

import envs
from envs.alignment import BEFORE
from envs.demonstration_writer import DemonstrationWriter, mask_attributes
from envs.environment import Environment, OneHot
from envs.environment_config import EnvironmentConfig
from envs.experts import expert
from envs.libero import Libero
from envs.own import OwnEnvironment
from envs.recording_header import short_name
from envs.simulation import MujocoEnvironment
from envs.tracks import Tracker
from errors import UserError
from versions import installed_versions

PACKAGES = (
    "numpy",
    "mujoco",
    "metaworld",
    "dm_control",
    "hf-libero",
    "robosuite",
    "rlbench",
    "pyrep",
)
DEMONSTRATIONS = 3  # a stream of episode seeds of its own, beside those of agents/rollout.py
NOISE = 1  # keeps what is added to actions apart from what the task draws
TRACKED = 2  # keeps the choice of points apart from both
PATIENCE = 20
"""Failed episodes in a row after which recording gives up."""


class Actor(Protocol):
    """What records: ``begin(seed)`` after a reset, then ``action(observation)``, (A,) in [-1, 1].

    What it draws at random in an episode is a function of that episode's seed.
    """

    def begin(self, seed: int) -> None: ...

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray: ...


class ScriptedActor:
    """The scripted expert of a task (``envs/experts.py``), which looks at the simulator instead.

    Args:
        environment: of a task that has one.
        noise: standard deviation of what is added to its actions.

    Raises:
        UserError: the task has no expert.
    """

    def __init__(self, environment: Environment, noise: float = 0.0):
        if not isinstance(environment, MujocoEnvironment):
            raise UserError(
                f"{environment.task} has no scripted expert; record an agent by --policy RUN"
            )
        self._rng = np.random.default_rng()
        self._expert = expert(environment, noise, self._rng)

    def begin(self, seed: int) -> None:
        """Start an episode; its noise is a function of `seed`."""
        self._rng.bit_generator.state = np.random.default_rng([seed, NOISE]).bit_generator.state
        self._expert.begin()

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """(A,) float32 in [-1, 1]; the observation is not read."""
        return self._expert.action()


def demonstration_seed(seed: int, attempt: int) -> int:
    """The environment seed of an episode that is to be recorded."""
    return int(np.random.SeedSequence([seed, DEMONSTRATIONS, attempt]).generate_state(1)[0])


def collect(
    task: str,
    episodes: int,
    path: str | os.PathLike,
    make_actor: Callable[[Environment], Actor],
    config: EnvironmentConfig,
    *,
    seed: int = 0,
    after_success: int = 5,
    made_by: str = "scripted expert",
    progress: Callable[[int, int], None] = lambda kept, attempts: None,
) -> None:
    """Record successful episodes of a policy, masks included; all of them where the suite knows no
    success. Of an environment of the user's own no states are recorded, and masks if it has some.

    Started again after being stopped, it goes on behind the last episode kept.

    Args:
        task: id.
        episodes: how many successful ones to keep.
        path: of the file, ``.hdf5``.
        make_actor: the policy, given the environment it acts in.
        config: how the task is seen; masks and proprioception are recorded whatever it says.
        seed: episode k starts from ``demonstration_seed(seed, k)``.
        after_success: steps recorded behind the first successful one, unless the episode ends.
        made_by: noted in the file.
        progress: called after every episode with those kept and those tried.

    Raises:
        UserError: the file exists; ``PATIENCE`` episodes in a row fail; what ``make`` raises.
    """
    options = {field: getattr(config, field) for field in config.__dataclass_fields__}
    options |= {"masks": envs.has_masks(task, config), "proprio": True, "orientation": "upright"}
    environment = envs.make(task, **options)
    fault = None
    if not isinstance(environment, (MujocoEnvironment, OwnEnvironment)):
        fault = (
            f"of {task} the suite's own planner is recorded, and nobody else; leave --policy out"
        )
    elif isinstance(environment.action_space, OneHot):
        fault = (
            f"{task} has discrete actions, which demonstrations do not hold, and imitation does not"
            " learn; train learns them online"
        )
    if fault:
        environment.close()
        raise UserError(fault)
    try:
        actor = make_actor(environment)
        attributes = file_attributes(task, environment, seed, after_success, made_by)
        with DemonstrationWriter(path, attributes) as writer:
            attempts, failures = writer.attempts, 0
            while writer.episodes < episodes:
                start = demonstration_seed(seed, attempts)
                recorded, success = _record(environment, actor, start, after_success)
                attempts += 1
                failures = failures + 1 if success is False else 0
                if success is not False:
                    note: dict[str, Any] = {"seed": start}
                    if "states" in recorded:
                        note["init_state"] = recorded["states"][0]
                    note |= {} if success is None else {"success": success}
                    note |= {k: recorded.pop(k) for k in ("model_file",) if k in recorded}
                    writer.add(recorded, note, attempts)
                else:
                    writer.tried(attempts)
                progress(writer.episodes, attempts)
                if failures >= PATIENCE:
                    raise UserError(
                        f"{task}: the last {failures} of {attempts} episodes failed; there are"
                        f" {writer.episodes} successful ones in {writer.partial}"
                    )
    finally:
        environment.close()


def _record(
    environment: Environment, actor: Actor, seed: int, after_success: int
) -> tuple[dict[str, Any], bool | None]:
    """One episode, as arrays (T, ...) by dataset, and whether it succeeded (None: nobody says)."""
    observation, _ = environment.reset(seed=seed)
    actor.begin(seed)
    simulated = environment if isinstance(environment, MujocoEnvironment) else None
    model = simulated.recorded_model() if simulated else {}
    tracker = Tracker(simulated, "upright") if simulated else None
    steps: dict[str, list] = {}
    succeeded_for, over = 0, False
    while not over and succeeded_for <= after_success:
        for name, value in (simulated.recorded_state() if simulated else {}).items():
            steps.setdefault(name, []).append(value)
        for name, value in observed(environment, observation).items():
            steps.setdefault(f"obs/{name}", []).append(value)
        if tracker:
            tracker.observe()
        space = environment.action_space
        action = np.clip(actor.action(observation), space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, info = environment.step(action)
        over = terminated or truncated
        succeeded_for += bool(succeeded_for or info.get("success", False))
        steps.setdefault("actions", []).append(action.astype(np.float64))
        steps.setdefault("rewards", []).append(np.float32(reward))
        steps.setdefault("dones", []).append(np.uint8(over))
    recorded: dict[str, Any] = {name: np.stack(values) for name, values in steps.items()}
    recorded["dones"][-1] = 1
    if simulated and tracker:
        recorded |= tracks(simulated, tracker, recorded)
    if "obs/robot_states" in recorded:
        recorded["robot_states"] = recorded.pop("obs/robot_states")
    for name, part in model.items():
        recorded[name if isinstance(part, str) else f"model/{name}"] = part
    return recorded, succeeded_for > 0 if "success" in info else None


def tracks(
    environment: MujocoEnvironment, tracker: Tracker, frames: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Tracks of the first camera by dataset; the same points for the same episode.

    Args:
        environment: that was tracked.
        tracker: that observed all frames.
        frames: pictures and masks (T, ...) by dataset.
    """
    camera = short_name(environment.cameras[0])
    masks = frames.get(f"obs/{camera}_mask")
    rng = np.random.default_rng([TRACKED, *frames[f"obs/{camera}_rgb"].shape])
    return {f"obs/{camera}_{n}": part for n, part in tracker.datasets(masks, rng).items()}


def observed(environment: Environment, observation: dict) -> dict[str, np.ndarray]:
    """An observation by the names of the datasets below ``obs/``."""
    found = {"proprio": observation["proprio"]}
    several = len(environment.cameras) > 1
    for number, camera in enumerate(environment.cameras):
        for name, kind in (("image", "rgb"), ("mask", "mask")):
            if name in observation:
                view = observation[name][number] if several else observation[name]
                found[f"{short_name(camera)}_{kind}"] = view
    if isinstance(environment, Libero):
        found |= environment.robot_state()
    return found


def file_attributes(
    task: str,
    environment: Environment,
    seed: int,
    after_success: int,
    made_by: str,
    packages: Sequence[str] = PACKAGES,
) -> dict[str, Any]:
    """Attributes of the group ``data``: of what task a file is, and how it was recorded.

    Args:
        task, seed, after_success, made_by: as of ``collect``.
        environment: of the task.
        packages: whose versions are noted.
    """
    config = environment.config
    cameras = ",".join(environment.cameras)
    if isinstance(environment, Libero):
        problem, bddl = environment.problem(), environment.bddl_file
        file_name = f"{bddl.parent.name}/{bddl.name}"
    else:
        problem = {"problem_name": task, "language_instruction": environment.instruction}
        file_name = ""
    kwargs = {
        "camera_names": list(environment.cameras),
        "camera_heights": config.size,
        "camera_widths": config.size,
    }
    env_args = {
        "type": 1,  # robomimic's number of robosuite environments, as in LIBERO's files
        "env_name": problem["problem_name"],
        "problem_name": problem["problem_name"],
        "bddl_file": file_name,
        "env_kwargs": kwargs,
    }
    return {
        "task": task,
        "problem_info": json.dumps(problem),
        "bddl_file_name": file_name,
        "env_args": json.dumps(env_args),
        "macros_image_convention": "opencv",
        "obs_alignment": BEFORE,
        "camera": cameras,
        "size": config.size,
        "quality": config.quality,
        "shift": config.shift,
        "action_repeat": environment.action_repeat,
        "seed": seed,
        "after_success": after_success,
        "made_by": made_by,
        "versions": json.dumps(installed_versions(packages)),
    } | mask_attributes()
