"""record: keep the learning curves of run folders as small files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from commands.command_line import parse
from errors import UserError


@dataclass(frozen=True)
class Record:
    """Keep the learning curves of run folders as small files, one JSON in the published format a
    run, with its command, commit, versions, hardware, wall time and last evaluation."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, folders of them or globs; METHOD=PATH names the method (default: ours)."""
    out: Path = Path("results/curves")
    """Folder to write to; created when missing."""


def record(arguments: Sequence[str]) -> None:
    """`run.py record`: curves as files. Raises UserError."""
    from analysis.record import record as record_curves

    options = parse(Record, arguments, "run.py record")
    if not options.inputs:
        raise UserError("name at least one run folder")
    for path in record_curves(options.inputs, options.out, lambda note: print(f"note: {note}")):
        print(path)
