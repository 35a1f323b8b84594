"""Scripted experts of the panda tasks: waypoints of the fingertips, and inverse kinematics."""

import dataclasses
from collections.abc import Callable

import numpy as np

from envs.panda import LARGEST_TURN, Panda
from envs.panda_model import ARM_JOINTS, START, TIP
from envs.panda_tasks import OpenDrawer, Scene
from envs.scripted_expert import Expert

FASTEST = 0.03
"""Metres of the fingertips in one of the agent's steps."""
OVER = 0.10
"""Metres over what is grasped from which the hand descends."""
GRASP_STEPS = 2
"""Of the agent, in which the hand stands still around what it grasps."""
ITERATIONS = 12
DAMPING = 0.02
"""Of the least squares; the larger, the less exact near a singular pose."""
HOMING = 0.02
"""Share of the way to the start's joint angles that is gone where the pose leaves it free."""


@dataclasses.dataclass(frozen=True)
class Waypoint:
    """Where the fingertips go next."""

    place: Callable[[], np.ndarray]
    """(3,) metres in the world; asked anew before each step."""
    opened: bool
    tolerance: float = 0.01
    """It is reached this near, metres."""
    steps: int = 0
    """The agent's steps that it takes at least."""


class PandaExpert(Expert):
    """Moves the fingertips along a task's waypoints, the hand pointing down.

    Starts again where the last waypoint has brought no success.
    """

    environment: Panda

    def begin(self) -> None:
        """Start an episode; call it after each reset of the environment."""
        import mujoco

        model = self.environment.model
        self._scratch = mujoco.MjData(model)
        self._site = model.site(TIP).id
        self._dofs = np.array([model.joint(joint).dofadr[0] for joint in ARM_JOINTS])
        self._angles = np.array([model.joint(joint).qposadr[0] for joint in ARM_JOINTS])
        self._plan()

    def _plan(self) -> None:
        world = self.environment.world
        closing, self._way = WAYS[self.environment.name](self.environment.scene, world)
        turns = closing[0] + closing[1] * np.arange(-8, 9)
        self._closing = float(turns[np.argmin(np.abs(turns - _closing_angle(self._frame())))])
        self._number, self._steps = 0, 0

    def _frame(self) -> np.ndarray:
        return self.environment.data.site_xmat[self._site].reshape(3, 3)

    def _noiseless(self) -> np.ndarray:
        waypoint = self._way[self._number]
        if self._steps >= waypoint.steps and self._left(waypoint) <= waypoint.tolerance:
            self._steps = 0
            self._number += 1
            if self._number == len(self._way):
                self._plan()
            waypoint = self._way[self._number]
        self._steps += 1
        tip = self.environment.world.tip
        move = waypoint.place() - tip
        move *= min(1.0, FASTEST / max(float(np.linalg.norm(move)), 1e-9))
        turns = self._turns_to(tip + move) / (LARGEST_TURN * self.environment.action_repeat)
        turns /= max(1.0, np.abs(turns).max())
        return np.array([*turns, 1.0 if waypoint.opened else -1.0])

    def _left(self, waypoint: Waypoint) -> float:
        """Metres to a waypoint, with ten centimetres for each radian that the hand is turned."""
        way = waypoint.place() - self.environment.world.tip
        turned = self._error(self._frame())
        return float(np.linalg.norm(way) + 0.1 * np.linalg.norm(turned))

    def _error(self, frame: np.ndarray) -> np.ndarray:
        """Rotation from a frame (3, 3) of the hand to the wanted one: axis times angle, (3,)."""
        import mujoco

        across = np.array([np.cos(self._closing), np.sin(self._closing), 0.0])
        down = np.array([0.0, 0.0, -1.0])
        wanted = np.stack([across, np.cross(down, across), down], axis=1)
        quaternion, turn = np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(quaternion, (wanted @ frame.T).ravel())
        mujoco.mju_quat2Vel(turn, quaternion, 1)
        return turn

    def _turns_to(self, place: np.ndarray) -> np.ndarray:
        """Changes of the joint angles that bring the fingertips to a place, (7,) radians.

        Damped least squares on a copy of the state; what the pose leaves free goes towards the
        angles of the start.
        """
        import mujoco

        model, data = self.environment.model, self._scratch
        data.qpos[:] = self.environment.data.qpos
        start = data.qpos[self._angles].copy()
        low, high = self.environment.joint_ranges.T
        position, rotation = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        for _ in range(ITERATIONS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, position, rotation, self._site)
            jacobian = np.concatenate([position[:, self._dofs], rotation[:, self._dofs]])
            frame = data.site_xmat[self._site].reshape(3, 3)
            left = np.concatenate([place - data.site_xpos[self._site], self._error(frame)])
            inverse = jacobian.T @ np.linalg.inv(
                jacobian @ jacobian.T + DAMPING**2 * np.eye(len(left))
            )
            homing = HOMING * (np.array(START) - data.qpos[self._angles])
            free = homing - inverse @ (jacobian @ homing)
            angles = data.qpos[self._angles] + inverse @ left + free
            data.qpos[self._angles] = np.clip(angles, low + 0.01, high - 0.01)
        return data.qpos[self._angles] - start


