"""An online agent's run on recorded data alone."""

from __future__ import annotations

from typing import Any

from agents.online_run import OnlineRun
from errors import UserError


class OfflineRun(OnlineRun):
    """A run that never acts but in evaluations; its steps are updates."""

    unit = "update"

    @property
    def steps(self) -> int:
        """Updates so far, without pretraining."""
        return self.agent.updates

    position = steps

    @property
    def exploring(self) -> bool:
        """There is no prefill."""
        return False

    @property
    def acting(self) -> bool:
        """It never does."""
        return False

    def start_acting(self, started: int, unfinished: dict[str, Any] | None) -> None:
        """What is recorded is there: give the training environments back.

        Raises:
            UserError: there is less of it than a window.
        """
        self.envs.close()
        frames = sum(record["frames"] for record in self.replay.records)
        if frames < self.config.agent.window:
            raise UserError(
                f"{frames} recorded frames are fewer than a window of {self.config.agent.window};"
                " record more, or make agent.window shorter"
            )

    def learn(self) -> None:
        """One update."""
        self.learned(self.agent.update(self.replay))
        if self.bar is not None:
            self.bar.update()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**self.learned_state(), "started": 0, "unfinished": None, "step": self.steps}
