"""Episodes recorded elsewhere, as an online run's replay keeps them: of other runs, or of files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import envs
from agents.online_config import RunConfig
from agents.online_loading import read_config
from agents.replay import Replay
from envs.demonstration_values import fault_of_actions, fault_of_masks, fault_of_table, refuse
from envs.demonstrations import SUFFIXES, read_headers
from envs.environment_config import ORIENTATIONS
from envs.hdf5 import DAMAGED, open_file
from envs.recording_header import Episode, Recording, proprio_of, short_name
from errors import UserError
from experiment.config_record import names_loaded

OPTIONS = {
    "task": "--task",
    "action repeat": "--environment.action-repeat",
    "picture edge": "--environment.size",
    "quality": "--environment.quality",
    "shift": "--environment.shift",
    "camera": "--environment.camera",
    "orientation": "--environment.orientation",
}
"""What has to be alike, and the option of `run.py train` that makes it so."""
TERMINATING = ("libero", "rlbench", "panda")
"""Suites in which success ends an episode."""


class Source(Protocol):
    """Where recorded episodes come from."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether some of its frames have masks."""
        ...

    def episodes(self) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """Arrays (L + 1, ...) in the convention of `agents.replay`, and a record of each."""
        ...


class RecordedRun:
    """The replay of another run's folder."""

    def __init__(self, name: str):
        self.name = name
        self._replay = Replay.at(Path(name) / "replay")
        self.has_masks = "mask" in self._replay.entries

    def episodes(self) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """As `Source`."""
        return self._replay.episodes()


@dataclass(frozen=True)
class RecordedFiles:
    """Demonstration files, seen by one of their cameras."""

    name: str
    recordings: tuple[Recording, ...]
    camera: str
    """As datasets call it."""
    orientation: str
    """Of the pictures that the run sees (``EnvironmentConfig``)."""

    @property
    def has_masks(self) -> bool:
        """As `Source`."""
        return any(self.camera in recording.masks for recording in self.recordings)

    def episodes(self) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """As `Source`."""
        for recording in self.recordings:
            for episode in recording.episodes:
                yield self._arrays(recording, episode), {"success": episode.success}

    def _arrays(self, recording: Recording, episode: Episode) -> dict[str, np.ndarray]:
        """An episode of a file, in the replay's convention: every frame with what led to it.

        A file of ours pairs ``obs[j]`` with the action that was chosen on seeing it, so what the
        last action led to is not in it, and that action is left out. Where a success ends the
        episode the reward lies there, and the last picture stands for the one after it. LIBERO's
        own files (a lag of 1) lack the first picture instead.
        """
        with open_file(recording.path) as file:
            try:
                return self._read(recording, episode, file[f"data/{episode.name}"])
            except DAMAGED as error:
                raise UserError(
                    f"{recording.path}: data/{episode.name} cannot be read: {error}"
                ) from error

    def _read(self, recording: Recording, episode: Episode, demo: Any) -> dict[str, np.ndarray]:
        steps, lag = episode.steps, recording.lag
        ends = envs.suite(recording.task) in TERMINATING and episode.success
        rows = np.arange(steps + 1 if ends and not lag else steps)
        rows, led = np.minimum(rows, steps - 1), slice(lag, lag + len(rows) - 1)
        actions, rewards, proprio = demo["actions"][:], demo["rewards"][:], proprio_of(demo)
        if rewards.shape != (steps,):
            raise ValueError(f"rewards has shape {rewards.shape}, not {(steps,)}")
        where = f"{recording.path}: data/{episode.name}"
        refuse(fault_of_actions(actions, recording.task), f"{where}/actions")
        refuse(fault_of_table(rewards[:, None]), f"{where}/rewards")
        refuse(fault_of_table(proprio), f"{where}, proprioception")
        arrays = {
            "image": self._upright(recording, demo[f"obs/{self.camera}_rgb"][:])[rows],
            "proprio": proprio[rows],
            "action": np.concatenate([np.zeros_like(actions[:1]), actions[led]]),
            "reward": np.concatenate([np.zeros_like(rewards[:1]), rewards[led]]),
            "is_first": np.zeros(len(rows), bool),
            "is_terminal": np.zeros(len(rows), bool),
        }
        for name in ("action", "reward"):
            arrays[name] = arrays[name].astype(np.float32)
        arrays["is_first"][0] = True
        arrays["is_terminal"][-1] = ends
        if self.camera in recording.masks:
            mask = demo[f"obs/{self.camera}_mask"][:]
            refuse(fault_of_masks(mask), f"{where}/obs/{self.camera}_mask")
            arrays["mask"] = self._upright(recording, mask)[rows]
        return arrays

    def _upright(self, recording: Recording, frames: np.ndarray) -> np.ndarray:
        """Frames (T, S, S, ...) as the run sees them: both turns are their own inverses."""
        stored, seen = ORIENTATIONS[recording.orientation], ORIENTATIONS[self.orientation]
        return np.stack([seen(stored(frame)) for frame in frames])


