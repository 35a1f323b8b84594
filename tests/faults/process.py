"""A command of `run.py` in a process of its own, forked from this one, which has imported
everything: it begins at once, and whatever it does to itself is seen from outside.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import run

STOPPING = 15.0
"""Seconds that a command has to stop when it is told to; clusters give ten and more."""
MEMORY = 12 * 2**30
"""Bytes of address space; PyTorch and a renderer take 4 GiB of it."""
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
"""Capabilities by which the superuser may read and write everything."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    """Its exit status, or the negative number of the signal that ended it."""
    output: str
    errors: str
    seconds: float
    stopped: bool
    """It was told to stop by SIGTERM, after the time it had been given."""
    hung: bool
    """It did not stop and was killed; `errors` says where it was."""
    left: list[str]
    """Command lines of processes that it left behind."""


class Process:
    """A command that is running.

    Args:
        arguments: of `run.py`.
        folder: it runs in.
        most_bytes: of any file it writes; None for no limit.
        privileged: False takes from the superuser what no other user has.
    """

    def __init__(
        self,
        arguments: Sequence,
        folder: Path,
        most_bytes: int | None = None,
        privileged: bool = True,
    ):
        self._output, self._errors = _file(), _file()
        self._began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, folder, most_bytes, privileged)

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL after that time; whether the command was still running."""
        while time.monotonic() - self._began < seconds:
            if self._ended():
                return False
            time.sleep(0.002)
        if self._ended():
            return False
        os.kill(self.pid, signal.SIGKILL)
        return True

    def wait(self, seconds: float) -> Ended:
        """Wait for the end; after `seconds` the command is told to stop, some time later killed."""
        signals = [
            (seconds, signal.SIGTERM),
            (seconds + STOPPING, signal.SIGABRT),  # faulthandler says where it is
            (seconds + STOPPING + 2, signal.SIGKILL),
        ]
        sent = []
        while not self._ended():
            if signals and time.monotonic() - self._began > signals[0][0]:
                sent.append(signals.pop(0)[1])
                os.kill(self.pid, sent[-1])
            time.sleep(0.002)
        taken = time.monotonic() - self._began
        left = self._left()
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        status = os.waitstatus_to_exitcode(self._status)
        return Ended(status, *texts, taken, bool(sent), len(sent) > 1, left)

    _status: int | None = None

    def _ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def _left(self) -> list[str]:
        """Processes of its session, which are given a moment to end, and then are ended."""
        for _ in range(200):
            members = [pid for pid in _processes() if _session(pid) == self.pid]
            if not members:
                return []
            time.sleep(0.01)
        names = []
        for pid in members:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                names.append(b" ".join(words).decode(errors="replace").strip())
                os.kill(pid, signal.SIGKILL)
        return names

    def _run(self, arguments, folder, most_bytes, privileged) -> None:
        """The child's whole life."""
        status = 1
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            files = (null, self._output.fileno(), self._errors.fileno())
            for number, file in enumerate(files):
                os.dup2(file, number)
            faulthandler.enable()
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            if most_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            if not privileged:
                _lose_privileges()
            # What a process of run.py is: provenance and environment workers look at it.
            sys.argv = ["run.py", *map(str, arguments)]
            sys.modules["__main__"] = run
            try:
                status = run.main(sys.argv[1:])
            except SystemExit as ended:  # after --help
                status = int(ended.code or 0)
            atexit._run_exitfuncs()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(status)


def call(
    arguments: Sequence, folder: Path, seconds: float = 120.0, privileged: bool = True
) -> Ended:
    """Run one command to its end; arguments as of `Process` and its `wait`."""
    return Process(arguments, folder, privileged=privileged).wait(seconds)


def _file():
    return tempfile.TemporaryFile()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session(pid: int) -> int | None:
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return None
        return os.getsid(pid)
    except (OSError, IndexError):
        return None


def _lose_privileges() -> None:
    """Let a file's mode count for the superuser too."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Data(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    libc.capget(ctypes.byref(header), data)
    for name in ("effective", "permitted", "inheritable"):
        kept = getattr(data[0], name) & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
        setattr(data[0], name, kept)
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capset")
