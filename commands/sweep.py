"""sweep: many runs of train or imitate, here or on a Ray cluster."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import envs
from commands.command_line import parse
from commands.run_options import as_name
from errors import UserError
from experiment.jobs import Engine, Job, OnRay, Processes
from experiment.sweep import BASE, MOST_RUNS, OURS, RECORD, Run, SweepFolder, seeds, split, variants

ROOT = Path(__file__).resolve().parents[1]
REFRESH = 1.0
"""Seconds between two looks."""
CHOSEN = {"--task", "--seed", "--preset", "--logdir"}
"""Options that the sweep itself gives to its runs."""


@dataclass(frozen=True)
class Sweep:
    """Train many runs: every task with every seed, preset and variant.

    python run.py sweep --tasks metaworld/easy --seeds 0-4 --out runs/easy -- --steps 100000

    What stands after -- are options of every run. Started again with the same options, it goes on;
    what is done is not done again. With Ray installed (pip install '.[sweep]') Ray runs them, here
    or on the cluster of --address; without, --jobs of them run here at once.
    """

    tasks: str
    """Task ids and groups separated by commas: metaworld/easy, dmc/vision20, libero/object/0."""
    out: Path
    """Folder of the sweep: a run folder and a log for each run, sweep.json, comparison."""
    seeds: str = "0"
    """Seeds, as in 0-4 or 0,3,7."""
    presets: tuple[str, ...] = ("cpu",)
    """Presets, each of them with every variant."""
    variants: tuple[str, ...] = ()
    """Each NAME=OPTIONS, as in "no-reward=--agent.autoencoder.reward-weight 0"; the presets as
    they are come first."""
    base: bool = True
    """Run the presets as they are, too."""
    command: Literal["train", "imitate"] = "train"
    """What every run is."""
    evaluate: str = "--episodes 20"
    """Options of `run.py evaluate`, which measures every run at its end:
    --evaluate="--episodes 50 --random"; --evaluate= leaves it out."""
    engine: Literal["auto", "ray", "processes"] = "auto"
    """What runs them: ray, or processes of this machine; auto takes Ray where it is installed."""
    address: str | None = None
    """Ray cluster to join, auto for the one that this machine belongs to; by default Ray is started
    here."""
    cpus: float = 1.0
    """Processors of a run, of Ray and for its threads."""
    gpus: float = 0.0
    """GPUs of a run; 0.25 lets four share one."""
    jobs: int = os.cpu_count() or 1
    """Runs at once, of the engine processes."""


def sweep(arguments: Sequence[str]) -> None:
    """`run.py sweep`: many runs. Raises UserError."""
    own, options = _parted(arguments)
    chosen = parse(Sweep, own, "run.py sweep")
    runs = planned(chosen, options)
    folder = SweepFolder(chosen.out.absolute())
    with closing(folder):
        folder.begin(runs, shlex.join(["python", "run.py", "sweep", *arguments]))
        _run(chosen, folder, runs)
    _conclude(chosen, folder.path, [folder.runs[run.name] for run in runs])


def _run(chosen: Sweep, folder: SweepFolder, runs: Sequence[Run]) -> None:
    """Run what is not done yet. Raises UserError."""
    from commands.sweep_table import SweepTable

    waiting = [run for run in runs if folder.runs[run.name].status != "done"]
    print(f"{len(runs)} runs in {chosen.out}, {len(runs) - len(waiting)} of them done", flush=True)
    if waiting:
        engine = _engine(chosen)
        try:
            for run in waiting:
                job = _job(chosen, folder.path, run)
                job.mark.unlink(missing_ok=True)  # of a sweep that was killed
                engine.submit(job)
            left = len(waiting)
            with SweepTable(folder, [run.name for run in runs]) as table:
                while left:
                    for name, error in engine.ended():
                        folder.ended(name, error)
                        left -= 1
                    table.refresh()
                    time.sleep(REFRESH if left else 0.0)
        finally:
            engine.close()


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the sweep, and those after ``--`` of its runs."""
    arguments = list(arguments)
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def planned(chosen: Sweep, options: Sequence[str]) -> list[Run]:
    """Every run, seed by seed, so that what is done at any moment is nearly balanced.

    Raises:
        UserError: a task, a seed, a preset, a variant or an option that cannot be.
    """
    split("--evaluate", chosen.evaluate)
    _refuse_numbers(chosen)
    named: dict[str, list[str]] = {BASE: []} if chosen.base else {}
    named |= variants(chosen.variants)
    for option in itertools.chain(options, *named.values()):
        if option.partition("=")[0].replace("_", "-") in CHOSEN:
            raise UserError(f"{option} is chosen by the sweep; give --tasks, --seeds, --presets")
    tasks, numbers = envs.expand(chosen.tasks), seeds(chosen.seeds)
    if not named or not chosen.presets:
        raise UserError("nothing to run: give --presets, and --variants with --no-base")
    if len(set(chosen.presets)) < len(chosen.presets):
        raise UserError("--presets names one twice")
    count = len(tasks) * len(numbers) * len(named) * len(chosen.presets)
    if count > MOST_RUNS:
        raise UserError(f"{count:,} runs are more than {MOST_RUNS:,}")
    runs: list[tuple[tuple, Run]] = []
    kinds: dict[tuple, tuple[str, ...]] = {}
    for seed in numbers:
        for task in tasks:
            for preset in chosen.presets:
                for variant, changed in named.items():
                    given = (chosen.command, "--task", task, "--preset", preset, *options, *changed)
                    kind = (envs.suite(task), envs.published_budget(task), preset, variant)
                    kinds.setdefault(kind, given)
                    several = len(chosen.presets) > 1
                    label = [preset] * several + [variant] * (variant != BASE)
                    method = "-".join(label) or OURS
                    name = as_name(f"{task}-{preset}-{variant}-seed{seed}")
                    arguments = (*given, "--seed", str(seed))
                    runs.append((kind, Run(name, method, task, seed, arguments)))
    names = [run.name for _, run in runs]
    if len(set(names)) < len(names):
        alike = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two runs would lie in the folder {alike}; sweep over one of them")
    steps = dict(zip(kinds, _steps_of_each(list(kinds.values())), strict=True))
    return [replace(run, steps=steps[kind]) for kind, run in runs]


