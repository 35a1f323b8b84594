"""The classes of a semantic mask: what a pixel shows, the same ids and colours everywhere.

A mask is uint8 (..., H, W), one of these ids a pixel; resize it with nearest neighbours only.

    0 background      table, floor, sky, walls
    1 robot           DeepMind Control: the agent's body
    2 hand            the gripper
    3 object          what is to be moved: the puck, the door, the window's sash, the button
    4 goal            the goal's marker, or the place that is the goal: basket, bin, shelf, hoop
    5 second object   what the first one acts on: a thermos (stick-push), the nail; a second brick
    6 fixture         what the object is part of or leaves: door frame, button box, coffee machine
    7 other object    obstacles, further objects, markers of another task's goal
  255 unlabelled      nobody knows; no loss and no score counts it
"""

import numpy as np

NAMES = (
    "background",
    "robot",
    "hand",
    "object",
    "goal",
    "second object",
    "fixture",
    "other object",
)
BACKGROUND, ROBOT, HAND, OBJECT, GOAL, SECOND, FIXTURE, OTHER = range(len(NAMES))
UNLABELLED = 255

# One colour per class id, (8, 3) uint8: Okabe and Ito's palette, told apart by colour-blind people.
PALETTE = np.array(
    [
        (0, 0, 0),
        (213, 94, 0),
        (240, 228, 66),
        (0, 114, 178),
        (0, 158, 115),
        (86, 180, 233),
        (204, 121, 167),
        (230, 159, 0),
    ],
    dtype=np.uint8,
)
UNLABELLED_COLOUR = (128, 128, 128)


def colorize(mask: np.ndarray) -> np.ndarray:
    """A mask of class ids, (..., H, W), as a picture in the palette, (..., H, W, 3) uint8."""
    table = np.full((256, 3), UNLABELLED_COLOUR, np.uint8)
    table[: len(PALETTE)] = PALETTE
    return table[mask]
