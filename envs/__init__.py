"""Worlds seen through cameras: ``make("suite/name", ...)`` returns a ``gymnasium.Env``.

Importing this package is light: no simulator and no torch is loaded before an environment is made.
"""

import dataclasses
import difflib
import functools
import os
import sys

import gymnasium

from envs import dmc, libero, metaworld, panda, rlbench
from envs.environment import Environment
from envs.environment_config import EnvironmentConfig, Orientation, Quality
from envs.own import OwnEnvironment, make_own, registered_by, shifts_of_pictures
from envs.own_names import GYM, kind_of
from envs.suites import BUDGET, Suite, all_suites, find_suite, register_suite
from envs.vector import VectorEnvironment
from errors import UserError

__all__ = [
    "EnvironmentConfig",
    "Suite",
    "action_repeat",
    "check_shift",
    "episodic",
    "expand",
    "has_masks",
    "highest_return",
    "make",
    "make_vector",
    "published_budget",
    "recorded_starts",
    "register_suite",
    "suite",
    "tasks",
]

# Read by mujoco and dm_control when they are imported; EGL needs no display.
if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):
    os.environ["MUJOCO_GL"] = "egl"


register_suite(
    Suite(
        "metaworld",
        metaworld.TASKS,
        metaworld.MetaWorld,
        metaworld.MetaWorld.default_action_repeat,
        {
            "mt10": metaworld.MT10,
            "ml10-train": metaworld.ML10_TRAIN,
            "ml10-test": metaworld.ML10_TEST,
            **metaworld.difficulties(),
        },
        episodic=False,
        budget=metaworld.budget,
    )
)
register_suite(
    Suite(
        "dmc",
        dmc.TASKS,
        dmc.DeepMindControl,
        dmc.DeepMindControl.default_action_repeat,
        {"vision20": dmc.VISION20},
        episodic=False,
        highest_return=dmc.highest_return,
    )
)
register_suite(
    Suite(
        "libero",
        libero.TASKS,
        libero.Libero,
        libero.Libero.default_action_repeat,
        {
            part: [f"{part}/{number}" for number in range(count)]
            for part, count in libero.SUITES.items()
        },
        episodic=False,
        recorded_starts=libero.recorded_starts,
    )
)
register_suite(Suite("panda", panda.TASKS, panda.Panda, panda.Panda.default_action_repeat))
register_suite(
    Suite("rlbench", rlbench.TASKS, rlbench.RLBench, rlbench.RLBench.default_action_repeat)
)


def tasks(suite: str | None = None) -> list[str]:
    """Every task id of every suite, or those of one suite ("metaworld", "dmc", "libero", "panda",
    "rlbench", that of another package); "gym": what is registered with Gymnasium, "gym:package":
    what a package, which is imported, registers there.

    Raises:
        UserError: no such suite; the package cannot be imported, or registers nothing.
    """
    if suite == "gym":
        return [f"{GYM}{name}" for name in gymnasium.registry]
    if suite is not None and suite.startswith(GYM):
        return registered_by(suite.removeprefix(GYM))
    if suite is None:
        found = all_suites()
    elif (one := find_suite(suite)) is not None:
        found = [one]
    else:
        known = [each.name for each in all_suites()]
        raise UserError(f"unknown suite {suite!r}; there are {', '.join([*known, 'gym'])}")
    return [f"{each.name}/{task}" for each in found for task in each.tasks]


def expand(names: str) -> list[str]:
    """The task ids that `names` means: one, several separated by commas, or a whole suite.

    "metaworld/mt10", "libero/object" and "dmc" are suites; an id named twice counts once.

    Raises:
        UserError: no such task or suite; names the nearest ones.
    """
    found: list[str] = []
    for name in (part.strip() for part in names.split(",")):
        first, slash, rest = name.partition("/")
        one = None if kind_of(name) else find_suite(first)
        if one is not None and rest in one.groups:
            found += [f"{first}/{task}" for task in one.groups[rest]]
        elif one is not None and not slash:
            found += tasks(name)
        else:
            suite(name)
            found.append(name)
    return list(dict.fromkeys(found))


def action_repeat(task: str, asked: int | None = None) -> int:
    """Control steps per agent step: `asked`, else the suite's published number; 1 of environments
    without a suite."""
    one, _ = _found(task)
    return asked or (OwnEnvironment.default_action_repeat if one is None else one.action_repeat)


def episodic(task: str) -> bool:
    """Whether a task can end an episode for good, so that its discount is worth predicting."""
    one, _ = _found(task)
    return one is None or one.episodic