def _closing_angle(frame: np.ndarray) -> float:
    """The direction that the fingers close along, radians from the world's x."""
    return float(np.arctan2(frame[1, 0], frame[0, 0]))


# Each way: (an angle to close along, what it may be turned by), and the waypoints.
Way = tuple[tuple[float, float], list[Waypoint]]
ANY = (0.5 * np.pi, np.pi)
"""The hand as it is at the start."""


def _above(place: Callable[[], np.ndarray], height: float) -> Callable[[], np.ndarray]:
    return lambda: place() + [0, 0, height]


def _grasp(place: Callable[[], np.ndarray]) -> list[Waypoint]:
    """Down from above with open fingers, which then close."""
    return [
        Waypoint(_above(place, OVER), True, 0.02),
        Waypoint(place, True, 0.008),
        Waypoint(place, False, 0.02, GRASP_STEPS),
    ]


def _fixed(place: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: place


def _reach(scene: Scene, world) -> Way:
    return ANY, [Waypoint(lambda: world.position("target"), True)]


def _push(scene: Scene, world) -> Way:
    def button() -> np.ndarray:
        return world.position("button")

    return ANY, [
        Waypoint(_above(button, OVER), False, 0.015),
        Waypoint(_above(button, -0.01), False, steps=10),
    ]


def _slide(scene: Scene, world) -> Way:
    def block() -> np.ndarray:
        return world.position("block")

    def onto() -> np.ndarray:
        way = world.position("target") - block()
        return world.tip + [*way[:2], 0.0]

    return (world.yaw("block"), 0.5 * np.pi), [*_grasp(block), Waypoint(onto, False, steps=20)]


def _take_off(scene, world) -> Way:
    def knob() -> np.ndarray:
        return world.position("lid") + [0, 0, scene.knob]

    up = _fixed(knob() + [0, 0, scene.rise + 0.05])
    return (world.yaw("lid") + 0.5 * np.pi, np.pi), [*_grasp(knob), Waypoint(up, False, steps=8)]


def _lift(scene: Scene, world) -> Way:
    def block() -> np.ndarray:
        return world.position("block")

    def away() -> np.ndarray:
        return world.tip + world.position("target") - block()

    up = _fixed(block() + [0, 0, OVER])
    return (world.yaw("block"), 0.5 * np.pi), [
        *_grasp(block),
        Waypoint(up, False, 0.03),
        Waypoint(away, False, steps=20),
    ]


def _open(scene: OpenDrawer, world) -> Way:
    yaw = world.yaw("cabinet")
    out = scene.grip(world) + 0.13 * np.array([np.sin(yaw), -np.cos(yaw), 0])
    way = [*_grasp(lambda: scene.grip(world)), Waypoint(_fixed(out), False, steps=12)]
    return (yaw + 0.5 * np.pi, np.pi), way


WAYS: dict[str, Callable[..., Way]] = {
    "reach-target": _reach,
    "push-button": _push,
    "slide-block-to-target": _slide,
    "take-lid-off": _take_off,
    "pick-and-lift": _lift,
    "open-drawer": _open,
}
