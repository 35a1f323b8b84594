"""Nothing that is written into a run folder leaves it, whatever somebody has put there.

A run folder may come from somebody else, with links in the place of its files. Its own name may be
a link all the same: that is the word of the user who gave it.
"""

import io
import os
import shutil
import stat
from pathlib import Path
from typing import Literal

from atomic_file import atomic_file, temporary_path
from errors import UserError

FOLDERS = ("videos", "pictures", "replay")
"""Subfolders of a run."""
FILES = (
    "metrics.jsonl",
    "checkpoint.pt",
    "dynamics.pt",
    "demonstrations.json",
    "curve.png",
    "evaluation.json",
    "lock",
)
"""Files of a run beside ``config.yaml``, which is read at the start in any case."""
WRITTEN_IN_PLACE = ("replay",)
"""Subfolders whose files are changed, not replaced."""


def refuse_strangers(folder: Path) -> None:
    """Refuse a run folder in which training would write elsewhere, or not at all.

    Raises:
        UserError: something in it is a symbolic link; a file of a subfolder that is written in
            place has a second name; a folder or a device is where a run has a file, or the reverse.
        OSError: it cannot be read.
    """
    for name in FOLDERS:
        refuse_other_kind(folder / name, "folder")
    for name in FILES:
        refuse_other_kind(folder / name, "file")
        refuse_other_kind(temporary_path(folder / name), "file")
    _refuse_links(folder)
    for name in WRITTEN_IN_PLACE:
        _refuse_second_names(folder / name)


def own_folder(path: Path) -> Path:
    """The subfolder ``path`` of a run, made where there is none.

    Raises:
        UserError: a link, a file or a device has its name.
        OSError: it cannot be made.
    """
    refuse_other_kind(path, "folder")
    path.mkdir(exist_ok=True)
    return path


def open_own(path: Path) -> io.FileIO:
    """A file of a run to change in place, made where there is none.

    Where it has a second name elsewhere (a copy of the folder made with hard links), it becomes a
    file of its own first.

    Raises:
        UserError: a link, a folder or a device has its name.
        OSError: it cannot be opened.
    """
    refuse_other_kind(path, "file")
    file = _opened(path)
    if os.fstat(file.fileno()).st_nlink > 1:
        with file, atomic_file(path) as copy:
            shutil.copyfileobj(file, copy)
        file = _opened(path)
    return file


def _opened(path: Path) -> io.FileIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    return io.FileIO(os.open(path, flags, 0o666), "r+")


def refuse_other_kind(path: Path, kind: Literal["file", "folder"]) -> None:
    """Refuse what is neither missing nor of a kind.

    Raises:
        UserError: it is a link, or of another kind.
        OSError: that cannot be seen.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise link_refusal(path)
    if not (stat.S_ISREG(mode) if kind == "file" else stat.S_ISDIR(mode)):
        raise UserError(f"{path} is not a {kind}, as it is in a run; move it away")


def link_refusal(path: Path) -> UserError:
    """What to say of a link in a run folder."""
    return UserError(
        f"{path} is a symbolic link, and a run writes in its own folder only; put what it leads to "
        "in its place (a whole run folder may lie on another disk: name it, or a link to it, as "
        "--logdir)"
    )


def _refuse_links(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise link_refusal(Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                _refuse_links(Path(entry.path))


def _refuse_second_names(folder: Path) -> None:
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_file() and path.stat().st_nlink > 1:
            raise UserError(
                f"{path} has a second name elsewhere (a hard link), and training would change what "
                f"stands there; make it a file of its own: cp {path} copy && mv copy {path}"
            )