def recorded_starts(task: str) -> int:
    """How many starts of a task its benchmark has recorded, for ``reset(options={"init_state":
    k})``; 0 where every seed is a start of its own."""
    one, name = _found(task)
    return one.recorded_starts(name) if one is not None and one.recorded_starts else 0


def published_budget(task: str) -> int:
    """Environment steps the paper trains a task for: 500,000 where nothing else is published, and
    of tasks that nobody knows."""
    one, name = _found_or_not(task)
    return one.budget(name) if one is not None and one.budget else BUDGET


def highest_return(task: str) -> float | None:
    """What an episode of a task pays at most, where it pays at least 0; None: nobody knows."""
    one, name = _found_or_not(task)
    return one.highest_return(name) if one is not None and one.highest_return else None


def _found_or_not(task: str) -> tuple[Suite | None, str]:
    """As ``_found``, of a name that may be nobody's."""
    try:
        return _found(task)
    except UserError:
        return None, task


def suite(task: str) -> str:
    """The suite of a task id: "metaworld" for "metaworld/window-close"; "gym" and "own" for
    environments without one. Nothing that an id names is imported.

    Raises:
        UserError: no such task; names the nearest ones.
    """
    one, _ = _found(task)
    return str(kind_of(task)) if one is None else one.name


def _found(task: str) -> tuple[Suite | None, str]:
    """A task's suite and its name there; None for an environment without a suite.

    Raises:
        UserError: as ``suite``.
    """
    if kind_of(task):
        return None, task
    first, _, name = task.partition("/")
    one = find_suite(first)
    if one is not None and name in one.tasks:
        return one, name
    among = [one] if one is not None else all_suites()
    known = [f"{each.name}/{each_name}" for each in among for each_name in each.tasks]
    known += [f"{each.name}/{group}" for each in all_suites() for group in each.groups]
    nearest = difflib.get_close_matches(task, known, n=3, cutoff=0.4)
    own = "an environment of your own is gym:ENV_ID or package.module:callable"
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"run.py tasks lists them; {own}"
    if ":" in task:
        hint = own
    raise UserError(f"unknown task {task!r}; {hint}")


def check_shift(task: str, shift: str) -> None:
    """Refuse visual shifts that a task cannot be drawn under.

    Raises:
        UserError: no such shift; it needs a scene of MuJoCo's, which the task is not.
    """
    if kind_of(task):
        shifts_of_pictures(shift, task)


def has_masks(task: str, config: EnvironmentConfig) -> bool:
    """Whether masks can be observed: in every suite, and where an environment of the user's own has
    some.

    Raises:
        UserError: as ``make``.
    """
    one, _ = _found(task)
    if one is not None and isinstance(one.make, type) and issubclass(one.make, Environment):
        return True
    environment = make(task, **vars(dataclasses.replace(config, masks=False)))
    environment.close()
    return not isinstance(environment, OwnEnvironment) or environment.view.has_masks


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
    time_limit: int | None = None,
    name: str = "",
    score_bounds: tuple[float, float] | None = None,
) -> Environment:
    """An environment of one task; its class says what it observes and promises
    (``MujocoEnvironment``, ``envs.rlbench.RLBench``, ``envs.own.OwnEnvironment``).

    Args:
        task: "metaworld/<name>", "dmc/<name>", "libero/<part>/<number>" or "rlbench/<name>", one of
            ``tasks()``; or an environment of your own, "gym:<id>" or "package.module:callable",
            which is imported.
        camera: camera name or number, or several separated by commas; None is what the suite
            publishes (libero two, the others one).
        size: edge of the square picture, pixels.
        action_repeat: control steps per step; None is the suite's published number (libero and
            environments of your own 1, the others 2).
        seed: starts the generator that unseeded resets draw from.
        quality: "full" (as published), or "smooth" or "fast" (for machines without a GPU, with four
            samples a pixel or one).
        masks: observe class ids as well (``envs.semantics``).
        proprio: observe the robot's own state as well.
        shift: visual shifts with their strengths, "lighting:0.5+noise:0.2" (``envs.shifts``).
        orientation: of pictures, "upright", "opengl" or "mirrored" (``EnvironmentConfig``).
        time_limit: control steps after which an episode of an environment of your own is cut.
        name, score_bounds: for comparisons (``EnvironmentConfig``).

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
        time_limit,
        name,
        score_bounds,
    )
    one, within = _found(task)
    if one is None:
        return make_own(task, config, seed)
    environment = one.make(within, config, seed)
    if not isinstance(environment, Environment):
        return OwnEnvironment(environment, task, config, seed, one.action_repeat)
    if time_limit is not None:
        environment.close()
        raise UserError(
            f"time_limit is for environments of your own; {task} has the limit of its suite, and"
            " train cuts episodes by --episode-steps"
        )
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
