"""Import of diffusers and transformers beside a broken torchvision, and their published weights."""

from __future__ import annotations

import sys

from torch import nn

from errors import UserError


def hide_broken_torchvision() -> None:
    """Let a torchvision that cannot be imported count as absent.

    Neither library needs one, but both import one that is there; a build for another torch (PyPI's,
    for CUDA, beside a torch for the CPU) then breaks their own import.
    """
    try:
        import torchvision  # noqa: F401
    except Exception:
        sys.modules["torchvision"] = None


def pretrained(model: type[nn.Module], name: str, part: str) -> nn.Module:
    """A model of diffusers with published weights.

    Args:
        model: its class.
        name: folder or hub name of a pipeline.
        part: which of the pipeline's folders.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    try:
        return model.from_pretrained(name, subfolder=part)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no {part} can be loaded from {name!r}: {reason}") from error
