"""RLBench and its simulator: what has to be installed, and how the simulator is driven.

Nothing of them is shipped: rlbench and pyrep come from GitHub, CoppeliaSim from its makers. What
the toolkit calls of them, it calls in this file, and ``tests/envs/test_rlbench_contract.py`` looks
each class, argument and attribute up in their source. The simulator is a library: it runs inside
this process, and at most once.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from envs.environment_config import Quality
from envs.global_generator import global_generator
from errors import UserError

CAMERAS = ("front", "wrist", "left_shoulder", "right_shoulder", "overhead")
RENDERING: dict[Quality, str] = {"full": "OPENGL3", "smooth": "OPENGL", "fast": "OPENGL"}
"""RenderMode of each quality: OPENGL3, the package's own, draws shadows."""
SHAPED = ("reach_target", "slide_block_to_target", "take_lid_off_saucepan")
"""Tasks with a shaped reward of the package's own."""
LIBRARY = "libcoppeliaSim.so"
VARIABLES = ("LD_LIBRARY_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH")
"""Lists of folders, of which one has to be COPPELIASIM_ROOT when the process starts."""
PACKAGES = {"pyrep": ("pyrep.py", "robots"), "rlbench": ("environment.py", "tasks")}
"""Each package, and what its folder holds: the registry's pyrep is an unrelated one."""
SOURCE = "git+https://github.com/stepjam"
SIMULATOR = "https://downloads.coppeliarobotics.com/V4_1_0/"
NOT_OWN = ("_base_object", "_graspable_objects", "_initial_objs_in_scene")
"""Attributes of every task, which name no object as its own."""


class InvalidMotion(Exception):
    """The arm cannot do what it was told; this ends an episode."""


class Shape(NamedTuple):
    """A visible thing in the scene."""

    handle: int
    """What masks show; another one in every session."""
    names: tuple[str, ...]
    """Its own name, then those of what it is part of, the whole last."""


class Settings(NamedTuple):
    """What is decided when the simulator is launched."""

    cameras: tuple[str, ...]
    """Of ``CAMERAS``."""
    size: int
    """Edge of the pictures, pixels."""
    masks: bool
    quality: Quality


def missing(environ: Mapping[str, str], found: Mapping[str, bool]) -> str | None:
    """One sentence about what lacks here; None when all is there.

    Args:
        environ: environment variables.
        found: for each of ``PACKAGES`` whether it is installed.
    """
    root = environ.get("COPPELIASIM_ROOT", "")
    lacking = [name for name in PACKAGES if not found[name]]
    folders = {name: environ.get(name, "").split(":") for name in VARIABLES}
    astray = [name for name, listed in folders.items() if not root or root not in listed]
    problem = ""
    if lacking:
        problem = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed"
    elif not root:
        problem = "COPPELIASIM_ROOT is not set"
    elif not (pathlib.Path(root) / LIBRARY).exists():
        problem = f"COPPELIASIM_ROOT is {root}, where {LIBRARY} is not"
    elif astray:
        problem = f"{' and '.join(astray)} {'lacks' if len(astray) == 1 else 'lack'} {root}"
    if not problem:
        return None
    return (
        f"{problem}; RLBench needs CoppeliaSim 4.1 ({SIMULATOR}), its folder in the variables"
        f" COPPELIASIM_ROOT, {' and '.join(VARIABLES)} before the command starts, and then"
        f" `pip install {SOURCE}/PyRep.git {SOURCE}/RLBench.git` (docs/rlbench.md)"
    )


def require() -> None:
    """Look for the packages and the simulator, without importing them.

    Raises:
        UserError: something lacks; says what to install, from where, and which variables to set.
    """
    if sentence := missing(os.environ, {name: is_installed(name) for name in PACKAGES}):
        raise UserError(sentence)


def is_installed(package: str) -> bool:
    """Whether RLBench's package of this name is there, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # made unimportable
        return False
    folders = (spec.submodule_search_locations if spec else None) or ()
    parts = PACKAGES[package]
    return any(all((pathlib.Path(f) / part).exists() for part in parts) for f in folders)


# ------------------------------------------------------- the simulator: one a process


_launched: tuple[Settings, Any] | None = None
_user: Simulation | None = None


def _launch(settings: Settings) -> Any:
    """The process's ``rlbench.environment.Environment``, launched unless it is running so."""
    global _launched
    if _launched is not None and _launched[0] == settings:
        return _launched[1]
    shut_down()
    try:
        action_mode = importlib.import_module("rlbench.action_modes.action_mode")
        arm_action_modes = importlib.import_module("rlbench.action_modes.arm_action_modes")
        gripper_action_modes = importlib.import_module("rlbench.action_modes.gripper_action_modes")
        environment = importlib.import_module("rlbench.environment")
        const = importlib.import_module("pyrep.const")
        errors = importlib.import_module("pyrep.errors")
        observation_config = importlib.import_module("rlbench.observation_config")
    except ImportError as error:
        raise UserError(
            f"RLBench cannot be imported: {error}; docs/rlbench.md has the installation"
        ) from error
    seen = observation_config.ObservationConfig(
        joint_velocities=False,
        joint_positions=True,
        joint_forces=False,
        gripper_open=True,
        gripper_pose=True,
        task_low_dim_state=False,
    )
    for name in CAMERAS:
        camera = getattr(seen, f"{name}_camera")
        camera.set_all(False)
        camera.rgb = name in settings.cameras
        camera.mask = name in settings.cameras and settings.masks
        camera.image_size = (settings.size, settings.size)
        camera.render_mode = getattr(const.RenderMode, RENDERING[settings.quality])
    mode = action_mode.MoveArmThenGripper(
        arm_action_mode=arm_action_modes.JointPosition(absolute_mode=False),
        gripper_action_mode=gripper_action_modes.Discrete(),
    )
    made = environment.Environment(action_mode=mode, obs_config=seen, headless=True)
    try:
        made.launch()
    except errors.PyRepError as error:
        raise UserError(f"CoppeliaSim does not start: {error}") from error
    _launched = settings, made
    atexit.unregister(shut_down)
    atexit.register(shut_down)
    return made


