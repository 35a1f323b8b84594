"""The folder of one training run: configuration, metrics, curve, videos and checkpoint.

Every file except ``metrics.jsonl`` is written under a temporary name and renamed, so that a
process killed at any instant leaves either the old file or the new one. Nothing is written through
a link out of the folder. Pictures and videos are for people: where they cannot be written, training
says so and goes on.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from atomic_file import atomic_file, temporary_path, writing
from errors import UserError
from experiment.checkpoint import expect, load_checkpoint, save_checkpoint
from experiment.config_record import ConfigRecord
from experiment.learning_curve import draw_curve
from experiment.locks import FolderLock, exclusive
from experiment.metrics_log import MetricsLog
from experiment.notes import note
from experiment.own_folder import own_folder, refuse_other_kind, refuse_strangers
from experiment.video import write_video

Config = TypeVar("Config")


class RunFolder:
    """One run on disk; a context, which gives up the lock at its end and forgets a run that a
    user's mistake kept from beginning.

    ``RunFolder.create_or_resume`` takes the folder for training and locks it;
    ``RunFolder.open`` looks at a folder another process may be training in.

    Holds ``config.yaml``, ``metrics.jsonl``, TensorBoard events, ``curve.png``, ``videos/``,
    ``checkpoint.pt``; ``replay/`` belongs to the replay buffer.

    Attributes:
        config: the record of the configuration.
        metrics: the log of metrics.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = ConfigRecord(self.path / "config.yaml")
        self.metrics = MetricsLog(self.path)
        self._lock: FolderLock | None = None
        self._is_new = self._begun = False
        self._previous_seconds = 0.0
        self._clock_started = time.monotonic()

    @property
    def curve_path(self) -> Path:
        """The picture of the learning curve."""
        return self.path / "curve.png"

    @property
    def demonstrations_path(self) -> Path:
        """Which demonstrations each stage of an imitation run learns from."""
        return self.path / "demonstrations.json"

    @property
    def checkpoint_path(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def evaluation_path(self) -> Path:
        """What `run.py evaluate` has measured (``evaluation_record``)."""
        return self.path / "evaluation.json"

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike, config: Any) -> RunFolder:
        """Take ``path`` for training with ``config``, a dataclass with fields ``task`` and
        ``seed``, and ``steps`` or another field that it names as its ``MAY_GROW``.

        A new or empty folder gets its ``config.yaml``. In an existing run every field must equal
        the recorded one, except those that may grow or change (``experiment/config_record.py``);
        the file then records the new values.

        Raises:
            UserError: ``path`` is not a run folder but holds files, belongs to a run with another
                configuration, is in use by another process, has something in it through which
                training would write elsewhere (``own_folder.refuse_strangers``), or cannot be
                written in. Nothing is changed then.
        """
        folder = cls(path)
        with writing(folder.path, "make room there, or choose another --logdir"):
            folder._refuse_foreign_path()
            folder.path.mkdir(parents=True, exist_ok=True)
            refuse_strangers(folder.path)
            folder._lock = FolderLock(folder.path)
        try:
            folder._is_new = not folder.config.exists
            if folder._is_new:
                folder.config.create(config)
            else:
                folder.config.resume(config)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike) -> RunFolder:
        """The existing run at ``path``, unlocked, to read from it or add an evaluation to it.

        Raises:
            UserError: there is no run at ``path``.
        """
        folder = cls(path)
        if not os.path.exists(folder.path):
            raise UserError(
                f"there is no run folder {folder.path}; train one with "
                f"`python run.py train --logdir {folder.path}`, or check the path"
            )
        if not folder.config.exists:
            raise UserError(
                f"{folder.path} is not a run folder (no config.yaml); "
                "name the folder that was given to train as --logdir"
            )
        return folder

    @staticmethod
    def read_config(
        path: str | os.PathLike, config_class: type[Config], trusted: Collection[str] = ()
    ) -> Config:
        """The configuration recorded in the run folder ``path``; see ``ConfigRecord.load``.

        Raises:
            UserError: there is no run at ``path``, or as ``ConfigRecord.load``.
        """
        return RunFolder.open(path).config.load(config_class, trusted)

    @property
    def of_imitation(self) -> bool:
        """Whether `run.py imitate` trains here, not `run.py train`."""
        return "policy_steps" in self.config.read()["config"]

    def close(self) -> None:
        """Finish the event file and give up the lock. Closing twice is allowed."""
        self.metrics.close()
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            self.abandon()
        self.close()

    def _refuse_foreign_path(self) -> None:
        if os.path.lexists(self.path / "model.safetensors"):
            raise UserError(
                f"{self.path} is an exported policy, which learns nothing more; choose another"
                " --logdir"
            )
        if not os.path.exists(self.path) or self.config.exists:
            return
        if not os.path.isdir(self.path):
            raise UserError(f"{self.path} is a file, not a folder; choose another --logdir")
        # What a process killed while it made the folder leaves behind.
        unfinished = {"lock", temporary_path(self.config.path).name}
        if {entry.name for entry in self.path.iterdir()} - unfinished:
            raise UserError(
                f"{self.path} holds files but no config.yaml, so it is not a run folder; "
                "choose another --logdir"
            )

    def abandon(self) -> None:
        """Forget a run that could not begin, so that a corrected command may use its folder; one
        that was there before has its configuration as it was.

        Only what this process made goes, and only while no episode and no metric is in it.
        """
        if not self._begun:
            self.config.put_back()
        episodes = self.path / "replay" / "episodes.jsonl"
        if self._is_new and not episodes.exists() and not self.metrics.path.exists():
            with contextlib.suppress(OSError):
                self.config.path.unlink(missing_ok=True)
                self.demonstrations_path.unlink(missing_ok=True)
            shutil.rmtree(self.path / "replay", ignore_errors=True)

    # ------------------------------------------------------------------ time and metrics

    def start_clock(self, previous_seconds: float = 0.0) -> None:
        """Begin to count, on top of ``previous_seconds`` spent before a resume."""
        self._begun = True
        self._previous_seconds = previous_seconds
        self._clock_started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, summed over all resumes."""
        return self._previous_seconds + time.monotonic() - self._clock_started

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics at this moment; see ``MetricsLog.write``."""
        self.metrics.write(step, self.elapsed, metrics)

    # ------------------------------------------------------------------ checkpoint

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace ``checkpoint.pt``; see ``checkpoint.save_checkpoint``."""
        save_checkpoint(self.checkpoint_path, state)

    def load_checkpoint(self, map_location: Any = "cpu") -> dict[str, Any] | None:
        """The state saved last, or None; see ``checkpoint.load_checkpoint``.

        Raises:
            UserError: it cannot be read, or is of no run.
        """
        state = load_checkpoint(self.checkpoint_path, map_location)
        if state is not None:
            expect(state, self.checkpoint_path, agent=dict, task=str)
        return state

    # ------------------------------------------------------------------ for people

    def update_curve(self) -> None:
        """Draw ``curve.png`` from the metrics logged so far; see ``learning_curve.draw_curve``."""
        with _noted():
            config = self.config.read()["config"]
            picture = io.BytesIO()
            title = f"{config['task']}, seed {config['seed']}"
            acts = "steps" in config and not config.get("offline")
            unit = "environment steps" if acts else "updates"
            if draw_curve(picture, self.metrics.read(), title, unit):
                with atomic_file(self.curve_path) as file:
                    file.write(picture.getvalue())

    def write_picture(self, name: str, picture: np.ndarray, step: int | None = None) -> None:
        """Write ``pictures/<name>.png``, (H, W, 3) uint8; of a training `step` it is shown in
        TensorBoard, too."""
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        path = self.path / "pictures" / f"{name}.png"
        with _noted(), writing(path):
            own_folder(path.parent)
            with atomic_file(path) as file:
                file.write(encoded.getvalue())
        if step is not None:
            shown = name.rpartition("-")[0] or name
            self.metrics.show_picture(shown, encoded.getvalue(), picture.shape[:2], step)

    def write_video(self, name: str, frames: np.ndarray, fps: float) -> Path:
        """Write ``videos/<name>.mp4`` and return its path; see ``video.write_video``.

        Raises:
            Unwritable: it cannot be written.
            UserError: ``videos`` is a link or no folder.
        """
        path = self.path / "videos" / f"{name}.mp4"
        with writing(path):
            own_folder(path.parent)
            with exclusive(path.with_suffix(".lock")):  # of two evaluations at the same time
                write_video(path, frames, fps)
        return path

    def check_videos(self) -> None:
        """Find out now whether ``write_video`` would follow a link or meet a file.

        Raises:
            UserError: it would.
        """
        with writing(self.path / "videos"):
            refuse_other_kind(self.path / "videos", "folder")

    def show_video(self, name: str, frames: np.ndarray, fps: float) -> None:
        """``write_video`` for training, which goes on without."""
        with _noted():
            self.write_video(name, frames, fps)


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    """A block whose files are not worth stopping for: the user is told what is wrong."""
    try:
        yield
    except UserError as error:
        note(f"{str(error).partition('; ')[0]}; training goes on without it")
