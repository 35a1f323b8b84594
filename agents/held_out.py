"""Demonstrations that nothing was learned from: how well an imitator foretells what was done in
them, without a simulator.

Shape legend: B windows, K actions from the present step on, A size of an action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Imitator, TaskDescription
from agents.training import random_state, set_random_state
from envs.episode_choice import last_pictures
from envs.recording_header import Recording
from envs.windows import Windows
from errors import UserError

WINDOWS = 64
"""Windows of all held-out episodes that an evaluation during training measures on."""
AN_EPISODE = 16
"""Windows of an episode that `run.py evaluate` measures on."""
DRAWN = 4
"""Windows whose predicted future is drawn."""
GOALS = 8
"""Pictures of each task done, of tasks whose the agent does not know."""


class HeldOut:
    """Windows of held-out demonstrations, and what an imitator makes of them.

    Everything is measured of the averaged weights, which act, with noise that is a function of the
    seed alone; the global generators are left as they were.

    Args:
        agent: the imitator.
        recordings: of the demonstrations.
        stages: those that are measured, in order.
        batch: windows computed at once.
        goals: by task, pictures (K, S, S, 3) uint8 of it done; of other tasks the ends of the
            demonstrations are taken.

    Raises:
        UserError: the demonstrations are of other cameras, sizes or actions than the agent's, or
            have not what its windows hold.
    """

    def __init__(
        self,
        agent: Imitator,
        recordings: Sequence[Recording],
        stages: Sequence[str],
        batch: int,
        goals: Mapping[str, np.ndarray],
    ):
        self.agent, self.stages, self._batch = agent, tuple(stages), batch
        self._refuse_others(recordings)
        self.windows = {stage: Windows(recordings, agent.reads(stage)) for stage in stages}
        windows = self.windows[self.stages[-1]]
        words = {recording.task: recording.instruction for recording in recordings}
        known = {
            task: goals[task] if task in goals else last_pictures(recordings, task, GOALS)
            for task in windows.tasks
        }
        self._described = agent.describe(
            [TaskDescription(task, words[task], known[task]) for task in windows.tasks],
            remember=False,
        )

    def _refuse_others(self, recordings: Sequence[Recording]) -> None:
        spec = self.agent.data_spec
        for recording in recordings:
            pairs = {
                "cameras": (len(recording.cameras), spec.cameras),
                "pixels a side": (recording.size, spec.size),
                "numbers of proprioception": (recording.proprio_size, spec.proprio_size),
                "numbers an action": (recording.action_size, spec.action_size),
            }
            for name, (here, there) in pairs.items():
                if here != there:
                    raise UserError(
                        f"{recording.path} has {here} {name}, the data the agent learned from"
                        f" {there}"
                    )

    def measure(self, stage: str, seed: int) -> dict[str, float]:
        """Of windows spread over all episodes: the parts of a stage's loss, ``{stage}/{name}``; of
        stage 2 also those of `errors`.

        Args:
            stage: name.
            seed: of the noise.
        """
        numbers = _spread(range(len(self.windows[stage])), WINDOWS)
        found = self.losses(stage, numbers, seed)
        if stage == self.agent.stages[-1]:
            found |= self.errors(numbers, seed)[0]
        return found

    def losses(self, stage: str, numbers: Sequence[int], seed: int) -> dict[str, float]:
        """Means of the parts of a stage's loss over some windows, ``{stage}/loss`` and others."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        kept = random_state(self.agent.device)
        torch.manual_seed(seed)
        with torch.no_grad(), self.agent.averaged():
            for size, batch in self._batches(stage, numbers):
                loss, metrics = self.agent.loss(stage, batch)
                for name, value in {**metrics, "loss": loss}.items():
                    if torch.isfinite(value):  # a part that a batch has nothing of is none
                        sums[name] = sums.get(name, 0.0) + size * float(value)
                        counts[name] = counts.get(name, 0) + size
        set_random_state(kept, self.agent.device)
        return {f"{stage}/{name}": total / counts[name] for name, total in sums.items()}

    def errors(self, numbers: Sequence[int], seed: int) -> tuple[dict[str, float], list[float]]:
        """Mean absolute errors of predicted actions over some windows of stage 2.

        Returns:
            ``action_error`` of all predicted actions, ``action_error_first`` of those of the
            present step, ``action_error_of_mean`` of one constant action in place of the agent's,
            these windows' mean; and of all predicted actions by dimension, (A,).
        """
        stage = self.agent.stages[-1]
        errors, valid, first, present = [], [], [], []
        for _, batch in self._batches(stage, numbers):
            error, there = self.agent.action_error(batch, seed)
            true = batch["action"]
            present.append(true[:, -1 if error.shape[1] == 1 else 0].float().cpu())
            errors.append(error.abs().float().cpu())
            valid.append(there.cpu())
            first.append(errors[-1][:, 0])
        by_dimension = torch.cat(errors)[torch.cat(valid)].mean(0)
        now = torch.cat(present)
        return {
            "action_error": float(by_dimension.mean()),
            "action_error_first": float(torch.cat(first).mean()),
            "action_error_of_mean": float((now - now.mean(0)).abs().mean()),
        }, by_dimension.tolist()

    def picture(self, seed: int) -> tuple[np.ndarray, dict[str, float]]:
        """What stage 1 predicts of some windows, (rows, columns, 3) uint8, and its scalars."""
        stage = self.agent.stages[0]
        numbers = _spread(range(len(self.windows[stage])), DRAWN + 2)[1:-1]
        kept = random_state(self.agent.device)
        ((_, batch),) = self._batches(stage, numbers or range(1), DRAWN)
        found = self.agent.report(batch, seed)
        set_random_state(kept, self.agent.device)
        return found

    def by_episode(self, seed: int) -> list[dict[str, Any]]:
        """Of every episode: ``task``, ``episode`` ("file.hdf5 demo_3"), ``windows`` measured, and
        what `errors` returns, ``by_dimension`` included."""
        windows = self.windows[self.agent.stages[-1]]
        found = []
        for number, (recording, episode) in enumerate(windows.episodes):
            numbers = _spread(windows.of_episode(number), AN_EPISODE)
            if not numbers:
                continue
            errors, by_dimension = self.errors(numbers, seed)
            found.append(
                {
                    "task": recording.task,
                    "episode": f"{recording.path.name} {episode.name}",
                    "windows": len(numbers),
                    **errors,
                    "by_dimension": by_dimension,
                }
            )
        return found

    def _batches(self, stage: str, numbers: Sequence[int], size: int = 0):
        """Pairs of the number of windows and their batch, on the device."""
        windows, device = self.windows[stage], self.agent.device
        tasks = self.windows[self.stages[-1]].tasks
        size = size or self._batch
        for start in range(0, len(numbers), size):
            read = [windows[number] for number in numbers[start : start + size]]
            batch: dict[str, Tensor] = {
                name: torch.from_numpy(np.stack([window[name] for window in read])).to(device)
                for name in read[0]
            }
            rows = [tasks.index(windows.tasks[int(number)]) for number in batch.pop("task")]
            row = torch.tensor(rows, device=device)
            yield len(read), batch | {name: part[row] for name, part in self._described.items()}


def _spread(numbers: range, most: int) -> list[int]:
    """At most `most` of some numbers, evenly spread."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)
    return [numbers[int(place)] for place in places]
