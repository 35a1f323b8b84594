"""Environments of one task in worker processes, so that they step while the agent learns."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.workers import Worker, WorkerContext

Memory = dict[str, ctypes.Array]
"""Bytes that processes share, by entry of the observation."""


class VectorEnvironment(VectorEnv):
    """A vector environment of Gymnasium, with errors worth reading.

    Observations come through shared memory, and nothing resets by itself: call
    ``reset(seed=[...], options={"reset_mask": done})`` when episodes end. ``step_async(actions)``
    returns at once, ``step_wait()`` collects; the numbers are those of the environments one by one.

    After an error, all that is left to do is ``close``.

    Args:
        make_environment: a picklable function that makes one environment; it observes a
            ``spaces.Dict`` of boxes.
        num_envs: how many, each in its own process.
        name: of the task, for errors.

    Raises:
        UserError: a user's mistake found here or in a worker, with the worker's own sentence; a
            worker has died.
        RuntimeError: any other failure in a worker, with the worker's traceback.
    """

    def __init__(
        self, make_environment: Callable[[], gymnasium.Env], num_envs: int, name: str = "the task"
    ):
        self.num_envs = num_envs
        one = make_environment()
        self.metadata = {**one.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = one.observation_space
        self.single_action_space = one.action_space
        one.close()
        assert isinstance(one.observation_space, spaces.Dict)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        memory = _shared_memory(one.observation_space, num_envs)
        self._observations = _arrays(one.observation_space, memory)
        self.workers: list[Worker] = []
        try:
            for index in range(num_envs):
                make = functools.partial(_Environment, make_environment, memory, index)
                self.workers.append(Worker(f"environment {index} of {name}", make))
            for worker in self.workers:
                worker.answer()
        except BaseException:
            self.close()
            raise

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reset all environments, or those of the mask (n,) ``options["reset_mask"]``.

        Args:
            seed: one for each; a number s: s, s + 1, ...
            options: of every environment's reset.

        Returns:
            Observations (n, ...) of all environments, and the infos of those that were reset.
        """
        options = dict(options or {})
        which = np.flatnonzero(options.pop("reset_mask", np.ones(self.num_envs, bool))).tolist()
        if not isinstance(seed, list):
            seed = [None if seed is None else seed + index for index in range(self.num_envs)]
        for index in which:
            self.workers[index].ask("reset", seed[index], options)
        infos: dict[str, Any] = {}
        for index in which:
            infos = self._add_info(infos, self.workers[index].answer(), index)
        return self._seen(), infos

    def step_async(self, actions: np.ndarray) -> None:
        """Send an action to each environment, (n, A)."""
        for worker, action in zip(self.workers, actions, strict=True):
            worker.ask("step", action)

    def step_wait(
        self,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """What came of ``step_async``: observations (n, ...), rewards, terminated, truncated (n,),
        and infos."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        infos: dict[str, Any] = {}
        for index, worker in enumerate(self.workers):
            rewards[index], terminated[index], truncated[index], info = worker.answer()
            infos = self._add_info(infos, info, index)
        return self._seen(), rewards, terminated, truncated, infos

    def step(self, actions):
        """``step_async``, then ``step_wait``."""
        self.step_async(actions)
        return self.step_wait()

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment."""
        for worker in self.workers:
            worker.ask("attribute", name)
        return tuple(worker.answer() for worker in self.workers)

    def close_extras(self) -> None:
        """End the workers at once: they own nothing but simulators."""
        for worker in self.workers:
            worker.end()

    def _seen(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._observations.items()}


class _Environment:
    """One environment in its worker; its observations go to row `index` of the shared memory."""

    def __init__(self, make: Callable[[], gymnasium.Env], memory: Memory, index: int):
        self.environment = make()
        assert isinstance(self.environment.observation_space, spaces.Dict)
        arrays = _arrays(self.environment.observation_space, memory)
        self.rows = {name: array[index : index + 1] for name, array in arrays.items()}

    def reset(self, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the info."""
        observation, info = self.environment.reset(seed=seed, options=options)
        self._show(observation)
        return info

    def step(self, action: np.ndarray) -> list:
        """Returns reward, terminated, truncated and info."""
        observation, *rest = self.environment.step(action)
        self._show(observation)
        return rest

    def attribute(self, name: str) -> Any:
        """Of the environment, through its wrappers."""
        return self.environment.get_wrapper_attr(name)

    def _show(self, observation: dict[str, np.ndarray]) -> None:
        for name, row in self.rows.items():
            row[0] = observation[name]


def _shared_memory(space: spaces.Dict, count: int) -> Memory:
    """Room for `count` observations. Its file has no name: nobody's death leaves it behind."""
    context = WorkerContext()
    return {
        name: context.RawArray(ctypes.c_byte, count * np.empty(box.shape or (), box.dtype).nbytes)
        for name, box in space.items()
    }


def _arrays(space: spaces.Dict, memory: Memory) -> dict[str, np.ndarray]:
    """The memory as arrays (n, ...); `space`: of one environment's observation."""
    return {
        name: np.frombuffer(memoryview(memory[name]), box.dtype).reshape(-1, *(box.shape or ()))
        for name, box in space.items()
    }
