"""The agent's memory: finished episodes in memory-mapped ring files, sampled by frame or window.

The one convention for sequences, everywhere in this project: at index t a sequence holds the
observation o_t, the `action` that *led to* it (zero at the first), the `reward` that came with it
(zero at the first), `is_first` (the episode starts here) and `is_terminal` (the task itself ended
here; a time limit does not set it, so values bootstrap).

On disk, a replay folder holds one raw ring file per entry and `episodes.jsonl`, one line per
finished episode, written after its frames have reached the disk. A process killed at any instant
loses at most the unfinished episode.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces

from atomic_file import atomic_file
from errors import UserError


class Entry(NamedTuple):
    """One array of a replay: shape of one step and NumPy dtype name."""

    shape: tuple[int, ...]
    dtype: str


def entries_for(observation_space: spaces.Space, action_space: spaces.Space) -> dict[str, Entry]:
    """The arrays a replay needs for a task's spaces (gymnasium `Dict` and `Box`)."""
    assert isinstance(observation_space, spaces.Dict)
    entries = {
        name: Entry(_shape(space), str(space.dtype))
        for name, space in observation_space.spaces.items()
    }
    entries["action"] = Entry(_shape(action_space), "float32")
    entries["reward"] = Entry((), "float32")
    entries["is_first"] = Entry((), "bool")
    entries["is_terminal"] = Entry((), "bool")
    return entries


def _shape(space: spaces.Space) -> tuple[int, ...]:
    assert space.shape is not None
    return tuple(space.shape)


