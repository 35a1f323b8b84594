"""Adding masks to demonstrations that others have recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from atomic_file import rename_durably, writing
from envs.alignment import Alignment
from envs.demonstration_copy import copy_attributes, copy_episode, reading, resized, stored
from envs.demonstration_writer import PARTIAL, begun, check_room, mask_attributes, storing
from envs.demonstrations import read_header
from envs.environment_config import Quality
from envs.hdf5 import DAMAGED, Busy, member, open_file, probe, refuse_other_files, text
from envs.replayed_states import (
    StateReplay,
    make_environment,
    refuse_what_cannot_be_replayed,
    told_by_replay,
)
from envs.workers import Worker
from errors import UserError


def annotate(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    quality: Quality | None = None,
    size: int | None = None,
    obs_alignment: Alignment | None = None,
    tracks: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    apart: bool = False,
) -> None:
    """Add masks to a demonstration file by replaying its states in the simulator.

    Pictures and masks are drawn together, so that they agree to the pixel whatever drew the
    recorded pictures; everything else is copied. Started again after being stopped, it goes on
    with the next episode. ``out`` may be ``path``, which is then replaced at the end.

    Args:
        path: of the file.
        out: of the file with masks, which says its ``obs_alignment``.
        quality: of the rendering; None is the file's own (full where it does not say).
        size: edge of the pictures, pixels; None is the file's own.
        obs_alignment: of a file that does not say it and whose replay does not tell.
        tracks: add tracks of points and of the end effector (``envs/tracks.py``), too.
        progress: called after every episode with those done and those there are.
        apart: in a process of its own, whose death is one sentence: the simulator loads a model
            that the file brings.

    Raises:
        UserError: what cannot be read or written; the replay is elsewhere than the recorded
            proprioception, by how much; the file does not hold what replaying needs.
    """
    make = functools.partial(
        Annotation, pathlib.Path(path), pathlib.Path(out), quality, size, obs_alignment, tracks
    )
    with _Apart(str(path), make) if apart else _Here(make()) as call:
        names = call("begin")
        for number in range(len(names)):
            call("draw", number)
            call("write", number)
            progress(number + 1, len(names))
        call("finish")


class _Here:
    """A context that calls an annotation's methods."""

    def __init__(self, annotation: Annotation):
        self._annotation = annotation

    def __enter__(self) -> Callable[..., Any]:
        return lambda method, *arguments: getattr(self._annotation, method)(*arguments)

    def __exit__(self, *exception: object) -> None:
        self._annotation.close()


class _Apart:
    """A context that calls them in another process."""

    def __init__(self, path: str, make: Callable[[], Annotation]):
        self._path, self._doing = path, "its beginning"
        self._names: list[str] = []
        self._worker = Worker(f"the process that annotates {path}", make)

    def __enter__(self) -> Callable[..., Any]:
        try:
            with self._alive():
                self._worker.answer()
        except BaseException:
            self._worker.end()
            raise
        return self._call

    def __exit__(self, *exception: object) -> None:
        self._worker.end()

    def _call(self, method: str, *arguments: Any) -> Any:
        if arguments:
            self._doing = f"data/{self._names[arguments[0]]}"
        with self._alive():
            self._worker.ask(method, *arguments)
            try:
                found = self._worker.answer()
            except KeyboardInterrupt:
                if method in ("write", "finish"):  # not cut off: the file would be damaged
                    self._worker.answer()
                raise
        if method == "begin":
            self._names = found
        return found

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """The death of the process names the file and the episode."""
        try:
            yield
        except UserError as error:
            if self._worker.process.exitcode is None:
                raise
            reason = str(error).partition(";")[0]
            raise UserError(
                f"{self._path} cannot be annotated, the simulator dies of {self._doing}: the file"
                f" is damaged, or memory is short ({reason})"
            ) from error


