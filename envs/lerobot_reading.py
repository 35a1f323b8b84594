"""LeRobot datasets to demonstration files, one a task."""

import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from envs.demonstration_values import ROUNDING
from envs.demonstration_writer import DemonstrationWriter, mask_attributes
from envs.demonstrations import read_header
from envs.hdf5 import numbers, open_file, text
from envs.lerobot import IMAGES, LeRobotDataset, LeRobotEpisode
from envs.mask_palette import MaskPalette
from envs.picture_fit import Fit, fitted
from errors import UserError

MASK = "_mask"
"""Ends the key of the feature with a camera's masks."""
SUCCESS = "next.success"
LONGEST_NAME = 80
"""Characters of a file's name."""


class LeRobotConversion:
    """A dataset on its way to demonstration files.

    Args:
        root: folder of the dataset.
        cameras: names of cameras, the one that plans are made from first; none: all.
        size: edge of the pictures that are written, pixels.
        fit: how other shapes become squares.
        state: key of proprioception; where a dataset has none of that name there is none.
        action: key of actions.
        range_of: a demonstration file whose action range is taken; None: that of the dataset.
        palette: what the masks' colours or numbers mean.

    Raises:
        UserError: it is no dataset, or lacks a feature.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        cameras: Sequence[str],
        size: int,
        fit: Fit,
        state: str,
        action: str,
        range_of: str | None,
        palette: MaskPalette,
    ):
        self.dataset = dataset = LeRobotDataset(root)
        self._size, self._fit, self._palette = size, fit, palette
        pictures = [key for key in dataset.pictures if not key.endswith(MASK)]
        known = {_short(key): key for key in pictures}
        self.cameras = {
            _plain_name(name): dataset.require(known.get(name, name), "--cameras", pictures)
            for name in cameras or known
        }
        if len(self.cameras) < len(cameras):
            raise UserError(f"--cameras names one twice: {', '.join(cameras)}")
        if not self.cameras:
            raise UserError(f"{dataset.root}/meta/info.json has no feature that is a picture")
        self.masks = {
            camera: f"{key}{MASK}"
            for camera, key in self.cameras.items()
            if f"{key}{MASK}" in dataset.pictures
        }
        for key in self.masks.values():
            if dataset.is_video(key):
                raise UserError(
                    f"{dataset.root}/meta/info.json: {key} is a video, which changes colours at"
                    " edges; store masks as images, or as PNG files for run.py annotate --masks"
                )
        tables = [k for k, each in dataset.features.items() if k not in dataset.pictures]
        self.action = dataset.require(action, "--action", tables)
        self.state = state if state in tables else None
        if self.state is None and state != "observation.state":
            dataset.require(state, "--state", tables)
        self._low, self._high = self._range(range_of)

    def _range(self, range_of: str | None) -> tuple[np.ndarray, np.ndarray]:
        """What −1 and 1 stand for, (A,) each; empty where actions are in [−1, 1]."""
        if range_of is not None:
            read_header(range_of)  # refuses what is no demonstration file
            with open_file(range_of) as file:
                low, high = (
                    np.array(numbers(file["data"], f"action_{edge}", 10_000))
                    for edge in ("low", "high")
                )
            return low, high
        lows, highs = [], []
        for episode in self.dataset.episodes:
            values = self._numbers(episode, self.action).astype(np.float64)
            lows.append(values.min(0))
            highs.append(values.max(0))
        low, high = np.min(lows, 0), np.max(highs, 0)
        if np.abs([low, high]).max() <= 1 + ROUNDING:
            return np.empty(0), np.empty(0)
        still = high - low < 1e-6
        return np.where(still, low - 1, low), np.where(still, high + 1, high)

    def tasks(self) -> dict[str, list[LeRobotEpisode]]:
        """Episodes by the name of the file that they go into, which is made of the task's text."""
        by_text: dict[str, list[LeRobotEpisode]] = {}
        for episode in self.dataset.episodes:
            by_text.setdefault(episode.task, []).append(episode)
        found: dict[str, list[LeRobotEpisode]] = {}
        for words, episodes in by_text.items():
            name = re.sub(r"[\W_]+", "-", words.lower()).strip("-")[:LONGEST_NAME].strip("-")
            name, number = name or "task", 1
            while name in found:
                number += 1
                name = f"{name.rpartition('-')[0] if number > 2 else name}-{number}"
            found[name] = episodes
        return found

    @property
    def _made_by(self) -> str:
        return f"LeRobot dataset {self.dataset.root.resolve().name}, {self.dataset.robot_type}"

    def refuse_others(self, path: pathlib.Path, episodes: Sequence[LeRobotEpisode]) -> None:
        """Refuse a finished file in the place of the one to be written that is not of these
        episodes of this dataset, or was made by other options. Raises UserError."""
        there = read_header(path)
        with open_file(path) as file:
            made_by, kept = text(file["data"], "made_by", "somebody"), dict(file["data"].attrs)
        if made_by != self._made_by or len(there.episodes) != len(episodes):
            raise UserError(
                f"{path} is there already and holds {len(there.episodes)} episodes made by"
                f" {made_by:.200}, not {len(episodes)} by {self._made_by}; give another --out"
            )
        wanted: dict[str, Any] = self._attributes(path, episodes)
        for name in (*wanted, "action_low", "action_high"):
            ours, theirs = np.asarray(wanted.get(name)), np.asarray(kept.get(name))
            older = name.startswith("feature_") and name not in kept
            if not older and not np.array_equal(ours, theirs):
                raise UserError(
                    f"{path} is there already and was made with {name} {theirs!s:.100}, not"
                    f" {ours!s:.100}; give another --out"
                )

    def write(
        self,
        path: pathlib.Path,
        episodes: Sequence[LeRobotEpisode],
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Write the episodes of one task; begun before, go on behind the last complete one.

        Raises:
            UserError: a feature or a picture cannot be read, or the file not be written; names the
                file, the episode and the frame.
        """
        with DemonstrationWriter(path, self._attributes(path, episodes)) as writer:
            for number, episode in enumerate(episodes):
                if number >= writer.episodes:
                    arrays = self._arrays(episode)
                    about = {"success": self._success(episode), "episode_index": episode.index}
                    writer.add(arrays, about, number + 1)
                progress(number + 1)

    def _attributes(self, path: pathlib.Path, episodes: Sequence[LeRobotEpisode]) -> dict[str, Any]:
        """What a file says of its episodes, and how they were made."""
        dataset, words = self.dataset, episodes[0].task
        attributes: dict[str, Any] = {
            "task": f"own/{path.stem}",
            "instruction": words or path.stem,
            "camera": ",".join(self.cameras),
            "fps": dataset.fps,
            "obs_alignment": "before_action",
            "macros_image_convention": "opencv",
            "size": self._size,
            "fit": self._fit,
            "made_by": self._made_by,
            "feature_action": self.action,
            "feature_state": self.state or "",
        }
        if self.masks:
            attributes |= mask_attributes()
        if len(self._low):
            attributes |= {"action_low": self._low, "action_high": self._high}
        return attributes

    def _arrays(self, episode: LeRobotEpisode) -> dict[str, np.ndarray]:
        arrays = {"actions": self._actions(episode)}
        if self.state is not None:
            arrays["obs/proprio"] = self._numbers(episode, self.state).astype(np.float32)
        for camera, key in self.cameras.items():
            frames = self.dataset.frames(episode, key)
            arrays[f"obs/{camera}_rgb"] = np.stack(
                [fitted(frame, self._size, self._fit) for frame in frames]
            )
        for camera, key in self.masks.items():
            arrays[f"obs/{camera}{MASK}"] = np.stack(
                [
                    fitted(self._palette.of_picture(picture, where), self._size, self._fit)
                    for where, picture in self.dataset.images(episode, key)
                ]
            )
        return arrays

    def _actions(self, episode: LeRobotEpisode) -> np.ndarray:
        """(T, A) float64 in [−1, 1]."""
        values = self._numbers(episode, self.action).astype(np.float64)
        if len(self._low):
            if values.shape[1] != len(self._low):
                raise UserError(
                    f"{self.dataset.root}: actions are {values.shape[1]} numbers, the range that"
                    f" --action-range names is of {len(self._low)}"
                )
            values = 2 * (values - self._low) / (self._high - self._low) - 1
        outside = np.abs(values) > 1 + ROUNDING
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise UserError(
                f"{self.dataset.root}: {self.action} of episode {episode.index}, frame {row},"
                f" number {column}, is outside of the range that --action-range names; leave the"
                " option out, or name a file with a wider range"
            )
        return np.clip(values, -1, 1)

    def _numbers(self, episode: LeRobotEpisode, key: str) -> np.ndarray:
        values = self.dataset.table(episode, key)
        finite = np.isfinite(values)
        if not finite.all():
            row = np.argwhere(~finite)[0][0]
            raise UserError(
                f"{self.dataset.root}: {key} of episode {episode.index}, frame {row}, is not finite"
            )
        return values

    def _success(self, episode: LeRobotEpisode) -> bool:
        if SUCCESS not in self.dataset.features:
            return True
        return bool(self.dataset.table(episode, SUCCESS).any())


def _short(key: str) -> str:
    """A camera's name in the key of its pictures: front of observation.images.front."""
    return key.removeprefix(IMAGES).removeprefix("observation.")


def _plain_name(camera: str) -> str:
    """A camera's name as datasets of HDF5 files may have it."""
    return re.sub(r"\W+", "_", _short(camera)) or "camera"
