"""Tasks of our own for a Panda arm in MuJoCo, in the kind of RLBench's.

Actions and the rules of an episode are in the kind of those that Seo et al. (2022) learn RLBench's
tasks with: changes of joint angles and an open or closed gripper, 200 control steps, an end where a
motion is invalid. Scenes, rewards and simulator are others: scores here say nothing about RLBench.
"""

import numpy as np

from envs.environment_config import EnvironmentConfig
from envs.panda_model import ARM_JOINTS, FINGER_JOINTS, OPENED, START, build
from envs.panda_tasks import SCENES, World
from envs.simulation import ModelSnapshot, MujocoEnvironment
from errors import UserError

TASKS = tuple(SCENES)
MAX_ENV_STEPS = 200
LARGEST_TURN = 0.05
"""Radians that 1 in an action turns a joint by, in each control step."""
MOVE_SUBSTEPS, RAMP_SUBSTEPS = 25, 15
"""Simulator steps of an arm's motion, a tenth of a second, and in which of them its servos' targets
move; then it comes to rest."""
GRIPPER_SUBSTEPS = 50
"""Simulator steps in which the gripper opens or closes, with the arm at rest."""
BLOCKED = 0.03
"""Radians by which a joint that something stands in the way of misses its target."""
PROGRESS_REWARD, SUCCESS_REWARD, INVALID_REWARD = 10.0, 5.0, -1.0


class Panda(MujocoEnvironment):
    """One panda task, ``reach-target``. Success ends an episode, and so does an invalid motion.

    Actions (8,): changes of the seven joint angles (±1 is ±0.05 radians a control step), then the
    gripper, open above 0. The arm moves first, then the gripper. A motion is invalid where its end
    is outside a joint's range, which is then not begun, or where something is in its way, so that a
    joint misses its target by more than ``BLOCKED``. Proprioception (12,): joint angles (7,
    radians), finger positions (2, metres), fingertips' position (3, metres, in the world).

    Reward of a control step: ten for each metre by which ``Scene.distance`` has become less, and 5
    for success; -1 for an invalid motion. What is paid is progress, since an agent that pays
    for its distance in every step is best off ending its episode soon.

    ``reset(options={"variation": k})`` sets what the instruction names, a colour or a drawer; with
    "seed" for k, the seed does. Without, it is variation 0. Places and all other colours are drawn
    by the seed.

    Args:
        name: one of ``TASKS``.
        config, seed: see ``MujocoEnvironment``.

    Raises:
        UserError: robosuite, which has the arm's model, is not installed; unknown camera or
            variation; no GL context.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    default_camera = "front"

    def __init__(self, name: str, config: EnvironmentConfig, seed: int | None = None):
        self.name = name
        self.scene = SCENES[name]()
        self.instruction = self.scene.instruction(0)
        self._model = build(self.scene.objects)
        import mujoco

        self._data = mujoco.MjData(self._model)
        self.world = World(self._model, self._data)
        joints = [self._model.joint(joint) for joint in (*ARM_JOINTS, *FINGER_JOINTS)]
        self._joints = np.array([joint.qposadr[0] for joint in joints])
        self._ranges = np.array([joint.range for joint in joints[: len(ARM_JOINTS)]])
        self._snapshot = ModelSnapshot(self._model)
        self._steps, self._distance = 0, 0.0
        self._start()
        bounds = np.array([LARGEST_TURN] * len(ARM_JOINTS) + [1.0])
        super().__init__(config, (-bounds, bounds), MAX_ENV_STEPS, seed)

    @property
    def model(self):
        """The ``mujoco.MjModel`` being simulated."""
        return self._model

    @property
    def data(self):
        """The ``mujoco.MjData`` being simulated."""
        return self._data

    @property
    def joint_angles(self) -> np.ndarray:
        """Of the arm, (7,) radians."""
        return self._data.qpos[self._joints[: len(ARM_JOINTS)]].copy()

    @property
    def joint_ranges(self) -> np.ndarray:
        """Lowest and highest angle of each joint, (7, 2) radians."""
        return self._ranges.copy()

    def _start(self) -> None:
        """The arm where every episode begins, the scene where the model has it."""
        import mujoco

        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[self._joints] = [*START, OPENED, -OPENED]
        self._data.ctrl[:] = self._data.qpos[self._joints]
        self._refresh_what_is_drawn()

    def _reset_simulation(self, options) -> None:
        import mujoco

        self._snapshot.restore()
        self._start()
        variation = options.get("variation", 0)
        count = self.scene.variations
        if variation == "seed":
            variation = int(self.np_random.integers(count))
        if not isinstance(variation, (int, np.integer)) or not 0 <= variation < count:
            raise UserError(
                f"variation {variation!r} is not one of the {count} of panda/{self.name}: give a"
                ' number from 0, or "seed"'
            )
        self.instruction = self.scene.instruction(int(variation))
        self.scene.place(self.world, self.np_random, int(variation))
        mujoco.mj_forward(self._model, self._data)
        self._data.qacc_warmstart[:] = 0
        self._distance = self.scene.distance(self.world)
        self._steps = 0

    def _step_simulation(self, action):
        self._steps += 1
        success, valid = False, self._move_arm(action[:-1])
        if valid:
            self._move_gripper(action[-1] > 0)
        # MuJoCo's step leaves the poses from before its last substep.
        self._refresh_what_is_drawn()
        distance = self.scene.distance(self.world)
        reward = PROGRESS_REWARD * (self._distance - distance)
        self._distance = distance
        if valid:
            success = self.scene.succeeded(self.world)
            reward += SUCCESS_REWARD * success
        else:
            reward += INVALID_REWARD
        over = success or not valid
        out_of_time = self._steps >= self.max_env_steps
        return float(reward), over, out_of_time and not over, {"success": success}

    def _move_arm(self, turns: np.ndarray) -> bool:
        """Turn the joints by (7,) radians; whether the motion was a valid one."""
        start = self.joint_angles
        end = start + turns
        if (end < self._ranges[:, 0]).any() or (end > self._ranges[:, 1]).any():
            return False
        for substep in range(1, MOVE_SUBSTEPS + 1):
            share = min(1.0, substep / RAMP_SUBSTEPS)
            self._data.ctrl[: len(turns)] = start + share * turns
            self._simulate(1)
        return bool(np.abs(self.joint_angles - end).max() <= BLOCKED)

    def _move_gripper(self, opened: bool) -> None:
        target = OPENED if opened else 0.0
        if self._data.ctrl[len(ARM_JOINTS)] != target:
            self._data.ctrl[len(ARM_JOINTS) :] = target, -target
            self._simulate(GRIPPER_SUBSTEPS)

    def _simulate(self, substeps: int) -> None:
        import mujoco

        mujoco.mj_step(self._model, self._data, substeps)

    def _state(self) -> np.ndarray:
        parts = self._data.qpos[self._joints], self.world.tip
        return np.concatenate(parts).astype(np.float32)

    def effector(self) -> np.ndarray:
        """The place between the fingertips in the world, (3,) metres."""
        return self.world.tip

    def _classes(self):
        from envs.semantics import panda_classes

        return panda_classes(self.scene.parts, self._model)
