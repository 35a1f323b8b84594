"""Worlds seen through cameras: ``make("suite/name", ...)`` returns a ``gymnasium.Env``.

Importing this package is light: no simulator and no torch is loaded before an environment is made.
"""

import difflib
import functools
import os
import sys
from typing import Protocol

from envs import dmc, libero, metaworld, panda, rlbench
from envs.environment import Environment
from envs.environment_config import EnvironmentConfig, Orientation, Quality
from envs.vector import VectorEnvironment
from errors import UserError

__all__ = [
    "EnvironmentConfig",
    "action_repeat",
    "expand",
    "make",
    "make_vector",
    "published_budget",
    "recorded_starts",
    "suite",
    "tasks",
]

# Read by mujoco and dm_control when they are imported; EGL needs no display.
if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):
    os.environ["MUJOCO_GL"] = "egl"


class _Suite(Protocol):
    """A class of environments, made from the name of a task."""

    default_action_repeat: int

    def __call__(
        self, name: str, config: EnvironmentConfig, seed: int | None = None
    ) -> Environment: ...


_SUITES = {
    "metaworld": metaworld.TASKS,
    "dmc": dmc.TASKS,
    "libero": libero.TASKS,
    "panda": panda.TASKS,
    "rlbench": rlbench.TASKS,
}
_ENVIRONMENTS: dict[str, _Suite] = {
    "metaworld": metaworld.MetaWorld,
    "dmc": dmc.DeepMindControl,
    "libero": libero.Libero,
    "panda": panda.Panda,
    "rlbench": rlbench.RLBench,
}
_GROUPS = {
    "metaworld/mt10": metaworld.MT10,
    "metaworld/ml10-train": metaworld.ML10_TRAIN,
    "metaworld/ml10-test": metaworld.ML10_TEST,
} | {
    f"libero/{part}": [f"{part}/{number}" for number in range(count)]
    for part, count in libero.SUITES.items()
}


def tasks(suite: str | None = None) -> list[str]:
    """Every task id, or those of one suite ("metaworld", "dmc", "libero", "panda", "rlbench").

    Raises:
        UserError: no such suite.
    """
    if suite is not None and suite not in _SUITES:
        raise UserError(f"unknown suite {suite!r}; there are {', '.join(_SUITES)}")
    return [
        f"{name}/{task}"
        for name, names in _SUITES.items()
        if suite in (None, name)
        for task in names
    ]


def expand(names: str) -> list[str]:
    """The task ids that `names` means: one, several separated by commas, or a whole suite.

    "metaworld/mt10", "libero/object" and "dmc" are suites; an id named twice counts once.

    Raises:
        UserError: no such task or suite; names the nearest ones.
    """
    found: list[str] = []
    for name in (part.strip() for part in names.split(",")):
        if name in _GROUPS:
            found += [f"{name.partition('/')[0]}/{task}" for task in _GROUPS[name]]
        elif name in _SUITES:
            found += tasks(name)
        else:
            suite(name)
            found.append(name)
    return list(dict.fromkeys(found))


def action_repeat(task: str, asked: int | None = None) -> int:
    """Control steps per agent step: `asked`, else the suite's published number."""
    return asked or _ENVIRONMENTS[suite(task)].default_action_repeat


def recorded_starts(task: str) -> int:
    """How many starts of a task its benchmark has recorded, for ``reset(options={"init_state":
    k})``; 0 where every seed is a start of its own."""
    recorded = suite(task) == "libero" and task.split("/")[1] in libero.PARTS
    return libero.RECORDED_STARTS if recorded else 0


def published_budget(task: str) -> int:
    """Environment steps the paper trains a task for: 500,000 where nothing else is published."""
    suite_name, _, name = task.partition("/")
    if suite_name == "metaworld":
        for steps, names in metaworld.BUDGETS.items():
            if name in names.split():
                return steps
    return 500_000


def suite(task: str) -> str:
    """The suite of a task id: "metaworld" for "metaworld/window-close".

    Raises:
        UserError: no such task; names the nearest ones.
    """
    name = task.partition("/")[0]
    if task not in tasks():
        known = [*(tasks(name) if name in _SUITES else tasks()), *_GROUPS]
        nearest = difflib.get_close_matches(task, known, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(nearest)}?" if nearest else "python run.py tasks lists them"
        )
        raise UserError(f"unknown task {task!r}; {hint}")
    return name


def make(
    task: str,
    *,
    camera: str | int | None = None,
    size: int = 64,
    action_repeat: int | None = None,
    seed: int | None = None,
    quality: Quality = "full",
    masks: bool = False,
    proprio: bool = False,
    shift: str = "",
    orientation: Orientation = "upright",
) -> Environment:
    """An environment of one task; its class says what it observes and promises
    (``MujocoEnvironment``, ``envs.rlbench.RLBench``).

    Args:
        task: "metaworld/<name>", "dmc/<name>", "libero/<part>/<number>" or "rlbench/<name>", one of
            ``tasks()``.
        camera: camera name or number, or several separated by commas; None is what the suite
            publishes (libero two, the others one).
        size: edge of the square picture, pixels.
        action_repeat: control steps per step; None is the suite's published number (libero 1,
            the others 2).
        seed: starts the generator that unseeded resets draw from.
        quality: "full" (as published), or "smooth" or "fast" (for machines without a GPU, with four
            samples a pixel or one).
        masks: observe class ids as well (``envs.semantics``).
        proprio: observe the robot's own state as well.
        shift: visual shifts with their strengths, "lighting:0.5+noise:0.2" (``envs.shifts``).
        orientation: of pictures, "upright", "opengl" or "mirrored" (``EnvironmentConfig``).

    Raises:
        UserError: unknown task, camera, shift, or value; the suite is not installed; no GL context.
    """
    config = EnvironmentConfig(
        None if camera is None else str(camera),
        size,
        action_repeat,
        quality,
        masks,
        proprio,
        shift,
        orientation,
    )
    environment = _ENVIRONMENTS[suite(task)](task.partition("/")[2], config, seed)
    environment.task = task
    return environment


def make_vector(task: str, num_envs: int, **options) -> VectorEnvironment:
    """``num_envs`` environments of one task, each in its own process (``VectorEnvironment``).

    Args:
        task: as for ``make``.
        num_envs: how many.
        options: of ``make``.

    Raises:
        UserError: as ``make``; also what a worker finds out later, with the same sentence, and the
            death of a worker.
    """
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, not {num_envs}")
    return VectorEnvironment(functools.partial(make, task, **options), num_envs, task)
