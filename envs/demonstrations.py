"""Demonstrations in LIBERO's HDF5 layout, which robomimic reads too: the format.

One file holds the episodes of one task:

    data                        task, problem_info, env_args, camera, quality, versions, ...
      demo_0, demo_1, ...       num_samples, init_state, seed, success, and model_file (LIBERO)
        actions   (T, A)        float64, in [-1, 1]
        states    (T, 1+nq+nv)  float64: time, positions, velocities of the simulator
        rewards, dones  (T,)    uint8 in LIBERO's files; ours hold float32 rewards
        robot_states (T, 9)     LIBERO only
        obs/<camera>_rgb        (T, H, W, 3) uint8
        obs/<camera>_mask       (T, H, W) uint8 class ids (``mask_classes``), gzip
        obs/proprio             (T, D) float32, what the environment calls ``proprio``
        obs/joint_states, gripper_states, ee_states, ee_pos, ee_ori     LIBERO only
        drawn/*, model/*        ours: what else replaying needs (mocap bodies, the reset's edits)
    mask/<key>                  names of demonstrations: robomimic's filter keys, train for example

``obs_alignment`` says which instant ``obs[j]`` shows: before_action, what was seen when
``actions[j]`` was chosen (ours, and robomimic's meaning), or after_action, what came of it
(LIBERO's own). LIBERO's files do not say it; their states tell (``envs/alignment.py``).
``macros_image_convention`` is robosuite's word for the orientation of pictures: opencv is upright
(ours), opengl upside down (LIBERO's own).
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import h5py
import numpy as np

from envs.alignment import AFTER, BEFORE, Alignment
from envs.environment_config import Orientation, Quality
from errors import UserError

SUFFIXES = (".hdf5", ".h5")
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
    """What a demonstration file holds; ``read_header`` (``envs/demonstration_reader.py``) makes it.

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
    size: int
    """Edge of the pictures, pixels."""
    action_size: int
    proprio_size: int
    alignment: Alignment | None
    """None where neither the file nor its states nor the user tells."""
    aligned_by: str
    """Who tells: "the file", "its states", "the option", or "nobody"."""
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


def find_files(data: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The demonstration files among ``data``, each a file or a folder of files, sorted by name.

    Hidden files and folders inside a folder (``._x.hdf5``, ``.ipynb_checkpoints``) are not data.

    Raises:
        UserError: one does not exist or cannot be read, or a folder holds none.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, data):
        try:
            if path.is_dir():
                inside = sorted(p for p in path.rglob("*") if _is_data(p, path))
                if not inside:
                    raise UserError(f"there is no {' or '.join(SUFFIXES)} file in {path}")
                found += inside
            elif path.is_file():
                found.append(path)
            elif path.exists():
                raise UserError(f"{path} is a pipe or a device, not a file or folder")
            else:
                raise UserError(f"there is no file or folder {path}")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return list(dict.fromkeys(found))


def _is_data(path: pathlib.Path, folder: pathlib.Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in SUFFIXES and not hidden and path.is_file()


def proprio_of(demo: h5py.Group, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Proprioception of some steps of an episode, (n, D) float32, whichever way it is stored."""
    if "obs/proprio" in demo:
        return demo["obs/proprio"][rows].astype(np.float32)
    return np.concatenate([demo[f"obs/{part}"][rows] for part in PROPRIO], 1).astype(np.float32)
