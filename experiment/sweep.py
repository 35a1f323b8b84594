"""Many runs as one: which there are, where they lie, and what became of each.

A sweep is a folder: a run folder for each run, its log beside it, and ``sweep.json``, which says
what each run is and how it ended. The same sweep may be started again at any moment, on another
machine too where the folder is shared; what is done is not done again.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from atomic_file import atomic_file, writing
from errors import UserError
from experiment.locks import FolderLock
from experiment.provenance import provenance
from regular_file import read_text

RECORD = "sweep.json"
BASE = "preset"
"""The variant in which nothing is changed."""
OURS = "ours"
"""What comparisons call it, where there is one preset."""
MOST_RUNS = 100_000
Status = Literal["queued", "done", "failed"]


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    """Of its folder below the sweep's."""
    method: str
    """What comparisons call it: preset and variant, as far as there are several."""
    task: str
    seed: int
    arguments: tuple[str, ...]
    """Of `run.py`, but for its --logdir: ``train --task ...``."""
    steps: int = 0
    """At which it ends, environment steps or updates; 0: unknown."""
    status: Status = "queued"
    error: str = ""
    """Why it failed, in one line."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name.startswith("."):
            raise UserError(f"{self.name!r:.80} is no name of a run")


def seeds(text: str) -> list[int]:
    """ "0-2,7" → [0, 1, 2, 7].

    Raises:
        UserError: there is something else in it, or a seed twice.
    """
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if last < first or last - first > MOST_RUNS:
            raise UserError(f"--seeds is {text!r:.80}; write numbers and ranges, as in 0-4,7")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise UserError(f"--seeds {text} names a seed twice")
    return found


def variants(texts: Sequence[str]) -> dict[str, list[str]]:
    """Each NAME=OPTIONS, options by name.

    Raises:
        UserError: one is no NAME=OPTIONS, or its name is taken.
    """
    named: dict[str, list[str]] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or not re.fullmatch(r"\w[\w.+-]*", name) or not given.strip():
            raise UserError(f"variant {text!r:.80} is no NAME=OPTIONS, as in no-mask=--x 0")
        if name in named or name == BASE:
            raise UserError(f"there are two variants called {name}")
        named[name] = split(f"variant {name}", given)
    return named


def split(what: str, text: str) -> list[str]:
    """Options as a shell would read them. Raises UserError."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{what}: {text!r:.80} cannot be read ({error})") from error


class SweepFolder:
    """``sweep.json`` and what lies beside it.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path):
        self.path, self.record = path, path / RECORD
        self.runs: dict[str, Run] = {}
        self._came: dict[str, Any] = {}
        self._lock: FolderLock | None = None

    def begin(self, planned: Sequence[Run], command: str) -> None:
        """Lock the folder, made where there is none, and take up what is in it; runs that it has
        beside the planned ones stay.

        Raises:
            UserError: it holds another sweep's runs under these names, or other files; another
                process is at work in it; it cannot be written.
        """
        with writing(self.path):
            if self.path.exists() and not self.record.exists() and any(self.path.iterdir()):
                raise UserError(f"{self.path} holds other files; name a new folder as --out")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path, "name another --out")
        before = {run.name: run for run in read_sweep(self.record)} if self.record.exists() else {}
        for run in planned:
            there = before.get(run.name)
            if there is not None and there.arguments != run.arguments:
                raise UserError(
                    f"{self.path} has a run {run.name} of another sweep,"
                    f" `{shlex.join(there.arguments)}`; name another --out"
                )
        new = {run.name: run for run in planned if run.name not in before}
        again = {run.name for run in planned}  # what failed is tried again
        self.runs = {
            name: replace(run, status="queued", error="")
            if name in again and run.status == "failed"
            else run
            for name, run in {**before, **new}.items()
        }
        self._came = {**provenance(), "command": command}
        self.save()

    def close(self) -> None:
        """Let another process sweep here. Closing twice is allowed."""
        if self._lock is not None:
            self._lock.close()

    def ended(self, name: str, error: str = "") -> None:
        """Keep that a run is done, or why it failed."""
        status: Status = "failed" if error else "done"
        self.runs[name] = replace(self.runs[name], status=status, error=error)
        self.save()

    def save(self) -> None:
        """Write ``sweep.json``. Raises UserError."""
        content = {
            "sweep": 1,
            **self._came,
            "runs": [asdict(run) for run in self.runs.values()],
        }
        with writing(self.record), atomic_file(self.record) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def read_sweep(path: Path) -> list[Run]:
    """The runs of a ``sweep.json``.

    Raises:
        UserError: it is none, or cannot be read.
    """
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict) or content.get("sweep") != 1:
            raise ValueError("it has no sweep in it")
        return [_run(entry) for entry in content["runs"]]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{path} is no sweep.json of this version: {error}") from error


def _run(entry: dict[str, Any]) -> Run:
    """A run as ``sweep.json`` has it. Raises ValueError, TypeError or UserError."""
    run = Run(**{**entry, "arguments": tuple(entry["arguments"])})
    texts = (run.method, run.task, run.error, *run.arguments)
    if not all(isinstance(text, str) for text in texts) or type(run.seed) is not int:
        raise ValueError(f"run {run.name} has something else than text")
    if run.status not in ("queued", "done", "failed"):
        raise ValueError(f"run {run.name} is {run.status!r:.40}")
    return run
