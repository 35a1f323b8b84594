"""Making an agent by somebody else's configuration in the memory that its checkpoint allows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from errors import UserError
from experiment.config_record import names_loaded


@contextlib.contextmanager
def limited_by(
    state: Mapping[str, Any], config: Any, record: Path, weights: Path, times: int = 1
) -> Iterator[None]:
    """A context to make the agent of a checkpoint in, before the checkpoint is loaded into it.

    A configuration may ask for layers for which no machine has memory or time. How large the agent
    really is, the checkpoint says, whose tensors are there: no more parameters can be made in this
    context than they have elements. An agent that loads weights or classes from outside, which the
    user has allowed, is not limited.

    Args:
        state: the agent's part of the checkpoint.
        config: of the run.
        record: file of the configuration, for errors.
        weights: file of the checkpoint beside it, which says how many actions and pictures there
            are.
        times: how many parameters there may be for each number, where a part was left out.

    Raises:
        UserError: the agent is larger, or cannot be made at all.
    """
    room = times * elements(state)

    def registered(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal room
        room -= parameter.numel() if parameter is not None else 0
        if room < 0:
            raise UserError("it is larger than the one in the checkpoint beside it")

    limit = None
    if not names_loaded(config.agent):
        limit = register_module_parameter_registration_hook(registered)
    try:
        yield
    except Exception as error:  # whatever PyTorch makes of sizes that do not fit each other
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"no agent can be made as {record} and {weights.name} say: {reason}; put the run's own"
            " files back"
        ) from error
    finally:
        if limit is not None:
            limit.remove()


def elements(state: Any) -> int:
    """Numbers in all tensors of nested dicts, lists and tuples."""
    if isinstance(state, Tensor):
        return state.numel()
    if isinstance(state, Mapping):
        return sum(map(elements, state.values()))
    return sum(map(elements, state)) if isinstance(state, (list, tuple)) else 0
