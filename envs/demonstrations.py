"""Demonstrations in LIBERO's HDF5 layout, which robomimic reads too: the format, and reading it.

One file holds the episodes of one task:

    data                        task, problem_info, env_args, camera, quality, versions, ...
      demo_0, demo_1, ...       num_samples, init_state, seed, success, and model_file (LIBERO)
        actions   (T, A)        float64, in [-1, 1]
        states    (T, 1+nq+nv)  float64: time, positions, velocities of the simulator
        rewards, dones  (T,)    uint8 in LIBERO's files; ours hold float32 rewards
        robot_states (T, 9)     LIBERO only
        obs/<camera>_rgb        (T, H, W, 3) uint8
        obs/<camera>_mask       (T, H, W) uint8 class ids (``mask_classes``), gzip
        obs/<camera>_tracks     (T, N, 2) float32 pixels, x before y: points through the episode
        obs/<camera>_visible    (T, N) bool, whether each is seen
        obs/<camera>_effector   (T, 2) float32 pixels; these three of the first camera
        obs/proprio             (T, D) float32, what the environment calls ``proprio``
        obs/joint_states, gripper_states, ee_states, ee_pos, ee_ori     LIBERO only
        drawn/*, model/*        ours: what else replaying needs (mocap bodies, the reset's edits)
    mask/<key>                  names of demonstrations: robomimic's filter keys, train for example

What a file must hold, and what is assumed of one that says less: docs/own_data.md.

``obs_alignment`` says which instant ``obs[j]`` shows: before_action, what was seen when
``actions[j]`` was chosen (ours, and robomimic's meaning), or after_action, what came of it
(LIBERO's own). LIBERO's files do not say it; their states tell (``envs/alignment.py``).
``macros_image_convention`` is robosuite's word for the orientation of pictures: opencv is upright
(ours), opengl upside down (LIBERO's own).
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import cast

import h5py
import numpy as np

from envs.alignment import AFTER, BEFORE, Alignment, told_by_states
from envs.environment_config import LARGEST_SIZE, Orientation, Quality
from envs.hdf5 import (
    DAMAGED,
    flag,
    member,
    numbers,
    open_file,
    probe,
    refuse_other_files,
    text,
    whole,
)
from envs.libero import task_of_problem
from envs.recording_header import PROPRIO, Episode, Recording, proprio_of, short_name
from errors import UserError

SUFFIXES = (".hdf5", ".h5")
ORIENTATION_OF: dict[str, Orientation] = {"opencv": "upright", "opengl": "opengl"}
"""Our word (``EnvironmentConfig.orientation``) for robosuite's image convention."""
OWN = "own"
"""Suite in the names of tasks of files that do not say theirs: "own/FILE"."""
MOST_EPISODES = 100_000
"""Of one file."""
MOST_BYTES = 2**32
"""Of the actions and proprioception of one file, which are read whole."""
LARGEST_CHUNK = 2**28
"""Bytes that reading one frame may unpack."""
LONGEST_INSTRUCTION = 10_000
"""Characters."""
MOST_FPS = 1000
"""Steps a second."""
OF_LIBERO = ("bddl_file_name", "env_args", "problem_info", "env_name")
"""Attributes of ``data`` that files of LIBERO and robomimic have, and one's own need not have."""
ALIGNED_BY = 10
"""Episodes whose states are asked for the alignment."""


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


def read_headers(
    data: Sequence[str | os.PathLike],
    filter_key: str | None = None,
    obs_alignment: Alignment | None = None,
) -> list[Recording]:
    """What the files of ``data`` hold, as ``find_files`` and ``read_header``; all are read through
    in another process first (``probe``).

    Raises:
        UserError: as those.
    """
    paths = find_files(data)
    probe(paths)
    return [read_header(path, filter_key, obs_alignment) for path in paths]


def read_header(
    path: str | os.PathLike,
    filter_key: str | None = None,
    obs_alignment: Alignment | None = None,
) -> Recording:
    """What a file holds, every dataset's shape and type checked; no picture is read.

    Args:
        path: of the file.
        filter_key: name of one of its lists of demonstrations (``mask/<key>``); the others are
            left out.
        obs_alignment: of a file that does not say it.

    Raises:
        UserError: unreadable, no episodes, leading to other files, or a dataset or attribute that
            is missing or malformed: names it; no such filter key; another alignment.
    """
    path = pathlib.Path(path)
    try:
        with open_file(path) as file:
            refuse_other_files(file)
            return _Header(path, file).read(filter_key, obs_alignment)
    except DAMAGED as error:
        raise UserError(f"{path} is damaged, or no demonstration file: {error}") from error


