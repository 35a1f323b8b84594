"""What every scripted expert is; ``expert`` (``envs/experts.py``) makes those of the suites."""

import abc

import numpy as np


class Expert(abc.ABC):
    """Acts from the simulator's state; made by ``expert``.

    Without noise an action is a function of the state and of the expert's own phase.
    """

    def __init__(self, environment, noise: float, rng: np.random.Generator | None):
        self.environment = environment
        self.noise = noise
        self._rng = rng

    @abc.abstractmethod
    def begin(self) -> None:
        """Start an episode; call it after each reset of the environment."""

    @abc.abstractmethod
    def _noiseless(self) -> np.ndarray:
        """The next action, (A,), the gripper last."""

    def action(self) -> np.ndarray:
        """What to do now, (A,) float32 in [-1, 1]; call it once before each step."""
        action = np.array(self._noiseless(), np.float64)
        if self.noise:
            assert self._rng is not None  # `expert` makes none without
            action[:-1] += self.noise * self._rng.standard_normal(len(action) - 1)
        return np.clip(action, -1, 1).astype(np.float32)
