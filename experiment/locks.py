"""Locks on a run folder, which a process also gives up by dying."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

from errors import UserError
from experiment.own_folder import open_own
from regular_file import read_text

try:
    import fcntl
except ImportError as missing:
    raise UserError(
        "this system lacks the file locks that keep two processes out of one run folder; on "
        "Windows, work in its Linux subsystem (WSL)"
    ) from missing

PATIENCE = 60.0
"""Seconds after which a lock that others hold for moments is given up."""
POLL = 0.02
"""Seconds between two tries."""


class FolderLock:
    """The right to train in a folder, of one process at a time.

    The folder itself is locked: whatever is deleted in it, no second process gets in. Its file
    ``lock`` says who is there, and is locked too, for file systems that lock no folders (NFS).

    Args:
        folder: to be locked.
        remedy: what else a user can do than wait for the other process or stop it.

    Raises:
        UserError: another process has the right.
        OSError: the folder cannot be written in.
    """

    def __init__(self, folder: Path, remedy: str = "choose another --logdir"):
        path = folder / "lock"
        with contextlib.ExitStack() as stack:
            try:
                directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, directory)
                _lock_where_possible(directory)
                file = stack.enter_context(open_own(path))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process (id {_owner(path)}) is training in {folder}; "
                    f"wait for it, stop it, or {remedy}"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            self._held = stack.pop_all()

    def close(self) -> None:
        """Give the right up. Closing twice is allowed."""
        self._held.close()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """A block that one process at a time is in; the others wait.

    Args:
        path: of a file that is there only while somebody is in the block.

    Raises:
        UserError: a link or a folder has that name.
        OSError: it cannot be made, or somebody has been in the block for a minute.
    """
    patience = time.monotonic() + PATIENCE
    while (file := _taken(path)) is None:
        if time.monotonic() > patience:
            raise TimeoutError(errno.ETIMEDOUT, "another process has it for a minute now", path)
        time.sleep(POLL)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _taken(path: Path) -> io.FileIO | None:
    """The file ``path``, made and locked; None where another process has it."""
    file = open_own(path)
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        _lock_where_possible(file.fileno())
        # Whoever had it may have removed the file that was opened here.
        if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
            return file
    file.close()
    return None


def _lock_where_possible(file: int) -> None:
    """Lock a file or folder, unless its file system cannot.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def _owner(path: Path) -> str:
    """Who wrote a lock file: a process id, or "unknown"."""
    try:
        return str(int(read_text(path, most=99)))
    except (UserError, ValueError):
        return "unknown"
