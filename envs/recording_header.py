"""What a demonstration file holds, as ``read_header`` (``envs/demonstrations.py``) finds it."""

import dataclasses
import pathlib
from collections.abc import Sequence

import h5py
import numpy as np

from envs.alignment import AFTER, BEFORE, Alignment
from envs.environment_config import Orientation, Quality
from errors import UserError

SHORT_CAMERA_NAMES = {"robot0_eye_in_hand": "eye_in_hand"}
"""LIBERO's datasets call the camera of the hand by a shorter name than its simulator."""
PROPRIO = ("joint_states", "gripper_states", "ee_pos")
"""What ``proprio`` is in files that do not have it (LIBERO's own)."""


def short_name(camera: str) -> str:
    """The name of a camera in datasets: "eye_in_hand" for "robot0_eye_in_hand"."""
    return SHORT_CAMERA_NAMES.get(camera, camera)


@dataclasses.dataclass(frozen=True)
class Episode:
    """Where one demonstration lies, and how long it is."""

    path: pathlib.Path
    name: str
    """Of its group, "demo_0"."""
    steps: int
    """Actions recorded, T."""
    success: bool
    seed: int | None
    """Of the environment's reset; None where the file does not say."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """What a demonstration file holds; ``read_header`` (``envs/demonstrations.py``) makes it.

    Shapes: A the size of an action, D of proprioception, S the edge of the pictures in pixels.
    """

    path: pathlib.Path
    task: str
    """Id, "libero/object/3"; of LIBERO's own files worked out from the name of the problem file."""
    instruction: str
    cameras: tuple[str, ...]
    """As datasets call them."""
    masks: tuple[str, ...]
    """The cameras that have masks."""
    tracks: bool
    """Whether the first camera has tracks of points (``envs/tracks.py``)."""
    size: int
    """Edge of the pictures, pixels."""
    action_size: int
    proprio_size: int
    alignment: Alignment | None
    """None where neither the file nor its states nor the user tells."""
    aligned_by: str
    """Who tells: "the file", "its states", "the option", "nobody", or "default": of files without
    states and without LIBERO's attributes nobody tells, and before_action is assumed."""
    orientation: Orientation
    """Of the pictures in the file; readers turn them upright."""
    action_repeat: int
    quality: Quality
    shift: str
    """Visual shift that the pictures were drawn under; none when empty."""
    filter_keys: tuple[str, ...]
    """Names of the file's lists of demonstrations, of which one can be chosen."""
    filter_key: str | None
    """The chosen one."""
    episodes: tuple[Episode, ...]
    """All, or those of the filter key."""
    fps: float | None = None
    """Steps a second; None where the file does not say."""
    action_low: tuple[float, ...] = ()
    """What −1 stands for in the units of whoever recorded the actions, of each of the A numbers;
    empty: the actions were in [−1, 1] as they came."""
    action_high: tuple[float, ...] = ()
    """What 1 stands for."""
    assumed: tuple[str, ...] = ()
    """What the file does not say, and what is assumed, "task: the file's name"."""

    @property
    def lag(self) -> int:
        """``obs[j]`` is what was seen when ``actions[j + lag]`` was chosen.

        Raises:
            UserError: nobody tells.
        """
        if self.alignment is None:
            raise unknown_alignment(self.path)
        return 1 if self.alignment == AFTER else 0

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return sum(episode.steps for episode in self.episodes)


def unknown_alignment(path: pathlib.Path) -> UserError:
    """What to tell someone whose file does not tell which instant its observations show."""
    return UserError(
        f"{path} does not say whether its pictures were stored before or after the action of their"
        f" row, and its states do not tell; give imitate or annotate --obs-alignment {BEFORE} (or"
        f" {AFTER}), or write that word into the attribute obs_alignment of its group data"
    )


def in_units(actions: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """Actions (..., A) in [−1, 1] in the units of whoever recorded them (``Recording.action_low``),
    float64; as they are where the file does not say its units."""
    if not len(low):
        return actions
    least, most = np.asarray(low), np.asarray(high)
    return least + (actions.astype(np.float64) + 1) / 2 * (most - least)


def proprio_of(demo: h5py.Group, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Proprioception of some steps of an episode, (n, D) float32, whichever way it is stored;
    D is 0 where there is none."""
    if "obs/proprio" in demo:
        return demo["obs/proprio"][rows].astype(np.float32)
    if not any(f"obs/{part}" in demo for part in PROPRIO):
        return np.zeros((len(demo["actions"]), 0), np.float32)[rows]
    return np.concatenate([demo[f"obs/{part}"][rows] for part in PROPRIO], 1).astype(np.float32)
