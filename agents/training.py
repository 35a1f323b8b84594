"""What an online run and an imitation run share: log, progress bar, clock, checkpoint, loading."""

from __future__ import annotations

import abc
import math
import time
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from tqdm import tqdm

from agents.agent import Imitator, OnlineAgent
from agents.device import keep_freed_memory
from envs.vector import VectorEnvironment
from errors import UserError
from experiment.checkpoint import UNREADABLE, expect
from experiment.hardware import draws_in_software, gpu_name
from experiment.notes import note
from experiment.progress import to_file
from experiment.run_folder import RunFolder
from experiment.stopping import StopRequest

LOG_SECONDS = 30.0
"""Losses are logged at least this often, in seconds; at episode ends in any case."""


EVERY_RUN: dict[str, Any] = {
    "random": dict, "evaluated": int, "seconds": (int, float), "metrics_position": int,
}  # fmt: skip
"""What the checkpoint of every run holds beside its agent, and of what kind."""


class Learner(Protocol):
    """Anything that takes over the agent's part of a checkpoint."""

    def load_state_dict(self, state: dict) -> Any: ...


class MetricMean:
    """Running means of scalars that stay on their device until they are asked for.

    A metric whose name has three parts (`autoencoder/iou/hand`) is a measurement that a batch may
    be unable to make: NaN, which is left out. Everywhere else NaN is kept, and stops the run.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor | int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Take in the scalars of one update."""
        for name, value in metrics.items():
            count: Tensor | int = 1
            if name.count("/") > 1:
                count, value = value.isfinite(), value.nan_to_num(0.0, 0.0, 0.0)
            total = self.sums.get(name)
            self.sums[name] = value.clone() if total is None else total + value
            self.counts[name] = self.counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """The means since the last call; one transfer for all of them."""
        if not self.sums:
            return {}
        values = torch.stack([value.float() for value in self.sums.values()]).tolist()
        counts = [int(count) for count in self.counts.values()]
        means = {
            name: value / count
            for name, value, count in zip(self.sums, values, counts, strict=True)
            if count
        }
        self.sums, self.counts = {}, {}
        return means


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of PyTorch's generators, the CPU's and the device's, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`; a GPU takes over the state of another one."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def load_checked(learner: Learner, state: dict, task: str, path: Path) -> None:
    """Load the agent of a checkpoint.

    Args:
        learner: made by the run's configuration.
        state: the checkpoint's content.
        task: of the run.
        path: of the checkpoint, for the error.

    Raises:
        UserError: the checkpoint is another task's or another agent's.
    """
    try:
        if state["task"] != task:
            raise KeyError("task")
        learner.load_state_dict(state["agent"])
    except UNREADABLE as error:
        raise UserError(
            f"{path} does not fit the config.yaml beside it: it is of task "
            f"{state.get('task')!s:.60}, and of an agent of these or other sizes; nothing was "
            "changed: put this run's own files back, or use another --logdir"
        ) from error


