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

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from atomic_file import atomic_file
from envs.demonstrations import (
    Episode,
    Recording,
    find_files,
    open_file,
    proprio_of,
    read_header,
)
from envs.environment_config import ORIENTATIONS
from errors import UserError

STATISTICS = "demonstration_statistics.json"
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
        UserError: the files do not go together; masks are wanted and missing; no episode of them
            can be learned from.
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
        self._files: dict[tuple[int, pathlib.Path], h5py.File] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, index: int) -> tuple[Recording, Episode, int]:
        """The file, the episode and the step t of a window."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return *self._episodes[number], index - start

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        recording, episode, step = self.locate(index)
        demo = self._open(recording.path)[f"data/{episode.name}"]
        config, lag = self.config, recording.lag
        last = episode.steps - lag - 1
        past = np.clip(step + config.past(), 0, last)
        ahead = step + config.ahead()
        seen = episode.steps - 1  # the last picture; with a lag it shows what the last action did
        taken = step + np.arange(config.chunk)
        try:
            window = {
                "image": self._frames(recording, demo, "rgb", past),
                "proprio": proprio_of(demo, slice(step, step + 1))[0],
                "action": self._actions(demo, taken, last, lag),
                "action_valid": taken <= last,
                "future_valid": ahead <= seen,
                "task": np.int64(self.tasks.index(recording.task)),
            }
            if self.target != "none":
                kind = "mask" if self.target == "masks" else "rgb"
                window["future"] = self._frames(recording, demo, kind, np.minimum(ahead, seen))
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{recording.path}: data/{episode.name} cannot be read: {error}"
            ) from error
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
        """The file, opened once in each process: HDF5's handles do not survive a fork."""
        key = os.getpid(), path
        if key not in self._files:
            with open_file(path):  # for its sentence when it cannot be opened
                pass
            self._files[key] = h5py.File(path, "r")
        return self._files[key]

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}

    @staticmethod
    def _actions(demo: h5py.Group, taken: np.ndarray, last: int, lag: int) -> np.ndarray:
        start, stop = taken[0] + lag, min(taken[-1], last) + lag + 1
        recorded = demo["actions"][start:stop].astype(np.float32)
        padded = np.zeros((len(taken), recorded.shape[1]), np.float32)
        padded[: len(recorded)] = recorded
        return padded

    def _frames(self, recording, demo: h5py.Group, kind: str, rows: np.ndarray) -> np.ndarray:
        """Frames of all cameras, (V, rows, S, S[, 3]), upright; a repeated row is read once."""
        turn = ORIENTATIONS[recording.orientation]
        unique, where = np.unique(rows, return_inverse=True)
        views = []
        for camera in recording.cameras:
            dataset = demo[f"obs/{camera}_{kind}"]
            frames = np.stack([turn(dataset[row]) for row in unique])
            views.append(frames[where])
        return np.stack(views)


def statistics(recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """1st and 99th percentile, and range, of actions and proprioception over all episodes.

    Computed once and kept beside the (first) file in ``demonstration_statistics.json``, where that
    can be written.

    Returns: lists of A or D numbers under ``action_low``, ``action_high``, ``action_min``,
        ``action_max``, ``proprio_low``, ``proprio_high``.
    """
    paths = [recording.path.resolve() for recording in recordings]
    kept = min(paths).parent / STATISTICS
    fingerprint = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        fingerprint.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    key = fingerprint.hexdigest()
    known = _read_statistics(kept)
    if key in known:
        return known[key]
    actions, proprio = [], []
    for recording in recordings:
        with open_file(recording.path) as file:
            for episode in recording.episodes:
                demo = file[f"data/{episode.name}"]
                actions.append(demo["actions"][recording.lag :])
                proprio.append(proprio_of(demo))
    found = {}
    for name, values in (("action", np.concatenate(actions)), ("proprio", np.concatenate(proprio))):
        if not np.isfinite(values).all():
            raise UserError(f"an {name} in {paths[0].parent} is not a finite number")
        low, high = np.percentile(values.astype(np.float64), PERCENTILES, axis=0)
        found[f"{name}_low"], found[f"{name}_high"] = low.tolist(), high.tolist()
        found[f"{name}_min"] = values.min(0).astype(float).tolist()
        found[f"{name}_max"] = values.max(0).astype(float).tolist()
    # Others' data may lie where nothing can be written; then it is computed again next time.
    try:
        with atomic_file(kept) as file:
            file.write(json.dumps(known | {key: found}, indent=1).encode())
    except OSError:
        pass
    return found


def _read_statistics(path: pathlib.Path) -> dict[str, dict]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def open_windows(
    data: Sequence[str | os.PathLike], config: WindowConfig, target: str = "masks"
) -> Windows:
    """The windows of all files in ``data`` (files or folders).

    Raises:
        UserError: as ``find_files``, ``read_header`` and ``Windows``.
    """
    return Windows([read_header(path) for path in find_files(data)], config, target)
