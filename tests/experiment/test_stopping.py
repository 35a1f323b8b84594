"""Signals: a loop writes its checkpoint first, all else ends at once, nothing is a traceback.

The processes here import nothing that takes time.
"""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commands.ending import guarded
from experiment import stopping
from experiment.stopping import StopRequest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, time
from commands.ending import end, guarded
from experiment import stopping

def say(word):
    print(word, flush=True)

def wait():
    say("ready")
    time.sleep(60)

def loop(steps=10**9, slow=False):
    with stopping.StopRequest() as stop:
        say("ready")
        for _ in range(steps):
            time.sleep(0.01)
            if stop.requested:
                say("checkpoint")
                time.sleep(60 * slow)
                stop.obey()

def evaluate():
    with stopping.StopRequest() as stop, stop.at_once():
        wait()

def fail():
    with stopping.StopRequest() as stop:
        say("ready")
        while not stop.requested:
            time.sleep(0.01)
        raise BrokenPipeError

def tidy():
    try:
        wait()
    finally:
        time.sleep(0.5)
        say("tidied")

def swallow():
    try:
        wait()
    except BaseException:
        raise ImportError("numpy.core.multiarray failed to import")

stopping.PATIENCE = 0.5
end(guarded({body}, "; go on"))
"""


def start(body, before="", **streams):
    """A process that has begun with `body`; `before` is done first of all."""
    script = f"import signal\n{before}\n" + SCRIPT.replace("{body}", body)
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, start_new_session=True, **streams,
        preexec_fn=listen,
    )  # fmt: skip


def listen():
    """A test run in the background ignores Ctrl-C, one under nohup the end of its terminal, and
    children inherit that."""
    for number in (signal.SIGINT, *stopping.PUT_OFF):
        signal.signal(number, signal.SIG_DFL)


def ended(body, *numbers, before=""):
    """Exit status, output and errors of `body` that is sent the signals, 50 ms apart."""
    pipe = subprocess.PIPE
    with start(body, before, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        try:
            output, errors = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()  # or leaving it waits for ever
            raise
    return process.returncode, output, errors


@pytest.mark.parametrize("number", stopping.PUT_OFF)
def test_a_loop_is_told_and_ends_when_it_has_written_its_checkpoint(number):
    assert ended("loop", number) == (128 + number, "checkpoint\n", "stopped; go on\n")


def test_a_stop_that_is_repeated_does_not_disturb_the_checkpoint():
    found = ended("lambda: loop(slow=0.005)", signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
    assert found == (143, "checkpoint\n", "stopped; go on\n")


def test_a_checkpoint_that_takes_too_long_is_given_up():
    assert ended("lambda: loop(slow=True)", signal.SIGTERM)[::2] == (143, "stopped; go on\n")


def test_ctrl_c_does_not_wait_for_a_checkpoint():
    assert ended("loop", signal.SIGINT) == (130, "", "stopped; go on\n")


@pytest.mark.parametrize("body", ["wait", "evaluate"])
def test_elsewhere_and_in_evaluations_a_stop_is_at_once(body):
    assert ended(body, signal.SIGTERM) == (143, "", "stopped; go on\n")


def test_a_second_ctrl_c_does_not_disturb_what_the_first_one_closes():
    found = ended("tidy", signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    assert found == (130, "tidied\n", "stopped; go on\n")


def test_an_interrupt_that_a_library_made_another_error_of_is_still_one():
    assert ended("swallow", signal.SIGINT) == (130, "", "stopped; go on\n")


def test_what_fails_because_of_a_stop_is_that_stop():
    """Here a program that the loop was talking to has been stopped as well."""
    assert ended("fail", signal.SIGTERM) == (143, "", "stopped; go on\n")


def test_what_nohup_ignores_is_ignored():
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert ended("lambda: loop(steps=20)", signal.SIGHUP, before=ignored) == (0, "", "")


def test_a_closed_terminal_takes_no_checkpoint_with_it():
    """What the loop prints then has nowhere to go, and would fail."""
    controller, terminal = pty.openpty()
    with start("loop", stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        assert os.read(controller, 5) == b"ready"
        os.close(controller)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=20) == 129


def test_a_full_disk_under_the_output_is_one_line():
    with (
        open("/dev/full", "w") as full,
        start("lambda: say('x')", stdout=full, stderr=-1) as process,
    ):
        assert process.communicate(timeout=20)[1].startswith(b"error: cannot read or write")
    assert process.returncode == 2


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in (*stopping.SIGNALS, signal.SIGALRM)]

    def told():
        with StopRequest() as stop:
            assert not stop.requested
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
            stop.obey()

    assert guarded(told) == 143
    assert [signal.getsignal(number) for number in (*stopping.SIGNALS, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_outside_of_the_main_thread_and_of_commands_signals_are_left_alone():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    found = []

    def look():
        with StopRequest():
            found.append([signal.getsignal(number) for number in stopping.SIGNALS])

    look()
    other = threading.Thread(target=lambda: guarded(look))
    other.start()
    other.join()
    assert found == [before, before]
