"""``model.safetensors`` of an exported policy: the weights that act, and what goes with them.

Weights are tensors by their names in the networks that act. What else the agent of a checkpoint
has, that is plain, is JSON in the header of the file (its ``__metadata__``, which safetensors keeps
for such things), so that it cannot be parted from them. The header also has a checksum of both,
since the format has none: a bit that was lost on the way is not taken for a weight. Reading it runs
no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atomic_file import atomic_file
from errors import UserError
from experiment.checkpoint import UNREADABLE, load_checkpoint
from regular_file import open_regular

WEIGHTS = "model.safetensors"
"""File of an exported policy's folder."""
FORMAT = "mask-world-models policy"
VERSION = 1
MOST_TIMES = 8
"""An agent has at most this many times the parameters that act in it (the `paper` presets: less
than three times)."""
GOALS = "goals/"
"""Before a task's name: the pictures of it done that an agent knows."""
KEPT = "export the run again"
"""What to do about a file that cannot be read."""


class Exportable(Protocol):
    """An agent of which that part can be kept that acts."""

    without_acting: tuple[str, ...]
    """Beginnings of names of `acting`'s weights that no action depends on."""

    @property
    def acting(self) -> nn.Module:
        """The networks that act."""
        ...


def acting_weights(agent: Exportable) -> dict[str, Tensor]:
    """The weights on which actions depend, by name."""
    state = agent.acting.state_dict()
    return {name: part for name, part in state.items() if not name.startswith(agent.without_acting)}


class Acting:
    """An agent that takes over an exported policy in place of a checkpoint: what acts; all else in
    its networks becomes zero, so that it is the same agent whenever it is loaded."""

    def __init__(self, agent: Any):
        self.agent = agent

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the agent's part of what `load_policy` gave.

        Raises:
            RuntimeError: it is another agent's.
        """
        agent, weights = self.agent, state["weights"]
        if differing := sorted(acting_weights(agent).keys() ^ weights.keys()):
            raise RuntimeError(f"{differing[0]:.80} is not in both")
        nothing = {name: torch.zeros_like(part) for name, part in agent.acting.state_dict().items()}
        agent.acting.load_state_dict(nothing | dict(weights))
        if hasattr(agent, "ema"):
            agent.networks.load_state_dict(agent.ema.state_dict())
            agent.draws = False
        if hasattr(agent, "goals"):
            agent.goals = dict(state["goals"])


def is_exported(state: Mapping[str, Any]) -> bool:
    """Whether what `read_state` gave is an exported policy."""
    return "weights" in state["agent"]


def save_policy(path: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> int:
    """Write ``model.safetensors``.

    Args:
        path: of the file.
        weights: tensors by name.
        state: plain values that JSON knows.

    Returns:
        Its size, bytes.

    Raises:
        UserError: it cannot be written; a weight is not finite.
    """
    for name, part in weights.items():
        if not part.isfinite().all():
            raise UserError(f"{name} is not finite, so the training has gone wrong; nothing to act")
    whole = {name: part.detach().cpu().contiguous() for name, part in weights.items()}
    described = json.dumps({"format": FORMAT, "version": VERSION, "state": dict(state)})
    sealed = {"policy": described, "sha256": _checksum(described, whole), "format": "pt"}
    content = safetensors.torch.save(whole, sealed)
    with atomic_file(path) as file:
        file.write(content)
    return len(content)


def load_policy(path: Path) -> dict[str, Any]:
    """What `save_policy` was given: its ``state``, whose ``agent`` has the tensors as its
    ``weights`` and, of tasks done, its ``goals``.

    Raises:
        UserError: the file cannot be read, or is no policy of this toolkit; a weight is not finite.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UserError(f"{path} of {size / 2**30:,.0f} GiB is larger than this memory")
        content = file.read(size)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        described = json.loads(header["__metadata__"]["policy"])
        weights = safetensors.torch.load(content)
        _check(header["__metadata__"], weights)
        if described["format"] != FORMAT or described["version"] != VERSION:
            raise ValueError(f"format {described['format']!r:.40} {described['version']!r:.10}")
        state = described["state"]
        if not isinstance(state, dict) or not isinstance(state.get("agent"), dict):
            raise ValueError("no agent in it")
        _refuse_infinite(state)
    except (SafetensorError, RecursionError, *UNREADABLE) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is no exported policy that this version reads, or damaged ({reason:.200});"
            f" {KEPT}"
        ) from error
    for name, part in weights.items():
        if not part.isfinite().all():
            raise UserError(f"{path}: {name:.80} is not finite; {KEPT}")
    goals = {name.removeprefix(GOALS): weights.pop(name) for name in list(weights) if GOALS in name}
    return {**state, "agent": {**state["agent"], "weights": weights, "goals": goals}}


def _check(header: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
    """Refuse other weights or another state than were written; a file may be of a time when no
    checksum was."""
    if "sha256" in header and header["sha256"] != _checksum(header["policy"], weights):
        raise ValueError("its checksum is another")


def _checksum(described: str, weights: Mapping[str, Tensor]) -> str:
    """Of names, kinds, shapes and numbers of the weights, and of what goes with them."""
    checksum = hashlib.sha256(described.encode())
    for name, part in sorted(weights.items()):
        checksum.update(f"\n{name} {part.dtype} {tuple(part.shape)}\n".encode())
        checksum.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()


def _refuse_infinite(value: Any) -> None:
    """Refuse NaN and Infinity, which Python's JSON reads."""
    if isinstance(value, Mapping):
        for item in value.values():
            _refuse_infinite(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_infinite(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number in it is not finite")


def state_path(folder: Path) -> Path:
    """The file that `read_state` reads: a run's checkpoint, or if there is none an exported
    policy."""
    checkpoint, weights = folder / "checkpoint.pt", folder / WEIGHTS
    exported = os.path.lexists(weights) and not os.path.lexists(checkpoint)
    return weights if exported else checkpoint


def read_state(folder: Path) -> dict[str, Any] | None:
    """What a folder holds of an agent: a checkpoint's content, or what `load_policy` gives of an
    exported policy (`is_exported`); None where there is neither.

    Raises:
        UserError: it cannot be read.
    """
    path = state_path(folder)
    return load_policy(path) if path.name == WEIGHTS else load_checkpoint(path)
