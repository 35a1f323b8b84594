"""What memory a training run takes while it goes on, its environments' processes included.

    python -m results.experiments.memory --minutes 60 --out results/memory

Trains window-close with the preset `cpu` in `runs/memory` and looks every minute at the resident
set of the process and of all that it has started. Writes OUT.md and OUT.json, and stops the run.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.output import write_report
from commands.command_line import script
from errors import UserError
from experiment.hardware import hardware
from experiment.provenance import provenance

MODULE = "results.experiments.memory"
TRAIN = (
    "run.py train --task metaworld/window-close --threads 1 --logdir runs/memory --steps 1000000"
)


@dataclass(frozen=True)
class Memory:
    """Look at a training run's memory."""

    minutes: int = 60
    """How long."""
    out: Path = Path("results/memory")
    """Files to write, without their suffixes."""


def resident(process: int) -> float:
    """MB in memory of a process and of all its descendants."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    kilobytes = [int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line]
    children = [
        child
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text(encoding="utf-8").split()
    ]
    return sum(kilobytes) / 1024 + sum(resident(int(child)) for child in children)


def watch(options: Memory) -> None:
    """Train, look, write. Raises UserError where the run ends by itself."""
    command, came = [sys.executable, *shlex.split(TRAIN)], provenance()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        found = []
        try:
            for minute in range(1, options.minutes + 1):
                time.sleep(60)
                if run.poll() is not None:
                    raise UserError(f"the run ended after {minute} minutes; see runs/memory")
                found.append(round(resident(run.pid), 1))
        finally:
            run.send_signal(signal.SIGTERM)
    numbers = {"megabytes": found, "train": TRAIN, **came, "hardware": hardware()}
    write_report(options.out, page(numbers), numbers)
    print(options.out.with_suffix(".md"))


def page(numbers: dict[str, Any]) -> str:
    """What was seen, every five minutes."""
    found = numbers["megabytes"]
    rows = [f"| {minute} | {found[minute - 1]:,.0f} |" for minute in range(5, len(found) + 1, 5)]
    return (
        "# Memory of a training run\n\n"
        f"Made by `python -m {MODULE} --minutes {len(found)}` at {numbers['commit'][:7]},"
        f" {numbers['hardware']['processor']}. `python {numbers['train']}`: resident memory of the"
        " process and of those of its environments together. Those of evaluations are started by"
        " the first one, and stay. Mapped pages of the replay count.\n\n"
        "| minute | MB |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    sys.exit(script(watch, Memory, MODULE))
