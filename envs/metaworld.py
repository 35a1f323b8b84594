"""Meta-World v3: 50 manipulation tasks of one Sawyer arm, by the published protocol.

Goal and object positions are redrawn at every reset, the camera is ``corner2`` moved closer, an
episode is 500 control steps (Seo et al. 2022, appendix F).
"""

import contextlib

import numpy as np

from envs.environment_config import EnvironmentConfig
from envs.simulation import (
    ModelSnapshot,
    MujocoEnvironment,
    PlainAttributes,
    check_state,
    import_suite,
)

# metaworld.env_dict.ALL_V3_ENVIRONMENTS of metaworld 3.1.1, so that listing needs no import.
TASKS = (
    "assembly",
    "basketball",
    "bin-picking",
    "box-close",
    "button-press",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-close",
    "door-lock",
    "door-open",
    "door-unlock",
    "drawer-close",
    "drawer-open",
    "faucet-close",
    "faucet-open",
    "hammer",
    "hand-insert",
    "handle-press",
    "handle-press-side",
    "handle-pull",
    "handle-pull-side",
    "lever-pull",
    "peg-insert-side",
    "peg-unplug-side",
    "pick-out-of-hole",
    "pick-place",
    "pick-place-wall",
    "plate-slide",
    "plate-slide-back",
    "plate-slide-back-side",
    "plate-slide-side",
    "push",
    "push-back",
    "push-wall",
    "reach",
    "reach-wall",
    "shelf-place",
    "soccer",
    "stick-pull",
    "stick-push",
    "sweep",
    "sweep-into",
    "window-close",
    "window-open",
)
MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)
"""The ten tasks of metaworld's multi-task benchmark."""
ML10_TRAIN = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "sweep",
    "basketball",
)
"""The tasks that metaworld's meta-learning benchmark learns first."""
ML10_TEST = ("drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull")
"""Those that it is tried on then."""
MAX_ENV_STEPS = 500  # SawyerXYZEnv.max_path_length
CORNER2_POSITION = (0.75, 0.075, 0.7)  # metres
BUDGETS = {
    1_000_000: "basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side "
    "push-wall soccer sweep sweep-into",
    2_000_000: "assembly hand-insert pick-out-of-hole pick-place push push-back",
    3_000_000: "shelf-place disassemble stick-pull stick-push pick-place-wall",
}
"""Environment steps the paper trains medium, hard and very hard tasks for (Masked World Models,
appendix F)."""


def difficulties() -> dict[str, list[str]]:
    """The tasks of each of the paper's groups (appendix F)."""
    groups: dict[str, list[str]] = {"easy": [], "medium": [], "hard": [], "very-hard": []}
    order = [500_000, *sorted(BUDGETS)]
    for name in TASKS:
        groups[list(groups)[order.index(budget(name))]].append(name)
    return groups


def budget(name: str) -> int:
    """Environment steps the paper trains a task for."""
    return next((steps for steps, names in BUDGETS.items() if name in names.split()), 500_000)


