"""What was measured of an agent: nothing that has ended is lost, whoever else measures."""

import json
import os
import subprocess
import sys

import pytest

from errors import UserError
from experiment.evaluation_record import EvaluationRecord, Start, read_evaluation, read_records

TASK = "metaworld/reach"
CONDITIONS = {"task": TASK, "step": 5, "seed": 0, "shift": None, "weights": "ab"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluation.json"


def opened(path, **changes):
    return EvaluationRecord(path, CONDITIONS | changes)


def episode(seed, success=True):
    return {"seed": seed, "return": 1.5, "success": success, "length": 20}


def finish(record, row, *seeds):
    """Measure a whole row."""
    for seed in seeds:
        record.add(row, episode(seed))
    record.finish(row, {"success": None, "episodes": [episode(seed) for seed in seeds]})


def test_a_finished_row_is_written_with_its_origin(path):
    finish(opened(path), "agent", 1, 2)
    written = json.loads(path.read_text())
    assert written["task"] == TASK
    assert [each["seed"] for each in written["agent"]["episodes"]] == [1, 2]
    assert {"command", "commit", "versions"} <= written.keys()
    assert written["agent"]["commit"] == written["commit"]
    assert "unfinished" not in written
    assert read_evaluation(path) == written
    assert os.listdir(path.parent) == ["evaluation.json"]


def test_episodes_of_a_row_that_was_stopped_are_known_again(path):
    record = opened(path)
    record.add("agent", episode(1))
    record.add("agent", episode(2, success=False))
    again = opened(path)
    assert again.known("agent") == {
        Start(TASK, 1): episode(1),
        Start(TASK, 2): episode(2, success=False),
    }
    assert again.known("random") == {}
    assert read_evaluation(path) is None  # no row that could be reported
    finish(again, "agent", 3)
    assert again.known("agent").keys() == {Start(TASK, 3)}


def test_rows_of_several_who_measure_at_the_same_time_are_all_kept(path):
    one, other = opened(path), opened(path)
    finish(one, "agent", 1, 2)
    other.add("random", episode(1))
    finish(other, "noise:0.2", 1, 2)
    one.note(shifts=["noise:0.2"])
    finish(other, "agent", 1, 2)  # both measured it
    finish(one, "random", 1)
    found = read_evaluation(path)
    assert {"agent", "noise:0.2", "random", "shifts"} <= found.keys()
    assert "unfinished" not in json.loads(path.read_text())


def test_processes_at_the_same_time_lose_nothing(path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiment.evaluation_record import EvaluationRecord\n"
        f"record = EvaluationRecord(Path(sys.argv[1]), {CONDITIONS!r})\n"
        "for seed in range(25):\n"
        "    episode = {'seed': seed, 'return': 0.0, 'success': None, 'length': 1}\n"
        "    record.add(sys.argv[2], episode)\n"
        "    assert record.problem is None, record.problem\n"
    )
    rows = ["agent", "random", "noise:0.2", "lighting:0.5"]
    processes = [subprocess.Popen([sys.executable, "-c", script, path, row]) for row in rows]
    assert [process.wait(60) for process in processes] == [0] * len(rows)
    record = opened(path)
    assert [len(record.known(row)) for row in rows] == [25] * len(rows)


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"step": 6}, {"shift": "noise:1"}, {"weights": "cd"}]
)
def test_what_other_conditions_gave_is_neither_taken_nor_lost(path, changes):
    finish(opened(path), "agent", 1)
    other = opened(path, **changes)
    assert other.known("agent") == {}
    other.add("agent", episode(7))
    # Until the new one has a row, the last evaluation is the one before.
    assert read_evaluation(path)["agent"]["episodes"] == [episode(1)]
    finish(other, "agent", 7, 8)
    assert read_evaluation(path)["agent"]["episodes"] == [episode(7), episode(8)]
    assert opened(path).known("agent").keys() == {Start(TASK, 1)}