def open_source(name: str, config: RunConfig, camera: str, trusted: Collection[str] = ()) -> Source:
    """The recorded episodes that `name` means, if the run can learn from them.

    Args:
        name: a run folder, a demonstration file, or a folder of those.
        config: of the run.
        camera: what the run sees, by the simulator's name.
        trusted: classes that the other run's configuration may name, beside those of `config`.

    Raises:
        UserError: there are none, or they are of another task or were seen otherwise.
    """
    path, ours, seen_by = Path(name), config.environment, short_name(camera)
    wanted = {
        "task": config.task,
        "action repeat": envs.action_repeat(config.task, ours.action_repeat),
        "picture edge": ours.size,
        "quality": ours.quality,
        "shift": ours.shift,
        "camera": seen_by,
        "orientation": ours.orientation,  # of other runs; files are turned
    }
    if not os.path.exists(path):
        raise UserError(f"there is no {name}; --recorded takes run folders and demonstration files")
    files = path.suffix in SUFFIXES
    if not files and path.is_dir() and not (path / "replay").exists():
        files = any(each.suffix in SUFFIXES for each in path.rglob("*"))
    if files:
        recordings = tuple(read_headers([path]))
        for recording in recordings:
            seen = {
                "task": recording.task,
                "action repeat": recording.action_repeat,
                "picture edge": recording.size,
                "quality": recording.quality,
                "shift": recording.shift,
                "camera": seen_by,
            }
            if seen_by not in recording.cameras:
                seen["camera"] = " and ".join(recording.cameras)
            _check(recording.path, seen, wanted)
            _check_proprio(recording.path, recording.proprio_size > 0, ours.proprio)
        return RecordedFiles(name, recordings, seen_by, ours.orientation)
    theirs = read_config(path, {*trusted, *names_loaded(config)})
    view, their_camera = theirs.environment, seen_by
    if view.camera != ours.camera:
        their_camera = "the suite's own" if view.camera is None else short_name(str(view.camera))
    seen = {
        "task": theirs.task,
        "action repeat": envs.action_repeat(theirs.task, view.action_repeat),
        "picture edge": view.size,
        "quality": view.quality,
        "shift": view.shift,
        "camera": their_camera,
        "orientation": view.orientation,
    }
    _check(path, seen, wanted)
    _check_proprio(path, view.proprio, ours.proprio)
    return RecordedRun(name)


def _check_proprio(path: Path, there: bool, asked: bool) -> None:
    if asked and not there:
        raise UserError(
            f"{path} holds no proprioception; leave --environment.proprio out, or record it again"
        )


def _check(path: Path, seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse recordings that are not like what the run itself sees; says how to make them so."""
    for what, theirs in seen.items():
        if theirs != wanted[what]:
            remedy = f"give the same {OPTIONS[what]}"
            if what in ("picture edge", "quality") and path.suffix in SUFFIXES:
                option = "size" if what == "picture edge" else "quality"
                remedy += (
                    f", or draw the file again: python run.py annotate --data {path} --{option}"
                    f" {wanted[what]}"
                )
            raise UserError(
                f"{path} has {what} {theirs or 'none'}, this run {wanted[what] or 'none'}; {remedy}"
            )
