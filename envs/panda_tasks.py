"""Scenes of the panda tasks: what stands on the table, where, what counts, and what is success.

Ours, in the kind of RLBench's tasks of similar names (James et al. 2020): made of primitives,
nothing of RLBench is in them, and scores on one are no scores on the other.
"""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.panda_model import TIP
from mask_classes import FIXTURE, GOAL, OBJECT, OTHER

COLOURS = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.10, 0.66, 0.16),
    "blue": (0.12, 0.25, 0.88),
    "yellow": (0.94, 0.84, 0.10),
    "cyan": (0.10, 0.80, 0.84),
    "magenta": (0.86, 0.16, 0.76),
    "orange": (0.97, 0.52, 0.06),
    "purple": (0.46, 0.16, 0.68),
    "white": (0.94, 0.94, 0.94),
}
"""By the names that instructions use."""
NAMES = tuple(COLOURS)
MOST_DRAWS = 1000
"""Random placements that are tried before the last one is taken."""


class World:
    """A model and its state, by the names of bodies, geoms and joints; positions in metres."""

    def __init__(self, model: Any, data: Any):
        self.model, self.data = model, data
        self._tip = model.site(TIP).id
        self._bodies = {model.body(number).name: number for number in range(model.nbody)}

    @property
    def tip(self) -> np.ndarray:
        """The place between the fingertips, (3,)."""
        return self.data.site_xpos[self._tip].copy()

    def position(self, body: str) -> np.ndarray:
        """Of a body's origin, (3,)."""
        return self.data.xpos[self._bodies[body]].copy()

    def yaw(self, body: str) -> float:
        """Its turn around the vertical, radians."""
        frame = self.data.xmat[self._bodies[body]]
        return float(np.arctan2(frame[3], frame[0]))

    def slide(self, joint: str) -> float:
        """Where a sliding joint is, metres."""
        return float(self.data.joint(joint).qpos[0])

    def put(self, body: str, position, yaw: float = 0.0) -> None:
        """Place a body: a free one in the state, one that is fixed in the model."""
        number = self._bodies[body]
        turn = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        if self.model.body_dofnum[number] == 6:
            start = self.model.jnt_qposadr[self.model.body_jntadr[number]]
            self.data.qpos[start : start + 7] = [*position, *turn]
        else:
            self.model.body_pos[number], self.model.body_quat[number] = position, turn

    def paint(self, body: str, colour: str) -> None:
        """Give all geoms of a body a colour."""
        of_body = self.model.geom_bodyid == self._bodies[body]
        self.model.geom_rgba[of_body, :3] = COLOURS[colour]


class Scene(abc.ABC):
    """One task."""

    objects: str
    """MJCF of the bodies on the table."""
    parts: Mapping[str, int]
    """Class of every one of them by the name of its body (``mask_classes.py``)."""
    variations: int = 1
    """How many variations there are: what the instruction names."""

    @abc.abstractmethod
    def instruction(self, variation: int) -> str:
        """A variation in words."""

    @abc.abstractmethod
    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Draw an episode's places and colours."""

    @abc.abstractmethod
    def distance(self, world: World) -> float:
        """What is left to do, metres: the hand's way to what it handles, and that one's way."""

    @abc.abstractmethod
    def succeeded(self, world: World) -> bool:
        """Whether the task is done in this state."""


def _apart(rng: np.random.Generator, low, high, count: int, distance: float, taken=()):
    """Places (count, D) drawn evenly between two corners, this far from each other and `taken`."""
    places = [np.asarray(place) for place in taken]
    found = []
    for _ in range(count):
        for _ in range(MOST_DRAWS):
            place = rng.uniform(low, high)
            if all(np.linalg.norm(place - other) >= distance for other in places):
                break
        places.append(place)
        found.append(place)
    return np.array(found)


def _other_colours(rng: np.random.Generator, count: int, *taken: str) -> list[str]:
    """Names of colours, each another, and none of `taken`."""
    left = [name for name in NAMES if name not in taken]
    return [left[number] for number in rng.permutation(len(left))[:count]]