class MetaWorld(MujocoEnvironment):
    """One Meta-World task. ``info["success"]``: any control step of this step succeeded.

    Proprioception (4,): the hand's x, y, z in metres and the gripper's opening in [0, 1].

    Args:
        name: one of ``TASKS``.
        config, seed: see ``MujocoEnvironment``.

    Raises:
        UserError: metaworld is not installed; unknown camera; no GL context.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # 80 control steps a second / 2
    default_camera = "corner2"

    def __init__(
        self,
        name: str,
        config: EnvironmentConfig,
        seed: int | None = None,
    ):
        self.name = name
        self.instruction = name.replace("-", " ")
        suite = import_suite("metaworld.env_dict", "metaworld==3.1.1")
        self._simulation = suite.ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
        # What set_task would do, except that positions are drawn at every reset, from np_random.
        self._simulation._set_task_called = True
        self._simulation._freeze_rand_vec = False
        self._simulation.seeded_rand_vec = True
        self._model, self._data = self._simulation.model, self._simulation.data
        self._model.camera("corner2").pos = CORNER2_POSITION
        self._snapshot = ModelSnapshot(self._model)
        self._attributes = PlainAttributes(self._simulation)
        self._shown_markers: np.ndarray | None = None
        bounds = self._simulation.action_space.low, self._simulation.action_space.high
        super().__init__(config, bounds, MAX_ENV_STEPS, seed)

    @property
    def model(self):
        """The ``mujoco.MjModel`` being simulated."""
        return self._model

    @property
    def data(self):
        """The ``mujoco.MjData`` being simulated."""
        return self._data

    def _reset_simulation(self, options) -> None:
        # Meta-World's own reset runs the task's reset_model twice and carries poses in the model
        # and numbers in the task over from the last episode: start it from where a new task does.
        import mujoco

        self._shown_markers = None
        self._snapshot.restore()
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_forward(self._model, self._data)
        self._attributes.restore()
        self._simulation.np_random = self.np_random
        self._simulation.reset()

    def _step_simulation(self, action):
        _, reward, terminated, truncated, info = self._simulation.step(action)
        return float(reward), terminated, truncated, {"success": bool(info["success"])}

    def _state(self) -> np.ndarray:
        return self._simulation._get_curr_obs_combined_no_goal()[:4].astype(np.float32)

    def _classes(self):
        from envs.semantics import metaworld_classes

        return metaworld_classes(self.name, self._model)

    @contextlib.contextmanager
    def _as_drawn(self):
        """Goal markers where the task says they are.

        Its step puts them there, then runs a forward pass that puts them back where the model has
        them. Restored afterwards: rewards read site positions.
        """
        positions = self._data.site_xpos
        actual = positions.copy()
        for site, position in zip(self._marker_sites(), self._markers(), strict=True):
            positions[site] = position
        yield
        positions[:] = actual

    def _marker_sites(self) -> list[int]:
        return [self._model.site(name).id for name, _ in self._simulation._target_site_config]

    def _markers(self) -> np.ndarray:
        """Where the goal markers are drawn, (markers, 3) metres."""
        if self._shown_markers is not None:
            return self._shown_markers
        places = [place[:3] for _, place in self._simulation._target_site_config]
        return np.array(places, np.float64).reshape(-1, 3)

    def recorded_model(self):
        """What this episode's reset has drawn: body and site positions, and what else it edits."""
        positions = {name: getattr(self._model, name).copy() for name in ("body_pos", "site_pos")}
        return {**positions, **super().recorded_model()}

    def recorded_state(self):
        """As ``MujocoEnvironment``; also where the goal markers are drawn."""
        return super().recorded_state() | {"drawn/markers": self._markers()}

    def restore(self, recorded):
        """As ``MujocoEnvironment``."""
        self.reset(seed=0)  # a task knows its markers only once it was reset
        super().restore(recorded)

    def show(self, state):
        """The observation of a recorded state."""
        check_state(state, {"drawn/markers": (len(self._marker_sites()), 3)})
        self._shown_markers = state["drawn/markers"]
        return super().show(state)

    def effector(self) -> np.ndarray:
        """The hand's place in the world, (3,) metres."""
        return self._state()[:3]

    def places(self) -> dict[str, np.ndarray]:
        """As ``MujocoEnvironment``; the objects are those of Meta-World's own observation."""
        objects = np.asarray(self._simulation._get_pos_objects(), np.float64).reshape(-1, 3)
        names = ["object", *(f"object {number}" for number in range(2, len(objects) + 1))]
        return {**super().places(), **dict(zip(names, objects, strict=True))}

    def upside_down(self, camera: int) -> bool:
        """Fixed cameras whose own up axis points down: corner, corner2, corner4.

        The published observations are corner2's pictures flipped vertically.
        """
        fixed = self._model.cam_bodyid[camera] == 0
        return bool(fixed and self._model.cam_mat0[camera].reshape(3, 3)[2, 1] < 0)
