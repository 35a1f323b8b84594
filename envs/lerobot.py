"""LeRobot's dataset format, v3.0, read directly: Parquet by pyarrow, videos by ffmpeg.

    meta/info.json                          fps, features (dtype, shape, names), where files lie
    meta/tasks.parquet                      task_index of each task's text
    meta/episodes/chunk-000/file-000.parquet   of every episode: length, tasks, and in which file,
                                            from which second on, its rows and videos are
    data/chunk-000/file-000.parquet         a row a frame: state, action, images as PNG
    videos/KEY/chunk-000/file-000.mp4       the frames of several episodes one after the other

``pip install '.[lerobot]'`` brings pyarrow; the ``lerobot`` package, which fixes versions of torch
and numpy, is not needed.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from envs.lerobot_video import decoded
from envs.mask_palette import BROKEN
from errors import UserError
from regular_file import open_regular, read_text

VERSION = "v3.0"
IMAGES = "observation.images."
"""What names of cameras begin with."""
MOST_FRAMES = 10**7
"""Of one dataset."""
LARGEST_JSON = 2**26
"""Bytes of info.json, whose features may be many."""


@dataclasses.dataclass(frozen=True)
class LeRobotEpisode:
    """Where an episode lies."""

    index: int
    task: str
    length: int
    """Frames."""
    row: dict[str, Any]
    """What meta/episodes says of it."""


class LeRobotDataset:
    """A dataset on disk.

    Args:
        root: its folder.

    Attributes:
        root: its folder.
        fps: frames a second.
        robot_type: as its maker calls it.
        features: by key, ``dtype`` and ``shape``.
        episodes: all, in order.

    Raises:
        UserError: it is no such dataset, or is of another version; pyarrow is not installed.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = pathlib.Path(root)
        parquet()  # its absence is said before anything is read
        self._info_path = self.root / "meta" / "info.json"
        info = self._info()
        version = info.get("codebase_version")
        if version != VERSION:
            raise UserError(
                f"{self._info_path} is of LeRobot's format {version!s:.20}, not {VERSION}; its"
                " script lerobot.datasets.v30.convert_dataset_v21_to_v30 brings older ones there"
            )
        self.fps = self._number(info, "fps")
        self.robot_type = str(info.get("robot_type") or "robot of unknown type")[:100]
        self.features: dict[str, dict[str, Any]] = info.get("features")  # type: ignore[assignment]  # looked at next
        if not isinstance(self.features, dict) or not all(
            isinstance(each, dict) and isinstance(each.get("dtype"), str)
            for each in self.features.values()
        ):
            raise UserError(f"{self._info_path}: features are no mapping of names to dtypes")
        self._paths = {kind: str(info.get(f"{kind}_path") or "") for kind in ("data", "video")}
        self.episodes = tuple(self._episodes())
        self._refuse_incomplete(info)

    def _info(self) -> dict[str, Any]:
        try:
            info = json.loads(read_text(self._info_path, LARGEST_JSON))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._info_path} is no JSON: {error}") from error
        if not isinstance(info, dict):
            raise UserError(f"{self._info_path} is no JSON object")
        return info

    def _refuse_incomplete(self, info: dict[str, Any]) -> None:
        """Episodes that are listed twice, or fewer or more of them than the dataset is said to
        have."""
        folder, seen = self.root / "meta" / "episodes", set()
        for episode in self.episodes:
            if episode.index in seen:
                raise UserError(f"{folder} lists episode {episode.index} twice")
            seen.add(episode.index)
        said = info.get("total_episodes", len(seen))
        if not seen or said != len(seen):
            raise UserError(
                f"{folder} lists {len(seen)} episodes, {self._info_path} says that there are"
                f" {said!r:.40}"
            )

    def _number(self, info: dict[str, Any], name: str) -> float:
        value = info.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1000:
            raise UserError(f"{self._info_path}: {name} is {value!r:.40}, not of 0 to 1000")
        return float(value)

    @property
    def pictures(self) -> list[str]:
        """Keys of all features that are pictures in colours, in the order of the dataset."""
        return [
            key
            for key, each in self.features.items()
            if each["dtype"] in ("image", "video")
            and self._about(key).get("video.is_depth_map") is not True
        ]

    def _about(self, key: str) -> dict[str, Any]:
        """What is said of a video."""
        about = self.features[key].get("info") or self.features[key].get("video_info")
        return about if isinstance(about, dict) else {}

    def is_video(self, key: str) -> bool:
        """Whether the pictures of a feature are compressed as video, and lose something."""
        return self.features[key]["dtype"] == "video"

    def require(self, key: str, option: str, among: Sequence[str]) -> str:
        """``key``, which has to be one of some features.

        Raises:
            UserError: it is not; names the option that asked for it.
        """
        if key not in among:
            there = ", ".join(among) or "none"
            raise UserError(f"{self._info_path} has no feature {key} ({option}); it has {there}")
        return key

    # Rows

    def table(self, episode: LeRobotEpisode, key: str) -> np.ndarray:
        """Numbers of a feature, (length, D); a single number a frame is (length, 1).

        Raises:
            UserError: they cannot be read, or are other than the length says.
        """
        path, column = self._column(episode, key)
        try:
            values = np.array(column.to_pylist())
            if values.dtype.kind not in "fiub":
                raise ValueError(f"values are {values.dtype}")
        except ValueError as error:
            raise UserError(
                f"{path}: {key} of episode {episode.index} are no rows of numbers: {error}"
            ) from error
        return values.reshape(episode.length, -1)

    def frames(self, episode: LeRobotEpisode, key: str) -> Iterator[np.ndarray]:
        """The pictures of a feature, each (H, W, 3) uint8.

        Raises:
            UserError: one cannot be decoded, or there are fewer than the length says; names the
                file, the episode and the frame.
        """
        if self.is_video(key):
            path = self._file("video", episode, f"videos/{key}/", key)
            rate = self._about(key).get("video.fps", self.fps)
            if rate != self.fps:
                raise UserError(
                    f"{self._info_path}: fps is {self.fps:g}, video.fps of {key} {rate!s:.20};"
                    " videos of another rate than the rows are not read"
                )
            start = self._start(episode, key)
            what = f"episode {episode.index}"
            yield from decoded(path, start, episode.length, self.fps, what)
            return
        for where, picture in self.images(episode, key):
            try:
                yield np.asarray(picture.convert("RGB"))
            except BROKEN as error:
                raise UserError(f"{where} cannot be decoded: {error}") from error

    def images(self, episode: LeRobotEpisode, key: str) -> Iterator[tuple[str, Image.Image]]:
        """The images of a feature that is no video, as stored, and where each lies.

        Raises:
            UserError: one is none; names the file, the episode and the frame.
        """
        path, column = self._column(episode, key)
        for frame, cell in enumerate(column.to_pylist()):
            where = f"{path}: {key} of episode {episode.index}, frame {frame},"
            if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
                raise UserError(f"{where} holds no picture")
            try:
                picture = Image.open(io.BytesIO(cell["bytes"]), formats=["PNG", "JPEG"])
            except BROKEN as error:
                raise UserError(f"{where} cannot be decoded: {error}") from error
            yield where, picture

    def _column(self, episode: LeRobotEpisode, key: str) -> tuple[pathlib.Path, Any]:
        path = self._file("data", episode, "data/")
        table = read_parquet(path, (key, "frame_index", "timestamp"), episode.index)
        if key not in table.column_names:
            raise UserError(f"{path} has no column {key}")
        column = table.column(key)
        if len(column) != episode.length or column.null_count:
            raise UserError(
                f"{path} has {len(column) - column.null_count} rows of {key} of episode"
                f" {episode.index}, which has {episode.length} frames"
            )
        self._check_order(path, table, episode)
        return path, column

    def _check_order(self, path: pathlib.Path, table: Any, episode: LeRobotEpisode) -> None:
        """Rows lie in the order of their frames, and their seconds are those of the rate."""
        for name, rate in (("frame_index", 1.0), ("timestamp", self.fps)):
            if name not in table.column_names:
                continue
            for frame, value in enumerate(table.column(name).to_pylist()):
                if not isinstance(value, (int, float)) or not abs(value * rate - frame) < 0.5:
                    raise UserError(
                        f"{path}: {name} of episode {episode.index}, row {frame}, is {value!r:.40},"
                        f" not {frame / rate:g}, at {self.fps:g} frames a second"
                    )

    # Files

    def _file(self, kind: str, episode: LeRobotEpisode, prefix: str, key: str = "") -> pathlib.Path:
        """The file of an episode's rows or video, inside of the dataset's folder."""
        name = self._paths[kind].replace("{video_key}", key)
        for part in ("chunk_index", "file_index"):
            number = self._whole(episode, f"{prefix}{part}")
            for digits in re.findall(rf"\{{{part}:0(\d)d\}}", name):
                name = name.replace(f"{{{part}:0{digits}d}}", str(number).zfill(int(digits)))
            name = name.replace(f"{{{part}}}", str(number))
        relative = pathlib.PurePosixPath(name)
        if not name or "{" in name or relative.is_absolute() or ".." in relative.parts:
            raise UserError(
                f"{self._info_path}: {kind}_path leads to {name!r:.80}, which is no file of the"
                " dataset"
            )
        return self.root / relative

    def _whole(self, episode: LeRobotEpisode, name: str) -> int:
        value = episode.row.get(name)
        if not isinstance(value, int) or not 0 <= value < MOST_FRAMES:
            raise UserError(
                f"{self.root}/meta/episodes: {name} of episode {episode.index} is {value!r:.40}"
            )
        return value

    def _start(self, episode: LeRobotEpisode, key: str) -> float:
        """Second of a video at which an episode begins."""
        start, end = (
            self._seconds(episode, f"videos/{key}/{edge}_timestamp") for edge in ("from", "to")
        )
        if not abs((end - start) * self.fps - episode.length) < 0.5:
            raise UserError(
                f"{self.root}/meta/episodes: episode {episode.index} is from second {start:g} to"
                f" {end:g} of {key}, which are no {episode.length} frames"
            )
        return start

    def _seconds(self, episode: LeRobotEpisode, name: str) -> float:
        value = episode.row.get(name)
        if not isinstance(value, (int, float)) or not 0 <= value < MOST_FRAMES:
            raise UserError(
                f"{self.root}/meta/episodes: {name} of episode {episode.index} is {value!r:.40}"
            )
        return float(value)

    def _episodes(self) -> Iterator[LeRobotEpisode]:
        folder = self.root / "meta" / "episodes"
        files = sorted(folder.glob("*/*.parquet"))
        if not files:
            raise UserError(f"{folder} holds no episodes (chunk-000/file-000.parquet)")
        tasks = self._tasks()
        for path in files:
            table = read_parquet(path)
            kept = [name for name in table.column_names if not name.startswith("stats/")]
            for row in table.select(kept).to_pylist():
                index, length = row.get("episode_index"), row.get("length")
                if not isinstance(index, int) or not isinstance(length, int):
                    raise UserError(f"{path} has an episode without episode_index or length")
                if not 1 <= length <= MOST_FRAMES:
                    raise UserError(f"{path}: episode {index} has {length} frames")
                told = row.get("tasks")
                task = told[0] if isinstance(told, list) and told else self._first(tasks)
                yield LeRobotEpisode(index, str(task), length, row)

    def _tasks(self) -> dict[int, str]:
        path = self.root / "meta" / "tasks.parquet"
        table = read_parquet(path)
        words = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(words) != 1:
            raise UserError(f"{path} is no table of task_index and tasks")
        numbers, texts = table.column("task_index").to_pylist(), table.column(words[0]).to_pylist()
        return dict(zip(numbers, map(str, texts), strict=True))

    def _first(self, tasks: dict[int, str]) -> str:
        return next(iter(tasks.values()), "")


def read_parquet(
    path: pathlib.Path, columns: Sequence[str] = (), episode: int | None = None
) -> Any:
    """A table of a Parquet file: some columns, or all; the rows of one episode, or all.

    Raises:
        UserError: it cannot be read.
    """
    pq = parquet()
    with open_regular(path):
        pass  # a pipe would be waited for
    try:
        there = set(pq.read_schema(path).names)
        chosen = [name for name in columns if name in there] if columns else None
        rows = None if episode is None else [("episode_index", "==", episode)]
        return pq.read_table(path, columns=chosen, filters=rows)
    except (OSError, ValueError, KeyError, TypeError, MemoryError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no readable Parquet file: {reason}") from error


@functools.cache
def parquet() -> Any:
    """pyarrow's module for Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "LeRobot's datasets are Parquet files, and pyarrow is not installed; pip install"
            " '.[lerobot]'"
        ) from error
    return pyarrow.parquet
