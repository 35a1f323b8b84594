"""Being told to stop: by Ctrl-C, by a cluster (SIGTERM), by a terminal that is closed (SIGHUP).

Inside of ``Interrupts``, which every command is run in, each of them raises ``Stopped`` at once. A
training loop puts SIGTERM and SIGHUP off with a ``StopRequest`` until it has written a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Self

from errors import UserError

Handler = Callable[[int, FrameType | None], None]

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
PUT_OFF = [signal.SIGTERM] + ([SIGHUP] if SIGHUP else [])
"""Signals that a training loop may put off."""
SIGNALS = [signal.SIGINT, *PUT_OFF]
"""Signals that end a command."""
PATIENCE = 7.0
"""Seconds that a loop has for its checkpoint: containers are killed ten seconds after they were
told to stop, and ending takes time as well."""
REPEATED = 3.0
"""Seconds in which another signal is taken for the same one: a process is told by itself and with
its group, and Ctrl-C is pressed twice."""
ENDING = 10.0
"""Seconds after a signal in which an error is taken for its consequence."""


class Stopped(KeyboardInterrupt):
    """What a signal raises, Ctrl-C's included.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """A context in which signals raise ``Stopped``; those that are ignored (nohup) stay so.

    At its end the handlers of before are put back. Python lets only the main thread handle signals;
    elsewhere the context does nothing.
    """

    def __init__(self) -> None:
        self.number = int(signal.SIGINT)
        """Of the last signal."""
        self._time = -math.inf
        self._before: dict[int, Any] = {}

    @property
    def ending(self) -> bool:
        """Whether a signal has come lately. Libraries make other errors of ``Stopped``, an
        ``ImportError`` for example."""
        return time.monotonic() - self._time < ENDING

    def __enter__(self) -> Self:
        heard = [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        self._before = _handle(heard, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        _put_back(self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._time < REPEATED:
            return
        self.number, self._time = number, time.monotonic()
        _leave_a_closed_terminal()
        raise Stopped(number)


class StopRequest:
    """A context around a training loop in which a stop waits for a checkpoint.

    The loop looks at `requested` between its steps, keeps what it has, and calls ``obey``. When it
    has not done so after ``PATIENCE`` seconds, ``Stopped`` is raised wherever it is. Ctrl-C is not
    put off, and nothing is where signals are not handled (outside of ``Interrupts``).
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the loop has been told to stop."""
        return self._number is not None

    def obey(self) -> None:
        """Raise ``Stopped`` if that was requested."""
        if self._number is not None:
            number, self._number = self._number, None
            self._before[number](number, None)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A part of the loop, an evaluation for example, that can be left at any moment without a
        loss: a stop is not put off."""
        self._at_once = True
        try:
            self.obey()
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> Self:
        self._before = _handle([n for n in PUT_OFF if callable(signal.getsignal(n))], self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _put_back(self._before)
        # Who told this process to stop may have ended a program that it was talking to.
        if error is not None and not isinstance(error, UserError):
            self.obey()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self._number = number
        _leave_a_closed_terminal()
        if self._at_once:
            self.obey()
        self._before = _handle([signal.SIGALRM], lambda *_: self.obey()) | self._before
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)


def ignore_signals() -> None:
    """From now on nothing disturbs the end of the process."""
    _handle(SIGNALS, signal.SIG_IGN)


def _handle(numbers: Iterable[int], handler: Handler | signal.Handlers) -> dict[int, Any]:
    """Have `handler` called; the handlers of before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _leave_a_closed_terminal() -> None:
    """Write to nowhere what would be written to a terminal that is gone: it fails there."""
    for stream in (1, 2):
        try:
            os.get_terminal_size(stream)
        except OSError as error:
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
