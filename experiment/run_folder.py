"""The folder of one training run: configuration, metrics, curve, videos and checkpoint.

Every file except ``metrics.jsonl`` is written under a temporary name and renamed, so that a
process killed at any instant leaves either the old file or the new one.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import dacite
import numpy as np
import yaml
from PIL import Image

from atomic_file import atomic_file, temporary_path
from errors import UserError
from experiment.checkpoint import load_checkpoint, save_checkpoint
from experiment.hardware import hardware
from experiment.learning_curve import draw_curve
from experiment.provenance import provenance
from experiment.video import write_video

Config = TypeVar("Config")


class RunFolder:
    """One run on disk.

    ``RunFolder.create_or_resume`` takes the folder for training and locks it;
    ``RunFolder.open`` looks at a folder another process may be training in.

    Holds ``config.yaml``, ``metrics.jsonl``, TensorBoard events, ``curve.png``, ``videos/``,
    ``checkpoint.pt``; ``replay/`` belongs to the replay buffer.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock = None
        self._is_new = False
        self._metrics = None
        self._tensorboard = None
        self._purge_step: int | None = None
        self._previous_seconds = 0.0
        self._clock_started = time.monotonic()

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve_path(self) -> Path:
        return self.path / "curve.png"

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.pt"

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike, config: Any) -> RunFolder:
        """Take ``path`` for training with ``config``, a dataclass with fields ``task``, ``seed``
        and ``steps``, or another whose name is its class attribute ``GROWING``.

        A new or empty folder gets its ``config.yaml``. In an existing run every field must equal
        the recorded one, except ``steps``, which may grow, and those that its class attribute
        ``FREE`` names because they change no result; the file then records the new values.

        Raises:
            UserError: ``path`` is not a run folder but holds files, belongs to a run with
                another configuration, or is in use by another process. Nothing is changed then.
        """
        folder = cls(path)
        folder._refuse_foreign_path()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._acquire_lock()
        except OSError as error:
            raise UserError(
                f"cannot write in {folder.path} ({error.strerror}); choose another --logdir"
            ) from error
        try:
            folder._record_config(config)
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
        if not folder.path.exists():
            raise UserError(
                f"there is no run folder {folder.path}; train one with "
                f"`python run.py train --logdir {folder.path}`, or check the path"
            )
        if not folder.config_path.is_file():
            raise UserError(
                f"{folder.path} is not a run folder (no config.yaml); "
                "name the folder that was given to train as --logdir"
            )
        return folder

    @staticmethod
    def read_config(path: str | os.PathLike, config_class: type[Config]) -> Config:
        """The configuration recorded in the run folder ``path``, as a ``config_class``.

        A field that is younger than the run takes its default, which must mean "as it was before".

        Raises:
            UserError: there is no run at ``path``, its ``config.yaml`` cannot be read, or it has
                fields that ``config_class`` has not.
        """
        folder = RunFolder.open(path)
        recorded = folder._read_record()["config"]
        try:
            config = dacite.from_dict(
                config_class,
                recorded,
                # YAML has no tuples, writes 1e-4 as text and a whole float by hand as an integer.
                dacite.Config(cast=[tuple], type_hooks={float: _to_float}),
            )
        except (dacite.DaciteError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder.config_path} does not fit this version of the toolkit: {error}; "
                "use the commit the file names, or start another --logdir"
            ) from error
        unknown = set(_flat(recorded)) - set(_flat(_plain(config)))
        if unknown:
            raise UserError(
                f"{folder.config_path} does not fit this version of the toolkit: unknown "
                f"{', '.join(sorted(unknown))}; use the commit the file names, or start another "
                "--logdir"
            )
        return config

    @property
    def of_imitation(self) -> bool:
        """Whether `run.py imitate` trains here, not `run.py train`."""
        return "policy_steps" in self._read_record()["config"]

    def close(self) -> None:
        """Finish the event file and give up the lock. Closing twice is allowed."""
        for file in (self._metrics, self._tensorboard, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._tensorboard = self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refuse_foreign_path(self) -> None:
        if not self.path.exists() or self.config_path.is_file():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder; choose another --logdir")
        # What a process killed while it made the folder leaves behind.
        unfinished = {"lock", temporary_path(self.config_path).name}
        if {entry.name for entry in self.path.iterdir()} - unfinished:
            raise UserError(
                f"{self.path} holds files but no config.yaml, so it is not a run folder; "
                "choose another --logdir"
            )

    def _acquire_lock(self) -> None:
        self._lock = open(self.path / "lock", "a+")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self.close()
            raise UserError(
                f"another process (id {owner}) is training in {self.path}; "
                "wait for it, stop it, or choose another --logdir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _record_config(self, config: Any) -> None:
        wanted = _plain(config)
        self._is_new = not self.config_path.is_file()
        if self._is_new:
            record = {"config": wanted, **provenance(), "hardware": hardware()}
        else:
            record = self._read_record()
            recorded = _with_defaults(record["config"], type(config))
            growing = getattr(config, "GROWING", "steps")
            free = getattr(config, "FREE", frozenset())
            self._refuse_differences(_flat(recorded), _flat(wanted), growing, free)
            if recorded == wanted:
                return
            record["config"] = wanted
            record["command"] = provenance()["command"]  # the one that gives the whole run
        text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=100)
        with atomic_file(self.config_path) as file:
            file.write(text.encode())

    def abandon(self) -> None:
        """Forget a run that could not begin, so that a corrected command may use its folder.

        Only what this process made goes, and only while no episode and no metric is in it.
        """
        episodes = self.path / "replay" / "episodes.jsonl"
        if self._is_new and not episodes.exists() and not self.metrics_path.exists():
            self.config_path.unlink(missing_ok=True)
            shutil.rmtree(self.path / "replay", ignore_errors=True)

    def _refuse_differences(
        self, recorded: dict, wanted: dict, growing: str, free: Collection[str]
    ) -> None:
        differences = [
            name
            for name in wanted | recorded
            if name != growing
            and name not in free
            # An absent field and one that is None are not the same.
            and (name in recorded, recorded.get(name)) != (name in wanted, wanted.get(name))
        ]
        if differences:
            name = differences[0]
            before = f"with {name} = {recorded[name]}" if name in recorded else f"without {name}"
            now = f"is {wanted[name]}" if name in wanted else "does not exist"
            others = f" ({len(differences) - 1} more differ)" if differences[1:] else ""
            raise UserError(
                f"{self.path} was started {before}, which now {now}{others}; "
                "choose another --logdir, or give the fields as they were"
            )
        if wanted[growing] < recorded[growing]:
            raise UserError(
                f"{self.path} is a run of {growing} = {recorded[growing]}, more than the "
                f"{wanted[growing]} asked for; give --{growing.replace('_', '-')} "
                f"{recorded[growing]} or more, or choose another --logdir"
            )

    def _read_record(self) -> dict[str, Any]:
        try:
            record = yaml.safe_load(self.config_path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.config_path} cannot be read; restore it or choose another --logdir"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise UserError(
                f"{self.config_path} is not the configuration of a run (no `config:` in it); "
                "restore it or choose another --logdir"
            )
        return record

    # ------------------------------------------------------------------ time

    def start_clock(self, previous_seconds: float = 0.0) -> None:
        """Begin to count, on top of ``previous_seconds`` spent before a resume."""
        self._previous_seconds = previous_seconds
        self._clock_started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, summed over all resumes."""
        return self._previous_seconds + time.monotonic() - self._clock_started

    # ------------------------------------------------------------------ checkpoint

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace ``checkpoint.pt``; see ``checkpoint.save_checkpoint``."""
        save_checkpoint(self.checkpoint_path, state)

    def load_checkpoint(self, map_location: Any = "cpu") -> dict[str, Any] | None:
        """The state saved last, or None; see ``checkpoint.load_checkpoint``."""
        return load_checkpoint(self.checkpoint_path, map_location)

    # ------------------------------------------------------------------ metrics

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line ``{"step", "time", **metrics}`` and the same scalars to TensorBoard.

        Args:
            step: environment steps so far.
            metrics: scalars by name, for example ``eval/success``; a value that is not finite is
                written as null, since JSON has no NaN.
        """
        values = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"step": int(step), "time": round(self.elapsed, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._open_metrics()
        self._metrics.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._metrics.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def metrics_position(self) -> int:
        """Bytes of ``metrics.jsonl`` that are on the disk for good; goes into the checkpoint."""
        self._open_metrics()
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def cut_metrics(self, position: int, step: int) -> None:
        """Forget what was logged after a checkpoint, so that steps never go backwards.

        Args:
            position: ``metrics_position()`` at the checkpoint; 0 forgets everything.
            step: environment steps at the checkpoint; TensorBoard hides what lies after it.
        """
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        self._purge_step = step + 1 if position else 0
        if not self.metrics_path.exists():
            return
        data = self.metrics_path.read_bytes()[:position]
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        # A checkpoint forgets the episodes that other environments were in the middle of.
        while lines and json.loads(lines[-1])["step"] > step:
            lines.pop()
        os.truncate(self.metrics_path, sum(map(len, lines)))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines logged so far, oldest first; a line cut off by a crash is left out."""
        try:
            lines = self.metrics_path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def _open_metrics(self) -> None:
        if self._metrics is not None:
            return
        # Imports a second's worth of modules that an evaluation does not need.
        from torch.utils.tensorboard import SummaryWriter

        self._metrics = open(self.metrics_path, "a+b")  # noqa: SIM115 (held until close)
        self._metrics.seek(0)
        whole = self._metrics.read().rfind(b"\n") + 1
        self._metrics.truncate(whole)
        self._metrics.seek(whole)
        self._tensorboard = SummaryWriter(str(self.path), purge_step=self._purge_step)

    # ------------------------------------------------------------------ pictures

    def update_curve(self) -> None:
        """Draw ``curve.png`` from the metrics logged so far; see ``learning_curve.draw_curve``."""
        config = self._read_record()["config"]
        picture = io.BytesIO()
        title = f"{config['task']}, seed {config['seed']}"
        unit = "environment steps" if "steps" in config else "updates"
        if draw_curve(picture, self.read_metrics(), title, unit):
            with atomic_file(self.curve_path) as file:
                file.write(picture.getvalue())

    def write_picture(self, name: str, picture: np.ndarray, step: int) -> Path:
        """Write ``pictures/<name>.png``, (H, W, 3) uint8, and show it in TensorBoard."""
        path = self.path / "pictures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        with atomic_file(path) as file:
            file.write(encoded.getvalue())
        self._open_metrics()
        tag = name.rpartition("-")[0] or name
        self._tensorboard.add_image(tag, picture, step, dataformats="HWC")
        return path

    def write_video(self, name: str, frames: np.ndarray, fps: float) -> Path:
        """Write ``videos/<name>.mp4`` and return its path; see ``video.write_video``."""
        path = self.path / "videos" / f"{name}.mp4"
        write_video(path, frames, fps)
        return path

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> Path:
        """Write ``evaluation.json`` with the command, commit and versions; return its path."""
        path = self.path / "evaluation.json"
        with atomic_file(path) as file:
            file.write(json.dumps({**evaluation, **provenance()}, indent=2).encode() + b"\n")
        return path


# ---------------------------------------------------------------------- configurations as data


def _plain(config: Any) -> dict[str, Any]:
    """A dataclass as YAML gives it back: nested dicts, lists for tuples."""
    return _plain_value(asdict(config))


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return _plain(value)
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"agent": {"depth": 2}}`` as ``{"agent.depth": 2}``."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _with_defaults(recorded: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """``recorded`` with the defaults of fields that are younger than it, as `_plain` gives them."""
    types = get_type_hints(config_class)
    filled = dict(recorded)
    for field in fields(config_class):
        if field.name not in recorded:
            if field.default is not MISSING:
                filled[field.name] = _plain_value(field.default)
            elif field.default_factory is not MISSING:
                filled[field.name] = _plain_value(field.default_factory())
        elif is_dataclass(types[field.name]) and isinstance(recorded[field.name], Mapping):
            filled[field.name] = _with_defaults(recorded[field.name], types[field.name])
    return filled


def _to_float(value: Any) -> Any:
    return float(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else value