class _Header:
    """Reads and checks what a file says of itself."""

    def __init__(self, path: pathlib.Path, file: h5py.File):
        data = member(file, "data")
        if not isinstance(data, h5py.Group):
            raise UserError(f"{path} has no group data; it is no demonstration file")
        self._path, self._file, self._data = path, file, data

    def read(self, filter_key: str | None, obs_alignment: Alignment | None) -> Recording:
        """All of it."""
        path, data = self._path, self._data
        demos = self._demos(self._filtered(filter_key))
        first = next(iter(demos.values()))
        cameras, size = self._cameras(first)
        masks = tuple(
            camera
            for camera in cameras
            if any(member(demo, f"obs/{camera}_mask") for demo in demos.values())
        )
        parts = self._proprio_parts(demos)
        widths = [self._width(first, f"obs/{part}") for part in parts]
        action_size = self._width(first, "actions")
        tables = {"actions": action_size} | {
            f"obs/{part}": width for part, width in zip(parts, widths, strict=True)
        }
        pictures: dict[str, tuple[int, ...]] = {
            f"obs/{camera}_rgb": (size, size, 3) for camera in cameras
        }
        pictures |= {f"obs/{camera}_mask": (size, size) for camera in masks}
        episodes = tuple(self._episode(demo, tables, pictures) for demo in demos.values())
        declared = 8 * sum(tables.values()) * sum(episode.steps for episode in episodes)
        if declared > MOST_BYTES:
            raise UserError(
                f"{path} declares {declared / 2**30:,.1f} GiB of actions and proprioception, more"
                f" than the {MOST_BYTES >> 30} GiB that are read; it is no demonstration file"
            )
        own = self._own(first)
        convention = text(data, "macros_image_convention", "opencv" if own else "opengl")
        if convention not in ORIENTATION_OF:
            raise UserError(
                f"{path}: macros_image_convention is {convention!r}, not opengl or opencv"
            )
        alignment, aligned_by = self._alignment(demos, obs_alignment)
        if alignment is None and own:
            alignment, aligned_by = BEFORE, "default"
        low, high = self._action_range(action_size)
        fps = numbers(data, "fps", 1)
        if fps and not 0 < fps[0] <= MOST_FPS:
            raise UserError(f"{path}: fps is {fps[0]:g}, not of 0 to {MOST_FPS}")
        return Recording(
            path=path,
            task=self._task(),
            instruction=self._instruction(),
            cameras=cameras,
            masks=masks,
            tracks=all(
                isinstance(member(demo, f"obs/{cameras[0]}_tracks"), h5py.Dataset)
                for demo in demos.values()
            ),
            size=size,
            action_size=action_size,
            proprio_size=sum(widths),
            alignment=alignment,
            aligned_by=aligned_by,
            orientation=ORIENTATION_OF[convention],
            action_repeat=cast(int, whole(data, "action_repeat", 1, least=1, most=1000)),
            # EnvironmentConfig refuses what is no quality.
            quality=cast(Quality, text(data, "quality", "full")),
            shift=text(data, "shift"),
            filter_keys=self._filter_keys(),
            filter_key=filter_key,
            episodes=episodes,
            fps=fps[0] if fps else None,
            action_low=low,
            action_high=high,
            assumed=self._assumed(own, aligned_by),
        )

    def _own(self, demo: h5py.Group) -> bool:
        """Whether a file is neither LIBERO's nor robomimic's nor made of one of theirs."""
        replayed = ("states", "robot_states", *(f"obs/{part}" for part in PROPRIO))
        return not any(name in self._data.attrs for name in OF_LIBERO) and not any(
            member(demo, name) for name in replayed
        )

    def _assumed(self, own: bool, aligned_by: str) -> tuple[str, ...]:
        said = self._data.attrs
        assumed = {
            "task: the file's name": "task" not in said and "bddl_file_name" not in said,
            "instruction: the file's name in words": "problem_info" not in said
            and "instruction" not in said,
            "macros_image_convention: opencv, upright": own
            and "macros_image_convention" not in said,
            "obs_alignment: before_action": aligned_by == "default",
        }
        return tuple(words for words, holds in assumed.items() if holds)

    def _proprio_parts(self, demos: dict[str, h5py.Group]) -> tuple[str, ...]:
        """Datasets that proprioception is made of; none where no episode has any."""
        if any(member(demo, "obs/proprio") for demo in demos.values()):
            return ("proprio",)
        parted = any(member(demo, f"obs/{part}") for demo in demos.values() for part in PROPRIO)
        return PROPRIO if parted else ()

    def _action_range(self, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What −1 and 1 stand for, both empty where the file does not say."""
        low, high = (numbers(self._data, f"action_{edge}", size) for edge in ("low", "high"))
        if (len(low), len(high)) in ((0, 0), (size, size)) and all(
            lowest < highest for lowest, highest in zip(low, high, strict=True)
        ):
            return low, high
        raise UserError(
            f"{self._path}: action_low and action_high must both be {size} numbers, one for each of"
            " an action, the low one below the high one"
        )

    def _filter_keys(self) -> tuple[str, ...]:
        keys = member(self._file, "mask")
        return tuple(keys) if isinstance(keys, h5py.Group) else ()

    def _filtered(self, key: str | None) -> list[str]:
        """Names of the demonstrations, or of those in the list `key`, in order."""
        names = [name for name in self._data if name.startswith("demo_")]
        if not names:
            raise UserError(f"{self._path} holds no demonstrations (data/demo_0, data/demo_1, ...)")
        if len(names) > MOST_EPISODES:
            raise UserError(
                f"{self._path} holds {len(names):,} demonstrations, more than the"
                f" {MOST_EPISODES:,} that are read of one file; divide it"
            )
        if key is not None:
            chosen = self._listed(key)
            if unknown := sorted(set(chosen) - set(names)):
                raise UserError(
                    f"{self._path}: the filter key {key} names {unknown[0]}, which is not in the"
                    " file; mend its list, or choose another --filter-key"
                )
            names = chosen
        return sorted(set(names), key=_number)

    def _listed(self, key: str) -> list[str]:
        """The demonstrations that a filter key names."""
        keys = self._filter_keys()
        if key not in keys:
            there = f"it has {', '.join(keys)}" if keys else "it has none; leave --filter-key out"
            raise UserError(f"{self._path} has no filter key {key!r}; {there}")
        found = member(self._file, f"mask/{key}")
        if not isinstance(found, h5py.Dataset) or found.ndim != 1 or found.dtype.kind not in "SO":
            raise UserError(f"{self._path}: mask/{key} is no list of names of demonstrations")
        if not 1 <= len(found) <= MOST_EPISODES:
            raise UserError(
                f"{self._path}: the filter key {key} names {len(found):,} demonstrations"
            )
        names = [name.decode() if isinstance(name, bytes) else name for name in found[()]]
        return [str(name) for name in names]

    def _demos(self, names: Sequence[str]) -> dict[str, h5py.Group]:
        demos = {}
        for name in names:
            demo = member(self._data, name)
            if demo is None:
                raise UserError(f"{self._path}: data/{name} is a link that leads nowhere")
            if not isinstance(demo, h5py.Group):
                raise UserError(f"{self._path}: data/{name} is not a group")
            demos[name] = demo
        return demos

    def _episode(
        self, demo: h5py.Group, tables: dict[str, int], pictures: dict[str, tuple[int, ...]]
    ) -> Episode:
        """One demonstration, its datasets checked."""
        steps = len(self._dataset(demo, "actions", 2))
        if steps == 0:
            raise UserError(f"{self._where(demo)} has no steps")
        for name, width in tables.items():
            self._check(demo, name, (steps, width), "f")
        for name, shape in pictures.items():
            self._check(demo, name, (steps, *shape), "uint8")
        said = whole(demo, "num_samples", steps)
        if said != steps:
            raise UserError(
                f"{self._where(demo)} has {steps} rows, its attribute num_samples says {said};"
                " write the file anew, or mend the attribute"
            )
        return Episode(
            self._path,
            demo.name.rpartition("/")[2],
            steps,
            flag(demo, "success", True),
            whole(demo, "seed"),
        )

    def _alignment(
        self, demos: dict[str, h5py.Group], option: Alignment | None
    ) -> tuple[Alignment | None, str]:
        """Which instant an observation shows, and who tells."""
        said = text(self._data, "obs_alignment")
        if said:
            if said not in (BEFORE, AFTER):
                raise UserError(f"{self._path}: obs_alignment is {said!r}, not {BEFORE} or {AFTER}")
            if option not in (None, said):
                raise UserError(
                    f"{self._path} says that its obs_alignment is {said}, --obs-alignment"
                    f" {option}; leave the option out, or mend the attribute"
                )
            return said, "the file"
        if option is not None:
            return option, "the option"
        told = told_by_states(self._proprio_and_states(demos))
        return told, "nobody" if told is None else "its states"

    def _proprio_and_states(
        self, demos: dict[str, h5py.Group]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for demo in list(demos.values())[:ALIGNED_BY]:
            states, steps = member(demo, "states"), len(demo["actions"])
            if (
                isinstance(states, h5py.Dataset)
                and states.ndim == 2
                and len(states) == steps
                and states.dtype.kind == "f"
                and states.nbytes <= LARGEST_CHUNK
            ):
                yield proprio_of(demo), states[()]

    def _cameras(self, demo: h5py.Group) -> tuple[tuple[str, ...], int]:
        """Cameras, in the environment's order where the file says it, and the edge of a picture."""
        obs = member(demo, "obs")
        names = list(obs) if isinstance(obs, h5py.Group) else []
        found = [name.removesuffix("_rgb") for name in names if name.endswith("_rgb")]
        order = text(self._data, "camera").split(",")
        ordered = [short_name(camera) for camera in order]
        cameras = tuple([c for c in ordered if c in found] + [c for c in found if c not in ordered])
        if not cameras:
            raise UserError(f"{self._where(demo)}/obs has no pictures (<camera>_rgb)")
        shape = self._dataset(demo, f"obs/{cameras[0]}_rgb").shape
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise UserError(
                f"{self._where(demo, f'obs/{cameras[0]}_rgb')} has shape {shape}, not"
                " (steps, edge, edge, 3): pictures are square, crop or pad them"
            )
        if not 1 <= shape[1] <= LARGEST_SIZE:
            raise UserError(
                f"{self._where(demo, f'obs/{cameras[0]}_rgb')} has an edge of {shape[1]} pixels,"
                f" not of 1 to {LARGEST_SIZE}"
            )
        return cameras, shape[1]

    def _task(self) -> str:
        if task := text(self._data, "task"):
            return task
        named = text(self._data, "bddl_file_name")
        problem = pathlib.PurePosixPath(named.replace("\\", "/"))
        if problem.suffix != ".bddl":
            return f"{OWN}/{_readable(self._path.stem)}"
        try:
            return task_of_problem(problem.parent.name, problem.stem)
        except UserError as error:
            raise UserError(
                f"{self._path}: {error} (its bddl_file_name is {named}); if it is of one that"
                " LIBERO has, write that one's id, libero/object/0 for example, into the attribute"
                " task of its group data"
            ) from error

    def _instruction(self) -> str:
        if "problem_info" not in self._data.attrs:
            in_name = " ".join(re.split(r"[\W_]+", _readable(self._path.stem))).strip()
            return self._checked_words(text(self._data, "instruction", in_name or OWN))
        try:
            words = json.loads(text(self._data, "problem_info"))["language_instruction"]
            words = words if isinstance(words, str) else " ".join(words)
            words.encode()  # JSON may hold lone surrogates
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self._path}: the attribute problem_info of data holds no language_instruction"
            ) from error
        return self._checked_words(words)

    def _checked_words(self, words: str) -> str:
        if len(words) > LONGEST_INSTRUCTION:
            raise UserError(
                f"{self._path} has an instruction of {len(words):,} characters, more than the"
                f" {LONGEST_INSTRUCTION:,} of a sentence"
            )
        return words.strip().strip('"')

    def _where(self, demo: h5py.Group, name: str = "") -> str:
        place = demo.name.lstrip("/")
        return f"{self._path}: " + (f"dataset {place}/{name}" if name else place)

    def _dataset(self, demo: h5py.Group, name: str, dimensions: int | None = None) -> h5py.Dataset:
        found = member(demo, name)
        where = self._where(demo, name)
        if not isinstance(found, h5py.Dataset):
            raise UserError(f"{where} is missing")
        if found.shape is None:
            raise UserError(f"{where} holds nothing")
        if dimensions not in (None, found.ndim):
            raise UserError(f"{where} has shape {found.shape}, not {dimensions} dimensions")
        return found

    def _width(self, demo: h5py.Group, name: str) -> int:
        """Columns of a table, (T, columns)."""
        found = self._dataset(demo, name, 2)
        if not found.shape[1]:
            raise UserError(f"{self._where(demo, name)} has no columns")
        return found.shape[1]

    def _check(self, demo: h5py.Group, name: str, shape: tuple, kind: str) -> None:
        """Refuse a dataset of another shape or type, or one that was not written to its end."""
        found, where = self._dataset(demo, name), self._where(demo, name)
        if found.shape != shape:
            raise UserError(f"{where} has shape {found.shape}, not {shape}")
        if found.dtype.kind != "f" if kind == "f" else found.dtype != kind:
            wanted = "a floating-point type" if kind == "f" else kind
            raise UserError(f"{where} is {found.dtype}, not {wanted}")
        if found.chunks is None:
            complete = found.is_virtual or found.id.get_storage_size() > 0
        else:
            if np.prod(found.chunks, dtype=float) * found.dtype.itemsize > LARGEST_CHUNK:
                raise UserError(f"{where} is stored in pieces of more than {LARGEST_CHUNK:,} bytes")
            pieces = [-(-n // edge) for n, edge in zip(shape, found.chunks, strict=True)]
            complete = found.id.get_num_chunks() >= np.prod(pieces, dtype=float)
        if not complete:
            raise UserError(f"{where} was not written to its end; record or copy it again")


def _readable(name: str) -> str:
    """A file's name whose bytes are no text, as text."""
    return os.fsencode(name).decode(errors="replace")


def _number(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 18 else -1, name
