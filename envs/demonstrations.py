"""Demonstrations in LIBERO's HDF5 layout, which robomimic reads too: the format, read and written.

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

``obs_alignment`` says which instant ``obs[j]`` shows: before_action, what was seen when
``actions[j]`` was chosen (ours, and robomimic's meaning), or after_action, what came of it (a file
without the attribute: LIBERO's own). ``macros_image_convention`` is robosuite's word for the
orientation of pictures: opencv is upright (ours), opengl upside down (LIBERO's own).
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import cast

import h5py
import numpy as np

from atomic_file import rename_durably
from envs.environment_config import Orientation, Quality
from envs.libero import task_of_problem
from errors import UserError
from mask_classes import NAMES, PALETTE

SUFFIXES = (".hdf5", ".h5")
BEFORE, AFTER = "before_action", "after_action"
ORIENTATION_OF: dict[str, Orientation] = {"opencv": "upright", "opengl": "opengl"}
"""Our word (``EnvironmentConfig.orientation``) for robosuite's image convention."""
SHORT_CAMERA_NAMES = {"robot0_eye_in_hand": "eye_in_hand"}
"""LIBERO's datasets call the camera of the hand by a shorter name than its simulator."""
PROPRIO = ("joint_states", "gripper_states", "ee_pos")
"""What ``proprio`` is in files that do not have it (LIBERO's own)."""
SPARE_BYTES = 2**20
"""Room that an episode leaves free on a disk."""
DAMAGED = (RuntimeError, KeyError, AttributeError, IndexError, ValueError, TypeError)
"""What h5py raises, or reading what it returns, where a file's inner structure is broken."""
PARTIAL = ".part"
"""Ends the name of a file that is being written."""


def short_name(camera: str) -> str:
    """The name of a camera in datasets: "eye_in_hand" for "robot0_eye_in_hand"."""
    return SHORT_CAMERA_NAMES.get(camera, camera)


@contextlib.contextmanager
def open_file(path: str | os.PathLike, mode: str = "r") -> Iterator[h5py.File]:
    """``h5py.File`` whose failures are one sentence.

    Raises:
        UserError: not there, truncated, no HDF5, in use by a writer, or no space left.
    """
    path = pathlib.Path(path)
    if mode in ("r", "r+") and not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        file = h5py.File(path, mode)
    except BlockingIOError as error:
        raise UserError(f"{path} is being written by another process; try again later") from error
    except OSError as error:
        number = error.errno
        if number in (errno.EAGAIN, errno.EACCES, errno.ENOSPC, errno.EROFS):
            raise UserError(f"cannot open {path}: {os.strerror(number)}") from error
        reason = str(error).partition("(")[2].rstrip(")") or str(error)
        if mode == "w":
            raise UserError(f"cannot write {path}: {reason}") from error
        raise UserError(f"{path} is no readable HDF5 file: {reason}") from error
    try:
        yield file
    except OSError as error:  # a read of a damaged part, a write without space
        raise UserError(f"{path}: {error}") from error
    finally:
        # Closing flushes, which fails where the disk is full.
        try:
            file.close()
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot finish {path}: {error}") from error


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
    """What a demonstration file holds; ``read_header`` makes it.

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
    alignment: str
    orientation: Orientation
    """Of the pictures in the file; readers turn them upright."""
    action_repeat: int
    quality: Quality
    episodes: tuple[Episode, ...]

    @property
    def lag(self) -> int:
        """``obs[j]`` is what was seen when ``actions[j + lag]`` was chosen."""
        return 1 if self.alignment == AFTER else 0

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return sum(episode.steps for episode in self.episodes)


def find_files(data: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The demonstration files among ``data``, each a file or a folder of files, sorted by name.

    Raises:
        UserError: one does not exist, or a folder holds none.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, data):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"there is no {' or '.join(SUFFIXES)} file in {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    return list(dict.fromkeys(found))


def read_header(path: str | os.PathLike) -> Recording:
    """What a file holds, every dataset's shape and type checked; no picture is read.

    Raises:
        UserError: unreadable, no episodes, or a dataset that is missing or malformed: names it.
    """
    path = pathlib.Path(path)
    try:
        return _read_header(path)
    except DAMAGED as error:
        raise UserError(f"{path} is damaged, or no demonstration file: {error}") from error


def _read_header(path: pathlib.Path) -> Recording:
    with open_file(path) as file:
        if "data" not in file:
            raise UserError(f"{path} has no group data; it is no demonstration file")
        data = file["data"]
        names = sorted((name for name in data if name.startswith("demo_")), key=_number)
        if not names:
            raise UserError(f"{path} holds no demonstrations (data/demo_0, data/demo_1, ...)")
        first = data[names[0]]
        cameras, size = _cameras(path, first, str(data.attrs.get("camera", "")))
        masks = tuple(
            camera
            for camera in cameras
            if any(f"obs/{camera}_mask" in data[name] for name in names)
        )
        has_proprio = "obs/proprio" in first
        parts = ["proprio"] if has_proprio else list(PROPRIO)
        sizes = [_dataset(path, first, f"obs/{part}").shape[-1] for part in parts]
        action_size = _dataset(path, first, "actions").shape[-1]
        episodes = []
        for name in names:
            demo = data[name]
            actions = _dataset(path, demo, "actions")
            steps = len(actions)
            _check(path, demo, "actions", (steps, action_size), "f")
            if steps == 0:
                raise UserError(f"{path}: data/{name} has no steps")
            for camera in cameras:
                _check(path, demo, f"obs/{camera}_rgb", (steps, size, size, 3), "uint8")
            for camera in masks:
                _check(path, demo, f"obs/{camera}_mask", (steps, size, size), "uint8")
            for part, width in zip(parts, sizes, strict=True):
                _check(path, demo, f"obs/{part}", (steps, width), "f")
            seed = demo.attrs.get("seed")
            episodes.append(
                Episode(
                    path,
                    name,
                    steps,
                    bool(demo.attrs.get("success", True)),
                    None if seed is None else int(seed),
                )
            )
        attributes = data.attrs
        convention = str(attributes.get("macros_image_convention", "opengl"))
        if convention not in ORIENTATION_OF:
            raise UserError(
                f"{path}: macros_image_convention is {convention!r}, not opengl or opencv"
            )
        alignment = str(attributes.get("obs_alignment", AFTER))
        if alignment not in (BEFORE, AFTER):
            raise UserError(f"{path}: obs_alignment is {alignment!r}, not {BEFORE} or {AFTER}")
        return Recording(
            path=path,
            task=_task(path, attributes),
            instruction=_instruction(path, attributes),
            cameras=cameras,
            masks=masks,
            size=size,
            action_size=action_size,
            proprio_size=sum(sizes),
            alignment=alignment,
            orientation=ORIENTATION_OF[convention],
            action_repeat=int(attributes.get("action_repeat", 1)),
            # EnvironmentConfig refuses what is no quality.
            quality=cast(Quality, str(attributes.get("quality", "full"))),
            episodes=tuple(episodes),
        )


def proprio_of(demo: h5py.Group, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Proprioception of some steps of an episode, (n, D) float32, whichever way it is stored."""
    if "obs/proprio" in demo:
        return demo["obs/proprio"][rows].astype(np.float32)
    return np.concatenate([demo[f"obs/{part}"][rows] for part in PROPRIO], 1).astype(np.float32)


