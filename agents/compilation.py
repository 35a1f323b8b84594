"""How functions are compiled, and what that needs: a compiler."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import torch

from errors import UserError


def require_compiler(device: torch.device) -> None:
    """See that generated code can be built: C++ for a CPU, for a GPU also C (Triton).

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
    C++ from end to end, which does not hold the lock of Python that a thread beside it needs."""
    if device.type == "cuda":
        return torch.compile(function, dynamic=False, mode="reduce-overhead")
    # Apart, kernels and what calls them are compiled in three fifths of the time.
    options = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    return torch.compile(function, dynamic=False, options=options)
