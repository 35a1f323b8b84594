"""What a run computes on: processor, cores, GPU, and whether it has arithmetic for bfloat16."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices in bfloat16 itself. A processor that does not (x86 with
    AVX2 only) converts every number: an update took 14 times as long (results/benchmark_avx2.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # An older PyTorch cannot be asked.
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        # AVX-512 and AMX on x86, NEON on ARM
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def hardware() -> dict[str, Any]:
    """What this computes on: ``processor`` and ``gpu`` (None without one) by name, ``cores``,
    PyTorch's ``threads`` (before a run's own ``--threads``), and whether the processor has
    arithmetic for ``bfloat16``."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": has_bfloat16(torch.device("cpu")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
