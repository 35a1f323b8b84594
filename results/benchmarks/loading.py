"""How fast training windows come from demonstration files (a part of the benchmark)."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch.utils.data import DataLoader

from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from envs.windows import WindowConfig, Windows, open_windows
from envs.workers import WorkerContext

TASK = "metaworld/drawer-close"
SIZE = 64
BATCH = 16
WINDOWS = WindowConfig(n_obs_steps=4, future=5, stride=4, chunk=16)
BATCHES = 12


def measure_loading(folder: Path, episodes: int, rounds: int) -> dict[str, Any]:
    """Windows a second, read in turns: by h5py alone, by `Windows`, and through a `DataLoader`.

    Plain h5py reads the same frames of the same windows one by one (faster here than one call with
    a list of them) and does nothing with them: no padding, no batches, no check.

    Args:
        folder: to record demonstrations in.
        episodes: how many.
        rounds: turns of each.
    """
    path = folder / "loading.hdf5"
    collect(TASK, episodes, path, ScriptedActor, EnvironmentConfig(size=SIZE, quality="fast"))
    windows = open_windows([path], WINDOWS.reads())
    readers = {
        "plain h5py": lambda seed: _plain(path, windows, seed),
        "Windows": lambda seed: (windows[i] for b in _batches(windows, seed) for i in b),
        "DataLoader, no workers": lambda seed: _loader(windows, seed, 0),
        "DataLoader, 1 worker": lambda seed: _loader(windows, seed, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds):
        for name, reader in readers.items():
            rates[name].append(_rate(reader, turn, per_item=BATCH if "Loader" in name else 1))
    return {
        "episodes": episodes,
        "frames": WINDOWS.n_obs_steps + WINDOWS.future,
        "size": SIZE,
        "bytes": path.stat().st_size,
        "windows_per_second": {n: statistics.median(found) for n, found in rates.items()},
    }


def _rate(reader: Callable[[int], Iterator[Any]], seed: int, per_item: int) -> float:
    """Windows a second once the first has come: starting a process is no reading."""
    items = iter(reader(seed))
    next(items)
    start, count = time.perf_counter(), 0
    for _ in items:
        count += per_item
    return count / (time.perf_counter() - start)


def _batches(windows: Windows, seed: int) -> Iterator[list[int]]:
    return itertools.islice(windows.batches(BATCH, seed), BATCHES)


def _loader(windows: Windows, seed: int, workers: int) -> DataLoader:
    context = WorkerContext() if workers else None
    return DataLoader(
        windows,
        batch_sampler=list(_batches(windows, seed)),
        num_workers=workers,
        multiprocessing_context=context,
    )


def _plain(path: Path, windows: Windows, seed: int) -> Iterator[tuple]:
    past, ahead = WINDOWS.past(), WINDOWS.ahead()
    with h5py.File(path) as file:
        for index in itertools.chain.from_iterable(_batches(windows, seed)):
            _, episode, step = windows.locate(index)
            demo = file[f"data/{episode.name}"]
            last = episode.steps - 1
            seen = np.unique(np.clip(step + past, 0, last))
            coming = np.unique(np.minimum(step + ahead, last))
            stop = min(step + WINDOWS.chunk, last + 1)
            pictures, masks = demo["obs/corner2_rgb"], demo["obs/corner2_mask"]
            yield (
                [pictures[row] for row in seen],
                [masks[row] for row in coming],
                demo["actions"][step:stop],
                demo["obs/proprio"][step],
            )
