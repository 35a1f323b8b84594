"""Many tries, some at a time, in processes forked from one that has imported everything."""

import importlib
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import torch

from run import COMMANDS
from tests.faults import originals as made
from tests.faults.kinds import KINDS
from tests.faults.process import call

IMPORTED = (
    *COMMANDS.values(), "agents.online", "agents.imitation", "agents.online_loading",
    "agents.imitation_loading", "agents.imitation_evaluation", "agents.online_evaluation",
    "agents.presets", "agents.imitation_presets", "agents.exporting", "agents.mask2act",
    "agents.held_out", "analysis.report", "analysis.record",
    "analysis.inspection", "envs.recording", "envs.annotation", "envs.metaworld", "envs.shifts",
    "envs.lerobot_reading", "envs.lerobot_writing", "envs.mask_files", "pyarrow.parquet",
    "metaworld", "rliable.library", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "tensorboard.summary.writer.record_writer",
)  # fmt: skip
"""What commands import when they are called: once, before there are many processes."""


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that are forked from this one; call `import_all` before."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"))


def make_originals(pool: Executor, folder: Path, imitation: bool) -> None:
    """Make what faults are put into, with the real commands.

    Raises:
        RuntimeError: one of them fails.
    """
    made_by = [pool.submit(_made, chain, folder) for chain in made.commands(folder, imitation)]
    for chain in made_by:
        chain.result()
    made.finish(folder)


def _made(chain: Sequence[Sequence[str]], folder: Path) -> None:
    for command in chain:
        ended = call(command, folder)
        if ended.status != 0:
            raise RuntimeError(f"{' '.join(command)}:\n{ended.errors}")


def planned(tries: int, kinds: Sequence[Callable]) -> list[tuple[Callable, int]]:
    """(kind, number) of `tries` tries, shared among `kinds` as `KINDS` says, the kinds mixed."""
    every = sum(KINDS[kind] for kind in kinds)
    counts = {kind: max(1, round(tries * KINDS[kind] / every)) for kind in kinds}
    placed = [
        ((number + 0.5) / counts[kind], kind.__name__, kind, number)
        for kind in kinds
        for number in range(counts[kind])
    ]
    return [(kind, number) for _, _, kind, number in sorted(placed, key=lambda each: each[:2])]


def import_all() -> None:
    """Import everything that a command may need, without threads, which a fork would not have."""
    torch.set_num_threads(1)
    for module in IMPORTED:
        importlib.import_module(module)
    # An agent that never succeeds, as the tiny ones here, is given up after its first episode.
    importlib.import_module("envs.recording").PATIENCE = 1


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