class ReachTarget(Scene):
    """Bring the fingertips to a coloured ball that hangs between two others."""

    radius = 0.05
    """Metres from the target within which the tip has reached it."""
    variations = len(NAMES)
    objects = "".join(
        f'<body name="{name}" pos="0.4 0 0.2">'
        '<geom class="seen" type="sphere" size="0.032" rgba="1 0 0 1"/></body>'
        for name in ("target", "distractor0", "distractor1")
    )
    parts: Mapping[str, int] = {"target": GOAL, "distractor0": OTHER, "distractor1": OTHER}

    def instruction(self, variation):
        return f"reach the {NAMES[variation]} target"

    def place(self, world, rng, variation):
        taken = [world.tip]
        places = _apart(rng, (0.32, -0.28, 0.06), (0.60, 0.28, 0.36), 3, 0.16, taken)
        colours = [NAMES[variation], *_other_colours(rng, 2, NAMES[variation])]
        for body, place, colour in zip(self.parts, places, colours, strict=True):
            world.put(body, place)
            world.paint(body, colour)

    def distance(self, world):
        return float(np.linalg.norm(world.tip - world.position("target")))

    def succeeded(self, world):
        return self.distance(world) < self.radius


class PushButton(Scene):
    """Press the button of a box that stands somewhere on the table."""

    depth = 0.005
    """Metres that the button has to go down."""
    objects = """
    <body name="box" pos="0.45 0 0">
      <geom type="box" size="0.05 0.05 0.02" pos="0 0 0.02" rgba="1 1 1 1"/>
      <body name="button" pos="0 0 0.05" gravcomp="1">
        <joint name="button" type="slide" axis="0 0 -1" range="0 0.012" stiffness="200"
          damping="6"/>
        <geom type="box" size="0.02 0.02 0.01" group="3" rgba="1 0 0 1" mass="0.05"/>
        <geom class="seen" type="cylinder" size="0.03 0.01" rgba="0.86 0.1 0.1 1" mass="0.01"/>
      </body>
    </body>"""
    parts: Mapping[str, int] = {"button": OBJECT, "box": FIXTURE}
    height = 0.01
    """Metres of the button's top over its middle."""

    def instruction(self, variation):
        return "push the button"

    def place(self, world, rng, variation):
        x, y = rng.uniform((0.36, -0.24), (0.60, 0.24))
        world.put("box", (x, y, 0), rng.uniform(-np.pi, np.pi))
        world.paint("box", _other_colours(rng, 1, "red")[0])

    def distance(self, world):
        top = world.position("button") + [0, 0, self.height]
        left = max(0.0, self.depth - world.slide("button"))
        return float(np.linalg.norm(world.tip - top)) + left

    def succeeded(self, world):
        return world.slide("button") >= self.depth


class SlideBlockToTarget(Scene):
    """Slide a block over the table onto a square."""

    radius = 0.04
    """Metres from the middle of the square within which the block is on it."""
    lifted = 0.02
    """Metres over the table from which a block no longer slides."""
    half = 0.03
    objects = """
    <body name="block" pos="0.45 0 0.03">
      <freejoint/>
      <geom type="box" size="0.03 0.03 0.03" rgba="0.97 0.52 0.06 1" density="400"/>
    </body>
    <body name="target" pos="0.5 0.1 0">
      <geom class="seen" type="box" size="0.07 0.07 0.001" pos="0 0 0.001" rgba="0 1 0 1"/>
    </body>"""
    parts: Mapping[str, int] = {"block": OBJECT, "target": GOAL}

    def instruction(self, variation):
        return "slide the block to the target"

    def place(self, world, rng, variation):
        low, high = (0.36, -0.22), (0.60, 0.22)
        block, target = _apart(rng, low, high, 2, 0.18)
        world.put("block", (*block, self.half), rng.uniform(-np.pi, np.pi))
        world.put("target", (*target, 0), rng.uniform(-np.pi, np.pi))
        world.paint("target", _other_colours(rng, 1, "orange", "red", "yellow")[0])

    def distance(self, world):
        block, target = world.position("block"), world.position("target")
        to_block = np.linalg.norm(world.tip - block)
        return float(to_block + np.linalg.norm(block[:2] - target[:2]))

    def succeeded(self, world):
        way = world.position("block") - world.position("target") - [0, 0, self.half]
        return bool(np.linalg.norm(way[:2]) < self.radius and way[2] < self.lifted)


