"""LIBERO: 130 tasks of a Panda arm on tables and floors, with two cameras and an instruction.

Suites spatial, object, goal, 10 and 90 by the benchmark's evaluation protocol: one of its recorded
initial states, ten control steps of standing still, then as many steps as the suite allows
(Liu et al. 2023).
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from envs.environment_config import EnvironmentConfig
from envs.global_generator import global_generator
from envs.libero_package import (
    REQUIREMENT,
    import_libero,
    parsed_model,
    quiet,
    task_names,
    with_local_assets,
)
from envs.simulation import ModelSnapshot, MujocoEnvironment, import_suite
from errors import UserError

PARTS = {"spatial": 10, "object": 10, "goal": 10, "10": 10, "90": 90}
"""Number of tasks of each of the benchmark's suites."""


def _shuffle(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.permutation(count)


def _swap(rng: np.random.Generator, count: int) -> np.ndarray:
    places = np.arange(count)
    return places[[1, 0, *places[2:]]] if rng.integers(2) else places


Rearrangement = Callable[[np.random.Generator, int], np.ndarray]
"""Whose place each of so many things takes, drawn at random."""
REARRANGED: dict[str, Rearrangement] = {"object-shuffled": _shuffle, "object-swapped": _swap}
"""Suites of ours, object with other places: whose place each thing takes at a reset, the one to
pick first. Shuffled, all change places; swapped, that one changes with the next or does not, as a
coin falls. The benchmark puts each within two centimetres of a place of its own: whoever knows the
instruction need not look where to reach. Here, without looking, it is right in a sixth and in half
of the episodes."""
SUITES = PARTS | dict.fromkeys(REARRANGED, PARTS["object"])
"""All of them."""
TASKS = tuple(f"{part}/{number}" for part, count in SUITES.items() for number in range(count))
MAX_ENV_STEPS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
MAX_ENV_STEPS |= dict.fromkeys(REARRANGED, MAX_ENV_STEPS["object"])
RECORDED_STARTS = 50
"""Initial states that the benchmark has recorded of every task."""
SETTLING_STEPS = 10
STAND_STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # the gripper open
CAMERAS = "agentview,robot0_eye_in_hand"
COLLISION_GROUP = 0  # robosuite draws group 1 only
JOINT_TAGS = ("joint", "freejoint")
BURNER_ON = 0.5  # radians of a stove's knob; libero's FlatStove


def recorded_starts(name: str) -> int:
    """How many starts of a task the benchmark has recorded; none of the rearranged suites."""
    return RECORDED_STARTS if name.partition("/")[0] in PARTS else 0


class Libero(MujocoEnvironment):
    """One LIBERO task, ``object/3``. An episode ends with success, ``info["success"]``.

    ``reset(options={"init_state": k})`` starts from the benchmark's k-th recorded state, with
    "seed" for k from the one that the seed counts off (seed modulo 50); without, objects are placed
    anew by the task's own rules, as a function of the seed. Those of ``REARRANGED`` suites then
    change places with each other; no starts are recorded of them. Actions (7,): hand displacement
    (±1 is ±0.05 m), rotation (±0.5 rad), gripper (-1 open, +1 close), 20 a second.
    Proprioception (12,): joint angles (7, radians), finger positions (2, metres), hand position
    (3, metres, in the world).

    Args:
        name: one of ``TASKS``.
        config, seed: see ``MujocoEnvironment``.

    Raises:
        UserError: hf-libero or its assets are missing; unknown camera; no GL context.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    default_camera = CAMERAS
    default_action_repeat = 1
    hidden_groups = (COLLISION_GROUP,)

    def __init__(self, name: str, config: EnvironmentConfig, seed: int | None = None):
        self.name = name
        part, _, number = name.partition("/")
        package = pathlib.Path(import_libero().__file__).parent
        self._rearrange = REARRANGED.get(part)
        folder = "libero_object" if self._rearrange else f"libero_{part}"
        self.task_name = task_names(package)[folder][int(number)]
        self.bddl_file = package / "bddl_files" / folder / f"{self.task_name}.bddl"
        self._init_states_file = package / "init_files" / folder / f"{self.task_name}.pruned_init"
        with quiet(), global_generator(0):
            control = import_suite("libero.libero.envs.env_wrapper", REQUIREMENT).ControlEnv
            make = functools.partial(
                control,
                bddl_file_name=str(self.bddl_file),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=False,
                ignore_done=True,  # the limit is ours
            )
            self._simulation = _until_placed(make).env
        words = self._simulation.parsed_problem["language_instruction"]
        self.instruction = words if isinstance(words, str) else " ".join(words)
        self._snapshot = self._snapshot_of_model()
        self._steps = 0
        bounds = np.full(7, -1.0), np.full(7, 1.0)
        super().__init__(config, bounds, MAX_ENV_STEPS[part], seed)

    @property
    def model(self):
        """The ``mujoco.MjModel`` being simulated; ``restore`` makes another one."""
        return self._simulation.sim.model._model

    @property
    def data(self):
        """The ``mujoco.MjData`` being simulated."""
        return self._simulation.sim.data._data

    @functools.cached_property
    def init_states(self) -> np.ndarray:
        """The benchmark's recorded initial states, (50, 1 + nq + nv) float64."""
        import torch
        from numpy._core.multiarray import _reconstruct

        # A pickle, but the package's own, and nothing in it is called but what makes an array.
        makes_arrays: list[Any] = [
            (_reconstruct, "numpy.core.multiarray._reconstruct"),
            np.ndarray,
            np.dtype,
            np.dtypes.Float64DType,
        ]
        with torch.serialization.safe_globals(makes_arrays):
            return np.asarray(torch.load(self._init_states_file, weights_only=True))

    @property
    def objects_of_interest(self) -> list[str]:
        """The task's objects in the task's order, regions under the name of what they are part of.

        A region of the table is nothing of its own and left out.
        """
        known = [*self._simulation.objects_dict, *self._simulation.fixtures_dict]
        found = []
        for name in self._simulation.obj_of_interest:
            whole = [part for part in known if name == part or name.startswith(f"{part}_")]
            found += [max(whole, key=len)] if whole else []
        return list(dict.fromkeys(found))

    def _reset_simulation(self, options) -> None:
        seed = int(self.np_random.integers(2**32, dtype=np.uint32))
        self._snapshot.restore()
        with global_generator(seed), quiet():
            _until_placed(self._simulation.reset)
        # The gripper integrates its commands, and a soft reset leaves it where the last episode did
        gripper = self._simulation.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        number = options.get("init_state")
        if self._rearrange is not None:
            if number is not None:
                raise UserError(f"libero/{self.name} has no recorded states; leave init_state out")
            self._change_places(self._rearrange, np.random.default_rng(seed))
        if number is not None:
            if number == "seed":
                number = self.np_random_seed % len(self.init_states)
            if not 0 <= number < len(self.init_states):
                raise UserError(
                    f"init_state {number} is not one of the {len(self.init_states)} recorded states"
                )
            self._simulation.sim.set_state_from_flattened(self.init_states[number])
            self.data.qacc_warmstart[:] = 0  # of the placements drawn before
            self._simulation.sim.forward()
        for _ in range(SETTLING_STEPS):
            self._simulation.step(np.array(STAND_STILL))
        self._steps = 0

    def _change_places(self, rearrange: Rearrangement, rng: np.random.Generator) -> None:
        """Of all things but the one that something is to be put in, as the suite says."""
        simulation, (_, *into) = self._simulation, self.objects_of_interest
        things = [name for name in simulation.objects_dict if name not in into]
        joints = [simulation.objects_dict[name].joints[0] for name in things]
        poses = np.stack([simulation.sim.data.get_joint_qpos(joint) for joint in joints])
        # Each keeps its height and turn.
        poses[:, :2] = poses[rearrange(rng, len(things)), :2]
        for joint, pose in zip(joints, poses, strict=True):
            simulation.sim.data.set_joint_qpos(joint, pose)
        simulation.sim.forward()

    def _step_simulation(self, action):
        _, reward, success, _ = self._simulation.step(action)
        # MuJoCo's step leaves the poses from before its last substep; the picture, and with it
        # what is recorded, shows the state that was reached.
        self._refresh_what_is_drawn()
        self._steps += 1
        out_of_time = self._steps >= self.max_env_steps
        success = bool(success)
        return float(reward), success, out_of_time and not success, {"success": success}

    def _state(self) -> np.ndarray:
        robot = self.robot_state()
        parts = robot["joint_states"], robot["gripper_states"], robot["ee_pos"]
        return np.concatenate(parts).astype(np.float32)

    def effector(self) -> np.ndarray:
        """The place between the fingers in the world, (3,) metres."""
        return self.robot_state()["ee_pos"]

    def robot_state(self) -> dict[str, np.ndarray]:
        """What LIBERO's demonstrations record of the robot, read from the simulation.

        Returns: ``joint_states`` (7,), ``gripper_states`` (2,), ``ee_pos`` (3,), ``ee_ori`` (3,) as
        axis times angle, ``ee_states`` (6,) of both, ``robot_states`` (9,): gripper, position and
        quaternion (x, y, z, w); float64.
        """
        from robosuite.utils import transform_utils

        robot, data = self._simulation.robots[0], self.data
        position = data.site_xpos[robot.eef_site_id].copy()
        body = self.model.body(robot.robot_model.eef_name).id
        quaternion = transform_utils.convert_quat(data.xquat[body].copy(), to="xyzw")
        orientation = transform_utils.quat2axisangle(quaternion.copy())
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes].copy()
        return {
            "joint_states": data.qpos[robot._ref_joint_pos_indexes].copy(),
            "gripper_states": fingers,
            "ee_pos": position,
            "ee_ori": orientation,
            "ee_states": np.concatenate([position, orientation]),
            "robot_states": np.concatenate([fingers, position, quaternion]),
        }

    def _classes(self):
        from envs.semantics import libero_classes

        return libero_classes(self.objects_of_interest, self.model)

    @contextlib.contextmanager
    def _as_drawn(self):
        """A stove's burner glows while its knob is turned, whichever way the state was reached."""
        for name, fixture in self._simulation.fixtures_dict.items():
            sites = fixture.object_properties["vis_site_names"] if fixture is not None else {}
            for site, _ in sites.values():
                on = max(self._simulation.object_states_dict[name].get_joint_state()) >= BURNER_ON
                self.model.site(site).rgba[3] = float(on)
        yield

    # Recording and replaying (envs/recording.py)

    def recorded_model(self):
        """``model_file``: the model as MJCF, fixtures where this episode's reset has put them."""
        from xml.etree import ElementTree

        tree = ElementTree.fromstring(self._simulation.model.get_xml())
        for element in tree.iter("body"):
            name = element.get("name")
            body = self.model.body(name).id if name else 0
            if body and self.model.body_parentid[body] == 0:
                element.set("pos", _numbers(self.model.body_pos[body]))
                element.set("quat", _numbers(self.model.body_quat[body]))
        return {"model_file": ElementTree.tostring(tree, encoding="unicode")}

    def restore(self, recorded):
        """Take the model of a recorded episode; ``show`` draws its states.

        Raises:
            UserError: the model cannot be loaded, or has another task's joints.
        """
        expected = [self.model.joint(number).name for number in range(self.model.njnt)]
        try:
            tree = parsed_model(recorded["model_file"])
            found = {joint.get("name") for kind in JOINT_TAGS for joint in tree.iter(kind)}
            if missing := set(expected) - found - {""}:
                raise UserError(
                    f"the recorded model has no joint {min(missing)}, that of libero/{self.name}"
                    " has: it is another task's"
                )
            with quiet():
                self._simulation.reset_from_xml_string(with_local_assets(recorded["model_file"]))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"cannot load the recorded model of libero/{self.name}: {error}"
            ) from error
        finally:
            self._simulation.deterministic_reset = False  # robosuite leaves it when it fails
        if self.model.njnt != len(expected):
            raise UserError(
                f"the recorded model has {self.model.njnt} joints, that of libero/{self.name}"
                f" {len(expected)}: it is another task's"
            )
        self._snapshot = self._snapshot_of_model()

    def _snapshot_of_model(self) -> ModelSnapshot:
        """The model as resets begin with it: fixtures where the model file has them.

        A reset places what is *on* a fixture by where the model has the fixture's surface, then
        moves the fixture there. LIBERO compiles the model anew for each reset; this one is kept.
        """
        as_it_is = ModelSnapshot(self.model)
        for fixture in self._simulation.fixtures_dict.values():
            body = self.model.body(fixture.root_body).id
            element = self._simulation.model.worldbody.find(f".//body[@name='{fixture.root_body}']")
            for name, at_origin in (("pos", "0 0 0"), ("quat", "1 0 0 0")):
                numbers = element.get(name, at_origin).split()
                getattr(self.model, f"body_{name}")[body] = [float(part) for part in numbers]
        unplaced = ModelSnapshot(self.model)
        as_it_is.restore()
        return unplaced

    def show_after(self, states: np.ndarray, actions: np.ndarray, robot: dict) -> dict:
        """The observation that the last of an episode's actions led to.

        LIBERO's own files end with a picture of a state they do not hold: the step is simulated,
        then the robot put where it was recorded. What the simulator carries from step to step
        beside its state is found again where the recorded actions tell: what the gripper has
        integrated, the orientation the arm was last told to hold, and, from the step before, where
        the contact solver starts.

        Args:
            states: in which the actions were taken, (T, 1 + nq + nv).
            actions: of the whole episode, (T, 7).
            robot: ``joint_states`` (7,) and ``gripper_states`` (2,) after the last action.
        """
        simulation = self._simulation
        arm = simulation.robots[0]
        before = max(len(actions) - 2, 0)
        arm.gripper.current_action = np.array([1.0, -1.0])  # open, as after settling
        substeps = int(simulation.control_timestep / simulation.model_timestep)
        for action in actions[:before, -1]:
            for _ in range(substeps):
                arm.gripper.format_action(np.array([action]))
        turned = np.flatnonzero(np.any(actions[:before, 3:6] != 0, axis=1))
        if len(turned):  # an action without rotation keeps the goal of the last one that had some
            self._put(states[turned[-1]])
            arm.controller.set_goal(actions[turned[-1], :6])
        self._put(states[before])
        for state, action in zip(states[before:], actions[before:], strict=True):
            solution = self.data.qacc_warmstart.copy()
            self._put(state)
            self.data.qacc_warmstart[:] = solution
            simulation.step(action)
        self.data.qpos[arm._ref_joint_pos_indexes] = robot["joint_states"]
        self.data.qpos[arm._ref_gripper_joint_pos_indexes] = robot["gripper_states"]
        self._refresh_what_is_drawn()
        return self._observe()

    def _put(self, state: np.ndarray) -> None:
        """Set the simulator's state, and tell the controller where the hand is now."""
        self._simulation.sim.set_state_from_flattened(state)
        self._simulation.sim.forward()
        self._simulation.robots[0].controller.update(force=True)

    def problem(self) -> dict[str, str]:
        """LIBERO's own description of a task, as its demonstrations carry it (``problem_info``)."""
        parsed = self._simulation.parsed_problem
        return {
            "problem_name": parsed["problem_name"],
            "domain_name": "robosuite",
            "language_instruction": self.instruction,
        }

    def close(self) -> None:
        """Free the renderer and the simulation."""
        super().close()
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None


def task_of_problem(folder: str, name: str) -> str:
    """The id of the task that a problem file describes: "libero/object/0".

    Args:
        folder: of the problem file, "libero_object".
        name: of the problem file, without its suffix.

    Raises:
        UserError: LIBERO is not installed, or knows no such task.
    """
    names = task_names(pathlib.Path(import_libero().__file__).parent).get(folder, ())
    if name not in names:
        raise UserError(f"LIBERO has no task {folder}/{name}")
    return f"libero/{folder.removeprefix('libero_')}/{list(names).index(name)}"


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)


def _until_placed(draw):
    """What `draw` returns, called again while its random placements leave an object no room."""
    from robosuite.utils.errors import RandomizationError

    while True:
        with contextlib.suppress(RandomizationError):
            return draw()
