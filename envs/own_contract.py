"""What an environment of the user's own has to keep to: Gymnasium's interface, and a picture.

Every fault is one sentence that names the environment; ``check_env`` finds most of them before
anything is learned, and whatever happens later is checked at the step where it does.
"""

from __future__ import annotations

import numbers
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from errors import UserError

SUCCESS = ("success", "is_success")
"""Entries of ``info`` that say whether the task is done (Meta-World; Gymnasium-Robotics)."""
NUMBERS = "biuf"
"""Kinds of truth values, whole and real numbers."""
STEPS = 3
"""Steps that ``check_env`` takes."""
MOST_CHOICES = 4096
"""Of a Discrete action space: an action is as many numbers, one-hot."""
LARGEST_REWARD = float(np.finfo(np.float32).max)
"""Rewards are kept as float32."""


def call(task: str, what: str, function: Callable, *arguments: Any, **options: Any) -> Any:
    """The result of a method of an environment.

    Raises:
        UserError: it raises something; names the place.
    """
    try:
        return function(*arguments, **options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{task}: {what} raised {type(error).__name__}: {error} ({place.filename}, line"
            f" {place.lineno})"
        ) from error


def attribute(environment: gymnasium.Env, task: str, name: str) -> Any:
    """An attribute of an environment; None where it has none.

    Raises:
        UserError: it raises something.
    """
    return call(task, name, getattr, environment, name, None)


def reset(
    environment: gymnasium.Env, task: str, seed: int | None, options: Mapping | None = None
) -> Any:
    """The first observation of an episode.

    Raises:
        UserError: ``reset`` fails, or returns no observation and dict.
    """
    given = {"options": dict(options)} if options else {}
    result = call(task, "reset(seed=...)", environment.reset, seed=seed, **given)
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(
            f"{task}: reset returned {_kind(result)}; Gymnasium's returns observation and info"
        )
    observation, info = result
    if not isinstance(info, Mapping):
        raise UserError(f"{task}: the info of reset is {_kind(info)}, no dict")
    return observation


def step(
    environment: gymnasium.Env, task: str, action: Any
) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
    """The five values of a step.

    Raises:
        UserError: ``step`` fails, or returns something else.
    """
    result = call(task, "step(action)", environment.step, action)
    if not isinstance(result, tuple) or len(result) != 5:
        raise UserError(
            f"{task}: step returned {_kind(result)}; Gymnasium's returns observation, reward,"
            " terminated, truncated and info"
        )
    observation, reward, terminated, truncated, info = result
    number = isinstance(reward, numbers.Real) or (
        isinstance(reward, np.ndarray) and not reward.shape and reward.dtype.kind in NUMBERS
    )
    if not number:
        raise UserError(f"{task}: the reward of step is {_kind(reward)}, no number")
    if not abs(reward) <= LARGEST_REWARD:
        raise UserError(
            f"{task}: the reward of step is {reward!s:.40}, not a finite number that float32 has"
        )
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, (bool, np.bool_)):
            raise UserError(f"{task}: {name} of step is {_kind(value)}, not True or False")
    if not isinstance(info, Mapping):
        raise UserError(f"{task}: the info of step is {_kind(info)}, no dict")
    return observation, float(reward), bool(terminated), bool(truncated), info


def success(said: Mapping[str, Any], task: str) -> bool | None:
    """Whether the info of a step says that the task is done; None: it does not say.

    Raises:
        UserError: what it says is neither True nor False nor a number.
    """
    found = None
    for name in SUCCESS:
        if name not in said:
            continue
        value = np.asarray(said[name]) if np.size(said[name]) == 1 else np.empty(0)
        if value.size != 1 or value.dtype.kind not in NUMBERS or not np.isfinite(value).all():
            raise UserError(
                f"{task}: {name} in the info of step is {_kind(said[name])}, not True or False"
            )
        found = bool(found) or bool(value.item())
    return found


