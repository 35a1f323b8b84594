"""Writing demonstration files (``envs/demonstrations.py`` has the format)."""

import contextlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator

import h5py
import numpy as np

from atomic_file import rename_durably, writing
from envs.hdf5 import DAMAGED, Busy, open_file, probe, refuse_other_files
from errors import UserError
from mask_classes import NAMES, PALETTE

PARTIAL = ".part"
"""Ends the name of a file that is being written."""
SPARE_BYTES = 2**20
"""Room that an episode leaves free on a disk."""


class BegunOtherwise(UserError):
    """The file that was begun is of another recording."""


@contextlib.contextmanager
def storing(path: pathlib.Path) -> Iterator[None]:
    """A block that writes an HDF5 file, whose library has errors of its own.

    Raises:
        UserError: the disk is full, for example.
    """
    with writing(path):
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"cannot write {path} ({error}); look after the disk, and start again"
            ) from error


def begun(partial: pathlib.Path) -> bool:
    """Whether there is a file under the name for one that is being written.

    Raises:
        UserError: there is something else, a link for example, which writing would follow.
    """
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        raise UserError(f"{partial} is in the way: it is no regular file; delete it")
    return partial.exists()


def put_aside(partial: pathlib.Path) -> pathlib.Path:
    """Give a file that cannot be gone on with another name, which is returned.

    Raises:
        UserError: that name is taken by a folder, or the folder cannot be written.
    """
    aside = partial.with_name(f"{partial.name}.damaged")
    with writing(aside):
        os.replace(partial, aside)
    return aside


class DemonstrationWriter:
    """Writes a demonstration file under a temporary name and gives it its own when finished.

    Usage: ``with DemonstrationWriter(path, attributes) as writer: writer.add(...)``. Leaving the
    block without an error finishes the file; a file that was cut off is taken up again by the next
    writer of the same attributes, ``writer.episodes`` and ``writer.attempts`` say how far it was.

    Args:
        path: of the finished file; its folder is made.
        attributes: of the group ``data``.

    Raises:
        UserError: the file exists, cannot be written, or the one begun has other attributes.
    """

    def __init__(self, path: str | os.PathLike, attributes: dict[str, object]):
        self.path = pathlib.Path(path)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self._attributes = attributes
        if os.path.lexists(self.path):
            raise UserError(f"{self.path} exists already; give another name or delete it")

    def __enter__(self):
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if begun(self.partial):
            try:
                self._take_up()
                return self
            except (Busy, BegunOtherwise):
                raise
            except (UserError, *DAMAGED) as error:
                # Cut off in the middle of a write: put aside, somebody may rescue what it holds.
                aside = put_aside(self.partial)
                warnings.warn(f"cannot go on with {aside} ({error}); starting over", stacklevel=2)
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open_file(self.partial, "x"))
            self._data = self._file.create_group("data")
            for name, value in self._attributes.items():
                self._data.attrs[name] = value
            self._data.attrs["num_demos"] = self._data.attrs["total"] = 0
            self._data.attrs["attempts"] = 0
            self._stack = stack.pop_all()
        return self

    def _take_up(self) -> None:
        """Go on with the file that was begun, behind its last complete episode."""
        probe([self.partial])
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open_file(self.partial, "r+"))
            refuse_other_files(self._file)
            self._data = self._file["data"]
            for name, value in self._attributes.items():
                if str(self._data.attrs.get(name)) != str(value):
                    raise BegunOtherwise(
                        f"{self.partial} was begun with another {name}"
                        f" ({self._data.attrs.get(name)}, now {value}); delete it to start over"
                    )
            complete = [name for name in self._data if "num_samples" in self._data[name].attrs]
            for name in set(self._data) - set(complete):
                del self._data[name]
            demos = [self._data[name].attrs for name in complete]
            self._data.attrs["num_demos"] = len(complete)
            self._data.attrs["total"] = sum(int(demo["num_samples"]) for demo in demos)
            tried = [int(demo["attempt"]) for demo in demos]
            self._data.attrs["attempts"] = max([self.attempts, *tried])
            self._stack = stack.pop_all()

    @property
    def episodes(self) -> int:
        """Episodes written so far."""
        return int(self._data.attrs["num_demos"])

    @property
    def attempts(self) -> int:
        """Episodes tried so far, successful or not."""
        return int(self._data.attrs["attempts"])

    def add(
        self, episode: dict[str, np.ndarray], attributes: dict[str, object], attempts: int
    ) -> None:
        """Write one episode durably.

        Args:
            episode: arrays (T, ...) by the path of their dataset, "obs/agentview_rgb"; those under
                "model/" have no time axis.
            attributes: of the episode's group; ``num_samples`` is added.
            attempts: episodes tried so far, this one included.
        """
        needed = sum(np.asarray(values).nbytes for values in episode.values())
        check_room(self.partial, needed, f"the {self.episodes} episodes written are kept")
        steps = len(episode["actions"])
        with storing(self.partial):
            demo = self._data.create_group(f"demo_{self.episodes}")
            for name, values in episode.items():
                write_dataset(demo, name, values)
            for name, value in attributes.items():
                demo.attrs[name] = value
            demo.attrs["attempt"] = attempts
            demo.attrs["num_samples"] = steps  # last: what has it is complete
            self._data.attrs["num_demos"] = self.episodes + 1
            self._data.attrs["total"] = int(self._data.attrs["total"]) + steps
        self.tried(attempts)

    def tried(self, attempts: int) -> None:
        """Note durably how many episodes were tried."""
        with storing(self.partial):
            self._data.attrs["attempts"] = attempts
            self._file.flush()

    def __exit__(self, kind, value, traceback):
        self._stack.__exit__(kind, value, traceback)
        if kind is None:
            with writing(self.path):
                rename_durably(self.partial, self.path)


def check_room(path: pathlib.Path, needed: int, kept: str) -> None:
    """Refuse to write what may not fit: HDF5 does not survive a full disk.

    Raises:
        UserError: there is less room beside `path` than `needed` bytes, uncompressed.
    """
    needed += SPARE_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"no space left for {path}: {free / 2**20:.0f} MiB are free, the next episode may take"
            f" {needed / 2**20:.0f}; {kept}"
        )


def write_dataset(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Write an array; pictures and masks by the frame, compressed, since windows read a few."""
    values = np.asarray(values)
    if name.startswith("obs/") and values.ndim >= 3:
        # gzip is in every HDF5 library; levels above 1 are slower and hardly smaller here.
        options = {"chunks": (1, *values.shape[1:]), "compression": "gzip", "compression_opts": 1}
        group.create_dataset(name, data=values, **options)
    else:
        group.create_dataset(name, data=values)


def mask_attributes() -> dict[str, object]:
    """Names and colours of the classes, as attributes that travel with masks."""
    return {"mask_classes": json.dumps(NAMES), "mask_palette": PALETTE}