class TakeLidOff(Scene):
    """Take the lid off a pot."""

    rise = 0.10
    """Metres that the lid has to be over its place."""
    held = 0.05
    """Metres from the knob within which the hand holds it."""
    objects = """
    <body name="pot" pos="0.45 0 0">
      <geom type="box" size="0.06 0.06 0.04" pos="0 0 0.04" group="3"/>
      <geom class="seen" type="cylinder" size="0.085 0.04" pos="0 0 0.04" rgba="0.5 0.5 0.5 1"/>
      <geom class="seen" type="box" size="0.03 0.01 0.008" pos="0.11 0 0.065" rgba="0.5 0.5 0.5 1"/>
      <geom class="seen" type="box" size="0.03 0.01 0.008" pos="-0.11 0 0.065"/>
    </body>
    <body name="lid" pos="0.45 0 0.09">
      <freejoint/>
      <geom type="box" size="0.06 0.06 0.006" group="3" mass="0.1"/>
      <geom class="seen" type="cylinder" size="0.088 0.006" rgba="0.75 0.78 0.82 1" mass="0.001"/>
      <geom type="box" size="0.03 0.015 0.022" pos="0 0 0.028" rgba="0.86 0.10 0.10 1" mass="0.03"/>
    </body>"""
    parts: Mapping[str, int] = {"lid": OBJECT, "pot": FIXTURE}
    rest = 0.0862
    """Metres of the middle of the lid over the table while it lies on the pot."""
    knob = 0.032
    """Metres of the part of the knob to grasp over the middle of the lid."""

    def instruction(self, variation):
        return "take the lid off the pot"

    def place(self, world, rng, variation):
        x, y = rng.uniform((0.38, -0.20), (0.58, 0.20))
        yaw = rng.uniform(-np.pi / 3, np.pi / 3)
        world.put("pot", (x, y, 0), yaw)
        world.put("lid", (x, y, self.rest), yaw)
        world.paint("pot", _other_colours(rng, 1, "red", "white")[0])

    def distance(self, world):
        lid = world.position("lid")
        left = max(0.0, self.rest + self.rise - lid[2])
        return float(np.linalg.norm(world.tip - lid - [0, 0, self.knob])) + left

    def succeeded(self, world):
        lid = world.position("lid")
        to_knob = np.linalg.norm(world.tip - lid - [0, 0, self.knob])
        return bool(lid[2] > self.rest + self.rise and to_knob < self.held)


class PickAndLift(Scene):
    """Pick up the block of one colour and lift it to a ball in the air."""

    radius = 0.05
    """Metres from the middle of the ball within which the block is there."""
    half = 0.025
    objects = (
        "".join(
            f'<body name="{name}" pos="0.4 0 0.025"><freejoint/><geom type="box"'
            ' size="0.025 0.025 0.025" rgba="1 0 0 1" density="400"/></body>'
            for name in ("block", "distractor0", "distractor1")
        )
        + """
    <body name="target" pos="0.5 0 0.25">
      <geom class="seen" type="sphere" size="0.032" rgba="0.95 0.65 0.85 1"/>
    </body>"""
    )
    parts: Mapping[str, int] = {
        "block": OBJECT,
        "distractor0": OTHER,
        "distractor1": OTHER,
        "target": GOAL,
    }
    variations = len(NAMES)

    def instruction(self, variation):
        return f"pick up the {NAMES[variation]} block and lift it to the ball"

    def place(self, world, rng, variation):
        places = _apart(rng, (0.36, -0.22), (0.60, 0.22), 3, 0.13)
        colours = [NAMES[variation], *_other_colours(rng, 2, NAMES[variation])]
        blocks = ("block", "distractor0", "distractor1")
        for body, place, colour in zip(blocks, places, colours, strict=True):
            world.put(body, (*place, self.half), rng.uniform(-np.pi, np.pi))
            world.paint(body, colour)
        low, high = (0.38, -0.20, 0.18), (0.54, 0.20, 0.30)
        world.put("target", _apart(rng, low, high, 1, 0.13, [world.tip])[0])

    def distance(self, world):
        block, target = world.position("block"), world.position("target")
        return float(np.linalg.norm(world.tip - block) + np.linalg.norm(block - target))

    def succeeded(self, world):
        way = world.position("block") - world.position("target")
        return bool(np.linalg.norm(way) < self.radius)


