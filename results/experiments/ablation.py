"""Change one thing at a time and see whether it matters.

    python -m results.experiments.ablation --task dmc/walker-walk --out ablation

Trains the preset as it is and once for each variant, every seed of each, several runs at once with
one thread each, records the curve of each as it ends, then compares the curves. Stop it whenever
you like; the same command goes on, and a run whose curve is recorded is not made again.

Each default variant changes one choice of the preset: no masking, and no reward prediction of the
autoencoder (both are what the paper adds to a plain autoencoder, section 4.1), no division of
imagined rewards by their size (Table 1: all but DMC), a KL that is not lowered below 1 nat, and the
largest deviation of DreamerV2's actor.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis import record
from analysis.comparison import Compare
from analysis.report import make_report
from commands.command_line import script
from errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BASE = "preset"
VARIANTS = (
    "no-mask=--agent.autoencoder.mask-ratio 0",
    "no-reward=--agent.autoencoder.reward-weight 0",
    "no-reward-scale=--agent.behaviour.no-normalise-reward",
    "free-nats-1=--agent.dynamics.free-nats 1.0",
    "dreamerv2-std=--agent.behaviour.max-std 2.1",
)


@dataclass(frozen=True)
class Ablation:
    """Train variants of a preset and compare them."""

    task: str
    """What to learn."""
    out: Path
    """Folder for the comparison and the recorded curves."""
    variants: tuple[str, ...] = VARIANTS
    """Each NAME=OPTIONS of `run.py train`; the preset itself is always there."""
    preset: Literal["cpu", "paper"] = "cpu"
    """What is varied."""
    steps: int = 20_000
    """Environment steps of every run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The same for every variant."""
    evaluate: str = "--evaluate-first 5000 --evaluate-every 2500 --evaluate-episodes 5"
    """Options of every run's evaluation; --evaluate="--evaluate-every 1000"."""
    options: str = ""
    """More options of every run; --options=--agent.compile."""
    runs: Path = Path("runs/ablation")
    """Where the run folders are."""
    jobs: int = os.cpu_count() or 1
    """Runs at once."""


def variants(options: Ablation) -> dict[str, list[str]]:
    """Options of `run.py train` by name, those of every run first.

    Raises:
        UserError: a variant is not NAME=OPTIONS, or options cannot be read.
    """
    every = _split("--evaluate", options.evaluate) + _split("--options", options.options)
    named = {BASE: every}
    for variant in options.variants:
        name, equals, text = variant.partition("=")
        if not (re.fullmatch(r"[\w.-]+", name) and equals) or name in named:
            raise UserError(
                f"{variant!r} is not NAME=OPTIONS; a name is its own, of letters, digits, - and ."
            )
        named[name] = every + _split(repr(variant), text)
    return named


def _split(what: str, text: str) -> list[str]:
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{what}: {text} cannot be read: {error}") from error
    if any(option.startswith("--logdir") for option in found):
        raise UserError(f"{what} has a --logdir; the run folders are chosen by --runs")
    return found


@dataclass(frozen=True)
class Run:
    """One run: how it is made, where, and what stays of it."""

    variant: str
    command: list[str]
    folder: Path
    curve: Path

    @property
    def recorded(self) -> bool:
        """Whether its curve is there. Raises UserError if another command made it."""
        if not self.curve.exists():
            return False
        wanted = shlex.join(["python", "run.py", *self.command[2:]])
        try:
            found = json.loads(self.curve.read_text(encoding="utf-8"))[0]["command"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.curve} is not a recorded curve: {error}; remove it") from error
        if found != wanted:
            raise UserError(
                f"{self.curve} was made by `{found}`, not by `{wanted}`; name another --out"
            )
        return True


def runs(options: Ablation) -> list[Run]:
    """All runs, seed by seed, so that what is there at any moment is nearly balanced."""
    planned = []
    task = options.task.replace("/", "-")
    for seed in options.seeds:
        for name, changed in variants(options).items():
            folder = options.runs / f"{task}-{name}-seed{seed}"
            command = [
                sys.executable, str(ROOT / "run.py"), "train", "--task", options.task,
                "--preset", options.preset, "--steps", str(options.steps), "--seed", str(seed),
                "--threads", "1", "--logdir", str(folder),
                *changed,
            ]  # fmt: skip
            curve = options.out / "curves" / f"{name}-{task}-seed{seed}.json"
            planned.append(Run(name, command, folder, curve))
    return planned


def train(options: Ablation) -> None:
    """Make and record every run that is not recorded yet, `jobs` at a time.

    Raises:
        UserError: one fails, or a curve is there that another command made.
    """
    options.runs.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs(options) if not run.recorded]
    running: list[tuple[subprocess.Popen, Run, Path]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                run = waiting.pop(0)
                log = run.folder.with_name(run.folder.name + ".log")
                with open(log, "a", encoding="utf-8") as file:
                    process = subprocess.Popen(
                        run.command, stdout=file, stderr=file, env=environment, cwd=Path.cwd()
                    )
                print(f"{len(waiting)} waiting; started {run.folder.name}", flush=True)
                running.append((process, run, log))
            time.sleep(1.0)
            for entry in [entry for entry in running if entry[0].poll() is not None]:
                running.remove(entry)
                process, run, log = entry
                if process.returncode:
                    raise UserError(f"{shlex.join(run.command)} failed; {log} says why")
                record.record((f"{run.variant}={run.folder}",), run.curve.parent)
    finally:
        for process, _, _ in running:
            process.terminate()
            process.wait()


def main(options: Ablation) -> None:
    """Train, record, compare."""
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be at least 1")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise UserError("--seeds needs at least one seed, and none twice")
    train(options)
    curves = tuple(str(run.curve) for run in runs(options))
    make_report(Compare(curves, options.out, final="last5"))


if __name__ == "__main__":
    sys.exit(script(main, Ablation, "results.experiments.ablation"))
