"""Scripted experts that act from the simulator's state, to record demonstrations with.

``expert(environment)`` knows every task of Meta-World and of panda, and LIBERO's suites object,
rearranged or not, and spatial.
"""

import dataclasses
import math
import warnings

import numpy as np

from envs.libero import REARRANGED, SUITES, Libero
from envs.metaworld import MetaWorld
from envs.panda import Panda
from envs.panda_experts import PandaExpert
from envs.scripted_expert import Expert
from envs.simulation import MujocoEnvironment, import_suite
from errors import UserError

LIBERO_PARTS = ("object", "spatial", *REARRANGED)
"""LIBERO's suites with an expert: all their tasks are to pick one thing up and put it somewhere."""


def expert(
    environment: MujocoEnvironment, noise: float = 0.0, rng: np.random.Generator | None = None
) -> Expert:
    """The scripted expert of the task that ``environment`` simulates.

    Args:
        environment: what ``envs.make`` returned.
        noise: standard deviation of Gaussian noise on every dimension of an action except the
            gripper, in units of the action space.
        rng: what draws the noise; needed if there is any.

    Raises:
        UserError: the task has no expert; names those that have one.
        ValueError: noise without a generator.
    """
    if noise and rng is None:
        raise ValueError("noise needs a generator that draws it")
    inner = environment.unwrapped
    assert isinstance(inner, MujocoEnvironment)
    if isinstance(inner, MetaWorld):
        return MetaWorldExpert(inner, noise, rng)
    if isinstance(inner, Libero) and inner.name.partition("/")[0] in LIBERO_PARTS:
        return PickAndPlaceExpert(inner, noise, rng)
    if isinstance(inner, Panda):
        return PandaExpert(inner, noise, rng)
    suite = type(inner).__module__.rpartition(".")[2]
    parts = [f"libero/{part}/0 to {SUITES[part] - 1}" for part in LIBERO_PARTS]
    raise UserError(
        f"{suite}/{inner.name} has no scripted expert; these have one: every metaworld task,"
        " every panda task, " + ", ".join(parts)
    )


