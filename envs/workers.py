"""Worker processes: no signal to their group disturbs them, their death is one sentence, and they
are gone when the process that started them is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import operator
import os
import shutil
import signal
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from errors import UserError

# Read by a worker's libraries when it starts: one process, one thread, or they fight for cores.
# Not LP_NUM_THREADS, the software renderer's: 0, 1 and 2 take the same 2.2 ms a 64x64 picture.
WORKER_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
NOT_HEARD = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Ctrl-C, a cluster and a closed terminal tell the whole group to stop. The process that started
the workers needs them while it writes its checkpoint, and ends them itself."""

LOOK = 1.0
"""Seconds between looks at whether a silent worker is alive."""


class WorkerProcess(SpawnProcess):
    """A spawned process that only its parent ends, and that ends with its parent.

    Spawned: a forked child of a process with torch or GL threads may hang.
    """

    def start(self) -> None:
        with _variables(), _nothing_to_import_as_main(), _signals_blocked():
            super().start()
        # Python's own end of the process would send SIGTERM, and wait.
        util.Finalize(None, _kill_if_there, (weakref.ref(self),), exitpriority=0)

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()

    def terminate(self) -> None:
        self.kill()


class WorkerContext(SpawnContext):
    """``multiprocessing.get_context("spawn")`` with processes of the kind above."""

    Process = WorkerProcess


class Worker:
    """An object in a process of its own, whose methods are called from here.

    ``answer`` brings in turn what was asked; the first one, None, says that the object is made.
    What the object's methods raise comes as text: not every exception can be sent.

    Args:
        name: of the object in errors, "environment 2 of metaworld/reach".
        make: makes the object; can be pickled.

    Raises:
        UserError: the process cannot be started.
    """

    def __init__(self, name: str, make: Callable[[], Any]):
        self.name = name
        context = WorkerContext()
        self.pipe, theirs = context.Pipe()
        with theirs:
            self.process = context.Process(target=_serve, args=(theirs, name, make), daemon=True)
            try:
                self.process.start()
            except OSError as error:
                raise UserError(
                    f"no process can be started for {name} ({error.strerror}); ask for fewer"
                ) from error
        self._end = util.Finalize(self, _end, (self.process, self.pipe), exitpriority=0)

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method called.

        Raises:
            UserError: the process is dead.
        """
        try:
            self.pipe.send((method, arguments))
        except OSError:
            raise self._death() from None

    def answer(self) -> Any:
        """Wait for what was asked first and not answered yet.

        Raises:
            UserError: a user's mistake, with the worker's sentence; the process is dead.
            RuntimeError: any other failure in the worker, with its traceback.
        """
        try:
            # A dead worker's pipe ends, unless the object has forked and a child has it as well.
            while not self.pipe.poll(LOOK):
                if self.process.exitcode is not None and not self.pipe.poll():
                    raise EOFError
            failure, result = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if failure is not None:
            raise failure
        return result

    def end(self) -> None:
        """End the process at once, whatever it is doing."""
        self._end()

    def _death(self) -> UserError:
        self.process.join(timeout=5)
        return UserError(
            f"{self.name}, process {self.process.pid}, {_ended(self.process.exitcode)}; start the"
            " same command again: a run goes on from its last checkpoint"
        )


def _ended(code: int | None) -> str:
    """How a process ended, by its exit code."""
    if code is None:
        return "does not answer any more"
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else ""
    reason = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
    return f"was ended by signal {-code} ({name}){reason}"


def _end(process: WorkerProcess, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()


def _kill_if_there(reference: weakref.ref[WorkerProcess]) -> None:
    process = reference()
    if process is not None:
        process.kill()


# ------------------------------------------------------------------- the worker's side


def _serve(pipe: Connection, name: str, make: Callable[[], Any]) -> None:
    """Make the object, then answer calls of its methods until the parent is gone."""
    failure, served = _attempt(name, make)
    answer = failure, None
    while True:
        try:
            _send(pipe, name, answer)
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer = _attempt(name, operator.methodcaller(method, *arguments), served)


def _attempt(name: str, function: Callable, *arguments: Any) -> tuple[Exception | None, Any]:
    """An error that can be sent, if any, and the function's result."""
    try:
        return None, function(*arguments)
    except UserError as error:
        return UserError(str(error)), None
    except BaseException:
        return _failure(name), None


def _send(pipe: Connection, name: str, answer: tuple[Exception | None, Any]) -> None:
    try:
        pipe.send(answer)
    except OSError:
        raise
    except Exception:  # the result cannot be pickled
        pipe.send((_failure(name), None))


def _failure(name: str) -> RuntimeError:
    return RuntimeError(f"{name} failed in its worker process\n{traceback.format_exc()}")


def _end_with_parent() -> None:
    """End this process, whatever it is doing, when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(util.get_temp_dir(), ignore_errors=True)  # its sockets, which an exit removes
    os._exit(1)


# ------------------------------------------------------------------- what a process inherits


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started here never hear `NOT_HEARD`; this thread does so later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_HEARD)
    try:
        resource_tracker.ensure_running()  # started by the first process; it unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, NOT_HEARD)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _variables() -> Iterator[None]:
    """The environment variables processes started here inherit; the user's own values stand."""
    added = {name: value for name, value in WORKER_THREADS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _nothing_to_import_as_main() -> Iterator[None]:
    """Spawned processes import the main script again, and with it torch: hide it from them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
