"""A training state on disk: tensors and plain values only, so that reading it runs no code."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atomic_file import atomic_file
from errors import UserError

FORMAT = "mask-world-models checkpoint"
VERSION = 1

# What reading raises on files that are cut off, overwritten, or of another kind.
UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``state``, durably and all at once.

    Args:
        state: tensors, numbers, strings, booleans, None, and dicts, lists, tuples of these.

    Raises:
        TypeError: ``state`` holds anything else; it could not be loaded again.
        UserError: the file cannot be written (disk full); the old one is untouched.
    """
    _check_plain(state, "state")
    try:
        with atomic_file(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, "state": dict(state)}, file)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); the checkpoint before it is untouched: "
            "make room and start the same command again"
        ) from error


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any] | None:
    """The state saved at ``path`` with its tensors on ``map_location``; None if there is none.

    Raises:
        UserError: the file is truncated, unreadable, or not one of this toolkit's.
    """
    advice = (
        "nothing was changed: restore it from a copy, or move it away to train again without it"
    )
    try:
        file = open(path, "rb")  # noqa: SIM115 (only opening it may fail in this way)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); {advice}") from error
    with file:
        try:
            # PyTorch reads past a wrong checksum: weights of a bad disk block would go unnoticed.
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
            file.seek(0)
            content = torch.load(file, map_location, weights_only=True)
        except UNREADABLE as error:
            # A device that is full or missing is not the file's fault.
            if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
                raise
            raise UserError(f"{path} is damaged or is not a checkpoint; {advice}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this toolkit; {advice}")
    if content["version"] != VERSION:
        raise UserError(
            f"{path} has checkpoint version {content['version']}, this toolkit reads version "
            f"{VERSION}; use the commit that config.yaml names"
        )
    return content["state"]


def _check_plain(value: Any, where: str) -> None:
    # NumPy's float64 is a float by inheritance, but is pickled as a class of its own.
    if isinstance(value, (torch.Tensor, str, int, float, type(None))):
        if isinstance(value, np.generic):
            raise TypeError(f"{where} is a NumPy scalar; convert it with .item()")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values only"
        )
