"""What a sweep of many queued runs costs the process that drives it.

    python -m results.benchmarks.sweep --out results/sweep

Queues runs that return at once, on Ray and as processes, and drives them as `run.py sweep` does:
memory of the driving process, and milliseconds for one look at the table. Writes OUT.md and
OUT.json.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.output import write_report
from commands.command_line import script
from commands.sweep_table import SweepTable
from errors import UserError
from experiment.jobs import Engine, Job, OnRay, Processes
from experiment.provenance import provenance
from experiment.sweep import Run, SweepFolder

MODULE = "results.benchmarks.sweep"


@dataclass(frozen=True)
class SweepCost:
    """Measure what driving a sweep costs."""

    runs: int = 1000
    """Queued at once."""
    out: Path = Path("results/sweep")
    """Files to write, without their suffixes."""


def drive(engine: Engine, folder: Path, count: int) -> dict[str, Any]:
    """Queue `count` runs and wait for all of them."""
    record = SweepFolder(folder)
    planned = [Run(f"run{n}", "ours", "dmc/walker-walk", n, ("train",), 1000) for n in range(count)]
    began = time.perf_counter()
    looks, waits = [], []
    with closing(record):
        record.begin(planned, "")
        for run in planned:
            engine.submit(Job(run.name, (("true",),), str(folder / run.name), str(folder)))
        table = SweepTable(record, [run.name for run in planned])
        left = count
        while left:
            start = time.perf_counter()
            for name, error in engine.ended():
                record.ended(name, error)
                left -= 1
            waits.append(1000 * (time.perf_counter() - start))
            start = time.perf_counter()
            table.line()
            table.table()
            looks.append(1000 * (time.perf_counter() - start))
            time.sleep(0.05)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "look_ms": round(float(np.median(looks)), 2),
        "slowest_look_ms": round(max(looks), 2),
        "done": sum(run.status == "done" for run in record.runs.values()),
    }


def measure(options: SweepCost) -> None:
    """Measure both engines and write the table. Raises UserError."""
    if options.runs < 1:
        raise UserError("--runs must be at least 1")
    came, rows = provenance(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("processes", "ray"):  # memory is the most so far: Ray's comes last
            engine = Processes(2) if name == "processes" else OnRay(None, 1.0, 0.0)
            with closing(engine):
                rows[name] = drive(engine, Path(folder) / name, options.runs)
            print(name, rows[name], flush=True)
    from experiment.hardware import hardware  # imports PyTorch, which a sweep does not hold

    numbers = {"runs": options.runs, "rows": rows, **came, "hardware": hardware()}
    lines = [
        f"| {name} | {row['done']:,} | {row['seconds']:g} | {row['memory_mb']} | {row['look_ms']:g}"
        f" | {row['slowest_look_ms']:g} |"
        for name, row in rows.items()
    ]
    page = (
        f"# Driving a sweep of {options.runs:,} runs\n\nMade by `python -m {MODULE}` at"
        f" {came['commit'][:7]}, {numbers['hardware']['processor']}. Runs return at once. Memory is"
        " the most that the driving process has had so far; a look reads how far each run is and"
        " makes the table.\n\n"
        "| engine | done | seconds | memory, MB | a look, ms | slowest, ms |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )
    write_report(options.out, page, numbers)
    print(options.out.with_suffix(".md"))


if __name__ == "__main__":
    sys.exit(script(measure, SweepCost, MODULE))
