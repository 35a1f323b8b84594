"""Environments of one task in worker processes, so that they step while the agent learns."""

import contextlib
import functools
import os
import signal
import sys
import types

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from errors import UserError

# Read by a worker's libraries when it starts: one process, one thread, or they fight for cores.
# Not LP_NUM_THREADS, the software renderer's: 0, 1 and 2 take the same 2.2 ms a 64x64 picture.
WORKER_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class VectorEnvironment(AsyncVectorEnv):
    """``gymnasium.vector.AsyncVectorEnv`` in spawned processes, with errors worth reading.

    Observations come through shared memory, and nothing resets by itself: call
    ``reset(seed=[...], options={"reset_mask": done})`` when episodes end. ``step_async(actions)``
    returns at once, ``step_wait()`` collects; the numbers are those of the environments one by one.

    Args:
        make_environment: a picklable function that makes one environment.
        num_envs: how many, each in its own process.

    Raises:
        UserError: a user's mistake found here or in a worker, with the worker's own sentence.
        RuntimeError: any other failure in a worker, with the worker's traceback.
    """

    def __init__(self, make_environment, num_envs: int):
        in_worker = functools.partial(_make_in_worker, make_environment, os.getpid())
        with _worker_variables(), _nothing_to_import_as_main():
            # spawn: a forked child of a process with torch or GL threads may hang.
            super().__init__(
                [in_worker] * num_envs,
                shared_memory=True,
                context="spawn",
                autoreset_mode=AutoresetMode.DISABLED,
            )

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the workers at once: they own nothing but simulators.

        Asked to close, they would answer, and Ctrl-C leaves no way to tell which answer comes
        next: a call's may be half taken, or on its way before the call was noted.
        """
        self._state = AsyncState.DEFAULT
        super().close_extras(terminate=True)

    def _raise_if_errors(self, successes):
        # Gymnasium prints the worker's traceback before raising; a user's mistake is one sentence.
        if all(successes):
            return
        failures = [self.error_queue.get() for success in successes if not success]
        for index, *_ in failures:
            self.parent_pipes[index].close()
            self.parent_pipes[index] = None  # type: ignore[call-overload]  # as Gymnasium does
        self._state = AsyncState.DEFAULT
        for _, kind, value, _ in failures:
            if issubclass(kind, UserError):
                raise UserError(str(value))
        index, kind, value, trace = failures[0]
        raise RuntimeError(f"environment {index} failed in its worker process\n{trace}")


def _make_in_worker(make_environment, parent: int) -> gymnasium.Env:
    if os.getpid() != parent:
        # Ctrl-C reaches the whole group; the parent closes its workers in its own time.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make_environment()


@contextlib.contextmanager
def _worker_variables():
    """The environment variables processes started here inherit; the user's own values stand."""
    added = {name: value for name, value in WORKER_THREADS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _nothing_to_import_as_main():
    """Spawned processes import the main script again, and with it torch: hide it from them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
