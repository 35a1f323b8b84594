"""The agent's memory: finished episodes in memory-mapped ring files, sampled by frame or window.

The one convention for sequences, everywhere in this project: at index t a sequence holds the
observation o_t, the `action` that *led to* it (zero at the first), the `reward` that came with it
(zero at the first), `is_first` (the episode starts here) and `is_terminal` (the task itself ended
here; a time limit does not set it, so values bootstrap).

On disk it is the files of `agents/replay_files.py`. A process killed at any instant loses at most
the unfinished episode.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from gymnasium import spaces

from agents.replay_files import (
    RESTORE,
    Entry,
    EpisodeIndex,
    RingFiles,
    no_room,
    read_layout,
    stretches,
    write_layout,
)
from errors import UserError


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
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):  # no Linux: as much as there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Replay:
    """Episodes of a task, oldest dropped first once `capacity` frames are reached.

    Args:
        folder: where the ring files live; created when missing, continued when not.
        entries: from `entries_for`.
        capacity: frames kept. The files are sparse: disk is used as frames come.
        prioritise_ends: draw the last window of an episode more often, as DreamerV2 does.
        seed: of the sampling generator.
        read_only: look at a replay that another process may be filling.

    Attributes:
        records: of all episodes ever stored, as the index has them.
        later: records of those stored after the checkpoint that was loaded (`forget_after`).

    Raises:
        UserError: the folder belongs to other entries or another capacity, or a file in it is
            missing, shortened or damaged.
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
        self.later: list[dict] = []
        self._starts: list[int] = []  # where each kept episode starts, in frames ever written
        self._lengths: list[int] = []
        self._end = 0
        self._dropped_at = 0  # episodes stored when some were dropped for the last time
        self.agent_steps = 0  # of all episodes ever stored
        self.env_steps = 0  # likewise
        self._check_layout()
        self._index = EpisodeIndex(self.folder, capacity)
        events = self._index.read(repair=not read_only)
        self._files = RingFiles(
            self.folder, entries, capacity, fresh=not events, read_only=read_only
        )
        self._arrays = self._files.arrays
        self._copies: dict[str, torch.Tensor] = {}
        for event in events:
            if "dropped" in event:
                self._drop(event["dropped"])
            else:
                self._append(event)

    @classmethod
    def at(cls, folder: Path) -> Replay:
        """The replay in `folder`, to look at, whatever its layout.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        if not (Path(folder) / "layout.json").exists():
            raise UserError(f"there is no replay in {folder}; name the folder of a run")
        return cls(folder, *read_layout(Path(folder)), read_only=True)

    def episodes(self, newest: int | None = None) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """Every kept episode, or the `newest`, oldest first: its arrays (L + 1, ...) and its index
        record.

        Raises:
            UserError: its frames are not those that were stored.
        """
        count = len(self._starts) if newest is None else min(newest, len(self._starts))
        kept = (many[len(many) - count :] for many in (self._starts, self._lengths, self.records))
        for start, length, record in zip(*kept, strict=True):
            yield self._checked(start, length, record), record

    def check(self) -> None:
        """Read every kept frame. Raises UserError when some are not those that were stored."""
        for _ in self.episodes():
            pass

    def _checked(self, start: int, length: int, record: dict) -> dict[str, np.ndarray]:
        place = np.arange(start, start + length) % self.capacity
        # Replays of earlier versions have no checksums.
        if record.get("crc32") not in (None, self._files.checksum(place)):
            files = ", ".join([*(f"{name}.bin" for name in self.entries), "episodes.jsonl"])
            raise UserError(
                f"one of {files} in {self.folder} has changed since it was written: episode"
                f" {self.records.index(record)} does not have its checksum; {RESTORE}"
            )
        return self._files.read(place)

    @property
    def bytes_when_full(self) -> int:
        """What `capacity` frames take."""
        return self.capacity * sum(entry.bytes for entry in self.entries.values())

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
        if not (self.folder / "layout.json").exists():
            if self.read_only:
                raise UserError(f"there is no replay in {self.folder}; name the folder of a run")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise no_room(self.folder, error) from error
            write_layout(self.folder, self.entries, self.capacity)
        elif read_layout(self.folder) != (self.entries, self.capacity):
            raise UserError(
                f"{self.folder / 'layout.json'} has another layout than this run needs; "
                "use another --logdir"
            )

    def _append(self, record: dict) -> None:
        self.records.append(record)
        self._starts.append(self._end)
        self._lengths.append(record["frames"])
        self._end += record["frames"]
        self.agent_steps += record["agent_steps"]
        self.env_steps += record["env_steps"]

    def _drop(self, count: int) -> None:
        del self._starts[:count], self._lengths[:count]
        self._dropped_at = len(self.records)

    @property
    def frames(self) -> int:
        """Frames that can be sampled now."""
        return self._end - self._starts[0] if self._starts else 0

    def add_episode(self, episode: dict[str, np.ndarray], **record) -> None:
        """Store a finished episode durably.

        Args:
            episode: every entry with leading (L + 1,) for L agent steps.
            **record: JSON values kept in the index beside it; `env_steps` is required.

        Raises:
            UserError: it is of another kind than this replay's, or there is no room for it.
        """
        assert not self.later, "episodes that are not recalled would be overwritten"
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
            self._index.append({"dropped": drop})
            self._drop(drop)
        place = np.arange(self._end, self._end + length) % self.capacity
        self._files.write(place, episode)
        self._copy(place)
        record = {"frames": length, "agent_steps": length - 1, **record}
        record["crc32"] = self._files.checksum(place)
        self._index.append(record)
        self._append(record)

    # Episodes stored after a checkpoint

    def forget_after(self, episodes: int) -> None:
        """Act as if only the first `episodes` had been stored; the others are `later`, and
        `recall` brings them back.

        Once a later one has overwritten older frames, what there was to learn from cannot be had
        again: then all stay.
        """
        if self._dropped_at >= episodes and self._dropped_at:
            return
        self.later = self.records[episodes:] + self.later
        for record in self.records[episodes:]:
            self._end -= record["frames"]
            self.agent_steps -= record["agent_steps"]
            self.env_steps -= record["env_steps"]
        kept = len(self._starts) - len(self.records[episodes:])
        del self.records[episodes:], self._starts[kept:], self._lengths[kept:]

    def next_later(self) -> dict[str, np.ndarray]:
        """The arrays (L + 1, ...) of the first episode of `later`."""
        return self._checked(self._end, self.later[0]["frames"], self.later[0])

    def recall(self) -> None:
        """Bring back the first episode of `later`."""
        self._append(self.later.pop(0))

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
        """Go back to when the checkpoint was made; what was stored after it is `later`.

        Raises:
            UserError: episodes that the checkpoint knew are gone.
        """
        if state["episodes"] > len(self.records):
            raise UserError(
                f"{self.folder} holds {len(self.records)} episodes but the checkpoint was made "
                f"with {state['episodes']}; restore the replay folder or use another --logdir"
            )
        self.rng.bit_generator.state = state["rng"]
        self.forget_after(state["episodes"])