def free_memory(device: torch.device) -> int:
    """Bytes that could be had on a device now; of the CPU's those not in use, caches included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):  # no Linux: as much as there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def stretches(places: np.ndarray) -> list[tuple[int, int]]:
    """First number and length of every stretch of consecutive numbers in `places` (n,)."""
    starts = np.flatnonzero(np.diff(places, prepend=places[:1] - 2) != 1)
    lengths = np.diff(starts, append=len(places))
    return list(zip(places[starts].tolist(), lengths.tolist(), strict=True))


class Replay:
    """Episodes of a task, oldest dropped first once `capacity` frames are reached.

    Args:
        folder: where the ring files live; created when missing, continued when not.
        entries: from `entries_for`.
        capacity: frames kept. The files are sparse: disk is used as frames come.
        prioritise_ends: draw the last window of an episode more often, as DreamerV2 does.
        seed: of the sampling generator.
        read_only: look at a replay that another process may be filling.

    Raises:
        UserError: the folder belongs to other entries or another capacity.
    """

    def __init__(
        self,
        folder: Path,
        entries: dict[str, Entry],
        capacity: int,
        *,
        prioritise_ends: bool = False,
        seed: int = 0,
        read_only: bool = False,
    ):
        self.folder, self.entries, self.capacity = Path(folder), entries, capacity
        self.prioritise_ends, self.read_only = prioritise_ends, read_only
        self.rng = np.random.default_rng(seed)
        self.records: list[dict] = []
        self._starts: list[int] = []  # where each kept episode starts, in frames ever written
        self._lengths: list[int] = []
        self._end = 0
        self.agent_steps = 0  # of all episodes ever stored
        self.env_steps = 0  # likewise
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._check_layout()
        self._arrays = {name: self._open(name, entry) for name, entry in entries.items()}
        self._copies: dict[str, torch.Tensor] = {}
        self._read_index()

    @classmethod
    def at(cls, folder: Path) -> Replay:
        """The replay in `folder`, to look at, whatever its layout.

        Raises:
            UserError: there is none, or its description cannot be read.
        """
        path = Path(folder) / "layout.json"
        try:
            layout = json.loads(path.read_text())
            entries = {name: Entry(tuple(s), d) for name, (s, d) in layout["entries"].items()}
            return cls(folder, entries, layout["capacity"], read_only=True)
        except OSError as error:
            raise UserError(f"there is no replay in {folder}; name the folder of a run") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def episodes(self, newest: int | None = None) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """Every kept episode, or the `newest`, oldest first: its arrays (L + 1, ...) and its index
        record."""
        count = len(self._starts) if newest is None else min(newest, len(self._starts))
        kept = (many[len(many) - count :] for many in (self._starts, self._lengths, self.records))
        for start, length, record in zip(*kept, strict=True):
            place = np.arange(start, start + length) % self.capacity
            yield {name: array[place] for name, array in self._arrays.items()}, record

    @property
    def bytes_when_full(self) -> int:
        """What `capacity` frames take."""
        steps = sum(np.dtype(e.dtype).itemsize * math.prod(e.shape) for e in self.entries.values())
        return self.capacity * steps

    @property
    def device(self) -> torch.device | None:
        """Where samples are taken from; None is the disk."""
        return next(iter(self._copies.values())).device if self._copies else None

    def keep_on(self, device: torch.device) -> None:
        """Keep a copy of every frame in a device's memory, and sample there from now on: the same
        samples, already where they are used. The files stay what counts after a restart.

        Raises:
            UserError: a full replay does not fit there.
        """
        room = free_memory(device)
        if self.bytes_when_full > room:
            raise UserError(
                f"a replay of {self.capacity:,} frames takes {self.bytes_when_full / 2**30:.1f} GiB"
                f" and {device} has {room / 2**30:.1f} free; keep it on the disk (--replay-memory"
                " disk), or give a smaller --replay-capacity"
            )
        self._copies = {
            name: torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype, device=device)
            for name, array in self._arrays.items()
        }
        for start, length in zip(self._starts, self._lengths, strict=True):
            self._copy(np.arange(start, start + length) % self.capacity)

    def _copy(self, place: np.ndarray) -> None:
        """Take what is at `place` of the files into the device's memory."""
        for name, copy in self._copies.items():
            values = torch.from_numpy(self._arrays[name][place])
            copy[torch.from_numpy(place).to(copy.device)] = values.to(copy.device)

    def _check_layout(self) -> None:
        layout = {
            "capacity": self.capacity,
            "entries": {name: [list(e.shape), e.dtype] for name, e in self.entries.items()},
        }
        path = self.folder / "layout.json"
        if not path.exists():
            if self.read_only:
                raise UserError(f"there is no replay in {self.folder}; name the folder of a run")
            with atomic_file(path) as file:
                file.write(json.dumps(layout).encode())
        elif json.loads(path.read_text()) != layout:
            raise UserError(
                f"the replay in {self.folder} has another layout than this run needs; "
                "use another --logdir"
            )

    def _open(self, name: str, entry: Entry) -> np.memmap:
        path = self.folder / f"{name}.bin"
        mode: Literal["r", "r+", "w+"]
        mode = "r" if self.read_only else "r+" if path.exists() else "w+"
        return np.memmap(path, dtype=entry.dtype, mode=mode, shape=(self.capacity, *entry.shape))

    def _read_index(self) -> None:
        self._index_path = self.folder / "episodes.jsonl"
        data = self._index_path.read_bytes() if self._index_path.exists() else b""
        whole = 0
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # killed while writing this line: the episode does not count
            whole += len(line)
            record = json.loads(line)
            if "dropped" in record:
                self._drop(record["dropped"])
            else:
                self._append(record)
        if whole < len(data) and not self.read_only:
            os.truncate(self._index_path, whole)

    def _append(self, record: dict) -> None:
        self.records.append(record)
        self._starts.append(self._end)
        self._lengths.append(record["frames"])
        self._end += record["frames"]
        self.agent_steps += record["agent_steps"]
        self.env_steps += record["env_steps"]

    def _drop(self, count: int) -> None:
        del self._starts[:count], self._lengths[:count]

    def _write_index(self, record: dict) -> None:
        with open(self._index_path, "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def frames(self) -> int:
        """Frames that can be sampled now."""
        return self._end - self._starts[0] if self._starts else 0

    def add_episode(self, episode: dict[str, np.ndarray], **record) -> None:
        """Store a finished episode durably.

        Args:
            episode: every entry with leading (L + 1,) for L agent steps.
            **record: JSON values kept in the index beside it; `env_steps` is required.
        """
        length = len(episode["reward"])
        if length > self.capacity:
            raise UserError(
                f"an episode of {length} frames does not fit a replay of {self.capacity}"
            )
        for name, entry in self.entries.items():
            shape = np.shape(episode[name]) if name in episode else None
            if shape is None or shape[1:] != entry.shape:
                raise UserError(
                    f"an episode's {name} is {'missing' if shape is None else shape[1:]} where the "
                    f"replay in {self.folder} holds {entry.shape}"
                )
            if shape[0] != length:
                raise ValueError(f"{name} has {shape[0]} frames, reward {length}")
        drop = 0
        while drop < len(self._starts) and self._starts[drop] + self.capacity < self._end + length:
            drop += 1
        if drop:  # said before their frames are overwritten, so that a kill in between is safe
            self._write_index({"dropped": drop})
            self._drop(drop)
        place = np.arange(self._end, self._end + length) % self.capacity
        for name, array in self._arrays.items():
            array[place] = episode[name]
            array.flush()
        self._copy(place)
        record = {"frames": length, "agent_steps": length - 1, **record}
        self._write_index(record)
        self._append(record)

    def _take(
        self, index: np.ndarray, names: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        place = index % self.capacity
        names = names or list(self._arrays)
        device = self.device
        if device is not None:
            there = torch.from_numpy(place)
            if device.type == "cuda":  # from ordinary memory the copy would wait for the GPU
                there = there.pin_memory()
            there = there.to(device, non_blocking=True)
            return {name: self._copies[name][there] for name in names}
        self._ask_for(place, names)
        return {name: torch.from_numpy(self._arrays[name][place]) for name in names}

    def _ask_for(self, place: np.ndarray, names: Sequence[str]) -> None:
        """Let the disk read all of these frames at once.

        Touched one after the other, each waits for the disk alone: 128 frames that the system does
        not hold took 89 ms, and take 4 so (by hand; of 2,000,000 frames 39 and 4).
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        together = stretches(place.ravel())
        for array in (self._arrays[name] for name in names):
            bytes_each = array.strides[0]
            if bytes_each < mmap.PAGESIZE:
                continue  # all of it is soon in memory
            for first, count in together:
                start = first * bytes_each // mmap.PAGESIZE * mmap.PAGESIZE
                length = (first + count) * bytes_each - start
                # NumPy's annotations know of no base but arrays.
                cast("mmap.mmap", array.base).madvise(mmap.MADV_WILLNEED, start, length)

    def sample_frames(
        self, batch: int, rng: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """`batch` frames drawn independently and uniformly, each entry with leading (B,)."""
        return self.single_frames(self.draw_frames(batch, rng))

    def draw_frames(self, batch: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Which frames `sample_frames` would take, (B,), counted over all ever written."""
        return (rng or self.rng).integers(self._starts[0], self._end, batch)

    def single_frames(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """The frames at `index` (B,) from `draw_frames`, each entry with leading (B,)."""
        names = [name for name in self._arrays if name not in ("action", "is_first")]
        return self._take(index, names)

    def sample_windows(
        self, batch: int, length: int, rng: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Windows of consecutive frames, each entry with leading (B, T).

        A window lies inside one episode when the episode is long enough; otherwise it starts at
        the episode's first frame and runs on into the next, where `is_first` says so.
        """
        return self.windows(self.draw_windows(batch, length, rng))

    def windows(
        self, index: np.ndarray, names: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """The frames at `index` (B, T) from `draw_windows`, each entry with leading (B, T); only
        those called `names` when given."""
        return self._take(index, names)

    def draw_windows(
        self, batch: int, length: int, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Which frames `sample_windows` would take, (B, T), counted over all ever written."""
        rng = rng or self.rng
        first = self._starts[0]
        starts = np.empty(batch, np.int64)
        for row, frame in enumerate(rng.integers(first, self._end, batch)):
            episode = bisect_right(self._starts, frame) - 1
            latest = max(0, self._lengths[episode] - length)
            upper = latest + 1 + (length if self.prioritise_ends else 0)
            starts[row] = self._starts[episode] + min(int(rng.integers(upper)), latest)
        index = starts[:, None] + np.arange(length)
        return first + (index - first) % (self._end - first)  # past the newest comes the oldest

    def state_dict(self) -> dict:
        return {"rng": self.rng.bit_generator.state, "episodes": len(self.records)}

    def load_state_dict(self, state: dict) -> None:
        """Raises UserError when episodes that the checkpoint knew are gone."""
        if state["episodes"] > len(self.records):
            raise UserError(
                f"{self.folder} holds {len(self.records)} episodes but the checkpoint was made "
                f"with {state['episodes']}; restore the replay folder or use another --logdir"
            )
        self.rng.bit_generator.state = state["rng"]