def test_a_longer_row_is_not_replaced_and_a_replaced_one_takes_what_was_computed_of_it(path):
    record = opened(path)
    finish(record, "agent", 1, 2)
    record.note(shifts=["noise:1"], retained={"id": 1.0}, instructions={TASK: "reach"})
    finish(record, "agent", 1)
    assert len(record.content["agent"]["episodes"]) == 2
    assert "retained" in record.content
    finish(record, "agent", 1, 2, 3)
    found = read_evaluation(path)
    assert len(found["agent"]["episodes"]) == 3
    assert found.keys() & {"shifts", "retained", "instructions"} == {"instructions"}


def test_what_was_measured_before_weights_were_noted_still_counts(path):
    old = {"task": TASK, "step": 5, "seed": 0, "commit": "abc", "agent": {"episodes": [episode(1)]}}
    path.write_text(json.dumps(old))
    record = opened(path)
    assert record.known("agent").keys() == {Start(TASK, 1)}
    finish(record, "random", 1)
    found = read_evaluation(path)
    assert found["agent"]["commit"] == "abc"
    assert found["weights"] == "ab"


def test_an_old_name_of_a_condition_still_counts(path):
    rows = {"agent": {"episodes": [episode(1)]}}
    path.write_text(json.dumps({"task": TASK, "updates": 9, "seed": 0, "execute": 4} | rows))
    conditions = {"task": TASK, "updates": 9, "seed": 0, "n_action_steps": 4}
    assert EvaluationRecord(path, conditions).known("agent")


COMMON = b'{"task": "metaworld/reach", "step": 5, "seed": 0'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'{"others": 5}',
        b'{"others": [5]}',
        b"\x00\x01",
        b"\xff\xfe{}",
        b"[" * 100_000,
        COMMON + b', "agent": {"episodes": [{"seed": "x"}]}}',
        COMMON + b', "agent": {"episodes": 3}}',
        COMMON + b', "unfinished": [1]}',
        COMMON + b', "unfinished": {"agent": [{}]}}',
    ],
)
def test_a_damaged_file_is_named_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"evaluation\.json"):
        opened(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(path, kind):
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"evaluation\.json"):
        opened(path)


def test_a_file_that_is_damaged_meanwhile_loses_nothing(path):
    record = opened(path)
    finish(record, "agent", 1)
    path.write_text("{")
    finish(record, "random", 1)
    assert "damaged" in str(record.problem)
    assert path.read_text() == "{"
    assert record.content["random"]["episodes"] == [episode(1)]
    path.unlink()
    record.note(shifts=[])
    assert record.problem is None
    assert "random" in read_records(path)[0]


def test_nothing_is_written_through_a_link(path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("file", "temporary", "lock"):
        (outside / name).write_text("{}")
    path.symlink_to(outside / "file")
    path.with_name("evaluation.json.tmp").symlink_to(outside / "temporary")
    record = opened(path)
    record.check_room()
    path.with_name("evaluation.json.tmp").symlink_to(outside / "temporary")
    finish(record, "agent", 1)
    assert record.problem is None
    assert not path.is_symlink()
    path.with_name("evaluation.lock").symlink_to(outside / "lock")
    record.note(shifts=[])
    assert "symbolic link" in str(record.problem)
    assert {file.read_text() for file in outside.iterdir()} == {"{}"}
    assert len(list(outside.iterdir())) == 3


def test_what_is_in_the_way_is_found_out_before_anything_is_measured(path):
    path.with_name("evaluation.json.tmp").mkdir()
    with pytest.raises(UserError, match=r"evaluation\.json\.tmp.*move away"):
        opened(path).check_room()


@pytest.mark.parametrize("task", [None, 3])
def test_an_episode_of_imitation_that_does_not_say_its_task_is_refused(path, task):
    conditions = {"task": f"{TASK},metaworld/push", "updates": 5, "seed": 0}
    record = EvaluationRecord(path, conditions)
    record.add("agent", {**episode(1), "task": TASK})
    written = json.loads(path.read_text())
    kept = written["unfinished"]["agent"][0]
    del kept["task"]
    if task is not None:
        kept["task"] = task
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"evaluation\.json is damaged \(row 'agent'\)"):
        EvaluationRecord(path, conditions)
