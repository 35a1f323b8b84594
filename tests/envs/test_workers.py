"""Worker processes that die, fail, or lose their parent: one sentence, and nobody is left behind.

The environments here simulate nothing.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.vector import VectorEnvironment
from errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Unpicklable(Exception):
    """An exception that fails to be made again from its arguments."""

    def __init__(self, what, reason):
        super().__init__(f"{what}, because of {reason}")
        self.lock = open(os.devnull)  # noqa: SIM115 (what cannot be sent)


class Toy(gymnasium.Env):
    """Does what it is told by `trouble` when the event named `when` comes: made, reset, step."""

    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    action_space = spaces.Box(-1, 1, (2,))

    def __init__(self, trouble, when, parent):
        self.trouble, self.when, self.parent = trouble, when, parent
        self.unsendable = open(os.devnull)  # noqa: SIM115
        self.meet("made")

    def meet(self, event):
        if event == self.when and os.getpid() != self.parent:
            self.trouble()

    def reset(self, *, seed=None, options=None):
        self.meet("reset")
        return {"image": np.full((4, 4, 3), seed, np.uint8)}, {}

    def step(self, action):
        self.meet("step")
        return {"image": np.zeros((4, 4, 3), np.uint8)}, 0.0, False, False, {"env_steps": 1}


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_child_and_be_killed():
    if os.fork():
        be_killed()
    time.sleep(3)
    os._exit(0)


def fail():
    raise Unpicklable("nothing", "everything")


def hang():
    time.sleep(600)


def toys(trouble=None, when="", count=2):
    """Two environments that get into trouble in their workers, not here."""
    return VectorEnvironment(partial(Toy, trouble, when, os.getpid()), count, "toys")


def use(trouble, when):
    """Make, reset and step toys; whatever happens, no worker is left."""
    before = multiprocessing.active_children()
    try:
        environments = toys(trouble, when)
        try:
            environments.reset(seed=[1, 2])
            environments.step(np.zeros((2, 2), np.float32))
        finally:
            environments.close()
    finally:
        assert multiprocessing.active_children() == before


KILLED = "was ended by signal 9 (SIGKILL), perhaps for want of memory"


@pytest.mark.parametrize(
    ("trouble", "when", "words"),
    [
        (be_killed, "made", KILLED),
        (be_killed, "reset", KILLED),
        (be_killed, "step", KILLED),
        (leave_a_child_and_be_killed, "step", KILLED),
        (partial(os._exit, 3), "step", "ended with status 3"),
    ],
)
def test_a_dead_worker_is_one_sentence_that_names_it(trouble, when, words):
    with pytest.raises(UserError) as found:
        use(trouble, when)
    assert str(found.value).startswith("environment 0 of toys, process ")
    assert f"{words}; start the same command again" in str(found.value)


def test_the_one_that_died_is_named_whenever_it_died():
    environments = toys()
    environments.reset(seed=[1, 2])
    killed = environments.workers[1].process
    killed.kill()
    killed.join()
    name = f"^environment 1 of toys, process {killed.pid}, was ended by signal 9"
    for _ in range(2):
        with pytest.raises(UserError, match=name):
            environments.step(np.zeros((2, 2), np.float32))
    environments.close()


def test_only_their_parent_ends_them():
    """A cluster, a closed terminal and Ctrl-C tell the whole group, also while it is starting."""
    told = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    environments = toys(partial(os.kill, 0, 0), "step")
    for worker in environments.workers:
        for number in told:
            os.kill(worker.process.pid, number)
    observation, _ = environments.reset(seed=[1, 2])
    assert observation["image"][:, 0, 0, 0].tolist() == [1, 2]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()  # this process hears them
    environments.close()


@pytest.mark.parametrize("trouble", [fail, partial(sys.exit, "enough")], ids=["error", "exit"])
@pytest.mark.parametrize("when", ["made", "step"])
def test_an_error_that_cannot_be_sent_arrives_with_its_traceback(trouble, when):
    words = {fail: r"in fail\n(?s:.*)nothing, because of everything"}.get(trouble, "SystemExit: en")
    with pytest.raises(RuntimeError, match=f"^environment 0 of toys failed(?s:.*){words}"):
        use(trouble, when)


def test_a_result_that_cannot_be_sent_is_an_error_too():
    environments = toys()
    with pytest.raises(RuntimeError, match="environment 0 of toys failed(?s:.*)pickle"):
        environments.get_attr("unsendable")
    environments.close()


def test_closing_is_silent_and_waits_for_no_answer(capfd):
    environments = toys(hang, "step")
    environments.reset(seed=[1, 2])
    environments.step_async(np.zeros((2, 2), np.float32))
    started = time.monotonic()
    environments.close()
    assert time.monotonic() - started < 10
    assert capfd.readouterr().err == ""


def shared():
    """What of /dev/shm is in this process's memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}


def test_nothing_has_a_name_in_shared_memory():
    """What has a name stays when a cluster kills the whole group."""
    before = shared()
    environments = toys()
    assert all(name.endswith("(deleted)") for name in shared() - before)
    assert any(name.startswith(f"pym-{os.getpid()}-") for name in shared())
    environments.close()


SCRIPT = """
import sys, time
from tests.envs.test_workers import *
environments = toys(hang, "step")
environments.reset(seed=[1, 2])
environments.step_async(np.zeros((2, 2), np.float32))
print(*(worker.process.pid for worker in environments.workers), flush=True)
"""


@pytest.mark.parametrize("end", ["time.sleep(60)", "pass"], ids=["killed", "ended"])
def test_no_worker_outlives_its_parent(end):
    """Whether the parent is killed, or ends without closing them; here they hang in a step."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT + end], cwd=ROOT, stdout=subprocess.PIPE, stderr=-1, text=True
    ) as process:
        workers = process.stdout.readline().split()
        assert len(workers) == 2
        if end != "pass":
            process.kill()
        assert process.communicate(timeout=20) == ("", "")
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
