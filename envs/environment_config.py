"""How a task is seen and stepped: camera, size, action repeat, rendering quality, shifts."""

import dataclasses
import math
from typing import Literal, get_args

from envs import shifts
from errors import UserError

LARGEST_SIZE = 4096  # pixels; a software framebuffer of 200 MB (smooth: 800), beyond any use
LONGEST_LIST = 1000  # characters of cameras or shifts

Quality = Literal["full", "smooth", "fast"]
Orientation = Literal["upright", "opengl", "mirrored"]
ORIENTATIONS = {
    "upright": lambda picture: picture,
    "opengl": lambda picture: picture[::-1],
    "mirrored": lambda picture: picture[:, ::-1],
}
"""From an upright picture, (H, W, ...), to each orientation, and back; views, not copies."""


def camera_names(asked: str) -> tuple[str, ...]:
    """The cameras that an option names, separated by commas.

    Raises:
        UserError: one is named twice.
    """
    names = tuple(part.strip() for part in asked.split(","))
    if len(set(names)) < len(names):
        raise UserError(f"a camera is named twice in {asked!r}")
    return names


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig:
    """How a task is seen and stepped."""

    camera: str | None = None
    """Camera name (a number works too), or several separated by commas, which adds a leading axis
    to `image` and `mask`; None is what the suite publishes."""
    size: int = 64
    """Edge of the square picture, pixels."""
    action_repeat: int | None = None
    """Simulator control steps per agent step; None is the suite's published number (libero and
    environments of your own 1, the others 2)."""
    quality: Quality = "full"
    """full is as published (shadows, multisampling); smooth and fast, with four samples a pixel and
    with one, are for machines without a GPU."""
    masks: bool = False
    """Observe the class of every pixel as well, as `mask` (envs/semantics.py)."""
    proprio: bool = False
    """Observe the robot's own state as well, as `proprio`. An agent that learns online sees it
    beside the picture, and its world model predicts it."""
    shift: str = ""
    """Visual shifts to draw the task under, with their strengths: lighting:0.5+noise:0.2
    (envs/shifts.py); none when empty."""
    orientation: Orientation = "upright"
    """How pictures and masks lie: upright, opengl (rows from the bottom, as LIBERO's files have
    them) or mirrored (those turned by 180 degrees, which some public checkpoints were fed)."""
    time_limit: int | None = None
    """Of an environment of your own: control steps after which an episode is cut; None is its own
    limit, or 1000 where it says none."""
    name: str = ""
    """What comparisons call the task; its id when empty."""
    score_bounds: tuple[float, float] | None = None
    """Lowest and highest return of an episode, for the aggregates of comparisons; None: those of
    the suite, or unknown."""

    def __post_init__(self):
        if not isinstance(self.size, int) or not 1 <= self.size <= LARGEST_SIZE:
            raise UserError(
                f"size must be a whole number of pixels from 1 to {LARGEST_SIZE}, not {self.size!r}"
            )
        for name in ("camera", "shift", "name"):
            if len(getattr(self, name) or "") > LONGEST_LIST:
                raise UserError(f"{name} is longer than {LONGEST_LIST} characters")
        repeat = self.action_repeat
        if repeat is not None and (not isinstance(repeat, int) or repeat < 1):
            raise UserError(f"action_repeat must be a whole number of at least 1, not {repeat!r}")
        limit = self.time_limit
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise UserError(f"time_limit must be a whole number of at least 1, not {limit!r}")
        bounds = self.score_bounds
        if bounds is not None and not (
            len(bounds) == 2 and all(map(math.isfinite, bounds)) and bounds[0] < bounds[1]
        ):
            raise UserError(
                "score_bounds must be two numbers, the lowest return and a higher one, not"
                f" {' '.join(map(str, bounds))}"
            )
        if self.quality not in get_args(Quality):
            raise UserError(
                f"quality must be one of {', '.join(get_args(Quality))}, not {self.quality!r}"
            )
        if self.orientation not in ORIENTATIONS:
            raise UserError(
                f"orientation must be {', '.join(ORIENTATIONS)}, not {self.orientation!r}"
            )
        if self.shift:
            shifts.parse(self.shift)

    @property
    def views(self) -> int:
        """V, how many cameras are observed: those that are named, or the one that is published."""
        return 1 if self.camera is None else len(camera_names(self.camera))
