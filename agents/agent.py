"""The contracts between the loops and what learns in them.

The online loop (`agents/online.py`) calls of an agent what `OnlineAgent` says, the imitation loop
(`agents/imitation.py`) of an imitator what `Imitator` says.

Shape legend: n environments stepped together, A action, H = W picture edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents.data_spec import DataSpec
from agents.replay import Replay
from envs.windows import Reads
from world_models.layers import OptimizerConfig


class Actor(Protocol):
    """Anything that chooses actions."""

    def policy(
        self, observation: dict[str, np.ndarray], state: Any, explore: bool
    ) -> tuple[np.ndarray, Any]:
        """Act on one observation of each of n environments.

        Args:
            observation: `image` (n, H, W, 3) uint8, `is_first` (n,) bool, and what else the
                environments show.
            state: what the last call returned; None before the first.
            explore: as in training; otherwise as well as it can.

        Returns:
            Actions (n, A) float32 in [−1, 1] and the state for the next call.
        """
        ...


class FilmingActor(Actor, Protocol):
    """An actor that may film what it sees."""

    film: list[np.ndarray] | None
    """Frames (H, W, 3) uint8 so far; None where it does not film."""


class OnlineAgent(Actor, Protocol):
    """Learns from its own experience (`run.py train`). The state of its policy is a dict of
    tensors, which a checkpoint in the middle of an episode holds."""

    device: torch.device
    action: int
    """Size A of an action."""
    updates: int
    """Updates made in the loop."""
    pretrained: int
    """Updates made by `pretrain`."""

    @property
    def proprio_size(self) -> int:
        """Numbers of proprioception that it sees."""
        ...

    @property
    def discrete(self) -> bool:
        """Whether its actions are one-hot."""
        ...

    @property
    def pretraining_updates(self) -> int:
        """Updates that `pretrain` makes in all."""
        ...

    def acted(self, state: Any, action: np.ndarray) -> Any:
        """`state` of `policy` for when the environments were given `action` (n, A) instead."""
        ...

    def pretrain(self, replay: Replay) -> Iterator[dict[str, Tensor]]:
        """Updates on the prefill; yields the metrics of each, and goes on where it stopped."""
        ...

    def update(self, replay: Replay) -> dict[str, Tensor]:
        """One update of every part; scalars on the device."""
        ...

    def report(self, replay: Replay) -> dict[str, np.ndarray]:
        """Videos for people, (T, H, W, 3) uint8, drawn without touching training's chance."""
        ...

    def compile_updates(self) -> None:
        """Put updates through torch.compile. Raises UserError where there is no compiler."""
        ...

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters by module."""
        ...

    def update_counts(self) -> dict[str, int]:
        """Updates made so far by each part, pretraining included."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything learning needs to go on: tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The inverse of `state_dict`."""
        ...


class TaskDescription(NamedTuple):
    """What says to an imitator which task it is."""

    name: str
    """Its id."""
    instruction: str
    """In words."""
    goals: np.ndarray = np.zeros((0, 1, 1, 3), np.uint8)
    """Pictures (K, S, S, 3) uint8 of the first camera at the ends of demonstrations; none where
    there is none."""


class Stage(NamedTuple):
    """One of the stages in which an imitator learns."""

    name: str
    """In logs and checkpoints."""
    modules: Sequence[nn.Module]
    """What it trains."""
    optimizer: OptimizerConfig
    """How."""


class Imitator(Protocol):
    """Learns from demonstrations (`run.py imitate`), one stage after the other."""

    device: torch.device
    data_spec: DataSpec
    """What the demonstrations fix."""
    statistics: Mapping[str, Sequence[float]]
    """Of actions and proprioception (`envs.windows.statistics`)."""
    instructions: dict[str, str]
    """By task, what its data tells, where it was loaded from a run that says so."""
    stages: tuple[str, str]
    """Names, in order: to predict, then to act on what is predicted."""

    @property
    def films_masks(self) -> bool:
        """Whether what it foretells can only be drawn where the masks of what is seen are shown."""
        ...

    def reads(self, name: str) -> Reads:
        """What windows hold for a stage."""
        ...

    def stage(self, name: str) -> Stage:
        """What a stage trains."""
        ...

    def begin(self, name: str) -> None:
        """Make ready for a stage, once, when the one before it has ended; for stage 1, when that of
        another run was taken over to go on with."""
        ...

    def resume(self, name: str) -> None:
        """Make ready for a stage that a checkpoint was in the middle of."""
        ...

    def loss(self, name: str, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """A stage's loss on a batch of windows, a scalar, and metrics."""
        ...

    def describe(
        self, tasks: Sequence[TaskDescription], remember: bool = True
    ) -> dict[str, Tensor]:
        """Tasks as the tensors (tasks, ...) that batches hold of them, on the device; `remember`:
        these tasks' goals are those to act by."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which `loss` is that of the averaged weights, which act."""
        ...

    def action_error(self, batch: dict[str, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        """What the averaged weights do, less what was done, in a batch of stage 2's windows:
        (B, K, A) in units of actions, K of them from the present on, and (B, K) bool, which of them
        the episode has. `seed`: of the noise."""
        ...

    def update_ema(self, updates: int) -> None:
        """Move the averaged weights, which act, towards the latest, after `updates` of a stage."""
        ...

    def report(self, batch: dict[str, Tensor], seed: int) -> tuple[np.ndarray, dict[str, float]]:
        """What stage 1 predicts of a batch of windows: a picture (rows, columns, 3) uint8, and
        scalars for the log."""
        ...

    def first_stage_state_dict(self) -> dict[str, Tensor] | None:
        """What stage 1 leaves, also for other runs; None where it leaves nothing."""
        ...

    def load_first_stage_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what stage 1 of another run has left."""
        ...

    def actor(self, task: TaskDescription, seed: int = 0, drawn: bool = False) -> FilmingActor:
        """The agent at work on one task, whose goals it may know itself; `drawn`: it also films
        what it sees. Raises UserError where it does not know what to do."""
        ...

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything learning needs to go on: tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The inverse of `state_dict`."""
        ...
