"""Files that are either the old one or the new one, whenever the process is killed.

Nothing is written outside the folder of a file: its temporary file is made anew, so that a link
under that name is not followed, and a link under the file's own name is replaced, not followed.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from errors import UserError

ROOM = "make room there and start the same command again"
ELSEWHERE = "use a place, or a copy of the folder, that you may write to"
AWAY = "move away what is there"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "allow larger files there (ulimit -f)",
    errno.EROFS: ELSEWHERE,
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EISDIR: AWAY,
    errno.ENOTDIR: AWAY,
    errno.EEXIST: AWAY,
    errno.ELOOP: AWAY,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ETIMEDOUT: "end it, or try again later",
}
"""What a user can do about each reason."""


class Unwritable(UserError, OSError):
    """A file cannot be written: one sentence that says which, why, and what to do.

    ``errno`` is that of the error behind it.
    """


@contextmanager
def writing(path: Path, remedy: str = "") -> Iterator[None]:
    """A block that writes ``path``: what the disk has against it becomes ``Unwritable``, with what
    to do about it (by default what ``REMEDIES`` says)."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        # Of a rename it is the new name that is in the way.
        named = error.filename2 or error.filename
        place = named if isinstance(named, str) else path
        advice = remedy or REMEDIES.get(error.errno or 0, "look after the disk, and try again")
        refusal = Unwritable(f"cannot write {place} ({error.strerror or error}); {advice}")
        refusal.errno = error.errno
        raise refusal from error


def temporary_path(path: Path) -> Path:
    """The name ``path`` is written under until it is complete."""
    return path.with_name(path.name + ".tmp")


def new_file(path: Path) -> BinaryIO:
    """A file that nobody else knows, under the name ``path``; what had the name before is gone.

    Raises:
        OSError: it cannot be made.
    """
    path.unlink(missing_ok=True)
    return open(path, "xb")  # exclusively: a link is not followed


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` only once it is complete and on the disk.

    An exception inside the block leaves ``path`` as it was.

    Raises:
        Unwritable: the disk is full, the folder may not be written in, a folder has the name, ...
    """
    temporary = temporary_path(path)
    with _removed_on_error(temporary), writing(path):
        with new_file(temporary) as file:
            yield file
            file.flush()
            if not os.path.samestat(os.fstat(file.fileno()), os.lstat(temporary)):
                raise FileExistsError(errno.EEXIST, "another process writes it too", str(path))
        rename_durably(temporary, path)


@contextmanager
def atomic_path(path: Path, temporary: Path) -> Iterator[Path]:
    """``atomic_file`` for another program: a new, empty file under the name ``temporary``, which
    takes the name ``path`` after the block."""
    with _removed_on_error(temporary), writing(path):
        new_file(temporary).close()
        yield temporary
        rename_durably(temporary, path)


@contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append(file: io.FileIO, data: bytes) -> None:
    """Write all of ``data`` at the end of a file, or, where there is no room, nothing of it.

    Raises:
        OSError: there is no room, or the disk is at fault.
    """
    end = file.seek(0, os.SEEK_END)
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except BaseException:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def rename_durably(temporary: Path, path: Path) -> None:
    """Give a complete file its name once it is on the disk; both are in the same folder."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    # The rename itself lives in the directory, which has a cache of its own.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
