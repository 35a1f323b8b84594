"""Commands run to their end as processes of their own: here, or on the machines of a Ray cluster.

A run that is killed is started again, without end as long as it gets on: it continues where it
stopped. One that ends with an error of its own is not.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from errors import UserError
from experiment.locks import FolderLock

POLL = 0.2
"""Seconds between two looks at a process."""
MOST_KILLS = 10
"""Times that a run may be killed without a new checkpoint."""
TAIL = 8192
"""Bytes of a log in which its last line is looked for."""
SIGNALLED = 128
"""Added to a signal's number it is the exit status of a command that was told to stop."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """Commands to run one after the other."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    """Each begins with the interpreter."""
    folder: str
    """The run folder that they work on."""
    where: str
    """Folder that they are started in."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables beside those of this process."""

    @property
    def log(self) -> Path:
        """What the commands print."""
        return Path(f"{self.folder}.log")

    @property
    def mark(self) -> Path:
        """A file that is there while the job is at work, with the name of its machine."""
        return Path(f"{self.folder}.running")


class Working:
    """A job at work in this process's child.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job):
        self.job = job
        self._left = list(job.commands)
        self._process: subprocess.Popen | None = None
        self._kills, self._checkpoint = 0, 0.0
        job.mark.write_text(socket.gethostname(), encoding="utf-8")

    def poll(self) -> str | None:
        """Go on; None while there is something left to do, then "", or why it failed."""
        if self._process is None:
            if not self._left:
                return self._end("")
            if not self._is_free():
                return None
            self._start(self._left[0])
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._process = None
        if status == 0:
            self._left.pop(0)
            self._kills = 0
            return None if self._left else self._end("")
        if status < 0 or status > SIGNALLED:  # killed or stopped by somebody
            return self._killed(-status if status < 0 else status - SIGNALLED)
        return self._end(f"{_last_line(self.job.log)} ({self.job.log})")

    def stop(self) -> None:
        """Tell the process to stop, which lets it write a checkpoint."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """Stop the process and wait for its end."""
        self.stop()
        if self._process is not None:
            self._process.wait()
        self.job.mark.unlink(missing_ok=True)

    def _start(self, command: Sequence[str]) -> None:
        with open(self.job.log, "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.job.where,
                env={**os.environ, **self.job.environment}, preexec_fn=_die_with_parent,
                start_new_session=True,  # Ctrl-C is for the sweep, which tells its runs
            )  # fmt: skip

    def _is_free(self) -> bool:
        """Whether nobody works in the run folder: the process of a machine that died may be
        writing its last checkpoint."""
        if not os.path.isdir(self.job.folder):
            return True
        try:
            FolderLock(Path(self.job.folder)).close()
        except (UserError, OSError):
            return False
        return True

    def _killed(self, number: int) -> str | None:
        checkpoint = Path(self.job.folder) / "checkpoint.pt"
        written = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        self._kills = self._kills + 1 if written == self._checkpoint else 1
        self._checkpoint = written
        if self._kills < MOST_KILLS:
            return None
        name = signal.Signals(number).name
        return self._end(
            f"killed {MOST_KILLS} times without getting on (last by {name}); {self.job.log} and the"
            " memory of its machine may say why"
        )

    def _end(self, error: str) -> str:
        self.job.mark.unlink(missing_ok=True)
        return error


def work(job: Job) -> str:
    """A job from beginning to end; "", or why it failed."""
    working = Working(job)
    try:
        while (ended := working.poll()) is None:
            time.sleep(POLL)
        return ended
    finally:
        working.close()


class Engine(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> None:
        """Have it run as soon as there is room."""

    def ended(self) -> list[tuple[str, str]]:
        """Jobs that ended since the last call: name, and "" or why it failed. Raises UserError."""

    def close(self) -> None:
        """Stop what is at work."""


class Processes:
    """Children of this process.

    Args:
        most: how many are at work at once.
    """

    def __init__(self, most: int):
        self._most = most
        self._waiting: list[Job] = []
        self._working: list[Working] = []

    def submit(self, job: Job) -> None:
        """As ``Engine``."""
        self._waiting.append(job)

    def ended(self) -> list[tuple[str, str]]:
        """As ``Engine``."""
        over = []
        while self._waiting and len(self._working) < self._most:
            self._working.append(Working(self._waiting.pop(0)))
        for working in list(self._working):
            error = working.poll()
            if error is not None:
                self._working.remove(working)
                over.append((working.job.name, error))
        return over

    def close(self) -> None:
        """As ``Engine``."""
        for working in self._working:
            working.stop()
        for working in self._working:
            working.close()


class OnRay:
    """Tasks of Ray: a machine that dies, or a worker that is killed, costs a job what it has
    learned since its last checkpoint.

    Args:
        address: of a cluster, "auto" for the one that this machine belongs to; None starts Ray
            here.
        cpus, gpus: of a job.

    Raises:
        UserError: Ray is not installed; there is no such cluster, or it has another version.
    """

    def __init__(self, address: str | None, cpus: float, gpus: float):
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own lines, on standard error
        # What a run without a GPU of its own may see stays as it is; Ray warns of another rule.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("Ray is not installed: pip install '.[sweep]'") from error
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR,
                     include_dashboard=None if address else False)  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(work)
        self._asked = {"CPU": cpus, "GPU": gpus}
        self._names: dict[Any, str] = {}

    def submit(self, job: Job) -> None:
        """As ``Engine``."""
        self._names[self._task.remote(job)] = job.name

    def ended(self) -> list[tuple[str, str]]:
        """As ``Engine``."""
        if not self._names:
            return []
        ready, _ = self._ray.wait(list(self._names), num_returns=len(self._names), timeout=0)
        over = []
        for task in ready:
            name = self._names.pop(task)
            try:
                over.append((name, self._ray.get(task)))
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                over.append((name, f"Ray could not run it: {reason[-1]}"))
        return over

    def lacking(self) -> str:
        """What no machine of the cluster has enough of for one job; "" when all is there."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fits = any(all(node.get(n, 0) >= most for n, most in self._asked.items()) for node in nodes)
        if fits:
            return ""
        there = " and ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs"
                             for node in nodes)  # fmt: skip
        return f"a run asks for {self._asked['CPU']:g} CPUs and {self._asked['GPU']:g} GPUs, the" \
               f" machines have {there or 'nothing'}"  # fmt: skip

    def close(self) -> None:
        """As ``Engine``. The processes are told to stop as their workers end."""
        for task in self._names:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _die_with_parent() -> None:
    """In a child that is about to begin: be told to stop when the parent is killed (Linux)."""
    if sys.platform.startswith("linux"):
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)


def _last_line(log: Path) -> str:
    """The last error that a log reports, or its last line."""
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    spoken = [line.strip() for line in lines if line.strip()] or ["it said nothing"]
    errors = [line for line in spoken if line.startswith("error: ")]
    return (errors or spoken)[-1].removeprefix("error: ")
