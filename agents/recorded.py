"""Episodes recorded elsewhere, as an online run's replay keeps them: of other runs, or of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

import envs
from agents.replay import Replay
from envs.demonstrations import (
    DAMAGED,
    SUFFIXES,
    Episode,
    Recording,
    find_files,
    open_file,
    proprio_of,
    read_header,
    short_name,
)
from envs.simulation import ORIENTATIONS
from errors import UserError

if TYPE_CHECKING:
    from agents.online import OnlineConfig

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Where recorded episodes come from: the replay of a run folder, or demonstration files."""

    name: str
    """As the user wrote it."""
    replay: Replay | None
    recordings: tuple[Recording, ...]
    camera: str
    """Of the recordings, the one that is learned from."""

    @property
    def has_masks(self) -> bool:
        """Whether some of its frames have masks."""
        if self.replay is not None:
            return "mask" in self.replay.entries
        return any(self.camera in recording.masks for recording in self.recordings)

    def episodes(self) -> Iterator[tuple[Arrays, dict]]:
        """Arrays (L + 1, ...) in the convention of `agents.replay`, and a record of each."""
        if self.replay is not None:
            yield from self.replay.episodes()
        for recording in self.recordings:
            for episode in recording.episodes:
                yield _arrays(recording, episode, self.camera), {"success": episode.success}


def open_source(name: str, config: OnlineConfig) -> Source:
    """The recorded episodes that `name` means, checked against the run that will learn from them.

    Raises:
        UserError: there are none, or they are of another task or seen otherwise.
    """
    path = Path(name)
    files = path.suffix in SUFFIXES
    if not files and path.is_dir() and not (path / "replay").exists():
        files = any(p.suffix in SUFFIXES for p in path.rglob("*"))
    if not files:
        return Source(name, Replay.at(path / "replay"), (), "")
    recordings = tuple(read_header(file) for file in find_files([path]))
    repeat = envs.action_repeat(config.task, config.environment.action_repeat)
    for recording in recordings:
        for what, theirs, ours in (
            ("task", recording.task, config.task),
            ("action repeat", recording.action_repeat, repeat),
            ("picture edge", recording.size, config.environment.size),
        ):
            if theirs != ours:
                raise UserError(f"{recording.path} has {what} {theirs}, this run {ours}")
    return Source(name, None, recordings, _camera(recordings, config))


def _camera(recordings: tuple[Recording, ...], config: OnlineConfig) -> str:
    """The camera that this run sees, as datasets call it."""
    wanted = config.environment.camera
    cameras = set.intersection(*(set(recording.cameras) for recording in recordings))
    if wanted is None and len(cameras) == 1:
        return cameras.pop()
    if wanted is None or short_name(str(wanted)) not in cameras:
        raise UserError(
            f"{recordings[0].path} was seen by {', '.join(recordings[0].cameras)}; name one of them"
            " with --environment.camera"
        )
    return short_name(str(wanted))


def _arrays(recording: Recording, episode: Episode, camera: str) -> Arrays:
    """An episode of a file, in the replay's convention: every frame with what led to it.

    A file of ours pairs ``obs[j]`` with the action that was chosen on seeing it, so what the last
    action led to is not in it: the last picture stands for it, a control step older, because the
    reward of a success lies there. LIBERO's own files (a lag of 1) lack the first picture instead.
    """
    turn, lag = ORIENTATIONS[recording.orientation], recording.lag
    with open_file(recording.path) as file:
        try:
            demo = file[f"data/{episode.name}"]
            rows = np.minimum(np.arange(episode.steps + 1 - lag), episode.steps - 1)
            actions = demo["actions"][lag:].astype(np.float32)
            rewards = demo["rewards"][lag:].astype(np.float32)
            arrays = {
                "image": turn_all(turn, demo[f"obs/{camera}_rgb"], rows),
                "proprio": proprio_of(demo)[rows],
                "action": np.concatenate([np.zeros((1, actions.shape[1]), np.float32), actions]),
                "reward": np.concatenate([np.zeros(1, np.float32), rewards]),
                "is_first": rows == -1,
                "is_terminal": rows == -1,
            }
            if camera in recording.masks:
                arrays["mask"] = turn_all(turn, demo[f"obs/{camera}_mask"], rows)
        except DAMAGED as error:
            raise UserError(
                f"{recording.path}: data/{episode.name} cannot be read: {error}"
            ) from error
    arrays["is_first"][0] = True
    # Elsewhere a success is no end: the environment goes on.
    arrays["is_terminal"][-1] = envs.suite(recording.task) == "libero" and episode.success
    return arrays


def turn_all(
    turn: Callable[[np.ndarray], np.ndarray], frames: h5py.Dataset, rows: np.ndarray
) -> np.ndarray:
    """Some frames of a file, upright."""
    whole = frames[:]
    return np.stack([turn(whole[row]) for row in rows])