def _drawer(number: int, x: float) -> str:
    """MJCF of one drawer with its handle, in the frame of the cabinet."""
    grey = 'rgba="0.12 0.13 0.15 1"'
    return f"""
    <body name="drawer{number}" pos="{x} 0 0" gravcomp="1">
      <joint name="drawer{number}" type="slide" axis="0 -1 0" range="0 0.13" damping="8"
        frictionloss="1"/>
      <geom type="box" size="0.045 0.075 0.028" rgba="0.80 0.66 0.45 1" mass="0.2" class="seen"/>
      <geom type="box" size="0.05 0.004 0.034" pos="0 -0.094 0" rgba="0.90 0.75 0.52 1" mass="0.1"/>
      <geom type="box" size="0.034 0.007 0.008" pos="0 -0.15 0.026" {grey} mass="0.05"/>
      <geom type="box" size="0.004 0.025 0.006" pos="0.032 -0.122 0.026" {grey} mass="0.01"
        class="seen"/>
      <geom type="box" size="0.004 0.025 0.006" pos="-0.032 -0.122 0.026" {grey} mass="0.01"
        class="seen"/>
    </body>"""


class OpenDrawer(Scene):
    """Pull one of the three drawers of a low cabinet open."""

    opened = 0.10
    """Metres that the drawer has to come out."""
    where = ("near", "middle", "far")
    """The drawers by how far they are from the arm."""
    variations = len(where)
    handle = np.array((0.0, -0.15, 0.026))
    """Of a drawer, in its frame."""
    objects = f"""
    <body name="cabinet" pos="0.45 0.32 0.04">
      <geom type="box" size="0.17 0.09 0.04" rgba="0.22 0.30 0.42 1"/>
      {"".join(_drawer(number, x) for number, x in enumerate((-0.11, 0.0, 0.11)))}
    </body>"""
    parts: Mapping[str, int] = {
        "drawer0": OBJECT,
        "drawer1": OTHER,
        "drawer2": OTHER,
        "cabinet": FIXTURE,
    }
    height = 0.04
    """Metres of the cabinet's middle over the table."""
    slots = (-0.11, 0.0, 0.11)
    """Metres of the drawers' middles from the cabinet's."""

    def instruction(self, variation):
        return f"open the {self.where[variation]} drawer"

    def place(self, world, rng, variation):
        x, y = rng.uniform((0.40, 0.26), (0.50, 0.32))
        world.put("cabinet", (x, y, self.height), rng.uniform(-0.2, 0.2))
        others = [slot for slot in self.slots if slot != self.slots[variation]]
        for number, slot in enumerate([self.slots[variation], *others]):
            world.put(f"drawer{number}", (slot, 0, 0))

    def grip(self, world: World) -> np.ndarray:
        """Where the handle of the drawer is, (3,)."""
        yaw = world.yaw("cabinet")
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        place = world.position("drawer0") + [0, 0, self.handle[2]]
        place[:2] += turn @ self.handle[:2]
        return place

    def distance(self, world):
        left = max(0.0, self.opened - world.slide("drawer0"))
        return float(np.linalg.norm(world.tip - self.grip(world))) + left

    def succeeded(self, world):
        return world.slide("drawer0") >= self.opened


SCENES: dict[str, type[Scene]] = {
    "reach-target": ReachTarget,
    "push-button": PushButton,
    "slide-block-to-target": SlideBlockToTarget,
    "take-lid-off": TakeLidOff,
    "pick-and-lift": PickAndLift,
    "open-drawer": OpenDrawer,
}
