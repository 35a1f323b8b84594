"""A training state on disk: tensors and plain values only, so that reading it runs no code."""

import contextlib
import hashlib
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from atomic_file import atomic_file
from errors import UserError
from regular_file import open_regular

FORMAT = "mask-world-models checkpoint"
VERSION = 1
KEPT = "nothing was changed: restore it from a copy, or move it away to train again without it"
"""What to do about a checkpoint that cannot be read."""
MOST_VALUES = 1_000_000
"""Tensors and plain values in a checkpoint. A few bytes can say more of them than there is time
for: lists of lists that are each other's."""

# What reading raises on files that are cut off, overwritten, or of another kind.
UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    MemoryError,
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``state``, durably and all at once.

    Args:
        state: tensors, numbers, strings, booleans, None, and dicts, lists, tuples of these.

    Raises:
        TypeError: ``state`` holds anything else; it could not be loaded again.
        UserError: a number in it is not finite, or the file cannot be written (disk full); the old
            one is untouched.
    """
    try:
        _check_values(state, path)
    except UserError as error:
        raise UserError(
            f"{error}; the checkpoint before it is untouched: use that, or start another --logdir "
            "with smaller learning rates"
        ) from error
    with atomic_file(path) as file:
        noticing = _Noticing(file)
        try:
            content = {"format": FORMAT, "version": VERSION, "state": dict(state)}
            torch.save(content, noticing)  # type: ignore[arg-type]  # all that it calls is there
        except RuntimeError:
            if noticing.error is not None:
                raise noticing.error from None
            raise


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any] | None:
    """The state saved at ``path`` with its tensors on ``map_location``; None if there is none.

    Raises:
        UserError: the file is truncated, unreadable, or not one of this toolkit's; a number in it
            is not finite.
    """
    if not os.path.lexists(path):
        return None
    try:
        with open_regular(path) as file:
            content = _read(file, path, map_location)
    except UserError as error:
        raise UserError(f"{error}; {KEPT}") from error
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {content.get('version')!r:.20}, this toolkit reads "
            f"version {VERSION}; use the commit that config.yaml names"
        )
    return content["state"]


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """A block that takes values out of the checkpoint ``path``: what it lacks, and what has other
    types or shapes than its run needs, is one sentence.

    Raises:
        UserError: that sentence.
    """
    try:
        yield
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except UNREADABLE as error:
        if _of_the_device(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is another run's checkpoint, or damaged ({type(error).__name__}: {reason}); "
            f"{KEPT}"
        ) from error


def expect(state: Mapping[str, Any], path: Path, **kinds: type | tuple[type, ...]) -> None:
    """Refuse a checkpoint's state that lacks a value, or has one of another kind.

    Args:
        state: its content, or a part of it.
        path: of the checkpoint, for the error.
        **kinds: by name, the types a value may have; a number must be at least 0.

    Raises:
        UserError: names the value.
    """
    for name, kind in kinds.items():
        value = state.get(name)
        wrong = isinstance(value, bool) or not isinstance(value, kind)
        if wrong or (isinstance(value, (int, float)) and value < 0):
            raise UserError(f"{path} has no {name} that a run could go on with; {KEPT}")


def fingerprint(state: Any) -> str:
    """16 hexadecimal digits by which one state of an agent is told from every other."""
    digest = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, item in value.items():
                digest.update(repr(key).encode())
                add(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


class _Noticing:
    """A file that remembers what went wrong: PyTorch makes a ``RuntimeError`` of everything."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _read(file: BinaryIO, path: Path, map_location: Any) -> dict[str, Any]:
    """The content of a checkpoint's file, all of it plain and finite."""
    size = os.fstat(file.fileno()).st_size
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise UserError(f"{path} of {size / 2**30:,.0f} GiB is larger than this machine's memory")
    try:
        _check_archive(file, size)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the file holds; it is looked at next
            content = torch.load(file, map_location, weights_only=True)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is not a checkpoint of this toolkit")
        _check_values(content, path)
        if not isinstance(content.get("state"), dict):
            raise TypeError("no state")
    except UNREADABLE as error:
        if _of_the_device(error):
            raise
        raise UserError(f"{path} is damaged or is not a checkpoint") from error
    return content


def _check_archive(file: BinaryIO, size: int) -> None:
    """Refuse an archive with wrong checksums, past which PyTorch reads (weights of a bad disk block
    would go unnoticed), and one that becomes larger than its file when it is unpacked."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > size or archive.testzip():
            raise zipfile.BadZipFile


def _of_the_device(error: BaseException) -> bool:
    """Whether a device that is full or missing is at fault, not the file."""
    return isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)


def _check_values(state: Any, path: Path) -> None:
    """Refuse what could not be loaded again, or not be worked with.

    Raises:
        TypeError: names a value that is neither a tensor nor plain.
        UserError: names a number that is not finite.
    """
    left = MOST_VALUES

    def check(value: Any, where: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise TypeError(f"a checkpoint holds at most {MOST_VALUES:,} values")
        if isinstance(value, Mapping):
            for key, item in value.items():
                check(key, f"a key of {where}")
                check(item, f"{where}[{key!r:.60}]")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                check(item, f"{where}[{index}]")
        elif isinstance(value, torch.Tensor):
            _check_tensor(value, where)
            if not value.isfinite().all():
                raise not_finite(where)
        # NumPy's float64 is a float by inheritance, but is pickled as a class of its own.
        elif isinstance(value, np.generic):
            raise TypeError(f"{where} is a NumPy scalar; convert it with .item()")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise not_finite(where)
        elif isinstance(value, int):
            if value.bit_length() > 256:
                raise TypeError(f"{where} has more than 256 bits")
        elif not isinstance(value, (str, type(None))):
            raise TypeError(
                f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values "
                "only"
            )

    def not_finite(where: str) -> UserError:
        return UserError(f"{path}: {where} is not finite, so its training has gone wrong")

    check(state, "state")


def _check_tensor(value: torch.Tensor, where: str) -> None:
    """Refuse a tensor that says it is larger than what is stored of it."""
    plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise TypeError(f"{where} is a tensor without all of its values")