class DemonstrationWriter:
    """Writes a demonstration file under a temporary name and gives it its own when finished.

    Usage: ``with DemonstrationWriter(path, attributes) as writer: writer.add(...)``. Leaving the
    block without an error finishes the file; a file that was cut off is taken up again by the next
    writer of the same attributes, ``writer.episodes`` and ``writer.attempts`` say how far it was.

    Args:
        path: of the finished file; its folder is made.
        attributes: of the group ``data``.

    Raises:
        UserError: the file exists, cannot be written, or the one begun has other attributes.
    """

    def __init__(self, path: str | os.PathLike, attributes: dict[str, object]):
        self.path = pathlib.Path(path)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self._attributes = attributes
        if self.path.exists():
            raise UserError(f"{self.path} exists already; give another name or delete it")

    def __enter__(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.path.parent}: {error.strerror}") from error
        self._stack = contextlib.ExitStack()
        if self.partial.exists():
            try:
                self._file = self._stack.enter_context(open_file(self.partial, "r+"))
                self._continue()
                return self
            except (UserError, *DAMAGED) as error:
                with contextlib.suppress(UserError):
                    self._stack.close()
                if "another process" in str(error) or "was begun with" in str(error):
                    raise
                # Cut off in the middle of a write: put aside, somebody may rescue what it holds.
                aside = self.partial.with_name(f"{self.partial.name}.damaged")
                os.replace(self.partial, aside)
                warnings.warn(f"cannot go on with {aside} ({error}); starting over", stacklevel=2)
                self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(open_file(self.partial, "w"))
        self._data = self._file.create_group("data")
        for name, value in self._attributes.items():
            self._data.attrs[name] = value
        self._data.attrs["num_demos"] = self._data.attrs["total"] = 0
        self._data.attrs["attempts"] = 0
        return self

    def _continue(self) -> None:
        if "data" not in self._file or "attempts" not in self._file["data"].attrs:
            raise UserError(f"{self.partial} is not usable")
        self._data = self._file["data"]
        for name, value in self._attributes.items():
            if str(self._data.attrs.get(name)) != str(value):
                raise UserError(
                    f"{self.partial} was begun with another {name} ({self._data.attrs.get(name)},"
                    f" now {value}); delete it to start over"
                )
        complete = [name for name in self._data if "num_samples" in self._data[name].attrs]
        for name in set(self._data) - set(complete):
            del self._data[name]
        demos = [self._data[name].attrs for name in complete]
        self._data.attrs["num_demos"] = len(complete)
        self._data.attrs["total"] = sum(int(demo["num_samples"]) for demo in demos)
        tried = [int(demo["attempt"]) for demo in demos]
        self._data.attrs["attempts"] = max([self.attempts, *tried])

    @property
    def episodes(self) -> int:
        """Episodes written so far."""
        return int(self._data.attrs["num_demos"])

    @property
    def attempts(self) -> int:
        """Episodes tried so far, successful or not."""
        return int(self._data.attrs["attempts"])

    def add(
        self, episode: dict[str, np.ndarray], attributes: dict[str, object], attempts: int
    ) -> None:
        """Write one episode durably.

        Args:
            episode: arrays (T, ...) by the path of their dataset, "obs/agentview_rgb"; those under
                "model/" have no time axis.
            attributes: of the episode's group; ``num_samples`` is added.
            attempts: episodes tried so far, this one included.
        """
        check_room(self.partial, episode, f"the {self.episodes} episodes written are kept")
        steps = len(episode["actions"])
        demo = self._data.create_group(f"demo_{self.episodes}")
        for name, values in episode.items():
            write_dataset(demo, name, values)
        for name, value in attributes.items():
            demo.attrs[name] = value
        demo.attrs["attempt"] = attempts
        demo.attrs["num_samples"] = steps  # last: what has it is complete
        self._data.attrs["num_demos"] = self.episodes + 1
        self._data.attrs["total"] = int(self._data.attrs["total"]) + steps
        self.tried(attempts)

    def tried(self, attempts: int) -> None:
        """Note durably how many episodes were tried."""
        self._data.attrs["attempts"] = attempts
        self._file.flush()

    def __exit__(self, kind, value, traceback):
        self._stack.__exit__(kind, value, traceback)
        if kind is None:
            rename_durably(self.partial, self.path)


