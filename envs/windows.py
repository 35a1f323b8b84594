"""Training windows straight from demonstration files: history, future, and the actions between.

A window stands at one step t of one episode, the instant at which ``actions[t]`` was chosen:

    image    (V, H, S, S, 3)  what was seen at t - (H-1)·d, ..., t - d, t
    future   (V, F, S, S[, 3])  masks (or pictures) at t + d, ..., t + F·d
    action   (A', A)          actions t, t + 1, ..., t + A' - 1
    proprio  (D,)             at t

V cameras, H frames of history, F of future, d the stride in steps, A' the chunk, A an action's
size, D proprioception's, S the edge in pixels. Before an episode's first step its first frame is
repeated, after its last one its last frame and zero actions, marked in ``future_valid`` (F,) and
``action_valid`` (A',).
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from envs.alignment import Alignment
from envs.demonstration_values import fault_of_actions, fault_of_masks, fault_of_table, refuse
from envs.demonstrations import read_headers
from envs.environment_config import ORIENTATIONS
from envs.hdf5 import DAMAGED, open_file, opened
from envs.recording_header import Episode, Recording, proprio_of
from errors import UserError

OPEN_FILES = 128
"""Files that a process keeps open at a time: half of what macOS allows it, an eighth of Linux."""
PERCENTILES = (1.0, 99.0)  # Mask World Model: actions and state are mapped from these to [-1, 1]


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """Which frames and actions a window holds."""

    n_obs_steps: int = 4
    """Frames seen, the present one included (Mask World Model: 4)."""
    future: int = 9
    """Frames predicted; 1 more than a multiple of the video model's temporal factor."""
    stride: int = 4
    """Steps between frames."""
    chunk: int = 36
    """Actions, from the present step on (Mask World Model: 36)."""

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


class Windows:
    """Every window of the successful episodes of some demonstration files, read when asked for.

    A sequence (``len``, index), as torch's ``DataLoader`` takes: nothing is kept in memory but the
    index, and every process opens the files for itself.

    Args:
        recordings: headers of the files, all with the same cameras, sizes and action size.
        config: which frames and actions.
        target: what ``future`` holds: "masks", "pixels", or "none", and it is left out.

    Raises:
        UserError: the files do not go together; masks are wanted and missing, or hold what is no
            class (one of each episode is looked at, the others as they are read); no episode can
            be learned from; what an observation shows is not known. Reading a window: it holds
            what cannot be learned from (``envs/demonstration_values.py``).
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        config: WindowConfig,
        target: str = "masks",
    ):
        self.recordings, self.config, self.target = tuple(recordings), config, target
        first = self.recordings[0]
        for other in self.recordings:
            for field in ("cameras", "size", "action_size", "proprio_size", "action_repeat",
                          "quality"):  # fmt: skip
                if getattr(other, field) != getattr(first, field):
                    raise UserError(
                        f"{other.path} has {field} {getattr(other, field)}, {first.path}"
                        f" {getattr(first, field)}; train on files that go together"
                    )
            if target == "masks" and set(other.masks) != set(other.cameras):
                without = sorted(set(other.cameras) - set(other.masks))
                raise UserError(
                    f"{other.path} has no masks for {', '.join(without)}; add them with"
                    f" `python run.py annotate --data {other.path}`"
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
        if target == "masks":
            for recording, episode in self._episodes:
                self._frames(recording, episode, "mask", np.array([episode.steps // 2]))

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

    def locate(self, index: int) -> tuple[Recording, Episode, int]:
        """The file, the episode and the step t of a window."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return *self._episodes[number], index - start

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        recording, episode, step = self.locate(index)
        config, lag = self.config, recording.lag
        last = episode.steps - lag - 1
        past = np.clip(step + config.past(), 0, last)
        ahead = step + config.ahead()
        seen = episode.steps - 1  # the last picture; with a lag it shows what the last action did
        taken = step + np.arange(config.chunk)
        window: dict[str, Any] = {
            "image": self._frames(recording, episode, "rgb", past),
            "proprio": self._proprio(recording, episode, step),
            "action": self._actions(recording, episode, taken, last),
            "action_valid": taken <= last,
            "future_valid": ahead <= seen,
            "task": np.int64(self.tasks.index(recording.task)),
        }
        if self.target != "none":
            kind = "mask" if self.target == "masks" else "rgb"
            window["future"] = self._frames(recording, episode, kind, np.minimum(ahead, seen))
        return window

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

    def _proprio(self, recording: Recording, episode: Episode, step: int) -> np.ndarray:
        with self._reading(recording, episode) as demo:
            proprio = proprio_of(demo, slice(step, step + 1))
        where = f"{recording.path}: data/{episode.name}, proprioception"
        refuse(fault_of_table(proprio, step), where)
        return proprio[0]

    def _actions(
        self, recording: Recording, episode: Episode, taken: np.ndarray, last: int
    ) -> np.ndarray:
        """Those `taken` up to the `last` with an observation, zeros behind, (A', A)."""
        lag = recording.lag
        start, stop = taken[0] + lag, min(taken[-1], last) + lag + 1
        with self._reading(recording, episode) as demo:
            recorded = demo["actions"][start:stop].astype(np.float32)
        where = f"{recording.path}: data/{episode.name}/actions"
        refuse(fault_of_actions(recorded, recording.task, start), where)
        padded = np.zeros((len(taken), recorded.shape[1]), np.float32)
        padded[: len(recorded)] = recorded
        return padded

    def _frames(
        self, recording: Recording, episode: Episode, kind: str, rows: np.ndarray
    ) -> np.ndarray:
        """Frames of all cameras, (V, rows, S, S[, 3]), upright; a repeated row is read once."""
        turn = ORIENTATIONS[recording.orientation]
        unique, where = np.unique(rows, return_inverse=True)
        views = []
        for camera in recording.cameras:
            with self._reading(recording, episode) as demo:
                dataset = demo[f"obs/{camera}_{kind}"]
                frames = np.stack([turn(dataset[row]) for row in unique])
            if kind == "mask":
                for row, mask in zip(unique, frames, strict=True):
                    place = f"{recording.path}: data/{episode.name}/obs/{camera}_mask"
                    refuse(fault_of_masks(mask[None], row), place)
            views.append(frames[where])
        return np.stack(views)


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
    config: WindowConfig,
    target: str = "masks",
    *,
    filter_key: str | None = None,
    obs_alignment: Alignment | None = None,
) -> Windows:
    """The windows of all files in ``data`` (files or folders).

    Args:
        data: files, or folders of them.
        config, target: of ``Windows``.
        filter_key, obs_alignment: of ``read_header``.

    Raises:
        UserError: as ``read_headers`` and ``Windows``.
    """
    return Windows(read_headers(data, filter_key, obs_alignment), config, target)
