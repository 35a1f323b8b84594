"""What networks compute in, and whether a device has arithmetic for it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""What networks compute in; auto is bfloat16 where the device has arithmetic for it."""


def autocast(precision: Precision, device: torch.device, cache: bool = True) -> torch.autocast:
    """The context in which networks of `precision` compute on `device`.

    Args:
        precision: float32 leaves everything as it is.
        device: where the networks are.
        cache: whether weights are cast once for the whole context.
    """
    half = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=cache)


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
