"""``evaluation.json`` of a run folder: what was measured of its agent, down to single episodes.

    task, step or updates, seed, ...    the conditions that all rows have in common
    agent, random, noise:0.2, ...       rows: success, return, their episodes, the commit
    shifts, retained, pruning           what was computed from rows
    unfinished                          episodes of rows that were stopped, by row
    others                              the same under other conditions, the latest first
    command, commit, versions           of whoever measured last

Several processes may measure one run at the same time, and each may be killed: an episode that has
ended is in the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atomic_file import Unwritable, atomic_file, new_file, temporary_path, writing
from errors import UserError
from experiment.locks import exclusive
from experiment.notes import note
from experiment.provenance import provenance
from regular_file import read_text

CONDITIONS = ("task", "step", "updates", "seed", "n_action_steps", "shift", "weights")
"""What has to be the same for rows to be compared. Older files do not say which ``weights``."""
COMPUTED = ("shifts", "retained", "pruning")
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder in which nothing may be written, as opposed to one without room."""
MARGIN = 2**20
"""Bytes of room, beside those of the file, without which nothing is measured."""

Record = dict[str, Any]


class Start(NamedTuple):
    """What an episode of a row is known by."""

    task: str
    seed: int


class EvaluationRecord:
    """The rows that were measured under the same conditions.

    Args:
        path: of ``evaluation.json``.
        conditions: values of ``CONDITIONS``; None, and what is not named, does not apply.

    Raises:
        UserError: the file is there and cannot be read.

    Attributes:
        content: conditions, rows, and what was computed from them.
        problem: why the latest is not in the file; None when it is.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]):
        self.path = path
        self.conditions = {name: value for name, value in conditions.items() if value is not None}
        self.content, _ = self._parted(read_records(path))
        self.problem: UserError | None = None
        self._changes: list[Callable[[Record], None]] = []  # those that are not in the file yet
        self._provenance = provenance()

    def check_room(self) -> None:
        """Find out before anything is measured whether it can be written.

        In a folder where nothing may be written one can measure all the same; a note says so.

        Raises:
            UserError: the disk is full, or something is in the way that can be moved.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        trial = temporary_path(self.path)
        try:
            with self._locked(), contextlib.ExitStack() as stack:
                stack.callback(trial.unlink, missing_ok=True)
                with new_file(trial) as file:
                    file.write(bytes(size + MARGIN))
                    file.flush()
                    os.fsync(file.fileno())
        except Unwritable as error:
            if error.errno not in FORBIDDEN:
                raise
            self.problem = error
            note(f"{str(error).partition('; ')[0]}; what is measured is only printed")

    def known(self, row: str) -> dict[Start, dict[str, Any]]:
        """The episodes of a row so far, be it finished or not."""
        return {self._start(episode): episode for episode in _episodes(self.content, row)}

    def add(self, row: str, episode: Mapping[str, Any]) -> None:
        """Keep an episode of a row that is being measured."""

        def added(content: Record) -> None:
            if self._start(episode) not in map(self._start, _episodes(content, row)):
                content.setdefault("unfinished", {}).setdefault(row, []).append(dict(episode))

        self._change(added)

    def finish(self, row: str, summary: Mapping[str, Any]) -> None:
        """Keep a finished row, a summary with its ``episodes``; a longer one stays."""
        summary = {**summary, "commit": self._provenance["commit"]}

        def finished(content: Record) -> None:
            _drop(content, row)
            before = content[row] if row in _rows(content) else None
            if before is None or len(before["episodes"]) < len(summary["episodes"]):
                content[row] = summary
                if before is not None:  # of which they were computed
                    for name in COMPUTED:
                        content.pop(name, None)

        self._change(finished)

    def note(self, **values: Any) -> None:
        """Keep what was computed from rows, or describes them."""
        self._change(lambda content: content.update(values))

    def forget(self, row: str) -> None:
        """Leave out a row that was measured otherwise than it would be now."""

        def forgotten(content: Record) -> None:
            _drop(content, row)
            content.pop(row, None)

        self._change(forgotten)

    def _change(self, change: Callable[[Record], None]) -> None:
        """Make a change to what is known, and to what the file holds by now."""
        change(self.content)
        self._changes.append(change)
        try:
            with self._locked():
                content, others = self._parted(read_records(self.path))
                for each in self._changes:
                    each(content)
                content |= self._provenance
                _write(self.path, content, others)
        except UserError as error:  # what was measured is not lost for that
            self.problem = error
            return
        self.content, self.problem = content, None
        self._changes.clear()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with writing(self.path), exclusive(self.path.with_name("evaluation.lock")):
            yield

    def _parted(self, records: Sequence[Record]) -> tuple[Record, list[Record]]:
        """The record of these conditions, a new one where there is none, and the others."""
        for index, record in enumerate(records):
            if all(self._agrees(record, name) for name in CONDITIONS):
                _check_rows(record, self.path)
                return record | self.conditions, [*records[:index], *records[index + 1 :]]
        return dict(self.conditions), list(records)

    def _agrees(self, record: Record, name: str) -> bool:
        unsaid = name == "weights" and name not in record
        return unsaid or record.get(name) == self.conditions.get(name)

    def _start(self, episode: Mapping[str, Any]) -> Start:
        return Start(episode.get("task", self.conditions["task"]), episode["seed"])


