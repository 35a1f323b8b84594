"""Import of diffusers and transformers beside a broken torchvision, and their published weights."""

from __future__ import annotations

import sys
from typing import Protocol, Self, TypeVar

from errors import UserError


class Published(Protocol):
    """A class of diffusers whose weights can be had."""

    @classmethod
    def from_pretrained(cls, name: str, /, *, subfolder: str, use_safetensors: bool) -> Self: ...


Model = TypeVar("Model", bound=Published)


def hide_broken_torchvision() -> None:
    """Let a torchvision that cannot be imported count as absent.

    Neither library needs one, but both import one that is there; a build for another torch (PyPI's,
    for CUDA, beside a torch for the CPU) then breaks their own import.
    """
    try:
        import torchvision  # noqa: F401
    except Exception:
        # None makes every import of it fail, says Python's manual.
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # typeshed knows modules only


def weights_named(name: str) -> tuple[str, ...]:
    """What `pretrained` would load from a folder or the network: `name`, unless it is empty."""
    return (name,) if name else ()


def pretrained(model: type[Model], name: str, part: str) -> Model:
    """A model of diffusers with published weights.

    Args:
        model: its class.
        name: folder or hub name of a pipeline.
        part: which of the pipeline's folders.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    try:
        return model.from_pretrained(name, subfolder=part, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no {part} can be loaded from {name!r}: {reason}") from error
