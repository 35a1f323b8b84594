"""Import of diffusers and transformers beside a broken torchvision, and their published weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

from errors import UserError


class Published(Protocol):
    """A class of diffusers whose weights can be had."""

    @classmethod
    def from_pretrained(
        cls, name: str, /, *, subfolder: str, use_safetensors: bool, output_loading_info: bool
    ) -> tuple[Self, dict[str, Any]]: ...


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
        made, found = model.from_pretrained(
            name, subfolder=part, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever the library makes of the files
        raise UserError(f"no {part} can be loaded from {name!r}: {first_line(error)}") from error
    refuse_missing(f"the {part} of {name!r}", found)
    return made


def refuse_missing(what: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that are not all there: the libraries make up the others.

    Args:
        what: has weights, for the error.
        found: what `from_pretrained` tells of its loading.

    Raises:
        UserError: some are missing.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{what} lacks {len(missing)} of its weights, {missing[0]} for example")


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