def check_room(path: pathlib.Path, arrays: dict[str, np.ndarray], kept: str) -> None:
    """Refuse to write what may not fit: HDF5 does not survive a full disk.

    Raises:
        UserError: there is less room beside `path` than the arrays take uncompressed.
    """
    needed = sum(np.asarray(values).nbytes for values in arrays.values()) + SPARE_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"no space left for {path}: {free / 2**20:.0f} MiB are free, the next episode may take"
            f" {needed / 2**20:.0f}; {kept}"
        )


def write_dataset(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Write an array; pictures and masks by the frame, compressed, since windows read a few."""
    values = np.asarray(values)
    if name.startswith("obs/") and values.ndim >= 3:
        # gzip is in every HDF5 library; levels above 1 are slower and hardly smaller here.
        options = {"chunks": (1, *values.shape[1:]), "compression": "gzip", "compression_opts": 1}
        group.create_dataset(name, data=values, **options)
    else:
        group.create_dataset(name, data=values)


def mask_attributes() -> dict[str, object]:
    """Names and colours of the classes, as attributes that travel with masks."""
    return {"mask_classes": json.dumps(NAMES), "mask_palette": PALETTE}


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else -1


def _dataset(path: pathlib.Path, demo: h5py.Group, name: str) -> h5py.Dataset:
    found = demo.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{path}: dataset {demo.name.lstrip('/')}/{name} is missing")
    return found


def _check(path: pathlib.Path, demo: h5py.Group, name: str, shape: tuple, kind: str) -> None:
    found = _dataset(path, demo, name)
    where = f"{path}: dataset {demo.name.lstrip('/')}/{name}"
    if found.shape != shape:
        raise UserError(f"{where} has shape {found.shape}, not {shape}")
    if found.dtype.kind != "f" if kind == "f" else found.dtype != kind:
        wanted = "a floating-point type" if kind == "f" else kind
        raise UserError(f"{where} is {found.dtype}, not {wanted}")


def _cameras(path: pathlib.Path, demo: h5py.Group, order: str) -> tuple[tuple[str, ...], int]:
    """Cameras, and the edge of a picture; `order`: the environment's cameras."""
    names = list(demo["obs"]) if isinstance(demo.get("obs"), h5py.Group) else []
    found = [name.removesuffix("_rgb") for name in names if name.endswith("_rgb")]
    ordered = [short_name(camera) for camera in order.split(",")]
    cameras = tuple([c for c in ordered if c in found] + [c for c in found if c not in ordered])
    if not cameras:
        raise UserError(f"{path}: {demo.name.lstrip('/')}/obs has no pictures (<camera>_rgb)")
    pictures = _dataset(path, demo, f"obs/{cameras[0]}_rgb")
    if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2] or pictures.shape[3] != 3:
        raise UserError(
            f"{path}: dataset {demo.name.lstrip('/')}/obs/{cameras[0]}_rgb has shape"
            f" {pictures.shape}, not (steps, edge, edge, 3)"
        )
    return cameras, pictures.shape[1]


def _task(path: pathlib.Path, attributes) -> str:
    if "task" in attributes:
        return str(attributes["task"])
    problem = pathlib.PurePosixPath(str(attributes.get("bddl_file_name", "")))
    if problem.suffix == ".bddl":
        return task_of_problem(problem.parent.name, problem.stem)
    raise UserError(f"{path} says neither its task nor its bddl_file_name")


def _instruction(path: pathlib.Path, attributes) -> str:
    try:
        words = json.loads(attributes["problem_info"])["language_instruction"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the attribute problem_info of data holds no language_instruction"
        ) from error
    words = words if isinstance(words, str) else " ".join(words)
    return words.strip().strip('"')