class Annotation:
    """A demonstration file that is being given masks, one episode after the other.

    ``begin``, then ``draw`` and ``write`` of every episode, then ``finish``. The file with masks is
    open inside ``write`` and ``finish`` only: it survives the death of the process elsewhere.

    Args:
        path, out, quality, size, obs_alignment, tracks: of ``annotate``.

    Raises:
        UserError: as ``annotate``.
    """

    def __init__(
        self,
        path: pathlib.Path,
        out: pathlib.Path,
        quality: Quality | None,
        size: int | None,
        obs_alignment: Alignment | None,
        tracks: bool,
    ):
        recording = read_header(path, obs_alignment=obs_alignment)
        self._quality, self._tracks = quality or recording.quality, tracks
        self._size = recording.size if size is None else size
        refuse_what_cannot_be_replayed(recording)
        if os.path.exists(out) and not (path.exists() and out.samefile(path)):
            raise UserError(f"{out} exists already; give another name or delete it")
        self._recording, self._out = recording, out
        self._partial = out.with_name(out.name + PARTIAL)
        self._done: set[str] = set()
        self._frames: dict[str, np.ndarray] = {}
        self._environment = make_environment(recording, self._size, self._quality)

    def begin(self) -> list[str]:
        """Find out the alignment where the file does not say it, and the episodes that are done;
        the names of all."""
        recording = self._recording
        with reading(recording.path) as source:
            if recording.alignment is None:
                told = told_by_replay(recording, self._environment, source)
                self._recording = recording = dataclasses.replace(recording, alignment=told)
            status = recording.path.stat()
            settings = f"{status.st_size} {status.st_mtime_ns} {self._quality} {self._size}"
            settings += f" {recording.alignment}" + (" tracks" if self._tracks else "")
            with writing(self._out):
                self._out.parent.mkdir(parents=True, exist_ok=True)
            done = _done_with(self._partial, settings)
            if done is None:
                self._start(source, settings)
            self._done = done or set()
        return [episode.name for episode in recording.episodes]

    def _start(self, source: h5py.File, settings: str) -> None:
        with storing(self._partial):
            self._partial.unlink(missing_ok=True)
            with open_file(self._partial, "x") as target:
                group = target.create_group("data")
                copy_attributes(source, target)
                copy_attributes(source["data"], group)
                changed = mask_attributes() | resized(group.attrs, self._size)
                changed |= {"obs_alignment": self._recording.alignment}
                changed |= {"quality": self._quality, "size": self._size}
                for name, value in changed.items():
                    group.attrs[name] = value
                target.attrs["annotating"] = settings  # last: what has it is complete

    def draw(self, number: int) -> None:
        """Draw the pictures and masks of an episode from its states, unless it is done."""
        recording = self._recording
        episode = recording.episodes[number]
        self._frames = {}
        if episode.name in self._done:
            return
        with reading(recording.path) as source:
            replay = StateReplay(recording, episode, self._environment, source)
            self._frames = replay.frames(self._tracks)

    def write(self, number: int) -> None:
        """Write what was drawn, and copy the rest of the episode."""
        if not self._frames:
            return
        name, frames = self._recording.episodes[number].name, self._frames
        with reading(self._recording.path) as source, storing(self._partial):
            demo = source[f"data/{name}"]
            needed = sum(values.nbytes for values in frames.values()) + stored(demo)
            check_room(self._partial, needed, "the episodes annotated so far are kept")
            with open_file(self._partial, "r+") as target:
                group = target["data"]
                if name in group:
                    del group[name]
                copy_episode(demo, group, frames)
                group[name].attrs["annotated"] = True  # last: what has it is complete

    def finish(self) -> None:
        """Copy what else the file holds, and give the one with masks its name."""
        recording = self._recording
        with (
            reading(recording.path) as source,
            storing(self._partial),
            open_file(self._partial, "r+") as target,
        ):
            for episode in recording.episodes:
                target["data"][episode.name].attrs.pop("annotated", None)
            for other in set(source) - {"data"}:  # robomimic's filters
                if other not in target and (found := member(source, other)) is not None:
                    check_room(self._partial, stored(found), "the episodes annotated are kept")
                    source.copy(found, target, other)
            del target.attrs["annotating"]
        with writing(self._out):
            rename_durably(self._partial, self._out)

    def close(self) -> None:
        """Free the simulator."""
        self._environment.close()


def _done_with(partial: pathlib.Path, settings: str) -> set[str] | None:
    """Episodes in the file that was begun with the same settings; None where there is none."""
    if not begun(partial):
        return None
    try:
        probe([partial])
        with open_file(partial) as file:
            refuse_other_files(file)
            if text(file, "annotating") != settings:
                return None
            return {name for name, demo in file["data"].items() if "annotated" in demo.attrs}
    except Busy:
        raise
    except (UserError, *DAMAGED):
        return None
