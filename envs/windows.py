"""Training windows straight from demonstration files: what learning reads around a step.

A window stands at one step t of one episode, the instant at which ``actions[t]`` was chosen. What
it holds is a method's choice, a ``Read`` by name: which frames, masks, actions, proprioception or
tracks, at which steps before t and at which instants after those. Before an episode's first step
its first frame is repeated, after its last one its last frame and zero actions.

V cameras, S the edge of a picture in pixels, A an action's size, D proprioception's.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np

from envs.alignment import Alignment
from envs.demonstration_values import fault_of_actions, fault_of_masks, fault_of_table, refuse
from envs.demonstrations import read_headers
from envs.environment_config import ORIENTATIONS
from envs.hdf5 import DAMAGED, member, open_file, opened
from envs.recording_header import Episode, Recording, proprio_of
from errors import UserError

OPEN_FILES = 128
"""Files that a process keeps open at a time: half of what macOS allows it, an eighth of Linux."""
POINTS = 64
"""Points whose tracks a window holds."""
PERCENTILES = (1.0, 99.0)  # Mask World Model: actions and state are mapped from these to [-1, 1]


Kind = Literal["rgb", "mask", "tracks", "visible", "effector", "proprio", "action"]


class Read(NamedTuple):
    """Something that windows hold: an array of ``len(steps) * len(ahead)`` rows."""

    kind: Kind
    """rgb (S, S, 3) uint8, mask (S, S) uint8, tracks (``POINTS``, 2) float32 pixels (x, y), visible
    (``POINTS``,) bool, effector (2,) float32 pixels, proprio (D,), action (A,)."""
    steps: Sequence[int]
    """Relative to t; those outside of the episode are its first or last one."""
    ahead: Sequence[int] = (0,)
    """Rows of each step relative to it; those of the first step come first. Of ``ahead`` other than
    0, windows also say under ``<name>_valid`` which rows the episode has."""
    cameras: Literal["all", "first"] = "all"
    """all: a leading axis V."""


Reads = Mapping[str, Read]


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """What Mask World Model reads: history, future, and a chunk of actions.

    image    (V, H, S, S, 3)    what was seen at t - (H-1)·d, ..., t - d, t
    future   (V, F, S, S[, 3])  masks (or pictures) at t + d, ..., t + F·d
    action   (A', A)            actions t, t + 1, ..., t + A' - 1
    proprio  (1, D)             at t
    """

    n_obs_steps: int = 4
    """Frames seen H, the present one included (Mask World Model: 4)."""
    future: int = 9
    """Frames predicted F; 1 more than a multiple of the video model's temporal factor."""
    stride: int = 4
    """Steps d between frames."""
    chunk: int = 36
    """Actions A', from the present step on (Mask World Model: 36)."""

    def __post_init__(self):
        for field, least in (("n_obs_steps", 1), ("future", 0), ("stride", 1), ("chunk", 1)):
            if getattr(self, field) < least:
                raise UserError(f"{field} must be at least {least}, not {getattr(self, field)}")

    def past(self) -> np.ndarray:
        """Steps of the history frames relative to the present one, (H,) int, the last 0."""
        return np.arange(1 - self.n_obs_steps, 1) * self.stride

    def ahead(self) -> np.ndarray:
        """Steps of the future frames relative to the present one, (F,) int."""
        return np.arange(1, self.future + 1) * self.stride

    def reads(self, target: Literal["masks", "pixels", "none"] = "masks") -> dict[str, Read]:
        """What windows hold when ``future`` is masks, pictures, or left out."""
        reads = {
            "image": Read("rgb", self.past().tolist()),
            "proprio": Read("proprio", [0]),
            "action": Read("action", [0], range(self.chunk)),
        }
        if target != "none":
            kind: Literal["mask", "rgb"] = "mask" if target == "masks" else "rgb"
            reads["future"] = Read(kind, [0], self.ahead().tolist())
        return reads


class Windows:
    """Every window of the successful episodes of some demonstration files, read when asked for.

    A sequence (``len``, index), as torch's ``DataLoader`` takes: nothing is kept in memory but the
    index, and every process opens the files for itself.

    Args:
        recordings: headers of the files, all with the same cameras, sizes and action size.
        reads: what a window holds; a ``WindowConfig`` means its ``reads(target)``.
        target: see there.

    Attributes:
        tasks: ids of the tasks; a window's ``task`` is a number of one.

    Raises:
        UserError: the files do not go together; masks or tracks are wanted and missing, or masks
            hold what is no class (one of each episode is looked at, the others as they are read);
            no episode can be learned from; what an observation shows is not known. Reading a
            window: it holds what cannot be learned from (``envs/demonstration_values.py``).
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        reads: Reads | WindowConfig,
        target: Literal["masks", "pixels", "none"] = "masks",
    ):
        if isinstance(reads, WindowConfig):
            reads = reads.reads(target)
        self.recordings, self.reads = tuple(recordings), dict(reads)
        first = self.recordings[0]
        for other in self.recordings:
            for field in ("cameras", "size", "action_size", "proprio_size", "action_repeat",
                          "quality", "fps", "action_low", "action_high"):  # fmt: skip
                if getattr(other, field) != getattr(first, field):
                    raise UserError(
                        f"{other.path} has {field} {getattr(other, field)}, {first.path}"
                        f" {getattr(first, field)}; train on files that go together"
                    )
        told: dict[str, Recording] = {}
        for recording in self.recordings:
            before = told.setdefault(recording.task, recording)
            if before.instruction != recording.instruction:
                raise UserError(
                    f"{before.path} and {recording.path} are of {recording.task} and have different"
                    f" instructions, {before.instruction!r} and {recording.instruction!r}"
                )
        self.tasks = list(told)
        self._episodes: list[tuple[Recording, Episode]] = [
            (recording, episode)
            for recording in self.recordings
            for episode in recording.episodes
            if episode.success
        ]
        lengths = [episode.steps - recording.lag for recording, episode in self._episodes]
        self._ends = np.cumsum(np.maximum(lengths, 0))
        if not len(self):
            raise UserError(
                f"{first.path} holds no successful episode that is long enough for a window"
            )
        self._files: dict[int, collections.OrderedDict[pathlib.Path, h5py.File]] = {}
        self._check_reads()

    def _check_reads(self) -> None:
        """Refuse files that lack what windows are to hold."""
        for read in self.reads.values():
            if read.kind in ("rgb", "proprio", "action"):  # every header has been checked for them
                continue
            for recording, episode in self._episodes:
                for camera in self._cameras(recording, read):
                    self._check_there(recording, episode, camera, read.kind)
                if read.kind == "mask":
                    self._frames(recording, episode, read, np.array([episode.steps // 2]))

    def _check_there(self, recording: Recording, episode: Episode, camera: str, kind: str) -> None:
        name = f"data/{episode.name}/obs/{camera}_{kind}"
        with self._reading(recording, episode) as demo:
            found = member(demo, f"obs/{camera}_{kind}")
            shape = found.shape if isinstance(found, h5py.Dataset) else None
        option = "" if kind == "mask" else " --tracks"
        what = "masks" if kind == "mask" else f"{kind} of points and effector"
        remedy = f"add them with `python run.py annotate --data {recording.path}{option}`"
        if shape is None:
            raise UserError(f"{recording.path} has no {what} for {camera} ({name}); {remedy}")
        points = shape[1] if kind in ("tracks", "visible") and len(shape) > 1 else 0
        size = recording.size
        wanted = {"mask": (size, size), "tracks": (points, 2), "visible": (points,)}.get(kind, (2,))
        if shape != (episode.steps, *wanted) or 0 in shape:
            raise UserError(f"{recording.path}: {name} has shape {shape}; {remedy}")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def note(self) -> str:
        """What the user should know of the files; mostly nothing."""
        unused = [r for r in self.recordings if r.filter_keys and r.filter_key is None]
        if not unused:
            return ""
        keys = ", ".join(unused[0].filter_keys)
        return (
            f"note: {unused[0].path} has filter keys ({keys}) and none was chosen: all its"
            " demonstrations are learned from; --filter-key chooses"
        )

    @property
    def episodes(self) -> list[tuple[Recording, Episode]]:
        """Those that windows stand in, in order."""
        return list(self._episodes)

    def of_episode(self, number: int) -> range:
        """The windows that stand in an episode, by its number in `episodes`."""
        return range(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))

    def locate(self, index: int) -> tuple[Recording, Episode, int]:
        """The file, the episode and the step t of a window."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return *self._episodes[number], index - start

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        recording, episode, step = self.locate(index)
        window: dict[str, Any] = {"task": np.int64(self.tasks.index(recording.task))}
        last = episode.steps - recording.lag - 1  # the last with an observation and an action
        for name, read in self.reads.items():
            from_ = np.clip(step + np.asarray(read.steps), 0, last)
            rows = (from_[:, None] + np.asarray(read.ahead)).ravel()
            # With a lag there is one picture more, of what the last action did.
            end = last if read.kind == "action" else episode.steps - 1
            if tuple(read.ahead) != (0,):
                window[f"{name}_valid"] = rows <= end
            if read.kind == "action":
                window[name] = self._actions(recording, episode, rows, last)
            elif read.kind == "proprio":
                window[name] = self._proprio(recording, episode, np.minimum(rows, end))
            elif read.kind in ("rgb", "mask"):
                window[name] = self._frames(recording, episode, read, np.minimum(rows, end))
            else:
                window[name] = self._tracks(recording, episode, read, np.minimum(rows, end), index)
        return window

    @staticmethod
    def _cameras(recording: Recording, read: Read) -> Sequence[str]:
        return recording.cameras if read.cameras == "all" else recording.cameras[:1]

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Indices of batch `start`, `start` + 1, ... for ever, each a function of seed and number.

        Every epoch is a permutation of all windows, drawn from the seed; the batch that an epoch's
        end cuts is filled from the next one.
        """
        count, number, epoch, order = len(self), start, -1, np.empty(0, np.int64)
        while True:
            chosen = []
            for place in range(number * size, (number + 1) * size):
                if place // count != epoch:
                    epoch = place // count
                    order = np.random.default_rng([seed, epoch]).permutation(count)
                chosen.append(int(order[place % count]))
            yield chosen
            number += 1

    def _open(self, path: pathlib.Path) -> h5py.File:
        """The file, opened once in each process: HDF5's handles do not survive a fork. Of more
        than ``OPEN_FILES`` those used last stay open."""
        files = self._files.setdefault(os.getpid(), collections.OrderedDict())
        if path not in files:
            if len(files) >= OPEN_FILES:
                files.popitem(last=False)[1].close()
            files[path] = opened(path)
        files.move_to_end(path)
        return files[path]

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}

    @contextlib.contextmanager
    def _reading(self, recording: Recording, episode: Episode) -> Iterator[h5py.Group]:
        """An episode's group; reading a damaged part of it is one sentence."""
        try:
            yield self._open(recording.path)[f"data/{episode.name}"]
        except (OSError, *DAMAGED) as error:
            raise UserError(
                f"{recording.path}: data/{episode.name} cannot be read: {error}"
            ) from error

    def _proprio(self, recording: Recording, episode: Episode, rows: np.ndarray) -> np.ndarray:
        """(rows, D) float32."""
        first, last = int(rows.min()), int(rows.max())
        with self._reading(recording, episode) as demo:
            proprio = proprio_of(demo, slice(first, last + 1))
        where = f"{recording.path}: data/{episode.name}, proprioception"
        refuse(fault_of_table(proprio, first), where)
        return proprio[rows - first]

    def _actions(
        self, recording: Recording, episode: Episode, rows: np.ndarray, last: int
    ) -> np.ndarray:
        """Those of `rows` up to the `last` with an observation, zeros behind, (rows, A)."""
        first, end = int(rows.min()) + recording.lag, min(int(rows.max()), last) + recording.lag + 1
        with self._reading(recording, episode) as demo:
            recorded = demo["actions"][first:end].astype(np.float32)
        where = f"{recording.path}: data/{episode.name}/actions"
        refuse(fault_of_actions(recorded, recording.task, first), where)
        taken = recorded[np.minimum(rows, last) + recording.lag - first]
        return np.where(rows[:, None] <= last, taken, np.float32(0))

    def _tracks(
        self, recording: Recording, episode: Episode, read: Read, rows: np.ndarray, index: int
    ) -> np.ndarray:
        """Tracks, visibility or the effector of one camera, upright; of tracks the same
        ``POINTS``, whatever their number in the file."""
        camera = recording.cameras[0]
        name = f"obs/{camera}_{read.kind}"
        unique, where = np.unique(rows, return_inverse=True)
        with self._reading(recording, episode) as demo:
            found = demo[name][unique][where]
        if read.kind == "visible":
            found = found.astype(bool)
        else:
            found = found.astype(np.float32)
            place = f"{recording.path}: data/{episode.name}/{name}"
            refuse(fault_of_table(found.reshape(len(rows), -1), int(unique[0])), place)
            flips = {"opengl": 1, "mirrored": 0}
            if recording.orientation in flips:
                axis = flips[recording.orientation]
                found[..., axis] = recording.size - 1 - found[..., axis]
        if read.kind != "effector" and found.shape[1] != POINTS:
            rng = np.random.default_rng(index)
            found = found[:, rng.choice(found.shape[1], POINTS, replace=found.shape[1] < POINTS)]
        return found

    def _frames(
        self, recording: Recording, episode: Episode, read: Read, rows: np.ndarray
    ) -> np.ndarray:
        """Frames ([V,] rows, S, S[, 3]), upright; a repeated row is read once."""
        turn = ORIENTATIONS[recording.orientation]
        unique, where = np.unique(rows, return_inverse=True)
        views = []
        for camera in self._cameras(recording, read):
            with self._reading(recording, episode) as demo:
                dataset = demo[f"obs/{camera}_{read.kind}"]
                frames = np.stack([turn(dataset[row]) for row in unique])
            if read.kind == "mask":
                for row, mask in zip(unique, frames, strict=True):
                    place = f"{recording.path}: data/{episode.name}/obs/{camera}_mask"
                    refuse(fault_of_masks(mask[None], row), place)
            views.append(frames[where])
        return np.stack(views) if read.cameras == "all" else views[0]


def statistics(recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """1st and 99th percentile, and range, of actions and proprioception over all episodes.

    Returns: lists of A or D numbers under ``action_low``, ``action_high``, ``action_min``,
        ``action_max``, ``proprio_low``, ``proprio_high``, ``proprio_min``, ``proprio_max``.

    Raises:
        UserError: a number is not finite, or an action out of bounds: names file, episode and row.
    """
    actions, proprio = [], []
    for recording in recordings:
        with open_file(recording.path) as file:
            for episode in recording.episodes:
                demo = file[f"data/{episode.name}"]
                taken, felt = demo["actions"][()], proprio_of(demo)
                where = f"{recording.path}: data/{episode.name}"
                refuse(fault_of_actions(taken, recording.task), f"{where}/actions")
                refuse(fault_of_table(felt), f"{where}, proprioception")
                actions.append(taken[recording.lag :])
                proprio.append(felt)
    found = {}
    for name, values in (("action", np.concatenate(actions)), ("proprio", np.concatenate(proprio))):
        low, high = np.percentile(values.astype(np.float64), PERCENTILES, axis=0)
        found[f"{name}_low"], found[f"{name}_high"] = low.tolist(), high.tolist()
        found[f"{name}_min"] = values.min(0).astype(float).tolist()
        found[f"{name}_max"] = values.max(0).astype(float).tolist()
    return found


def open_windows(
    data: Sequence[str | os.PathLike],
    reads: Reads | WindowConfig,
    target: Literal["masks", "pixels", "none"] = "masks",
    *,
    filter_key: str | None = None,
    obs_alignment: Alignment | None = None,
) -> Windows:
    """The windows of all files in ``data`` (files or folders).

    Args:
        data: files, or folders of them.
        reads, target: of ``Windows``.
        filter_key, obs_alignment: of ``read_header``.

    Raises:
        UserError: as ``read_headers`` and ``Windows``.
    """
    return Windows(read_headers(data, filter_key, obs_alignment), reads, target)