def _refuse_numbers(chosen: Sweep) -> None:
    if chosen.jobs < 1:
        raise UserError(f"--jobs is {chosen.jobs}; it must be at least 1")
    if not chosen.cpus > 0 or not chosen.gpus >= 0:
        raise UserError("--cpus must be above 0, --gpus at least 0")
    if chosen.engine == "processes" and (chosen.address is not None or chosen.gpus):
        raise UserError("--address and --gpus are Ray's; leave --engine processes out")


def _steps_of_each(runs: Sequence[Sequence[str]]) -> list[int]:
    """At which step each of some runs ends, found out by a process that ends again: what options
    mean takes PyTorch to know, which the sweep itself needs not hold.

    Raises:
        UserError: options that are none.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return list(process.map(_steps_of, runs))


def _steps_of(arguments: Sequence[str]) -> int:
    """At which step a run ends; refuses options that are none."""
    from commands.imitate import configured as of_imitate
    from commands.train import configured as of_train

    command, *given = arguments
    config: Any = (of_train if command == "train" else of_imitate)(given).config
    return config.steps if command == "train" else config.dynamics_steps + config.policy_steps


def _engine(chosen: Sweep) -> Engine:
    """What runs the jobs. Raises UserError."""
    ray = find_spec("ray") is not None
    if chosen.engine == "processes" or (chosen.engine == "auto" and not ray):
        if chosen.address is not None or chosen.gpus:
            raise UserError("--address and --gpus need Ray: pip install '.[sweep]'")
        return Processes(chosen.jobs)
    engine = OnRay(chosen.address, chosen.cpus, chosen.gpus)
    if lacking := engine.lacking():
        engine.close()
        raise UserError(lacking)
    return engine


def _job(chosen: Sweep, out: Path, run: Run) -> Job:
    """What a run is for an engine."""
    folder = str(out / run.name)
    python = (sys.executable, str(ROOT / "run.py"))
    commands = [(*python, *run.arguments, "--logdir", folder)]
    if chosen.evaluate:
        options = split("--evaluate", chosen.evaluate)
        commands.append((*python, "evaluate", "--logdir", folder, *options))
    threads = {"OMP_NUM_THREADS": str(max(1, int(chosen.cpus)))}
    return Job(run.name, tuple(commands), folder, str(Path.cwd()), threads)


def _conclude(chosen: Sweep, path: Path, runs: Sequence[Run]) -> None:
    """Compare what is done, and say what failed. Raises UserError where something did."""
    failed = [run for run in runs if run.status == "failed"]
    if len(failed) < len(runs) and chosen.command == "train":
        from analysis.comparison import Compare
        from analysis.report import make_report

        text, written = make_report(Compare((str(path / RECORD),), path / "comparison"))
        print(text)
        print(written[0])
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise UserError(
            f"{failed[0].name}{more} failed: {failed[0].error}; mend it and start the same sweep"
            " again"
        )
