"""Change one thing at a time and see whether it matters: python results/ablation.py --help

Trains the preset as it is and once for each variant, every seed of each, several runs at once with
one thread each, then compares the curves. Stop it whenever you like; the same command goes on.

The default variants are the suspects for what keeps the public code of Masked World Models from its
published DeepMind Control results: each turns one choice of ours into theirs, or of theirs into
DreamerV2's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commands.command_line import script
from errors import UserError
from results import compare, record

ROOT = Path(__file__).resolve().parents[1]
BASE = "preset"
SUSPECTS = (
    "free-nats-1=--agent.dynamics.free-nats 1.0",
    "kl-by-step=--agent.dynamics.kl-clip step",
    "kl-by-step-free-nats-1=--agent.dynamics.kl-clip step --agent.dynamics.free-nats 1.0",
    "correlated-frames=--agent.autoencoder-window 16",
    "larger-std=--agent.behaviour.min-std 0.2",
    "gru-activation=--agent.dynamics.rssm.input-activation",
    "reward-from-last-patch=--agent.autoencoder.reward-from last_patch",
    "no-reward-scale=--agent.behaviour.no-normalise-reward",
)


@dataclass(frozen=True)
class Ablation:
    """Train variants of a preset and compare them."""

    task: str
    """What to learn."""
    out: Path
    """Folder for the comparison and the recorded curves."""
    variants: tuple[str, ...] = SUSPECTS
    """Each NAME=OPTIONS of `run.py train`; the preset itself is always there."""
    preset: Literal["cpu", "paper"] = "cpu"
    """What is varied."""
    steps: int = 20_000
    """Environment steps of every run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The same for every variant."""
    evaluate: str = "--evaluate-first 5000 --evaluate-every 2500 --evaluate-episodes 5"
    """Options of every run's evaluation."""
    runs: Path = Path("runs/ablation")
    """Where the run folders are."""
    jobs: int = os.cpu_count() or 1
    """Runs at once."""


def variants(options: Ablation) -> dict[str, list[str]]:
    """Options of `run.py train` by name.

    Raises:
        UserError: a variant is not NAME=OPTIONS.
    """
    named = {BASE: []}
    for variant in options.variants:
        name, equals, text = variant.partition("=")
        if not (re.fullmatch(r"[\w.-]+", name) and equals) or name in named:
            raise UserError(
                f"{variant!r} is not NAME=OPTIONS; a name is its own, of letters, digits, - and ."
            )
        try:
            named[name] = shlex.split(text)
        except ValueError as error:
            raise UserError(f"{variant!r} cannot be read: {error}") from error
        if any(option.startswith("--logdir") for option in named[name]):
            raise UserError(f"{variant!r}: the run folders are chosen by --runs")
    return named


def folder(options: Ablation, name: str, seed: int) -> Path:
    """The run folder of one run."""
    task = options.task.replace("/", "-")
    return options.runs / f"{task}-{name}-seed{seed}"


def commands(options: Ablation) -> list[list[str]]:
    """The runs, seed by seed, so that what is there at any moment is nearly balanced."""
    return [
        [
            sys.executable, str(ROOT / "run.py"), "train", "--task", options.task,
            "--preset", options.preset, "--steps", str(options.steps), "--seed", str(seed),
            "--threads", "1", "--logdir", str(folder(options, name, seed)),
            *shlex.split(options.evaluate), *changed,
        ]
        for seed in options.seeds
        for name, changed in variants(options).items()
    ]  # fmt: skip


def train(options: Ablation) -> None:
    """Make every run, `jobs` at a time. Raises UserError when one fails."""
    options.runs.mkdir(parents=True, exist_ok=True)
    waiting = commands(options)
    running: list[tuple[subprocess.Popen, list[str], Path]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                command = waiting.pop(0)
                path = Path(command[command.index("--logdir") + 1])
                log = path.with_name(path.name + ".log")
                with open(log, "a") as file:
                    process = subprocess.Popen(
                        command, stdout=file, stderr=file, env=environment, cwd=Path.cwd()
                    )
                print(f"{len(waiting)} waiting; started {path.name}", flush=True)
                running.append((process, command, log))
            time.sleep(1.0)
            for entry in [entry for entry in running if entry[0].poll() is not None]:
                running.remove(entry)
                if entry[0].returncode:
                    raise UserError(f"{shlex.join(entry[1])} failed; {entry[2]} says why")
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
    named = variants(options)
    train(options)
    inputs = []
    for name in named:
        for seed in options.seeds:
            path = folder(options, name, seed)
            curve, *_ = record.record((f"{name}={path}",), options.out / "curves")
            inputs.append(str(curve))
    compare.main(compare.Compare(tuple(inputs), options.out, final="last5"))


if __name__ == "__main__":
    sys.exit(script(main, Ablation, "results/ablation.py"))