class TrainingRun(abc.ABC):
    """One training run in one folder: its bookkeeping. The loops decide what happens when.

    A context, which closes the run at its end.

    Args:
        config: of the run; has `task`, `seed`, `threads`, `checkpoint_seconds`.
        folder: of the run, taken for training.
    """

    agent: OnlineAgent | Imitator
    """What learns."""
    unit = "step"
    """What `position` counts."""
    shown: tuple[str, ...] = ()
    """Metrics whose latest values stand at the end of the progress bar."""

    def __init__(self, config: Any, folder: RunFolder):
        self.config, self.folder = config, folder
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.metrics = MetricMean()
        self.stop = StopRequest()
        self.evaluated = 0  # position of the last evaluation
        self.bar: tqdm | None = None
        self._latest: dict[str, str] = {}
        self._checkpointed = self._logged = time.monotonic()
        self._updates_logged = 0

    # What the runs differ in

    @property
    @abc.abstractmethod
    def position(self) -> int:
        """Where the run is, in environment steps or in updates: `step` in metrics.jsonl."""

    @property
    @abc.abstractmethod
    def updates_made(self) -> int:
        """Updates of any kind so far."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside what every run's holds."""

    def counters(self) -> dict[str, float]:
        """Counts that go into the log beside losses."""
        return {}

    # Starting and ending

    def load_checkpoint(self, **kinds: Any) -> dict[str, Any] | None:
        """The folder's checkpoint with its tensors on the CPU; None if there is none.

        Args:
            **kinds: by name, types of what it holds beside what every run's does.

        Raises:
            UserError: it cannot be read, or lacks something.
        """
        state = self.folder.load_checkpoint("cpu")
        if state is not None:
            expect(state, self.folder.checkpoint_path, **EVERY_RUN, **kinds)
        return state

    def start_log(self, state: dict[str, Any] | None, position: int) -> None:
        """Go on with log and clock from a checkpoint at `position`; from nothing if None."""
        if state is not None:
            print(f"resumed at {self.unit} {position:,}", flush=True)
        state = state or {"metrics_position": 0, "seconds": 0.0}
        self.folder.metrics.cut(state["metrics_position"], position)
        self.folder.start_clock(state["seconds"])

    def note_graphics(self, environments: VectorEnvironment, first: bool) -> None:
        """Say in one line if pictures are drawn in software where there is a GPU.

        Args:
            environments: what draws them.
            first: the run draws for the first time; what draws goes into its record.
        """
        renderer = environments.get_attr("graphics")[0]
        if renderer is None:
            return
        if first:
            self.folder.config.add_renderer(renderer)
        gpu = gpu_name(self.config.device)
        if gpu is not None and draws_in_software(renderer):
            note(
                f"pictures are drawn in software ({renderer}), though there is a GPU ({gpu}); give"
                " EGL its driver: docs/troubleshooting.md#a-gpu-that-does-not-draw"
            )

    def start_bar(self, total: int, description: str) -> None:
        """Show progress; from now on rates are counted."""
        self._updates_logged = self.updates_made
        self.bar = tqdm(
            total=total,
            initial=self.position,
            unit=self.unit,
            desc=description,
            mininterval=0.5,
            dynamic_ncols=True,
            disable=None,  # silent where standard error is not a terminal
        )

    def close(self) -> None:
        """Give back processes and the terminal."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Self:
        self.stop.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        finally:
            self.stop.__exit__(kind, error, trace)

    def stop_if_requested(self) -> None:
        """End with a checkpoint if the process was told to stop. Raises Stopped then."""
        if self.stop.requested:
            self.checkpoint()
            self.stop.obey()

    # Log

    def learned(self, metrics: dict[str, Tensor]) -> None:
        """Take in the metrics of one update; they are logged from time to time."""
        self.metrics.add(metrics)
        if time.monotonic() - self._logged > LOG_SECONDS:
            self.log({})

    def log(self, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl: `metrics`, the mean losses since the last line, counters.

        Raises:
            UserError: a loss is not finite.
        """
        losses = self.metrics.take()
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise self.not_finite(", ".join(wrong))
        if not (metrics or losses):
            return
        now = time.monotonic()
        done = self.updates_made
        rate = (done - self._updates_logged) / max(1e-9, now - self._logged)
        self._logged, self._updates_logged = now, done
        counters = self.counters()
        if losses:
            counters["updates_per_second"] = rate
        self.folder.log(self.position, {**metrics, **losses, **counters})
        shown = {**losses, **metrics}
        self._latest |= {name: f"{shown[name]:.3g}" for name in self.shown if name in shown}
        if self.bar is not None:
            rates = {**self._latest, "updates/s": f"{rate:.3g}"}
            self.bar.set_postfix(rates, refresh=False)
            self.say(metrics, rates)

    def say(self, metrics: dict[str, float], latest: dict[str, str]) -> None:
        """A line for a log in a file."""
        if self.bar is not None and to_file():
            words = {name: f"{value:.3g}" for name, value in metrics.items()} or latest
            values = "  ".join(f"{name} {value}" for name, value in words.items())
            print(
                f"{self.unit} {self.position} of {self.bar.total}  {values}"
                f"  ({self.folder.elapsed:.0f} s)",
                flush=True,
            )

    def not_finite(self, what: str) -> UserError:
        """What to tell of a run that has gone wrong in numbers."""
        path = self.folder.checkpoint_path
        advice = "start another --logdir with smaller learning rates"
        advice = (
            f"the last good checkpoint is {path}; use it, or {advice}"
            if path.exists()
            else f"there is no checkpoint yet; {advice}"
        )
        return UserError(
            f"{what} is not finite at step {self.position}, update {self.updates_made}; {advice}"
        )

    # Checkpoint

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is `checkpoint_seconds` old."""
        return time.monotonic() - self._checkpointed > self.config.checkpoint_seconds

    def checkpoint(self) -> None:
        """Write a checkpoint, unless a loss since the last one was not finite."""
        self.log({})
        self.folder.save_checkpoint(
            {
                **self.state_dict(),
                "task": self.config.task,
                "random": random_state(self.agent.device),
                "evaluated": self.evaluated,
                "seconds": self.folder.elapsed,
                "metrics_position": self.folder.metrics.position(),
            }
        )
        self._checkpointed = time.monotonic()
