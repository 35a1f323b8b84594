"""The scores in TensorBoard event files.

TensorBoard's own reader stops at the first record it cannot read, without a word. Here every byte
is accounted for: a record is its length, a checksum of it, the event, and a checksum of that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from analysis.curves import Kind
from errors import UserError
from regular_file import open_regular

EVENTS = "events.out.tfevents"
"""What the names of event files begin with."""
MOST_RECORD = 2**28
"""Bytes of an event: 256 MiB, more than any picture."""


class Events(NamedTuple):
    """What the event files of one run hold."""

    file: Path
    """The first of them."""
    kind: Kind
    rows: list[tuple[str, int, float]]
    """(where, step, score) of the evaluations in order."""
    tags: set[str]
    """Names of everything logged."""


def event_files(folder: Path) -> list[Path]:
    """The event files in a folder, oldest first."""
    return sorted(path for path in folder.iterdir() if path.name.startswith(EVENTS))


def read_events(folder: Path, note: Callable[[str], None]) -> Events:
    """The event files in `folder`, which are one run, resumed or not: tags eval/success or
    eval/return.

    Args:
        folder: with at least one event file.
        note: called with a sentence about a last record that is cut off.

    Raises:
        UserError: a file is none, or has a record that is broken; says at which byte.
    """
    from tensorboard.compat.proto.event_pb2 import SessionLog

    points: dict[str, dict[int, tuple[str, int, float]]] = {"eval/success": {}, "eval/return": {}}
    tags: set[str] = set()

    def forget(found: dict[int, Any], step: int) -> None:
        """What a resumed run writes replaces everything from its step on."""
        for known in [known for known in found if known >= step]:
            del found[known]

    files = event_files(folder)
    for file in files:
        for position, event in _events(file, note):
            if event.session_log.status == SessionLog.START:
                for found in points.values():
                    forget(found, event.step)
            for value in event.summary.value:
                tags.add(value.tag)
                if value.tag in points:
                    found = points[value.tag]
                    forget(found, event.step)
                    where = f"step {event.step} (byte {position:,})"
                    found[event.step] = (where, event.step, _scalar(file, position, value))
    kind: Kind = "success" if points["eval/success"] else "return"
    return Events(files[0], kind, list(points[f"eval/{kind}"].values()), tags)


def _events(path: Path, note: Callable[[str], None]) -> Iterator[tuple[int, Any]]:
    """(first byte, event) of every record."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for position, record in _records(path, note):
        try:
            yield position, Event.FromString(record)
        except DecodeError as error:
            raise _broken(path, position) from error


def _records(path: Path, note: Callable[[str], None]) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of every record.

    The last one may be cut off, where the run is being written or was killed; `note` is told.
    """
    from tensorboard.summary.writer.record_writer import masked_crc32c

    def whole(content: bytes, checksum: bytes) -> bool:
        return struct.pack("<I", masked_crc32c(content)) == checksum

    with open_regular(path) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            header, checksum = file.read(8), file.read(4)
            if len(checksum) == 4 and not whole(header, checksum):
                raise _broken(path, position)
            length = struct.unpack("<Q", header)[0] if len(checksum) == 4 else size
            if position + 12 + length + 4 > size:
                if position == 0:  # a writer begins with a whole record at once
                    raise _broken(path, position)
                note(
                    f"{path} ends within a record, at byte {size:,}; what it holds before byte "
                    f"{position:,} is read"
                )
                return
            if length > MOST_RECORD:
                raise _broken(path, position)
            content = file.read(length)
            if not whole(content, file.read(4)):
                raise _broken(path, position)
            yield position, content
            position += 12 + length + 4


def _broken(path: Path, position: int) -> UserError:
    if position == 0:
        return UserError(f"{path} is no TensorBoard event file, or a broken one (from byte 0)")
    return UserError(
        f"{path} has a broken record at byte {position:,}, and nothing after it can be read; "
        "restore the file, or give the run's metrics.jsonl"
    )


def _scalar(path: Path, position: int, value: Any) -> float:
    """The number that a summary value holds."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.HasField("simple_value"):
        return float(value.simple_value)
    shape = [each.size for each in value.tensor.tensor_shape.dim]
    try:
        # A shape is not believed: a file of some bytes may ask for all memory there is.
        if value.HasField("tensor") and all(size == 1 for size in shape):
            return float(make_ndarray(value.tensor).item())
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path}: {value.tag} at byte {position:,} is no number") from error
    raise UserError(f"{path}: {value.tag} at byte {position:,} is no single number")
