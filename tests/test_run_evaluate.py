"""`run.py evaluate` where it cannot write, beside another one, and after it was stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.online_loading import make_agent
from experiment.checkpoint import load_checkpoint, save_checkpoint
from experiment.evaluation_record import EvaluationRecord
from experiment.run_folder import RunFolder
from run import main
from tests.agents.online_runs import tiny
from tests.agents.received_runs import received_imitation, with_weights
from tests.disks import small_disk

pytestmark = pytest.mark.simulator

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run folder whose agent has learned nothing, and acts every 20th step."""
    path, config = tmp_path_factory.mktemp("untrained") / "run", tiny()
    with RunFolder.create_or_resume(path, config) as folder:
        agent = make_agent(config, 4, "cpu").state_dict()
        folder.save_checkpoint({"agent": agent, "action": 4, "task": config.task, "step": 7})
    return path


@pytest.fixture(scope="module")
def imitator(tmp_path_factory):
    """The same of an agent of imitation."""
    folder = with_weights(received_imitation(tmp_path_factory.mktemp("untrained") / "imitator"))
    state = load_checkpoint(folder / "checkpoint.pt")
    state["view"]["action_repeat"] = 20
    save_checkpoint(folder / "checkpoint.pt", state)
    return folder


@pytest.fixture
def folder(untrained, tmp_path):
    return shutil.copytree(untrained, tmp_path / "run")


def evaluate(folder, *more):
    return main(["evaluate", "--logdir", str(folder), "--episodes", "2", *more])


def seeds(folder, row):
    found = json.loads((folder / "evaluation.json").read_text())
    return [episode["seed"] for episode in found[row]["episodes"]]


def test_a_full_disk_is_found_out_before_anything_is_played(untrained, tmp_path, capsys):
    with small_disk(tmp_path / "disk", kib=4096) as disk:
        folder = shutil.copytree(untrained, disk.path / "run")
        before = sorted(os.listdir(folder))
        disk.fill()
        assert evaluate(folder) == 2
        assert "No space left on device" in one_line(capsys)
        assert sorted(os.listdir(folder)) == before


def one_line(capsys):
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_a_read_only_run_is_measured_and_printed(untrained, tmp_path, capsys):
    with small_disk(tmp_path / "disk", kib=4096) as disk:
        folder = shutil.copytree(untrained, disk.path / "run")
        disk.may_be_written(False)
        assert evaluate(folder, "--video") == 2
        printed = capsys.readouterr()
        assert any(line.split()[:1] == ["agent"] for line in printed.out.splitlines())
        note, error = printed.err.splitlines()
        assert note.startswith("note: ")
        assert error.startswith("error: what was measured is only printed")
        assert "Read-only file system" in error
        disk.may_be_written(True)


@pytest.mark.parametrize("kind", ["untrained", "imitator"])
def test_a_stopped_row_goes_on_with_the_episodes_that_are_left(
    kind, request, tmp_path, capsys, monkeypatch
):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "run")
    played, add = [], EvaluationRecord.add

    def noticing(record, row, episode):
        add(record, row, episode)
        played.append((row, episode["seed"]))
        if len(played) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(EvaluationRecord, "add", noticing)
    assert evaluate(folder, "--random") == 130
    assert [row for row, _ in played] == ["agent", "agent", "random"]
    assert "random" not in json.loads((folder / "evaluation.json").read_text())
    capsys.readouterr()
    assert evaluate(folder, "--random") == 0
    assert len(set(played)) == len(played) == 4
    assert seeds(folder, "agent") == seeds(folder, "random")
    assert "measured before: 2 of agent, 1 of random" in capsys.readouterr().out
    assert evaluate(folder, "--random", "--video") == 0  # nothing is left but the film
    assert len(played) == 4
    assert (folder / "videos" / "evaluation.mp4").stat().st_size > 1000


def test_two_at_once_lose_no_row(folder):
    command = [sys.executable, "run.py", "evaluate", "--logdir", str(folder), "--episodes", "1"]
    both = [
        subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.DEVNULL)
        for more in (["--random"], ["--shifts", "noise:0.2"])
    ]
    assert [process.wait(300) for process in both] == [0, 0]
    found = json.loads((folder / "evaluation.json").read_text())
    assert {"agent", "random", "noise:0.2", "retained"} <= found.keys()


@pytest.mark.parametrize("name", ["checkpoint.pt", "evaluation.json", "videos"])
def test_something_else_in_the_place_of_a_file_is_one_line(folder, name, capsys):
    (folder / name).unlink(missing_ok=True)
    if name == "videos":
        (folder / name).write_text("mine")
    else:
        os.mkfifo(folder / name)
    assert evaluate(folder, "--video") == 2
    assert str(folder / name) in one_line(capsys)
