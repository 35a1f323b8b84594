"""Environments of the user's own: whatever keeps to Gymnasium's interface, made into a task.

Ids: ``gym:ENV_ID``, registered with Gymnasium (``gym:module:ENV_ID``: by a module), and
``package.module:callable``, which returns one. Code is imported because the user has named it;
whoever takes an id from a file asks first (``own_names.imported_by``).
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from envs import own_contract, shifts
from envs.environment import Environment, OneHot, observation_space
from envs.environment_config import EnvironmentConfig
from envs.own_names import GYM
from envs.own_view import OwnView
from errors import UserError

FASTEST = 1000
"""Frames a second of a video."""
UNLIMITED_ENV_STEPS = 1000
"""Control steps of an episode whose environment states no limit."""
SAMPLES = {"smooth": 2, "fast": 1}
"""Pixels that are drawn for one that is seen, across and down, by quality, where an environment
takes width and height (those of MuJoCo); otherwise, and in full quality, as many as it likes."""
SHIFT_STREAM = 20_262  # keeps what shifts draw apart from what the environment draws


class OwnEnvironment(Environment):
    """An environment of the user's own as a task.

    Its Box actions are rescaled from [-1, 1]; a Discrete one of n is the largest entry of an action
    (n,). ``info["success"]``: a control step of this step says so, where any does. What breaks
    Gymnasium's contract is refused when it is made, and at the step that does later.

    Args:
        inner: the user's.
        task: its id, for errors.
        config: how it is seen and stepped.
        seed: of the first reset that gets none.
        action_repeat: control steps per agent step, where ``config`` asks for no other number.

    Raises:
        UserError: the environment breaks the contract, has no picture, mask or state that is asked
            for, or a visual shift needs a scene of MuJoCo's.
    """

    default_action_repeat = 1

    def __init__(
        self,
        inner: gymnasium.Env,
        task: str,
        config: EnvironmentConfig,
        seed: int | None = None,
        action_repeat: int = 1,
    ):
        self.inner, self.task, self.config = inner, task, config
        self.name = task.rpartition(":")[2].rpartition("/")[2]
        own_contract.check_env(inner, task)
        self.view = OwnView(inner, task, config)
        self.cameras, self.default_camera = self.view.cameras, self.view.default_camera
        self.instruction = str(inner_attribute(inner, task, "instruction") or self.name)
        self.action_repeat = config.action_repeat or action_repeat
        stated = getattr(own_contract.attribute(inner, task, "spec"), "max_episode_steps", None)
        self.max_env_steps = config.time_limit or stated or UNLIMITED_ENV_STEPS
        fps = (own_contract.attribute(inner, task, "metadata") or {}).get("render_fps")
        if isinstance(fps, (int, float)) and 0 < fps <= FASTEST:
            self.metadata = {**self.metadata, "render_fps": fps}
        self.action_space = self._agents_action_space()
        proprio = self.view.proprio_shape() if config.proprio else ()
        self.observation_space = observation_space(config, len(self.cameras), proprio)
        self._shifts = shifts_of_pictures(config.shift, task)
        self._next_seed, self._steps = seed, 0
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        self.view.read(own_contract.reset(inner, task, 0))  # what is drawn is checked, too

    def _agents_action_space(self) -> gymnasium.spaces.Box:
        space = self.inner.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return OneHot(int(space.n))
        assert isinstance(space, gymnasium.spaces.Box)  # others were refused
        return gymnasium.spaces.Box(-1, 1, (int(np.prod(space.shape)),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; ``options``: the environment's own."""
        super().reset(seed=seed)
        if seed is None:
            seed, self._next_seed = self._next_seed, None
        observation = own_contract.reset(self.inner, self.task, seed, options)
        self._steps = 0
        if self._shifts is not None:
            drawn = [SHIFT_STREAM, int(self.np_random.integers(2**32))]
            self._shifts.begin(np.random.default_rng(drawn))
        return self._show(observation), {"instruction": self.instruction}

    def step(self, action: np.ndarray):
        """Repeat ``action``, (A,) float32; Gymnasium's five values, the reward summed.

        Raises:
            ValueError: the action has another shape.
            UserError: the environment breaks the contract.
        """
        told = self._told(np.asarray(action))
        total, steps = 0.0, 0
        info: dict[str, Any] = {}
        terminated = truncated = False
        while steps < self.action_repeat and not (terminated or truncated):
            observation, reward, terminated, truncated, said = own_contract.step(
                self.inner, self.task, told
            )
            steps += 1
            self._steps += 1
            total += reward
            done = own_contract.success(said, self.task)
            if done is not None:
                info["success"] = info.get("success", False) or done
            truncated = truncated or self._steps >= self.max_env_steps
        info["env_steps"] = steps
        return self._show(observation), total, terminated, truncated and not terminated, info

    def _told(self, action: np.ndarray) -> Any:
        """An agent's action as the environment takes it."""
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, not {self.action_space.shape}")
        space = self.inner.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return space.dtype.type(space.start + action.argmax())
        assert isinstance(space, gymnasium.spaces.Box)  # others were refused
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        share = (np.clip(action.astype(np.float64), -1, 1).reshape(space.shape) + 1) / 2
        return np.clip(low + share * (high - low), low, high).astype(space.dtype)

    def _show(self, observation: Any) -> dict[str, np.ndarray]:
        seen = self.view.read(observation)
        if self._shifts is not None:
            image = seen["image"]
            if len(self.cameras) > 1:
                image = np.stack([self._shifts.picture(each) for each in image])
            else:
                image = self._shifts.picture(image)
            seen["image"] = image
        self._image = seen["image"]
        return seen

    def close(self) -> None:
        """Close the user's environment; one that cannot be has nothing of ours to lose."""
        self.view.drawing.free()
        with contextlib.suppress(Exception):
            self.inner.close()