def is_picture(space: spaces.Space) -> bool:
    """Whether a space is one of colour pictures, uint8 (height, width, 3)."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] == 3
        and min(space.shape) > 0
    )


def fault_of_action_space(space: Any) -> str | None:
    """Why an agent cannot act in a space; None: it can."""
    if isinstance(space, spaces.Discrete):
        too_many = f"its action space has {space.n} actions, more than {MOST_CHOICES}"
        return too_many if space.n > MOST_CHOICES else None
    if not isinstance(space, spaces.Box):
        return f"its action space is {space!r:.80}; Box and Discrete are supported"
    if space.dtype is None or space.dtype.kind != "f" or not np.prod(space.shape):
        return f"its action space is {space!r:.80}; of a Box, floating-point numbers are supported"
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        bounded = np.isfinite(high - low).all()
    if not bounded:
        return (
            "its action space is not bounded on all sides; wrap it in"
            " gymnasium.wrappers.RescaleAction or another space with finite bounds"
        )
    if not (space.low < space.high).all():
        return f"its action space is {space!r:.80}, which leaves nothing to choose somewhere"
    return None


def fault_of_observation(space: spaces.Space, value: Any, name: str = "") -> str | None:
    """How a value is outside of its space; None: it is not.

    Numbers of another precision count as the same; pictures must be of the same type.

    Args:
        space: of observations, or of a part of them.
        value: what was observed.
        name: of the part, dotted.
    """
    what = f"the observation {name}".rstrip()
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            return f"{what} is {_kind(value)}, no dict"
        if missing := [part for part in space if part not in value]:
            return f"{what} has no {missing[0]}, which its space has"
        parts = (
            fault_of_observation(inner, value[part], f"{name}.{part}".lstrip("."))
            for part, inner in space.items()
        )
        return next((fault for fault in parts if fault), None)
    if not isinstance(space, spaces.Box):
        return None if space.contains(value) else f"{what} is outside its space {space!r:.80}"
    try:
        found, alike = np.asarray(value), False
    except (ValueError, TypeError, RuntimeError):  # lists of other lengths, tensors on a GPU
        return f"{what} is {_kind(value)}, no array"
    if space.dtype is not None:
        alike = found.dtype == space.dtype or found.dtype.kind == space.dtype.kind == "f"
    if found.shape != space.shape or not alike:
        return f"{what} is {found.dtype} {found.shape}, its space says {space.dtype} {space.shape}"
    if is_picture(space):
        return None  # to look for values outside of its bounds would take longer than to draw it
    inside = (found >= space.low) & (found <= space.high)
    if inside.all():
        return None
    place = tuple(int(index) for index in np.argwhere(~inside)[0])
    return f"{what} holds {found[place]} at {place}, outside its space"


def check_env(environment: Any, task: str) -> None:
    """Refuse what breaks Gymnasium's contract, after a reset and a few random steps.

    Args:
        environment: of the user.
        task: its id, for errors.

    Raises:
        UserError: names the environment and the fault.
    """
    if not isinstance(environment, gymnasium.Env):
        raise UserError(f"{task} is {_kind(environment)}, no gymnasium.Env")
    for name in ("observation_space", "action_space"):
        if not isinstance(attribute(environment, task, name), spaces.Space):
            raise UserError(f"{task} has no {name}, a space of Gymnasium")
    if fault := fault_of_action_space(environment.action_space):
        raise UserError(f"{task}: {fault}")
    observation = reset(environment, task, 0)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        if fault := fault_of_observation(environment.observation_space, observation):
            raise UserError(f"{task}: {fault}")
        action = random_action(environment.action_space, rng)
        observation, _, terminated, truncated, _ = step(environment, task, action)
        if terminated or truncated:
            observation = reset(environment, task, None)
    if fault := fault_of_observation(environment.observation_space, observation):
        raise UserError(f"{task}: {fault}")


def random_action(space: spaces.Space, rng: np.random.Generator) -> Any:
    """An action of a Discrete or bounded Box space, uniformly."""
    if isinstance(space, spaces.Discrete):
        return int(space.start + rng.integers(space.n))
    assert isinstance(space, spaces.Box)
    return rng.uniform(space.low, space.high).astype(space.dtype)


def _kind(value: Any) -> str:
    """A value in the words of an error."""
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{value!r:.40}"
    return f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")