class MetaWorldExpert(Expert):
    """Meta-World's own scripted policy of a task, told the goal that observations hide."""

    def begin(self) -> None:
        """Start an episode; call it after each reset of the environment."""
        policies = import_suite("metaworld.policies", "metaworld==3.1.1")
        self._policy = policies.ENV_POLICY_MAP[f"{self.environment.name}-v3"]()

    def _noiseless(self) -> np.ndarray:
        # As SawyerXYZEnv._get_obs, which would also overwrite the task's memory of the last step.
        # No policy reads the second part, the state of one control step ago.
        simulation = self.environment._simulation
        present = simulation._get_curr_obs_combined_no_goal()
        state = np.concatenate([present, present, simulation._get_pos_goal()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of actions out of bounds, which are clipped
            return self._policy.get_action(state)


# LIBERO: one Panda hand that picks and places

OPEN, CLOSED = -1.0, 1.0  # the gripper's commands; one takes 8 steps to be carried out
GRIPPER_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Phase:
    """One part of picking and placing; ``PickAndPlaceExpert._target`` says where to."""

    gripper: float
    tolerance: float
    """It ends this near its target, metres; 0 if it does not end so."""
    patience: int
    """It ends after this many steps at the latest."""


PHASES = {
    "approach": Phase(OPEN, 0.02, 70),
    "descend": Phase(OPEN, 0.006, 25),
    "close": Phase(CLOSED, 0, 2 * GRIPPER_STEPS),  # earlier, if the fingers stand still
    "free": Phase(CLOSED, 0.004, 10),
    "lift": Phase(CLOSED, 0.04, 30),
    "carry": Phase(CLOSED, 0.015, 60),
    "lower": Phase(CLOSED, 0.01, 60),
    "release": Phase(OPEN, 0, GRIPPER_STEPS),
    "retreat": Phase(OPEN, 0.02, 12),
}
"""In their order. After the last one, or when the object slipped, an expert starts again."""
HOLDING = ("free", "lift", "carry", "lower")
SLIPPED = 0.03  # metres an object moves in the hand before it counts as lost
STILL = 0.01  # metres a second of a finger

# robosuite's OSC_POSE: what 1 in an action stands for
METRES, RADIANS = 0.05, 0.5
GAIN = 3.0
# Of an action's length: full speed is 20 cm a second. The rest is left to noise.
FASTEST, FASTEST_TURN = 0.9, 0.5

# The Panda hand around its grip site, metres, with a margin: half its length along the fingers'
# motion, half its width across, and how high above the site its lower end is.
FINGERS = (0.062, 0.018, -0.008)  # opened
PALM = (0.112, 0.04, 0.025)
OPENING = 0.07  # of 0.076 between the opened fingers
PAD = 0.012  # half the height of what the finger pads touch, and half its width
FINGERTIP = 0.008  # from the grip site down to the floor
NEAR, FAR = 0.45, 0.7  # from the robot's base; outside, the folded or stretched arm obeys badly

SPACING = 0.008  # of the points that stand for a box
GRASP_DEPTH = 0.028  # of the grip site below an object's top: as deep as the palm lets it
RIM_DEPTH = 0.014  # of the grip site below a rim
OVER_GRASP, OVER_OBSTACLE, OVER_TARGET = 0.07, 0.03, 0.01  # heights to keep
PATH, WIDE_PATH = 0.06, 0.08  # half the width of the way of an empty hand, of one with an object
AROUND = 0.3  # obstacles further from an object do not matter to its grasp


@dataclasses.dataclass(frozen=True)
class Grasp:
    """Where the grip site goes to take an object, fingers down; positions in metres."""

    entry: np.ndarray
    """Where the opened hand descends to, (3,)."""
    grip: np.ndarray
    """Where it is while it closes, (3,); another place than ``entry`` only in narrow spaces."""
    yaw: float
    """Radians; at 0 the fingers move along the world's y."""
    cost: float
    """Smaller is better. In metres: what a millimetre less to grasp or to reach is worth."""


class PickAndPlaceExpert(Expert):
    """Picks up the object of a LIBERO task and puts it into the basket or onto the plate.

    Closed loop: a proportional controller moves the hand to the target of the present phase, which
    moves with the object. Knows shapes from the boxes that collide. Lets go above the target, so
    that a demonstration shows it.
    """

    _held: np.ndarray
    """From the object to the hand when it has closed, (3,) metres."""

    def begin(self) -> None:
        """Start an episode; call it after each reset of the environment."""
        simulation = self.environment._simulation
        robot = simulation.robots[0]
        self._site = robot.eef_site_id
        self._fingers = robot._ref_gripper_joint_vel_indexes
        ((self._relation, thing, self._target_name),) = simulation.parsed_problem["goal_state"]
        self._object = simulation.obj_body_id[thing]
        self._attempt()

    def _attempt(self) -> None:
        self._look()
        grasp = min(self._grasps(), key=self._cost)
        self._entry = grasp.entry - self._position
        self._grip = grasp.grip - self._position
        self._yaw = grasp.yaw
        self._enter("approach")

    def _enter(self, phase: str) -> None:
        self._phase, self._steps = phase, 0
        self._hand_before, self._position_before = self._hand, self._position

    @property
    def _hand(self) -> np.ndarray:
        """Position of the grip site, (3,) metres."""
        return self.environment.data.site_xpos[self._site].copy()

    @property
    def _position(self) -> np.ndarray:
        """Position of the object, (3,) metres."""
        return self.environment.data.xpos[self._object].copy()

    # The loop

    def _noiseless(self) -> np.ndarray:
        self._advance()
        self._steps += 1
        move = GAIN * (self._target() - self._hand) / METRES
        turn = GAIN * self._turn() / RADIANS
        gripper = PHASES[self._phase].gripper
        return np.array([*_limited(move, FASTEST), *_limited(turn, FASTEST_TURN), gripper])

    def _advance(self) -> None:
        """Enter the phase that is due."""
        if self._phase in HOLDING:
            moved = self._hand - self._position - self._held
            if np.linalg.norm(moved) > SLIPPED:
                self._attempt()
        while self._is_over():
            names = list(PHASES)
            if self._phase == names[-1]:
                self._attempt()
                return
            if self._phase == "close":
                self._held = self._hand - self._position
            self._enter(names[names.index(self._phase) + 1])

    def _is_over(self) -> bool:
        phase = PHASES[self._phase]
        if self._steps >= phase.patience:
            return True
        if self._phase == "close":
            fingers = np.abs(self.environment.data.qvel[self._fingers])
            return self._steps >= GRIPPER_STEPS and fingers.max() < STILL
        return bool(np.linalg.norm(self._target() - self._hand) < phase.tolerance)

    def _target(self) -> np.ndarray:
        """Where the grip site should be, (3,) metres."""
        hand, position = self._hand, self._position
        match self._phase:
            case "approach":
                entry = position + self._entry
                height = max(
                    entry[2] + OVER_GRASP, self._top_along(hand, entry, PATH) + OVER_OBSTACLE
                )
                way_is_clear = hand[2] > height - PHASES["approach"].tolerance - OVER_TARGET
                return np.array([*(entry if way_is_clear else hand)[:2], height])
            case "descend":
                return position + self._entry
            case "close":
                return self._position_before + self._grip
            case "free":
                return self._hand_before + self._way_out
            case "lift":
                rise = self._height_to_carry() - position[2]
                return np.array([*self._hand_before[:2], hand[2] + rise])
            case "carry":
                return hand + [*self._goal[:2], self._height_to_carry()] - position
            case "lower":
                return hand + self._goal - position
            case "release":
                return self._hand_before
            case "retreat":
                return self._hand_before + [0, 0, OVER_GRASP]
            case _:
                raise ValueError(f"there is no phase {self._phase!r}")

    def _height_to_carry(self) -> float:
        """Of the object's position, metres: its lower end over all that stands on its way."""
        top = self._top_along(self._position, self._goal, WIDE_PATH)
        return max(top + OVER_OBSTACLE - self._bottom, self._goal[2])

    def _turn(self) -> np.ndarray:
        """Rotation to the grasp's yaw, fingers down: axis times angle, (3,) radians."""
        import mujoco

        closing, down = np.array([*_axes(self._yaw)[0], 0]), np.array([0, 0, -1.0])
        wanted = np.stack([closing, np.cross(down, closing), down], axis=1)
        actual = self.environment.data.site_xmat[self._site].reshape(3, 3)
        quaternion, turn = np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(quaternion, (wanted @ actual.T).ravel())
        mujoco.mju_quat2Vel(turn, quaternion, 1)
        return turn

    # The scene

    def _look(self) -> None:
        """Take the scene in: object, obstacles, goal, and the way out from under an overhang."""
        import mujoco

        model, data = self.environment.model, self.environment.data
        solid = (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX) & (model.geom_contype != 0)
        roots = model.body_rootid[model.geom_bodyid]
        robot = model.body_rootid[model.site_bodyid[self._site]]
        self._base = data.xpos[robot, :2].copy()

        boxes = np.flatnonzero(solid & (roots == self._object))
        self._points = points = self._points_of(boxes)
        self._box_centres = data.geom_xpos[boxes]
        self._bottom = points[:, 2].min() - self._position[2]

        lowest = points[:, 2].min()
        if self._relation == "in":
            site = model.site(self._target_name).id
            half = np.abs(data.site_xmat[site].reshape(3, 3) @ model.site_size[site])
            # Just above the region that counts: inside the walls already.
            self._goal = data.site_xpos[site] + [0, 0, half[2] + OVER_TARGET]
        else:
            target = model.body(f"{self._target_name}_main").id
            ground = self._points_of(np.flatnonzero(solid & (roots == target)))[:, 2]
            lowest = min(lowest, ground.min())
            height = ground.max() + OVER_TARGET - self._bottom
            self._goal = np.array([*data.xpos[target, :2], height])

        obstacles = self._points_of(
            np.flatnonzero(solid & (roots != self._object) & (roots != robot))
        )
        # What object and target stand on is in nobody's way.
        self._obstacles = obstacles[obstacles[:, 2] > lowest + OVER_TARGET / 2]

        centre = _middle(points[:, :2])
        radius = np.linalg.norm(points[:, :2] - centre, axis=1).max() + OVER_TARGET
        higher = self._obstacles[self._obstacles[:, 2] > points[:, 2].max(), :2] - centre
        distances = np.linalg.norm(higher, axis=1)
        self._way_out = np.zeros(3)
        if len(higher) and distances.min() < radius:
            nearest = higher[np.argmin(distances)]
            self._way_out[:2] = -nearest * (radius / distances.min() - 1)

    def _points_of(self, boxes: np.ndarray) -> np.ndarray:
        """A grid of points over each box, (P, 3) metres; ``boxes``: geom numbers."""
        model, data = self.environment.model, self.environment.data
        found = [np.zeros((0, 3))]
        for box in boxes:
            axes = [
                np.linspace(-half, half, math.ceil(2 * half / SPACING) + 1)
                for half in model.geom_size[box]
            ]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
            found.append(data.geom_xpos[box] + grid @ data.geom_xmat[box].reshape(3, 3).T)
        return np.concatenate(found)

    def _top_along(self, start: np.ndarray, end: np.ndarray, width: float) -> float:
        """Height of the highest obstacle within ``width`` of a straight way, metres."""
        way = end[:2] - start[:2]
        points = self._obstacles[:, :2] - start[:2]
        along = np.clip(points @ way / max(way @ way, 1e-9), 0, 1)
        near = np.linalg.norm(points - along[:, None] * way, axis=1) < width
        return self._obstacles[near, 2].max(initial=-np.inf)

    # Grasps

    def _grasps(self) -> list[Grasp]:
        return _grasps_across(self._points) or _grasps_of_rim(self._points, self._box_centres)

    def _cost(self, grasp: Grasp) -> float:
        """Its own, and that of an awkward arm and of touching what stands around."""
        at_goal = self._goal[:2] + grasp.entry[:2] - self._position[:2]
        reaches = [
            float(np.linalg.norm(place - self._base)) for place in (grasp.entry[:2], at_goal)
        ]
        awkward = sum(max(0.0, reach - FAR, NEAR - reach) for reach in reaches)
        around = np.linalg.norm(self._obstacles[:, :2] - grasp.entry[:2], axis=1) < AROUND
        offset = self._obstacles[around] - grasp.entry
        closing, across = _axes(grasp.yaw)
        along, aside = np.abs(offset[:, :2] @ closing), np.abs(offset[:, :2] @ across)
        touched = sum(
            np.count_nonzero((along < length) & (aside < width) & (offset[:, 2] > lower))
            for length, width, lower in (FINGERS, PALM)
        )
        # Decimetres if anything is touched, so that such a grasp is the last resort.
        return grasp.cost + awkward + (0.1 + 0.001 * touched if touched else 0.0)


def _grasps_across(points: np.ndarray) -> list[Grasp]:
    """Grasps of an object, (P, 3), from both sides; none if it is too wide everywhere."""
    bottom, top = points[:, 2].min(), points[:, 2].max()
    height = max(bottom + FINGERTIP, top - GRASP_DEPTH)
    level = points[np.abs(points[:, 2] - height) < PAD, :2]
    over = points[points[:, 2] > height + PAD, :2]
    yaws = np.radians(np.arange(-85, 91, 5))
    widths = np.array([np.ptp(level @ _axes(yaw)[0]) for yaw in yaws])
    # Flat on two sides: turning a little more does not make it narrower (half a turn is the same)
    flat = widths < np.minimum(np.roll(widths, 1), np.roll(widths, -1)) + 0.001
    found = []
    for yaw, width in zip(yaws[flat], widths[flat], strict=True):
        if width > OPENING:
            continue
        closing, across = axes = _axes(yaw)
        middle = _middle(level @ np.stack(axes, axis=1))
        cost = width + _cost_of_turning(yaw)
        if len(over) and np.ptp(over @ closing) > width - 0.002:
            cost += 0.02  # what is as wide above the pads can hang on them when they open
        # A long one need not be taken in its middle
        for aside in (0.0, -0.01, 0.01, -0.02, 0.02):
            if abs(aside) <= max(0.0, np.ptp(level @ across) / 2 - 1.5 * PAD):
                xy = middle[0] * closing + (middle[1] + aside) * across
                place = np.array([*xy, height])
                found.append(Grasp(place, place, yaw, cost + abs(aside)))
    return found


def _grasps_of_rim(points: np.ndarray, box_centres: np.ndarray) -> list[Grasp]:
    """Grasps of a bowl, (P, 3), by its wall: one finger inside.

    ``box_centres`` (N, 3): each box of the upper half is a flat piece of the wall, and a grasp in
    its middle holds best.
    """
    centre, middle = _middle(points[:, :2]), _middle(points[:, 2])
    pieces = box_centres[box_centres[:, 2] > middle, :2] - centre
    found = []
    for outwards in pieces / np.linalg.norm(pieces, axis=1, keepdims=True):
        aside = (points[:, :2] - centre) @ [-outwards[1], outwards[0]]
        radius = (points[:, :2] - centre) @ outwards
        wall = (radius > 0) & (np.abs(aside) < PAD)
        rim = points[wall, 2].max()
        wall &= points[:, 2] > rim - 0.02
        height = rim - RIM_DEPTH
        yaw = math.atan2(outwards[1], outwards[0]) % math.pi - math.pi / 2
        grip = np.array([*(centre + outwards * _middle(radius[wall])), height])
        # Beside a wall the opened hand descends further inside.
        for inwards in (0.0, 0.01, 0.02):
            entry = grip - [*(inwards * outwards), 0]
            found.append(Grasp(entry, grip, yaw, inwards + _cost_of_turning(yaw)))
    return found


def _cost_of_turning(yaw: float) -> float:
    """A centimetre a radian."""
    return 0.01 * abs(yaw)


def _axes(yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Along the fingers' motion and across it, (2,) each; at yaw 0 the world's y and x."""
    return np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])


def _middle(points: np.ndarray) -> np.ndarray:
    """Between the extremes of each column."""
    return (points.max(0) + points.min(0)) / 2


def _limited(vector: np.ndarray, length: float) -> np.ndarray:
    """The vector, shortened to ``length`` if it is longer."""
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
