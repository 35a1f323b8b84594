"""Which instant a recorded observation shows: before the action of its row, or after it.

A file may say so (attribute ``obs_alignment``). Of one that does not, the states may tell:
``states[j]`` is the state in which ``actions[j]`` was taken, and LIBERO's states hold the angles of
the robot's joints, which the observations hold as well.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np

Alignment = Literal["before_action", "after_action"]
BEFORE: Alignment = "before_action"
"""``obs[j]`` is what was seen when ``actions[j]`` was chosen."""
AFTER: Alignment = "after_action"
"""``obs[j]`` is what came of ``actions[j]``."""
JOINTS = 7
"""Joints of LIBERO's arm: first in proprioception, and in states first behind the time."""
MOVING = 1e-3
"""Radians or metres, of all joints together, from one row to the next: less tells nothing."""
ROWS = 8
"""Rows with motion that it takes to tell."""
CLEARLY = 2.0
"""How many times nearer the joints have to be to one row of the states than to the other: LIBERO's
observations come from replays, which differ a little from the recorded states."""


def told_by_states(episodes: Iterable[tuple[np.ndarray, np.ndarray]]) -> Alignment | None:
    """The alignment of a file whose states hold the robot's joints; None where they do not tell.

    Args:
        episodes: proprioception (T, D) and states (T, S) of some.
    """
    return told_by_joints(
        (proprio[:, :JOINTS], states[:, 1 : 1 + JOINTS])
        for proprio, states in episodes
        if proprio.shape[1] >= JOINTS and states.shape[1] > JOINTS
    )


def told_by_joints(episodes: Iterable[tuple[np.ndarray, np.ndarray]]) -> Alignment | None:
    """The alignment by where the robot was observed, and where its states have it; None where that
    does not tell.

    Args:
        episodes: both (T, J), radians or metres, of some.
    """
    before, after, motion = [], [], []  # distances, a row each
    for seen, held in episodes:
        before.append(np.linalg.norm(seen[:-1] - held[:-1], axis=1))
        after.append(np.linalg.norm(seen[:-1] - held[1:], axis=1))
        motion.append(np.linalg.norm(held[1:] - held[:-1], axis=1))
    moved = np.concatenate(motion) if motion else np.zeros(0)
    telling = moved > MOVING
    if telling.sum() < ROWS:
        return None
    distances: dict[Alignment, float] = {
        BEFORE: float(np.median(np.concatenate(before)[telling])),
        AFTER: float(np.median(np.concatenate(after)[telling])),
    }
    near, far = sorted(distances, key=lambda alignment: distances[alignment])
    # Not a number tells nothing either.
    matches = distances[near] < np.median(moved[telling]) / 2
    return near if matches and distances[near] * CLEARLY < distances[far] else None
