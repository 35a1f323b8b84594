"""What a measurement asks of the machine: how long calls take, and how much memory is used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def synchronise(device: torch.device) -> None:
    """Wait for what the device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of each of some calls."""
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def memory() -> dict[str, float]:
    """MiB of this process: its own, and pages of files it has mapped; of the GPU at its peak."""
    status = Path("/proc/self/status")
    result = {}
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile", "VmHWM"):
                result[name] = int(value.split()[0]) / 1024
    if torch.cuda.is_available():
        result["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    return result
