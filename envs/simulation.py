"""What the MuJoCo suites share: action repeat and scaling, pictures, masks, Gymnasium's loop."""

import abc
import contextlib
import copy
import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from envs import shifts
from envs.environment import Environment, observation_space, together
from envs.environment_config import ORIENTATIONS, EnvironmentConfig, camera_names
from errors import UserError

SHIFT_STREAM = 20_261  # keeps what shifts draw apart from what the task draws


def import_suite(package: str, requirement: str):
    """The module ``package``, imported only when a task of its suite is made.

    Raises:
        UserError: it is not installed (names ``requirement``), or nothing can be drawn here.
    """
    try:
        # First, because a missing graphics library fails the import of mujoco and what needs it.
        rendering = importlib.import_module("envs.rendering")
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{error}; install the suite with `pip install {requirement}`") from error
    except UserError:
        raise
    except Exception as error:  # dm_control opens EGL while it is imported
        raise rendering.no_graphics(error) from error


class ModelSnapshot:
    """The editable arrays of a MuJoCo model, to be put back later.

    Resets move bodies and sites in the *model*; without putting them back an episode would depend
    on those before it. Meshes and textures, which no task edits, are left out.
    """

    UNEDITED = ("mesh_", "tex_", "skin_", "flex_", "name_", "names", "bvh_", "paths")

    def __init__(self, model):
        self._arrays = {}
        for name in dir(model):
            if name.startswith(("_", *self.UNEDITED)):
                continue
            array = getattr(model, name)
            if isinstance(array, np.ndarray) and array.size:
                self._arrays[name] = array, array.copy()

    def restore(self) -> None:
        """Write the saved values back."""
        for array, saved in self._arrays.values():
            np.copyto(array, saved)

    def edits(self) -> dict[str, np.ndarray]:
        """The arrays that differ from the saved ones by now, as they are now."""
        return {
            name: array.copy()
            for name, (array, saved) in self._arrays.items()
            if not np.array_equal(array, saved, equal_nan=array.dtype.kind == "f")
        }

    def apply(self, edits: Mapping[str, np.ndarray | str]) -> None:
        """Write the saved values back, then `edits`.

        Floating-point arrays only: the others hold addresses and counts, and the simulator reads
        and writes memory where they say.

        Raises:
            ValueError: no such array, of another shape or type, or not finite.
        """
        self.restore()
        for name, values in edits.items():
            if name not in self._arrays or self._arrays[name][0].shape != np.shape(values):
                raise ValueError(f"{name} {np.shape(values)} is no array of this model")
            array, saved = self._arrays[name]
            if array.dtype.kind != "f" or np.asarray(values).dtype.kind != "f":
                raise ValueError(f"{name} is no floating-point array, which no reset edits")
            if not np.all(np.isfinite(values) | (values == saved)):
                raise ValueError(f"{name} holds what is not a finite number")
            np.copyto(array, values)