def inner_attribute(environment: gymnasium.Env, task: str, name: str) -> Any:
    """An attribute of the user's environment inside its wrappers; None where it has none.

    Raises:
        UserError: it raises something.
    """

    def inside() -> Any:
        try:
            return environment.get_wrapper_attr(name)
        except AttributeError:
            return None

    return own_contract.call(task, name, inside)


def shifts_of_pictures(description: str, task: str) -> shifts.Shifts | None:
    """Visual shifts of a task that is no scene of MuJoCo's.

    Raises:
        UserError: one needs such a scene.
    """
    if not description:
        return None
    if needing := shifts.scene_edits(description):
        raise UserError(
            f"the shift {needing[0]} edits a scene of MuJoCo's suites, which {task} is not; noise"
            " changes the picture alone"
        )
    return shifts.Shifts(description)


def make_own(task: str, config: EnvironmentConfig, seed: int | None = None) -> OwnEnvironment:
    """The environment that an id names.

    Raises:
        UserError: it cannot be made, or as ``OwnEnvironment``.
    """
    inner = _registered(task, config) if task.startswith(GYM) else _called(task)
    try:
        return OwnEnvironment(inner, task, config, seed)
    except BaseException:
        if isinstance(inner, gymnasium.Env):
            with contextlib.suppress(Exception):
                inner.close()
        raise


def _registered(task: str, config: EnvironmentConfig) -> gymnasium.Env:
    """An environment that is registered with Gymnasium, drawing if it can."""
    always: dict[str, Any] = {"disable_env_checker": True}
    if config.time_limit is not None:
        always["max_episode_steps"] = config.time_limit
    drawing: dict[str, Any] = {"render_mode": "rgb_array"}
    ways: list[dict[str, Any]] = [drawing, {}]
    if config.quality in SAMPLES:
        edge = SAMPLES[config.quality] * config.size
        ways.insert(0, drawing | {"width": edge, "height": edge})
    name = task.removeprefix(GYM)
    try:
        for options in ways[:-1]:
            try:
                return gymnasium.make(name, **options, **always)
            except TypeError:  # not every environment takes these
                continue
        return gymnasium.make(name, **always)
    except (Exception, SystemExit) as error:  # whatever an environment's code raises
        hint = ""
        if isinstance(error, gymnasium.error.NameNotFound) and ":" not in name:
            hint = f" If a package registers it, that is named, too: {GYM}PACKAGE:{name}"
        raise UserError(f"{task} cannot be made: {_said(error)}{hint}") from error


def registered_by(package: str) -> list[str]:
    """Ids of the environments that a package registers with Gymnasium, which imports it.

    Raises:
        UserError: it cannot be imported, or registers none.
    """
    before = set(gymnasium.registry)
    try:
        importlib.import_module(package)
    except (Exception, SystemExit) as error:  # whatever a package's code raises
        raise UserError(f"{package} cannot be imported: {_said(error)}") from error
    found = [
        f"{GYM}{package}:{name}"
        for name, spec in gymnasium.registry.items()
        if name not in before or f"{_place(spec.entry_point)}.".startswith(f"{package}.")
    ]
    if not found:
        raise UserError(f"{package} registers no environment with Gymnasium when it is imported")
    return found


def _place(entry_point: Any) -> str:
    """The module of what makes a registered environment, "module:name" or a function."""
    if isinstance(entry_point, str):
        return entry_point.partition(":")[0]
    return str(getattr(entry_point, "__module__", ""))


def _called(task: str) -> Any:
    """What the callable of a ``package.module:callable`` returns."""
    module, _, name = task.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        raise UserError(f"{task} cannot be made: {_said(error)}") from error


def _said(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"
