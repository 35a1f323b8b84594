"""HDF5 files that somebody else may have made: opened, looked through, their attributes read.

Such a file is data. It may not lead to other files or declare what no machine holds; where it
crashes the HDF5 library, it does so in a process of its own (``probe``).
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from envs import hdf5_probe
from errors import UserError
from regular_file import open_regular

DAMAGED = (RuntimeError, KeyError, AttributeError, IndexError, ValueError, TypeError, MemoryError)
"""What h5py raises, or reading what it returns, where a file's inner structure is broken."""
LARGEST_ATTRIBUTE = 2**26
"""Bytes of an attribute that is read: the largest is a model as MJCF, some hundred kilobytes."""
SHOWN = 80
"""Characters of a file's own words in a message."""
REFUSED = (errno.EAGAIN, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EMFILE,
           errno.ENFILE, errno.ENAMETOOLONG, errno.EISDIR, errno.EEXIST)  # fmt: skip
"""Errors of the system, not of the file's content."""


class Busy(UserError):
    """Another process writes the file."""


def opened(path: str | os.PathLike, mode: str = "r") -> h5py.File:
    """``h5py.File`` whose failures are one sentence.

    Args:
        path: of the file.
        mode: r, r+, or x to make it: a file, link or pipe of that name is not written to.

    Raises:
        UserError: not there, no regular file, truncated, no HDF5, in use by a writer, no space
            left, or too many files open.
    """
    if mode in ("r", "r+"):
        with open_regular(path):
            pass
    try:
        return h5py.File(path, mode)
    except BlockingIOError as error:
        raise Busy(f"{path} is being written by another process; try again later") from error
    except (OSError, *DAMAGED) as error:
        number = getattr(error, "errno", None)
        if number in REFUSED:
            raise UserError(f"cannot open {path}: {os.strerror(number)}") from error
        reason = str(error).partition("(")[2].rstrip(")") or str(error)
        if mode == "x":
            raise UserError(f"cannot write {path}: {reason}") from error
        raise UserError(f"{path} is no readable HDF5 file: {reason}") from error


@contextlib.contextmanager
def open_file(path: str | os.PathLike, mode: str = "r") -> Iterator[h5py.File]:
    """``opened``, and closed at the end; a read or write that fails meanwhile is one sentence too.

    Raises:
        UserError: as ``opened``; a damaged part is read; the disk is full.
    """
    file = opened(path, mode)
    try:
        yield file
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"{path} declares more values than memory holds: {error}") from error
    finally:
        # Closing flushes, which fails where the disk is full.
        try:
            file.close()
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot finish {path}: {error}") from error


def probe(paths: Sequence[str | os.PathLike]) -> None:
    """Read files through once in another process: 0.2 seconds, and some milliseconds an episode.

    Raises:
        UserError: one cannot be read, that process dies of it, or it never ends.
    """
    for path in paths:
        with open_regular(path):
            pass
    done = subprocess.run(
        [sys.executable, "-P", hdf5_probe.__file__],
        input=b"".join(os.fsencode(path) + b"\0" for path in paths),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        check=False,  # what it reports otherwise, the reading that follows reports better
    )
    if done.returncode < 0 and done.stdout:
        path = paths[len(done.stdout) - 1]
        reason = f"the HDF5 library dies of it ({signal.Signals(-done.returncode).name})"
        if -done.returncode == signal.SIGPROF:
            reason = "reading it does not end"
        raise UserError(f"{path} is damaged, {reason}; put an undamaged copy in its place")


def refuse_other_files(file: h5py.File) -> None:
    """Refuse a file that leads to others or declares absurd sizes.

    Raises:
        UserError: names what in it.
    """
    try:
        hdf5_probe.dataset_names(file)
    except hdf5_probe.Unusable as error:
        raise UserError(f"{file.filename}: {error}") from error


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """A group or dataset in a group; None where there is none, or a link leads nowhere."""
    try:
        found = group.get(name)
    except (RuntimeError, KeyError, OSError):
        return None
    return found if isinstance(found, (h5py.Group, h5py.Dataset)) else None


# ------------------------------------------------------------------- attributes

# Writers differ: h5py has str, bytes and NumPy scalars, MATLAB and C arrays of one element, and an
# attribute may be there and hold nothing.


def text(owner: h5py.Group, name: str, default: str = "") -> str:
    """An attribute that is text.

    Raises:
        UserError: it is something else, or no UTF-8.
    """
    value = _plain(owner, name)
    if value is None:
        return default
    try:
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, str):
            value.encode()  # h5py passes bytes that are no UTF-8 on as lone surrogates
            return value
    except UnicodeError as error:
        raise UserError(f"{_where(owner, name)} is not UTF-8 text") from error
    raise UserError(f"{_where(owner, name)} is {_brief(value)}, not text")


def whole(
    owner: h5py.Group,
    name: str,
    default: int | None = None,
    least: int | None = None,
    most: int | None = None,
) -> int | None:
    """An attribute that is a whole number, from `least` to `most` where they are given.

    Raises:
        UserError: it is something else.
    """
    value = _plain(owner, name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    ):
        return value
    bounds = "" if least is None else f" from {least}"
    bounds += "" if most is None else f" to {most}"
    raise UserError(f"{_where(owner, name)} is {_brief(value)}, not a whole number{bounds}")


def numbers(owner: h5py.Group, name: str, most: int) -> tuple[float, ...]:
    """An attribute that is a number or a row of at most `most` finite ones; empty where it is
    missing.

    Raises:
        UserError: it is something else.
    """
    value = _plain(owner, name)
    if value is None:
        return ()
    try:
        row = np.asarray(value, np.float64).reshape(-1)
        if isinstance(value, (bytes, str)) or len(row) > most or not np.isfinite(row).all():
            raise ValueError
    except (TypeError, ValueError) as error:
        raise UserError(f"{_where(owner, name)} is {_brief(value)}, not finite numbers") from error
    return tuple(row.tolist())


def flag(owner: h5py.Group, name: str, default: bool) -> bool:
    """An attribute that is true or false, as 0 and 1 and in words too.

    Raises:
        UserError: it is something else.
    """
    value = _plain(owner, name)
    if value is None:
        return default
    if isinstance(value, (bytes, str)):
        word = text(owner, name).strip().lower()
        value = {"true": True, "false": False, "1": True, "0": False}.get(word, value)
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise UserError(f"{_where(owner, name)} is {_brief(value)}, not true or false")
    return bool(value)


def _plain(owner: h5py.Group, name: str) -> object:
    """An attribute as a Python object; None where it is missing or holds nothing."""
    try:
        if name not in owner.attrs:
            return None
        stored = owner.attrs.get_id(name)
        if not stored.get_space().get_simple_extent_npoints():
            return None
        if stored.get_storage_size() > LARGEST_ATTRIBUTE:
            raise UserError(f"{_where(owner, name)} is larger than {LARGEST_ATTRIBUTE >> 20} MiB")
        value = owner.attrs[name]
    except (OSError, *DAMAGED) as error:
        raise UserError(f"{_where(owner, name)} cannot be read: {error}") from error
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.item() if isinstance(value, np.generic) else value


def _where(owner: h5py.Group, name: str) -> str:
    return f"{owner.file.filename}: attribute {name} of {owner.name.lstrip('/') or 'the file'}"


def _brief(value: object) -> str:
    words = repr(value)
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."
