"""Device, arithmetic precision, compiled functions and freed memory of training."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch

from envs.graphics_device import draw_on
from errors import UserError
from experiment.hardware import has_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
"""What networks compute in; auto is bfloat16 where the device has arithmetic for it."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc


def choose_device(name: str) -> torch.device:
    """The torch device called `name`; auto is CUDA where there is one.

    Of several GPUs this process uses no other from then on: pinned memory, compiled code and
    "cuda" without a number are of the one, and pictures are drawn on it.

    Raises:
        UserError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
        draw_on(str(torch.cuda.get_device_properties(device).uuid), device.index)
    return device


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which networks of `precision` compute on `device`; float32 leaves everything
    as it is."""
    if precision == "bfloat16" or (precision == "auto" and has_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def require_compiler(device: torch.device) -> None:
    """Check that generated code can be built: C++ for a CPU, for a GPU also C (Triton).

    Raises:
        UserError: there is no such compiler; says how to get one.
    """
    wanted = {"CXX": "clang++" if sys.platform == "darwin" else "g++"}
    if device.type == "cuda":
        wanted["CC"] = "gcc"
    for variable, usual in wanted.items():
        name = os.environ.get(variable) or usual
        if shutil.which(name) is None:
            raise UserError(
                f"--agent.compile needs a compiler, and {name} was not found; install {usual},"
                f" name another one in {variable}, or leave the option out"
            )


def compiled(function: Callable, device: torch.device) -> Callable:
    """`function` of fixed shapes through torch.compile: on a GPU into CUDA graphs, on a CPU into
    C++ from end to end."""
    if device.type == "cuda":
        return torch.compile(function, dynamic=False, mode="reduce-overhead")
    # Kernels and what calls them, compiled apart, take three fifths of the time to compile.
    options: dict[str, str | int | bool | Callable]
    options = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    return torch.compile(function, dynamic=False, options=options)


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees; where there is no glibc, do nothing.

    By default glibc gives large blocks back to the system at once and the next update gets them
    page by page, zeroed: 15 % of an update of the cpu preset.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_TOP_PAD, 64 << 20)
