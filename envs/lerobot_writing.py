"""Demonstration files to a LeRobot dataset (``envs/lerobot.py`` has the format)."""

import contextlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import h5py
import numpy as np
from PIL import Image

from atomic_file import writing
from envs.environment_config import ORIENTATIONS
from envs.hdf5 import DAMAGED, open_file
from envs.lerobot import IMAGES, VERSION, parquet
from envs.lerobot_reading import MASK, SUCCESS
from envs.lerobot_video import VideoEncoder
from envs.recording_header import Episode, Recording, in_units, proprio_of
from errors import UserError
from mask_classes import PALETTE, UNLABELLED_COLOUR, colorize

Masks = Literal["feature", "folder", "none"]
BEGUN = ".converting"
"""File of a folder that is being written, which nobody else has made."""
FILE = "chunk-000/file-{:03d}"
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
SAMPLED = 20
"""Pictures of an episode that statistics are taken of."""
DEFAULTS = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip
"""Features that every dataset has."""


class LeRobotWriter:
    """Writes demonstrations as one dataset, whose folder gets its name when it is complete.

    Observations are those that were seen when the action of their row was chosen, whatever the
    alignment of the file; actions are in the units of whoever recorded them where the file says
    them. Every demonstration file becomes one file of rows and one video a camera.

    Args:
        recordings: headers of the files, which go together.
        out: folder of the dataset.
        fps: frames a second, of files that do not say it.
        masks: feature: images beside the videos, in the toolkit's colours; folder: PNG files under
            ``masks/``, which ``run.py annotate --masks`` reads; none: they are left out.

    Raises:
        UserError: the files do not go together or say no rate; the folder exists; pyarrow is not
            installed.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        out: str | os.PathLike,
        fps: float | None,
        masks: Masks = "feature",
    ):
        parquet()
        self._recordings, self.out = list(recordings), pathlib.Path(out)
        first = self._first = self._recordings[0]
        alike = ("cameras", "masks", "size", "action_size", "proprio_size", "fps", "action_low",
                 "action_high")  # fmt: skip
        for other in self._recordings[1:]:
            for field in alike:
                if getattr(other, field) != getattr(first, field):
                    raise UserError(
                        f"{other.path} has {field} {getattr(other, field)}, {first.path}"
                        f" {getattr(first, field)}; convert files that go together"
                    )
        if fps is not None and first.fps not in (None, fps):
            raise UserError(
                f"{first.path} says that it has {first.fps:g} steps a second, --fps {fps:g}; leave"
                " the option out"
            )
        rate = fps or first.fps
        if rate is None:
            raise UserError(f"{first.path} does not say its steps a second; give --fps")
        # Their readers want a whole number where it is one.
        self.fps = int(rate) if float(rate).is_integer() else float(rate)
        self._with_masks = bool(first.masks) and masks != "none"
        self._masks = masks
        self._failed = any(not e.success for each in recordings for e in each.episodes)
        if os.path.lexists(self.out):
            raise UserError(f"{self.out} exists already; give another name or delete it")
        self._part = self.out.with_name(self.out.name + ".part")
        self._tasks = list(dict.fromkeys(each.instruction for each in self._recordings))
        self._statistics = Statistics()
        self._frames = 0
        self._episodes: list[dict[str, Any]] = []

    def write(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Write all of it; on an error nothing is left.

        Args:
            progress: called after every episode with those done and those there are.

        Raises:
            UserError: an episode cannot be read, or something not be written.
        """
        self._make_folder()
        try:
            with writing(self._part):
                for number, recording in enumerate(self._recordings):
                    self._write_file(number, recording, progress)
                self._write_meta()
                (self._part / BEGUN).unlink()
                os.rename(self._part, self.out)
        except BaseException:
            shutil.rmtree(self._part, ignore_errors=True)
            raise

    def _make_folder(self) -> None:
        with writing(self._part):
            if self._part.is_symlink() or (
                self._part.exists() and not (self._part / BEGUN).is_file()
            ):
                raise UserError(f"{self._part} is in the way; delete it")
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir(parents=True)
            (self._part / BEGUN).touch()

    @property
    def _count(self) -> int:
        return sum(len(recording.episodes) for recording in self._recordings)

    def _write_file(
        self, number: int, recording: Recording, progress: Callable[[int, int], None]
    ) -> None:
        columns: dict[str, list[Any]] = {}
        seconds = 0.0
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_file(recording.path))
            encoders = {
                camera: stack.enter_context(self._encoder(camera, number))
                for camera in recording.cameras
            }
            for episode in recording.episodes:
                length = episode.steps - recording.lag
                if length < 1:
                    continue
                try:
                    demo = file[f"data/{episode.name}"]
                    self._add(columns, recording, episode, demo, length)
                    for camera, encoder in encoders.items():
                        self._film(encoder, recording, camera, demo, length)
                except (OSError, *DAMAGED) as error:
                    raise UserError(
                        f"{recording.path}: data/{episode.name} cannot be read: {error}"
                    ) from error
                self._note(number, recording, length, seconds)
                seconds += length / self.fps
                progress(len(self._episodes), self._count)
        self._write_rows(number, columns)

    def _encoder(self, camera: str, number: int) -> VideoEncoder:
        path = self._part / "videos" / f"{IMAGES}{camera}" / f"{FILE.format(number)}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        return VideoEncoder(path, self._first.size, self.fps)

    def _add(
        self,
        columns: dict[str, list[Any]],
        recording: Recording,
        episode: Episode,
        demo: h5py.Group,
        length: int,
    ) -> None:
        """The rows of an episode."""
        actions = demo["actions"][recording.lag :]
        actions = in_units(actions, recording.action_low, recording.action_high)
        frame = np.arange(length)
        rows: dict[str, Any] = {
            "action": actions.astype(np.float32),
            "timestamp": (frame / self.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, len(self._episodes)),
            "index": self._frames + frame,
            "task_index": np.full(length, self._tasks.index(recording.instruction)),
        }
        if recording.proprio_size:
            rows["observation.state"] = proprio_of(demo, slice(0, length))
        if self._failed:
            rows[SUCCESS] = (frame == length - 1) & episode.success
        for name, values in rows.items():
            self._statistics.add(name, values)
            columns.setdefault(name, []).extend(values.tolist())
        if not self._with_masks:
            return
        turn = ORIENTATIONS[recording.orientation]
        for camera in recording.masks:
            masks = [turn(demo[f"obs/{camera}_mask"][row]) for row in range(length)]
            if self._masks == "folder":
                self._write_pngs(recording, episode, camera, masks)
                continue
            key = f"{IMAGES}{camera}{MASK}"
            self._statistics.add_pictures(key, [colorize(mask) for mask in _some(masks)])
            columns.setdefault(key, []).extend({"bytes": _png(m), "path": None} for m in masks)

    def _film(
        self,
        encoder: VideoEncoder,
        recording: Recording,
        camera: str,
        demo: h5py.Group,
        length: int,
    ) -> None:
        turn, pictures = ORIENTATIONS[recording.orientation], demo[f"obs/{camera}_rgb"]
        sampled = set(_some(range(length)))
        kept = []
        for row in range(length):
            frame = turn(pictures[row])
            encoder.add(frame)
            if row in sampled:
                kept.append(frame)
        self._statistics.add_pictures(f"{IMAGES}{camera}", kept)

    def _write_pngs(
        self, recording: Recording, episode: Episode, camera: str, masks: Sequence[np.ndarray]
    ) -> None:
        folder = self._part / "masks" / recording.path.stem / episode.name / camera
        folder.mkdir(parents=True)
        for row, mask in enumerate(masks):
            (folder / f"{row:06d}.png").write_bytes(_png(mask, indexed=True))

    def _note(self, number: int, recording: Recording, length: int, seconds: float) -> None:
        """What meta/episodes says of an episode."""
        row: dict[str, Any] = {
            "episode_index": len(self._episodes),
            "tasks": [recording.instruction],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": number,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        for camera in recording.cameras:
            video = f"videos/{IMAGES}{camera}"
            row[f"{video}/chunk_index"], row[f"{video}/file_index"] = 0, number
            row[f"{video}/from_timestamp"] = seconds
            row[f"{video}/to_timestamp"] = seconds + length / self.fps
        row["meta/episodes/chunk_index"] = row["meta/episodes/file_index"] = 0
        self._episodes.append(row)
        self._frames += length

    def _write_rows(self, number: int, columns: dict[str, list[Any]]) -> None:
        import pyarrow as pa

        kinds = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
        arrays = {}
        for name, feature in self.features().items():
            if name not in columns:
                continue
            if feature["dtype"] == "image":
                kind: Any = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                values = columns[name]
            else:
                kind, values, width = kinds[feature["dtype"]], columns[name], feature["shape"][0]
                if name in ("action", "observation.state"):
                    if width == 1:  # a single number is no list in their format
                        values = [row[0] for row in values]
                    else:
                        kind = pa.list_(kind, width)
            arrays[name] = pa.array(values, kind)
        path = self._part / "data" / f"{FILE.format(number)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet().write_table(pa.table(arrays), path)

    def features(self) -> dict[str, dict[str, Any]]:
        """What ``info.json`` says of the features: dtype, shape, names."""
        first, size = self._first, self._first.size
        shape = {"shape": [size, size, 3], "names": ["height", "width", "channels"]}
        video = {
            "video.height": size, "video.width": size, "video.codec": "h264",
            "video.pix_fmt": "yuv420p" if size % 2 == 0 else "yuv444p", "video.fps": self.fps,
            "video.channels": 3, "video.is_depth_map": False, "has_audio": False,
        }  # fmt: skip
        found: dict[str, dict[str, Any]] = {
            f"{IMAGES}{camera}": {"dtype": "video", **shape, "info": video}
            for camera in first.cameras
        }
        if self._with_masks and self._masks == "feature":
            found |= {f"{IMAGES}{each}{MASK}": {"dtype": "image", **shape} for each in first.masks}
        tables = {"observation.state": first.proprio_size, "action": first.action_size}
        for name, width in tables.items():
            if width:
                names = [f"{name.rpartition('.')[2]}_{number}" for number in range(width)]
                found[name] = {"dtype": "float32", "shape": [width], "names": names}
        if self._failed:
            found[SUCCESS] = {"dtype": "bool", "shape": [1], "names": None}
        single = {"shape": [1], "names": None}
        return found | {name: {"dtype": dtype, **single} for name, dtype in DEFAULTS.items()}

    def _write_meta(self) -> None:
        import pandas
        import pyarrow as pa

        meta = self._part / "meta"
        episodes = meta / "episodes" / f"{FILE.format(0)}.parquet"
        episodes.parent.mkdir(parents=True)
        parquet().write_table(pa.Table.from_pylist(self._episodes), episodes)
        index = pandas.Index(self._tasks, name="task")  # their readers look tasks up by index
        tasks = pandas.DataFrame({"task_index": range(len(self._tasks))}, index=index)
        tasks.to_parquet(meta / "tasks.parquet")
        files = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        info = {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": f"data/{files}.parquet",
            "video_path": f"videos/{{video_key}}/{files}.mp4",
            "features": self.features(),
        }
        for name, content in (("info", info), ("stats", self._statistics.found())):
            text = json.dumps(content, indent=4) + "\n"
            (meta / f"{name}.json").write_text(text, encoding="utf-8")


class Statistics:
    """Mean, deviation, range and quantiles of features, as ``meta/stats.json`` has them."""

    def __init__(self) -> None:
        self._values: dict[str, list[np.ndarray]] = {}
        self._pictures: set[str] = set()

    def add(self, name: str, values: np.ndarray) -> None:
        """Take in rows of numbers (T,) or (T, D)."""
        self._values.setdefault(name, []).append(values.reshape(len(values), -1))

    def add_pictures(self, name: str, pictures: Sequence[np.ndarray]) -> None:
        """Take in pictures (S, S, 3) uint8, of which every fourth row and column counts."""
        self._pictures.add(name)
        self._values.setdefault(name, []).extend(p[::4, ::4].reshape(-1, 3) for p in pictures)

    def found(self) -> dict[str, dict[str, Any]]:
        """By feature; of pictures by colour, in [0, 1] and of shape (3, 1, 1)."""
        found: dict[str, dict[str, Any]] = {}
        for name, parts in self._values.items():
            values = np.concatenate(parts).astype(np.float64)
            pictures = name in self._pictures
            if pictures:
                values /= 255
            numbers = {
                "min": values.min(0), "max": values.max(0), "mean": values.mean(0),
                "std": values.std(0),
            }  # fmt: skip
            quantiles = np.quantile(values, QUANTILES, axis=0)
            numbers |= {
                f"q{int(100 * q):02d}": v for q, v in zip(QUANTILES, quantiles, strict=True)
            }
            shaped = {n: v.reshape(3, 1, 1) if pictures else v for n, v in numbers.items()}
            found[name] = {n: v.tolist() for n, v in shaped.items()}
            found[name]["count"] = [len(parts) if pictures else len(values)]
        return found


def _some(items: Sequence[Any]) -> Iterator[Any]:
    """At most `SAMPLED` of them, evenly spread."""
    for number in np.unique(np.linspace(0, len(items) - 1, min(SAMPLED, len(items))).astype(int)):
        yield items[int(number)]


def _png(mask: np.ndarray, indexed: bool = False) -> bytes:
    """A mask of class ids as a PNG in the toolkit's colours; `indexed`: its values are the ids."""
    encoded = io.BytesIO()
    if indexed:
        picture = Image.fromarray(np.ascontiguousarray(mask), "P")
        colours = np.full((256, 3), UNLABELLED_COLOUR, np.uint8)
        colours[: len(PALETTE)] = PALETTE
        picture.putpalette(colours.tobytes())
    else:
        picture = Image.fromarray(colorize(mask))
    picture.save(encoded, "PNG")
    return encoded.getvalue()
