"""Reading files that somebody else may have put there.

A name may lead to a pipe, which is waited for without end, to a device, which never ends, or to a
folder; a file may be larger than memory, or no text. Whatever it is, the error is one sentence.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from errors import UserError

MOST_BYTES = 2**28
"""Of a text or table that is read whole, 256 MiB: parsed, it takes some ten times as much."""


@contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """``path`` opened for reading; the block does nothing else that may raise ``OSError``.

    Raises:
        UserError: it is not there, is no regular file, may not be read, or reading it fails.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is a pipe or a device, not a file")
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def read_bytes(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """The whole of the file ``path``.

    Raises:
        UserError: as ``open_regular``, or it is longer than ``most`` bytes.
    """
    with open_regular(path) as file:
        # A file of nothing but holes costs its writer no disk: its length is looked at first.
        longer = os.fstat(file.fileno()).st_size > most
        content = b"" if longer else file.read(most + 1)
    if longer or len(content) > most:
        raise UserError(f"{path} is longer than {most:,} bytes, the most that is read of its kind")
    return content


def read_text(path: str | os.PathLike, most: int = MOST_BYTES) -> str:
    """The whole of the file ``path``, which is UTF-8; a byte order mark is left out.

    Raises:
        UserError: as ``read_bytes``, or it is no UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start + 1:,})") from error


def _without_waiting(path: str, flags: int) -> int:
    # Windows has no O_NONBLOCK, and no pipes among its files.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
