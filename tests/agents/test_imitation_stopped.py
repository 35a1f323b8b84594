"""An imitation run that is told to stop, and one whose reading process dies."""

import multiprocessing
import os
import signal

import pytest

from agents import imitation_run
from agents.imitation import imitate
from agents.imitation_config import ImitationConfig
from commands.ending import guarded
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from tests.agents.online_runs import equal
from tests.agents.tiny_imitation import TASK, TINY, record

pytestmark = pytest.mark.simulator

CONFIG = {
    "task": TASK, "dynamics_steps": 2, "policy_steps": 3, "batch": 4, "workers": 0,
    "evaluate_every": 2, "evaluate_episodes": 1, "evaluate_envs": 1, "agent": TINY,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5")


def run(data, path, **fields):
    """The exit status of a run, as a command has it."""
    config = ImitationConfig(**(CONFIG | {"data": (str(data),)} | fields))

    def learn():
        with RunFolder.create_or_resume(path, config) as folder:
            imitate(config, folder)

    return guarded(learn)


def state(path):
    return load_checkpoint(path / "checkpoint.pt")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert run(data, path) == 0
    return state(path)


def told(method, at):
    """The method, and SIGTERM in the middle of its call number `at`."""
    calls = []

    def telling(*arguments, **options):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return method(*arguments, **options)

    return telling


@pytest.mark.parametrize(
    ("owner", "name", "at", "updates"),
    [
        (imitation_run.ImitationRun, "learn", 1, 1),
        (imitation_run, "run_task", 1, 4),
    ],
    ids=["learning", "evaluating"],
)
def test_a_stopped_run_loses_nothing(data, whole, tmp_path, monkeypatch, owner, name, at, updates):
    """It ends after the update with a checkpoint, out of an evaluation at once; the same command
    then ends as if it had not been stopped, to the bit."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, told(getattr(owner, name), at))
        assert run(data, path) == 128 + signal.SIGTERM
    assert state(path)["updates"] == updates
    assert run(data, path) == 0
    for part in ("agent", "optimizer", "random", "updates", "evaluated"):
        assert equal(state(path)[part], whole[part]), part


def test_a_dead_reading_process_is_one_line(data, tmp_path, monkeypatch, capfd):
    """Whatever the run is doing when it hears of it."""
    learn = imitation_run.ImitationRun.learn

    def murderous(self, stage, batches):
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        learn(self, stage, batches)

    monkeypatch.setattr(imitation_run.ImitationRun, "learn", murderous)
    assert run(data, tmp_path / "run", workers=1, dynamics_steps=50) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: a process that reads the demonstrations has died")
    assert errors.count("\n") == 1
