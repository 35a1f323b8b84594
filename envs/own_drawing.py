"""Pictures of several of the user's environments in one process, where Gymnasium draws MuJoCo's."""

from __future__ import annotations

from typing import Any

import gymnasium


class OwnDrawing:
    """What Gymnasium's renderer of MuJoCo leaves to chance, for one environment.

    It draws into whichever GL context is current, that of the environment made last. And what a
    closed one has allocated is freed when Python forgets it, in whichever context is current then,
    where the same numbers name another environment's. Either makes pictures black, without error.

    Args:
        environment: of the user; renderers of its own and of environments that it holds are found.
    """

    def __init__(self, environment: gymnasium.Env):
        inner = environment.unwrapped
        held = [value for value in vars(inner).values() if isinstance(value, gymnasium.Env)]
        renderers: list[Any] = [getattr(each, "mujoco_renderer", None) for each in (inner, *held)]
        self._renderers = [each for each in renderers if hasattr(each, "viewer")]

    def make_current(self) -> None:
        """Draw into the environment's own context from here on."""
        for renderer in self._renderers:
            if renderer.viewer is not None:
                renderer.viewer.make_context_current()

    def free(self) -> None:
        """Free what was allocated in that context, before the environment is closed."""
        for renderer in self._renderers:
            if renderer.viewer is not None and hasattr(renderer.viewer, "con"):
                renderer.viewer.make_context_current()
                renderer.viewer.con.free()
        self._renderers = []
