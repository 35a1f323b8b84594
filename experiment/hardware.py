"""What a run computes and draws on: processor, cores, GPU, renderer, arithmetic for bfloat16."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software", "swiftshader")
"""In the names of renderers that draw on the processor."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices in bfloat16 itself. A processor that does not (x86 with
    AVX2 only) converts every number: an update took 14 times as long (results/benchmark_avx2.md).
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False
        with torch.cuda.device(device):  # it asks the present one
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # An older PyTorch cannot be asked.
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        # AVX-512 and AMX on x86, NEON on ARM
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def gpu_name(device: str = "auto") -> str | None:
    """The name of the GPU that is the torch device called `device`, of the one in use where that is
    none; None without a GPU, or without such a one."""
    if not torch.cuda.is_available():
        return None
    try:
        return torch.cuda.get_device_name(device if device.startswith("cuda") else None)
    except (RuntimeError, AssertionError, ValueError):  # no such GPU: whoever uses it says so
        return None


def draws_in_software(renderer: str) -> bool:
    """Whether an OpenGL renderer, by its name, draws on the processor."""
    return any(name in renderer.lower() for name in SOFTWARE)


def hardware(device: str = "auto") -> dict[str, Any]:
    """What this computes on: ``processor`` and ``gpu`` (None without one) by name, ``cores``,
    PyTorch's ``threads`` (before a run's own ``--threads``), and whether the processor has
    arithmetic for ``bfloat16``.

    Args:
        device: the torch device in use, of several GPUs.
    """
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
        "gpu": gpu_name(device),
    }
