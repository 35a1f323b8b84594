"""Going once more through episodes that are stored already, as a run that was killed has to."""

from __future__ import annotations

import numpy as np

from agents.replay import Replay


class Reenactment:
    """Takes the steps of the replay's `later` episodes, as a `Collector` takes those of
    environments.

    A run that goes on from a checkpoint has episodes that finished after it, but not what was
    learned while they went on. They count, their actions are not chosen anew, and the run learns
    on the way as it did: on a CPU it becomes the run that nobody killed.

    Args:
        replay: has episodes in `later`.
        started: episodes that were begun before the checkpoint.
        actions: (t, A) of an episode that the checkpoint was in the middle of: where to begin in
            the first one, if that is the same episode.
    """

    def __init__(self, replay: Replay, started: int, actions: np.ndarray | None = None):
        self.replay, self._started = replay, started
        self._begin()
        if actions is not None:
            stored = self._episode["action"][1 : len(actions) + 1]
            if np.array_equal(stored, actions) and len(actions) < self._steps:
                self._go_to(len(actions))

    def _begin(self) -> None:
        self._episode, self._record = self.replay.next_later(), self.replay.later[0]
        self._steps = self._record["frames"] - 1
        self._go_to(0)

    def _go_to(self, step: int) -> None:
        self.agent_steps = step
        shown = {name: values[step : step + 1] for name, values in self._episode.items()}
        self.observation = {**shown, "is_first": np.array([step == 0])}

    @property
    def env_steps(self) -> int:
        """Environment steps of the unfinished episode; only its last step may be a shorter one."""
        return self.agent_steps * -(-self._record["env_steps"] // self._steps)

    @property
    def action(self) -> np.ndarray:
        """(1, A), what was done next."""
        return self._episode["action"][self.agent_steps + 1 : self.agent_steps + 2]

    def begin(self, action: np.ndarray) -> None:
        """Take the next step, whatever `action` is."""

    def finish(self) -> list[tuple[dict[str, np.ndarray], dict]]:
        """As `Collector.finish`: the episode and its record if that was its last step."""
        self._go_to(self.agent_steps + 1)
        if self.agent_steps < self._steps:
            return []
        self.agent_steps = 0  # from now on they are the replay's
        return [(self._episode, self._record)]

    def restart(self) -> bool:
        """Begin the next episode once the caller is done with the last; whether there is one."""
        if self.replay.later:
            self._begin()
        return bool(self.replay.later)

    def cut(self) -> list[tuple[dict[str, np.ndarray], dict]]:
        """As `Collector.cut`: an episode that is stored needs no end."""
        return []

    def unfinished(self) -> np.ndarray | None:
        """As `Collector.unfinished`."""
        return self._episode["action"][1 : self.agent_steps + 1] if self.agent_steps else None

    @property
    def begun(self) -> int:
        """As `Collector.begun`."""
        return max(self._started, len(self.replay.records))
