"""A replay on disk: ring files of frames, the index of episodes, and the layout of both.

    layout.json      capacity in frames; shape and type of every entry
    <entry>.bin      the last `capacity` frames of one entry, a ring; disk is used as frames come
    episodes.jsonl   one line per finished episode, written after its frames have reached the disk

A process killed at any instant loses at most the episode it was writing. What somebody else has
changed, shortened or damaged is refused by name, never read as black frames.
"""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from atomic_file import atomic_file
from errors import UserError
from regular_file import read_bytes, read_text

RESTORE = "restore the replay folder from a copy, or start another --logdir"


class Entry(NamedTuple):
    """One array of a replay: shape of one step and NumPy dtype name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Of one frame."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


def stretches(places: np.ndarray) -> list[tuple[int, int]]:
    """First number and length of every stretch of consecutive numbers in `places` (n,)."""
    starts = np.flatnonzero(np.diff(places, prepend=places[:1] - 2) != 1)
    lengths = np.diff(starts, append=len(places))
    return list(zip(places[starts].tolist(), lengths.tolist(), strict=True))


# --------------------------------------------------------------------------------- layout


def write_layout(folder: Path, entries: Mapping[str, Entry], capacity: int) -> None:
    """Describe a new replay. Raises UserError where the folder cannot be written in."""
    described = {name: [list(entry.shape), entry.dtype] for name, entry in entries.items()}
    with atomic_file(folder / "layout.json") as file:
        file.write(json.dumps({"capacity": capacity, "entries": described}).encode())


def read_layout(folder: Path) -> tuple[dict[str, Entry], int]:
    """The entries and the capacity of the replay in `folder`.

    Raises:
        UserError: the layout cannot be read or describes no replay.
    """
    path = folder / "layout.json"
    try:
        layout = json.loads(read_text(path))
        capacity, described = layout["capacity"], layout["entries"]
        entries = {
            _checked(name, str.isidentifier): Entry(
                tuple(_checked(size, _is_size) for size in shape),
                _checked(dtype, lambda text: np.dtype(text).kind in "buif"),
            )
            for name, (shape, dtype) in described.items()
        }
        return entries, _checked(capacity, _is_size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} describes no replay ({error}); {RESTORE}") from error


def _checked(value: Any, holds) -> Any:
    if not holds(value):
        raise ValueError(f"{value!r:.60} in it")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**40


# ---------------------------------------------------------------------------------- index


class EpisodeIndex:
    """`episodes.jsonl`: what the replay holds, one JSON object a line, oldest first.

    A line is an episode (`frames`, `agent_steps`, `env_steps`, `crc32`, and what else is known of
    it), or says that the oldest so many episodes are about to be overwritten (`dropped`).

    Args:
        folder: of the replay.
        capacity: frames that the replay keeps.
    """

    def __init__(self, folder: Path, capacity: int):
        self.path, self.capacity = folder / "episodes.jsonl", capacity

    def read(self, repair: bool) -> list[dict[str, Any]]:
        """All lines.

        Args:
            repair: cut off a last line that a killed process left unfinished.

        Raises:
            UserError: the file cannot be read, or a line cannot be true.
        """
        if not os.path.lexists(self.path):
            return []
        data = read_bytes(self.path)
        whole = data.rfind(b"\n") + 1  # killed while writing what follows: it does not count
        events, lengths, frames = [], deque[int](), 0
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                event = json.loads(line)
                _check_event(event, len(lengths))
                if "dropped" in event:
                    frames -= sum(lengths.popleft() for _ in range(event["dropped"]))
                else:
                    lengths.append(event["frames"])
                    frames += event["frames"]
                if frames > self.capacity:
                    raise ValueError(f"{frames:,} frames in a replay of {self.capacity:,}")
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"line {number} of {self.path} is damaged ({error}); {RESTORE}"
                ) from error
            events.append(event)
        if whole < len(data) and repair:
            os.truncate(self.path, whole)
        return events

    def append(self, event: Mapping[str, Any]) -> None:
        """Add a line durably.

        Raises:
            UserError: there is no room for it; the file is as it was.
        """
        with open(self.path, "ab") as file:
            before = file.tell()
            try:
                file.write(json.dumps(event).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                os.truncate(self.path, before)
                raise no_room(self.path, error) from error


def _check_event(event: Any, kept: int) -> None:
    """Raise ValueError for a line that cannot be true after a replay has kept `kept` episodes."""
    if not isinstance(event, dict):
        raise ValueError("it is no object")
    if "dropped" in event:
        if not _is_size(event["dropped"]) or event["dropped"] > kept:
            raise ValueError(f"dropped is {event['dropped']!r:.60}")
        return
    # What was recorded elsewhere is no step of this run's.
    own = "recorded" not in event
    for name, least in (("frames", 1 + own), ("agent_steps", own), ("env_steps", own)):
        value = event.get(name)
        if type(value) is not int or not least <= value < 2**40:
            raise ValueError(f"{name} is {value!r:.60}")
    if event["agent_steps"] != (event["frames"] - 1) * own:
        raise ValueError(f"{event['frames']} frames of {event['agent_steps']} steps")
    for name in ("return", "success"):
        if not isinstance(event.get(name), (int, float, type(None))):
            raise ValueError(f"{name} is {event[name]!r:.60}")


# ---------------------------------------------------------------------------------- frames


class RingFiles:
    """The frames of a replay: a memory-mapped file for every entry.

    Args:
        folder: of the replay.
        entries: what a frame consists of.
        capacity: frames of each file.
        fresh: nothing has been stored yet, so that files may be missing or half made.
        read_only: never write.

    Attributes:
        arrays: by entry, (capacity, ...).

    Raises:
        UserError: a file is missing, or is not as long as the layout says.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, Entry],
        capacity: int,
        *,
        fresh: bool,
        read_only: bool,
    ):
        self.folder, self.entries = folder, entries
        self._files = {}
        self.arrays: dict[str, np.memmap] = {}
        for name, entry in entries.items():
            path, bytes_ = folder / f"{name}.bin", entry.bytes * capacity
            if fresh and not read_only:
                self._make(path, bytes_)
            found = path.stat().st_size if path.is_file() else None
            if found != bytes_:
                state = "is missing" if found is None else f"has {found:,} bytes"
                raise UserError(f"{path} {state}, layout.json says {bytes_:,}; {RESTORE}")
            mode: Literal["r", "r+"] = "r" if read_only else "r+"
            try:
                file = open(path, f"{mode}b")  # noqa: SIM115 (as long as the array)
            except OSError as error:
                raise UserError(f"cannot open {path} ({error.strerror}); {RESTORE}") from error
            self._files[name] = file
            self.arrays[name] = np.memmap(file, entry.dtype, mode, shape=(capacity, *entry.shape))

    def _make(self, path: Path, bytes_: int) -> None:
        """A file of holes, which takes no disk yet."""
        try:
            with open(path, "ab") as file:
                file.truncate(bytes_)
        except OSError as error:
            raise no_room(path, error) from error

    def write(self, place: np.ndarray, episode: Mapping[str, np.ndarray]) -> None:
        """Store the frames of an episode durably at `place` (L + 1,).

        Raises:
            UserError: there is no room for them; what is stored stays as it is.
        """
        try:
            # Writing to a hole of a mapped file on a full disk would end the process (SIGBUS).
            for name, file in self._files.items():
                for first, count in stretches(place):
                    _reserve(file.fileno(), first, count, self.entries[name].bytes)
            for name, array in self.arrays.items():
                array[place] = episode[name]
                array.flush()
        except OSError as error:
            raise no_room(self.folder, error) from error

    def read(self, place: np.ndarray) -> dict[str, np.ndarray]:
        """The frames at `place` (L + 1,), every entry."""
        return {name: array[place] for name, array in self.arrays.items()}

    def checksum(self, place: np.ndarray) -> int:
        """Of all bytes of the frames at `place` (L + 1,), to tell whether they have changed."""
        crc = 0
        for name in sorted(self.arrays):
            for first, count in stretches(place):
                frames = self.arrays[name][first : first + count]
                crc = zlib.crc32(np.ascontiguousarray(frames).data, crc)
        return crc


def _reserve(descriptor: int, first: int, count: int, bytes_each: int) -> None:
    """Take disk for `count` frames from number `first` on. Raises OSError where there is none."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, first * bytes_each, count * bytes_each)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    room = os.fstatvfs(descriptor)
    if room.f_bavail * room.f_frsize < count * bytes_each:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room(path: Path, error: OSError) -> UserError:
    """What to tell of a disk that takes no more."""
    return UserError(
        f"cannot write {path} ({error.strerror or error}); the episodes stored before are kept: "
        "make room and start the same command again"
    )