def shut_down() -> None:
    """End the process's simulator, if it runs; also called when the process exits."""
    global _launched
    if _launched is not None:
        (_, running), _launched = _launched, None
        running.shutdown()


class Simulation:
    """One task in the process's simulator.

    Args:
        name: of the task, "reach_target".
        settings: of the simulator; another one's is shut down first.

    Raises:
        UserError: another task's is still open in this process; something lacks.
    """

    def __init__(self, name: str, settings: Settings):
        global _user
        if _user is not None:
            raise UserError(
                "CoppeliaSim runs once a process, and another rlbench task is open in this one;"
                " close it first, or use envs.make_vector, whose environments have processes of"
                " their own"
            )
        require()
        environment = _launch(settings)
        _user = self
        try:
            exceptions = importlib.import_module("rlbench.backend.exceptions")
            errors = importlib.import_module("pyrep.errors")
            utils = importlib.import_module("rlbench.utils")
            self._objects = importlib.import_module("pyrep.objects")
            self._const = importlib.import_module("pyrep.const")
            self._unplaced = exceptions.TaskEnvironmentError
            self._invalid = (
                errors.IKError,
                errors.ConfigurationPathError,
                exceptions.InvalidActionError,
            )
            try:
                task_class = utils.name_to_task_class(name)
            except utils.InvalidTaskName as error:
                raise UserError(f"the RLBench installed here has no task {name}") from error
            self._environment = environment.get_task(task_class)
            self._task = self._environment._task
        except BaseException:
            self.close()
            raise

    @property
    def variations(self) -> int:
        """How many variations the task has."""
        return int(self._environment.variation_count())

    def reset(self, seed: int, variation: int) -> tuple[list[str], Any]:
        """Start an episode: its descriptions, and an ``rlbench`` observation.

        Args:
            seed: of whatever the package draws.
            variation: number, from 0.

        Raises:
            UserError: the package finds no place for the task.
        """
        self._environment.set_variation(variation)
        with global_generator(seed):
            try:
                descriptions, observation = self._environment.reset()
            except self._unplaced as error:
                raise UserError(f"RLBench cannot lay out this episode: {error}") from error
        return list(descriptions), observation

    def step(self, action: np.ndarray) -> tuple[Any, bool]:
        """One control step: observation, and whether it ends the episode.

        Args:
            action: (8,): joints' displacements in radians, then 1 to open the gripper or 0.

        Raises:
            InvalidMotion: the arm cannot do that.
        """
        try:
            observation, _, terminate = self._environment.step(action)
        except self._invalid as error:
            raise InvalidMotion(str(error)) from error
        return observation, bool(terminate)

    def success(self) -> bool:
        """Whether the task is done now."""
        done, _ = self._task.success()
        return bool(done)

    def shaped_reward(self) -> float:
        """Of one of ``SHAPED``, now: what ``Environment(shaped_rewards=True)`` gives."""
        return float(self._task.reward())

    def demonstration(
        self, seed: int, variation: int, each_step: Callable[[Any], None]
    ) -> Sequence[Any] | None:
        """Observations, one a control step, of the package's planner at the task, from the start
        that ``reset`` makes of the same numbers; None where it fails.

        Args:
            each_step: called at every observation but the first.
        """
        self._environment.set_variation(variation)
        with global_generator(seed):
            try:
                (demo,) = self._environment.get_demos(
                    1, live_demos=True, callable_each_step=each_step, max_attempts=1
                )
            except (RuntimeError, self._unplaced):
                return None
        return [demo[number] for number in range(len(demo))]

    def shapes(self) -> list[Shape]:
        """Every shape in the scene."""
        found = self._task.pyrep.get_objects_in_tree(
            object_type=self._const.ObjectType.SHAPE, exclude_base=False
        )
        return [Shape(int(shape.get_handle()), _names(shape)) for shape in found]

    def robot_names(self) -> tuple[str, str]:
        """Names of the arm and of the gripper."""
        robot = self._task.robot
        return robot.arm.get_name(), robot.gripper.get_name()

    def base_name(self) -> str:
        """Name of what all objects of the task are part of."""
        return self._task.get_base().get_name()

    def own_names(self) -> list[str]:
        """Names of the shapes that the task holds in attributes of its own, in its order."""
        found: list[str] = []
        for attribute, value in vars(self._task).items():
            if attribute in NOT_OWN:
                continue
            for part in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(part, self._objects.Shape) and part.still_exists():
                    found.append(part.get_name())
        return list(dict.fromkeys(found))

    def button(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Of push_button: where the arm's tip is and where the button's plate, (3,) metres each,
        and the position of the button's joint, metres."""
        task = self._task
        tip = task.robot.arm.get_tip().get_position()
        return tip, task.target_topPlate.get_position(), float(task.joint.get_joint_position())

    def close(self) -> None:
        """Let another task have the simulator, which goes on running until the process exits."""
        global _user
        if _user is self:
            _user = None


def _names(part: Any) -> tuple[str, ...]:
    names: list[str] = []
    while part is not None:
        names.append(part.get_name())
        part = part.get_parent()
    return tuple(names)