def check_state(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse parts of a recorded state that this task cannot be put into.

    Args:
        state: arrays by name (``MujocoEnvironment.recorded_state``).
        shapes: of those that are used.

    Raises:
        UserError: one is missing, of another shape, or not finite.
    """
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"the recorded states lack {name}")
        values = state[name]
        if values.shape != shape:
            raise UserError(
                f"a recorded state has {name} of shape {values.shape}, this task has {shape}"
            )
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise UserError(f"a recorded state has {name} that are not finite numbers")


class PlainAttributes:
    """The numbers a task keeps in itself (not its simulator, spaces or generators), to be put back.

    Tasks leave positions, flags and orders behind that the next reset may read.
    """

    def __init__(self, task):
        self._task = task
        self._saved = {name: value for name, value in vars(task).items() if _is_plain(value)}
        self._saved = copy.deepcopy(self._saved)

    def restore(self) -> None:
        """Write the saved values back."""
        vars(self._task).update(copy.deepcopy(self._saved))


def _is_plain(value) -> bool:
    if isinstance(value, np.ndarray):
        # A view is one of the simulator's own arrays, which a task may watch: it must stay a view.
        return value.flags.owndata and value.dtype != object
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


class MujocoEnvironment(Environment, abc.ABC):
    """A MuJoCo task seen through a camera: the part of the loop that is the same in every suite.

    A suite provides ``name``, ``model``, ``data``, ``_snapshot``, ``_reset_simulation``,
    ``_step_simulation``, ``_state`` and ``_classes``. Observation: Dict of ``image`` uint8
    (size, size, 3), with ``masks`` also ``mask`` uint8 (size, size), both (cameras, ...) where
    ``camera`` names several, with ``proprio`` also ``proprio`` float32 (D,). Action: float32 in
    [-1, 1], rescaled to the simulator's bounds wherever those are finite. One step repeats the
    action ``action_repeat`` times, sums the reward and stops where the episode does;
    ``info["env_steps"]`` counts the simulator's control steps really taken.

    ``reset(seed=s)`` makes the episode a function of ``s`` alone; ``reset()`` draws the next one
    from the environment's own generator, which ``seed`` of the constructor starts.

    Args:
        config: camera, size, action repeat, quality, and what is observed beside the picture.
        bounds: the simulator's lowest and highest action, two (A,) arrays; infinite: unbounded,
            and such an action is passed on as it is.
        max_env_steps: control steps per episode.
        seed: seed of the first unseeded reset.

    Raises:
        UserError: unknown camera; at the first reset, no GL context.
    """

    default_camera: str | int = 0
    hidden_groups: tuple[int, ...] = ()
    """Groups of geoms that are not drawn (collision shapes of suites that draw others)."""
    observing = True
    """Whether ``reset`` and ``step`` observe. Without, observations are {} and nothing is drawn:
    for whoever asks for the physics alone."""
    _snapshot: ModelSnapshot
    """The model as resets begin with it."""

    def __init__(
        self,
        config: EnvironmentConfig,
        bounds: tuple[np.ndarray, np.ndarray],
        max_env_steps: int,
        seed: int | None = None,
    ):
        self.config = config
        self.action_repeat = config.action_repeat or self.default_action_repeat
        self.max_env_steps = max_env_steps
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        camera = self.default_camera if config.camera is None else config.camera
        self.cameras = camera_names(str(camera))
        self.camera_numbers = [self._find_camera(name) for name in self.cameras]
        self._renderer: Any = None  # a Renderer: importing its class would load MuJoCo
        self._class_table: dict[int, np.ndarray] | None = None
        self._shifts = shifts.Shifts(config.shift) if config.shift else None
        self._shift_rng = np.random.default_rng(None if seed is None else [SHIFT_STREAM, seed])
        self._frame = 0

        low, high = (np.asarray(bound, np.float64) for bound in bounds)
        self._finite = np.isfinite(low) & np.isfinite(high)
        self._low, self._high = low, high
        self._needs_rescaling = not np.all(self._finite & (low == -1) & (high == 1))
        self.action_space = gymnasium.spaces.Box(
            np.where(self._finite, -1, low).astype(np.float32),
            np.where(self._finite, 1, high).astype(np.float32),
            dtype=np.float32,
        )
        proprio = self._state().shape if config.proprio else ()
        self.observation_space = observation_space(config, len(self.cameras), proprio)

    @property
    @abc.abstractmethod
    def model(self):
        """The ``mujoco.MjModel`` being simulated."""

    @property
    @abc.abstractmethod
    def data(self):
        """The ``mujoco.MjData`` being simulated."""

    @abc.abstractmethod
    def _reset_simulation(self, options: dict[str, Any]) -> None:
        """Start an episode that depends on ``self.np_random``, ``options`` and nothing else."""

    @abc.abstractmethod
    def _step_simulation(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """One control step with an action in the simulator's bounds.

        Returns: reward, terminated, truncated, and the suite's own info of this control step.
        """

    @abc.abstractmethod
    def _state(self) -> np.ndarray:
        """Proprioception, (D,) float32."""

    @abc.abstractmethod
    def _classes(self) -> dict[int, np.ndarray]:
        """Class ids by MuJoCo object type and id (``Renderer.mask``)."""

    def _as_drawn(self) -> contextlib.AbstractContextManager:
        """A context in which ``data`` is as it should be drawn; leaves it as it was."""
        return contextlib.nullcontext()

    def upside_down(self, camera: int) -> bool:
        """Whether pictures of this camera are flipped vertically."""
        return False

    def effector(self) -> np.ndarray | None:
        """Where the end effector is in the world, (3,) metres; None without one."""
        return None

    def places(self) -> dict[str, np.ndarray]:
        """Where what matters to the task is in the world now, by name, (3,) metres each: the hand
        where there is one, and objects where the suite says which. For a probe, never observed."""
        hand = self.effector()
        return {} if hand is None else {"hand": np.asarray(hand, np.float64)}

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; see the class for what ``seed`` promises. ``options``: the suite's."""
        super().reset(seed=seed)
        self._reset_simulation(options or {})
        self._frame = 0
        if seed is not None:
            self._shift_rng = np.random.default_rng([SHIFT_STREAM, seed])
        if self._shifts is not None:
            self._shifts.begin(self._shift_rng.spawn(1)[0])
        # Resets edit poses after the last forward pass.
        self._refresh_what_is_drawn()
        return self._observe(), {"instruction": self.instruction}

    def step(self, action: np.ndarray):
        """Repeat ``action``, (A,) float32; Gymnasium's five values, the reward summed.

        Raises:
            ValueError: the action has another shape.
        """
        action = self._rescale(action)
        total, steps = 0.0, 0
        info: dict[str, Any] = {}
        for _ in range(self.action_repeat):
            reward, terminated, truncated, step_info = self._step_simulation(action)
            total += reward
            steps += 1
            if "success" in step_info:
                info["success"] = info.get("success", False) or step_info["success"]
            if terminated or truncated:
                break
        info["env_steps"] = steps
        return self._observe(), total, terminated, truncated, info

    # Recording and replaying (envs/recording.py)

    def recorded_model(self) -> Mapping[str, np.ndarray | str]:
        """What this episode's reset has changed in the model, for ``restore``."""
        return self._snapshot.edits()

    def recorded_state(self) -> dict[str, np.ndarray]:
        """The state of this instant for ``show``: ``states`` (1 + nq + nv,) float64 of time,
        positions and velocities, and what else is drawn, under ``drawn/``."""
        data = self.data
        state = {"states": np.concatenate([[data.time], data.qpos, data.qvel])}
        if self.model.nmocap:
            state["drawn/mocap_pos"] = data.mocap_pos.copy()
            state["drawn/mocap_quat"] = data.mocap_quat.copy()
        return state

    def restore(self, recorded: Mapping[str, np.ndarray | str]) -> None:
        """Take the model of a recorded episode (``recorded_model``); ``show`` draws its states.

        Raises:
            UserError: it is another task's.
        """
        try:
            self._snapshot.apply(recorded)
        except ValueError as error:
            raise UserError(f"the recorded model is not this task's: {error}") from error

    def show(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The observation of a recorded state.

        Raises:
            UserError: it is another task's, or not finite.
        """
        model, data = self.model, self.data
        shapes: dict[str, tuple[int, ...]] = {"states": (1 + model.nq + model.nv,)}
        if model.nmocap and "drawn/mocap_pos" in state:
            shapes |= {"drawn/mocap_pos": (model.nmocap, 3), "drawn/mocap_quat": (model.nmocap, 4)}
        check_state(state, shapes)
        values = state["states"]
        data.time = values[0]
        data.qpos[:], data.qvel[:] = values[1 : 1 + model.nq], values[1 + model.nq :]
        if "drawn/mocap_pos" in shapes:
            data.mocap_pos[:] = state["drawn/mocap_pos"]
            data.mocap_quat[:] = state["drawn/mocap_quat"]
        self._refresh_what_is_drawn()
        return self._observe()

    def close(self) -> None:
        """Free the renderer; may be called twice."""
        self._close_renderer()

    def pose(self, renderer, camera: int) -> None:
        """Give ``renderer``, of the present model, what one camera sees now."""
        with self._as_drawn():
            renderer.update(self.data, camera)
        renderer.upside_down = self.upside_down(camera)

    @property
    def classes(self) -> dict[int, np.ndarray]:
        """Class ids by MuJoCo object type and id of the present model (``Renderer.mask``)."""
        _ = self.renderer  # a new model's has no table
        if self._class_table is None:
            self._class_table = self._classes()
        return self._class_table

    @property
    def renderer(self):
        """The ``Renderer`` of the present model; made on first use: one not seen costs nothing."""
        if self._renderer is not None and self._renderer.model is not self.model:
            self._close_renderer()
        if self._renderer is None:
            from envs.rendering import Renderer

            size = self.config.size
            self._renderer = Renderer(
                self.model, size, size, self.config.quality, hidden_groups=self.hidden_groups
            )
            self._class_table = None
        return self._renderer

    @property
    def graphics(self) -> str | None:
        """As ``Environment``."""
        return self.renderer.graphics

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _rescale(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, not {self.action_space.shape}")
        if not self._needs_rescaling:
            return np.clip(action, -1, 1)
        with np.errstate(invalid="ignore"):
            scaled = self._low + (np.clip(action, -1, 1) + 1.0) / 2 * (self._high - self._low)
        return np.where(self._finite, scaled, action)

    def _refresh_what_is_drawn(self) -> None:
        """Poses, cameras and lights from the state.

        Kinematics alone refreshes them without touching the solver's warm start, so that pictures
        never change the physics.
        """
        import mujoco

        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _observe(self) -> dict[str, np.ndarray]:
        if not self.observing:
            return {}
        observation = together([self._view(number) for number in self.camera_numbers])
        self._frame += 1
        self._image = observation["image"]
        if self.config.proprio:
            observation["proprio"] = self._state()
        return observation

    def _view(self, camera: int) -> dict[str, np.ndarray]:
        """What one camera sees: ``image`` and, if asked for, ``mask``."""
        renderer = self.renderer
        self.pose(renderer, camera)
        if self._shifts is not None:
            self._shifts.edit(shifts.Stage(renderer, self.classes, self._frame))
        image = renderer.image()
        if self._shifts is not None:
            image = self._shifts.picture(image)
        turn = ORIENTATIONS[self.config.orientation]
        view = {"image": np.ascontiguousarray(turn(image))}
        if self.config.masks:
            view["mask"] = np.ascontiguousarray(turn(renderer.mask(self.classes)))
        return view

    def _find_camera(self, camera: str) -> int:
        """The number of a camera given by name or number."""
        names = [self.model.camera(i).name for i in range(self.model.ncam)]
        if camera in names:
            return names.index(camera)
        if camera.isdecimal() and int(camera) < len(names):
            return int(camera)
        raise UserError(
            f"unknown camera {camera!r}; this task has "
            + ", ".join(f"{name or 'unnamed'} ({i})" for i, name in enumerate(names))
        )
