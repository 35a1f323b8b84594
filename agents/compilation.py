"""What torch.compile needs: a compiler, and no gradients that nobody asks for."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

import torch
from torch import nn

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


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through `module` but are not computed for its weights.

    ``torch.autograd.grad`` leaves them out by itself; a compiled graph computes those of all
    weights that could be asked for.
    """
    learned = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