def read_evaluation(path: Path) -> Record | None:
    """What was measured last: conditions, rows, what was computed from them, and where it came
    from; None if nothing was.

    Raises:
        UserError: the file is there and cannot be read.
    """
    record = next(iter(read_records(path)), {})
    record.pop("unfinished", None)
    return record if _rows(record) else None


def read_records(path: Path) -> list[Record]:
    """The records in ``evaluation.json``, the latest first; none where there is no file.

    Raises:
        UserError: it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    text = read_text(path)
    try:
        latest = json.loads(text)
        records = [latest, *latest.pop("others", [])]
        for record in records:
            if "execute" in record:  # the name of n_action_steps in older files
                record["n_action_steps"] = record.pop("execute")
            for row in _rows(record):
                record[row].setdefault("commit", record.get("commit"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; move it away, and evaluate again") from error
    return records


def _rows(record: Record) -> list[str]:
    return [name for name, row in record.items() if isinstance(row, dict) and "episodes" in row]


def _episodes(record: Record, row: str) -> list[dict[str, Any]]:
    """Of a row, finished or not."""
    finished = record[row]["episodes"] if row in _rows(record) else []
    return finished + record.get("unfinished", {}).get(row, [])


def _drop(record: Record, row: str) -> None:
    """Leave out the unfinished episodes of a row."""
    unfinished = record.get("unfinished", {})
    unfinished.pop(row, None)
    if not unfinished:
        record.pop("unfinished", None)


def _check_rows(record: Record, path: Path) -> None:
    """Refuse rows whose episodes are no episodes."""
    unfinished = record.get("unfinished", {})
    try:
        for row in {*_rows(record), *unfinished}:
            for episode in _episodes(record, row):
                whole = isinstance(episode["seed"], int) and isinstance(episode["length"], int)
                # Of several tasks, each episode says its own.
                several = "," in record["task"]
                whole &= isinstance(episode["task"] if several else episode.get("task", ""), str)
                known = episode["success"] is None or isinstance(episode["success"], bool)
                if not (whole and known and isinstance(episode["return"], (int, float))):
                    raise ValueError
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged (row {row!r:.60}); move it away, and evaluate again"
        ) from error


def _write(path: Path, content: Record, others: Sequence[Record]) -> None:
    """Write all records. A new one comes first once it has a row: until then, there is nothing to
    read in it."""
    first, *rest = [content, *others] if _rows(content) or not others else [*others, content]
    text = json.dumps(first | ({"others": rest} if rest else {}), indent=2)
    with atomic_file(path) as file:
        file.write(text.encode() + b"\n")
