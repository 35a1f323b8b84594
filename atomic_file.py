"""Files that are either the old one or the new one, whenever the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_path(path: Path) -> Path:
    """The name ``path`` is written under until it is complete."""
    return path.with_name(path.name + ".tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` only once it is complete and on the disk.

    An exception inside the block leaves ``path`` as it was.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
        rename_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
