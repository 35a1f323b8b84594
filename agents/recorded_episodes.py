"""Episodes recorded elsewhere, as an online run's replay keeps them: of other runs, or of files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from envs.environment_config import ORIENTATIONS, camera_names
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
    """Demonstration files, seen by some of their cameras."""

    name: str
    recordings: tuple[Recording, ...]
    cameras: tuple[str, ...]
    """As datasets call them."""
    orientation: str
    """Of the pictures that the run sees (``EnvironmentConfig``)."""

    @property
    def has_masks(self) -> bool:
        """As `Source`."""
        return any(map(self._masked, self.recordings))

    def _masked(self, recording: Recording) -> bool:
        return set(self.cameras) <= set(recording.masks)

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
            "image": self._views(recording, demo, "rgb", where)[rows],
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
        if self._masked(recording):
            arrays["mask"] = self._views(recording, demo, "mask", where)[rows]
        return arrays

    def _views(self, recording: Recording, demo: Any, kind: str, where: str) -> np.ndarray:
        """Frames (T, [V,] S, S, ...) as the run sees them: both turns are their own inverses.

        Raises:
            UserError: masks hold what is no class.
        """
        stored, seen = ORIENTATIONS[recording.orientation], ORIENTATIONS[self.orientation]
        views = []
        for camera in self.cameras:
            frames = demo[f"obs/{camera}_{kind}"][:]
            if kind == "mask":
                refuse(fault_of_masks(frames), f"{where}/obs/{camera}_mask")
            views.append(np.stack([seen(stored(frame)) for frame in frames]))
        return views[0] if len(views) == 1 else np.stack(views, axis=1)


def open_source(
    name: str, config: RunConfig, cameras: Sequence[str], trusted: Collection[str] = ()
) -> Source:
    """The recorded episodes that `name` means, if the run can learn from them.

    Args:
        name: a run folder, a demonstration file, or a folder of those.
        config: of the run.
        cameras: what the run sees by, as the simulator names them.
        trusted: classes that the other run's configuration may name, beside those of `config`.

    Raises:
        UserError: there are none, or they are of another task or were seen otherwise.
    """
    path, ours, seen_by = Path(name), config.environment, tuple(map(short_name, cameras))
    by_name = " and ".join(seen_by)
    wanted = {
        "task": config.task,
        "action repeat": envs.action_repeat(config.task, ours.action_repeat),
        "picture edge": ours.size,
        "quality": ours.quality,
        "shift": ours.shift,
        "camera": by_name,
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
                "camera": by_name,
            }
            if not set(seen_by) <= set(recording.cameras):
                seen["camera"] = " and ".join(recording.cameras)
            _check(recording.path, seen, wanted)
            _check_proprio(recording.path, recording.proprio_size > 0, ours.proprio)
        return RecordedFiles(name, recordings, seen_by, ours.orientation)
    theirs = read_config(path, {*trusted, *names_loaded(config)})
    view, their_camera = theirs.environment, by_name
    if view.camera != ours.camera:
        named = [] if view.camera is None else map(short_name, camera_names(view.camera))
        their_camera = " and ".join(named) or "the suite's own"
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
