"""What environments of every suite have, whatever simulates them."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from envs.environment_config import EnvironmentConfig
from mask_classes import NAMES


class OneHot(gymnasium.spaces.Box):
    """One of n actions, as the vector (n,) float32 that is 1 at its place and 0 elsewhere."""

    def __init__(self, n: int):
        super().__init__(0, 1, (n,), np.float32)

    def sample(self, mask: Any = None, probability: Any = None) -> np.ndarray:
        """One of them, all alike."""
        return np.eye(self.shape[0], dtype=np.float32)[self.np_random.integers(self.shape[0])]


class Environment(gymnasium.Env):
    """A task seen through cameras; ``envs.make`` returns one.

    Observation: Dict of ``image`` uint8 (size, size, 3), with ``masks`` also ``mask`` uint8
    (size, size), both (cameras, ...) where several cameras are named, with ``proprio`` also
    ``proprio`` float32 (D,). ``info["env_steps"]`` of a step counts the control steps taken.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 40}
    render_mode = "rgb_array"
    default_action_repeat = 2  # Masked World Models, Table 1
    instruction: str = ""
    """The task in words; also in the ``info`` of every reset."""
    name: str
    """Of the task, within its suite."""
    task: str
    """Id of the task, as ``envs.make`` was given it."""
    config: EnvironmentConfig
    cameras: tuple[str, ...]
    """Names, as they were given."""
    action_repeat: int
    """Control steps per step."""
    max_env_steps: int
    """Control steps per episode."""
    action_space: gymnasium.spaces.Box
    observation_space: gymnasium.spaces.Dict
    _image: np.ndarray | None = None

    @property
    def graphics(self) -> str | None:
        """What draws the pictures, by OpenGL's name of it; None where that cannot be asked."""
        return None

    def render(self) -> np.ndarray:
        """The picture of the latest observation, (size, size, 3) uint8; several cameras' side by
        side, (size, cameras·size, 3)."""
        if self._image is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        if len(self.cameras) > 1:
            return np.concatenate(list(self._image), axis=1)
        return self._image.copy()


def observation_space(
    config: EnvironmentConfig, cameras: int, proprio: tuple[int, ...]
) -> gymnasium.spaces.Dict:
    """The space of a task's observations.

    Args:
        config: what is observed beside the picture, and at which size.
        cameras: how many.
        proprio: shape of proprioception, (D,).
    """
    shape: tuple[int, ...] = (config.size, config.size)
    if cameras > 1:
        shape = (cameras, *shape)
    spaces: dict[str, gymnasium.Space] = {
        "image": gymnasium.spaces.Box(0, 255, (*shape, 3), np.uint8)
    }
    if config.masks:
        spaces["mask"] = gymnasium.spaces.Box(0, len(NAMES) - 1, shape, np.uint8)
    if config.proprio:
        spaces["proprio"] = gymnasium.spaces.Box(-np.inf, np.inf, proprio, np.float32)
    return gymnasium.spaces.Dict(spaces)


def together(views: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What several cameras see, with a leading axis; what a single one sees, as it is."""
    if len(views) == 1:
        return views[0]
    return {name: np.stack([view[name] for view in views]) for name in views[0]}
