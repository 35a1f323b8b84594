"""A disk that is full or read-only: one sentence, and nothing that was there is lost."""

import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from atomic_file import Unwritable
from errors import UserError
from experiment.evaluation_record import EvaluationRecord
from experiment.run_folder import RunFolder
from tests.disks import small_disk

PICTURE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
STATE = {"agent": {}, "task": "x", "random": {}, "evaluated": 0, "seconds": 0.0}
FULL = "No space left on device"


@dataclass(frozen=True)
class Run:
    task: str = "metaworld/reach"
    steps: int = 1000
    seed: int = 3


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", kib=2048) as disk:
        yield disk


@pytest.fixture
def folder(disk):
    with RunFolder.create_or_resume(disk.path / "run", Run()) as folder:
        folder.log(10, {"train/return": 1.0})
        yield folder


def names(folder):
    return sorted(os.listdir(folder.path))


def episode(seed):
    return {"seed": seed, "return": 0.0, "success": None, "length": 1}


def record_of(folder):
    return EvaluationRecord(folder.evaluation_path, {"task": "x", "seed": 0})


@pytest.mark.parametrize("free", [0, 4096, 300_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(disk, folder, free):
    state = STATE | {"metrics_position": folder.metrics.position()}
    folder.save_checkpoint(state)
    before = names(folder)
    disk.fill(free)
    with pytest.raises(Unwritable, match=f"checkpoint.pt.*{FULL}.*make room"):
        folder.save_checkpoint(state | {"agent": {"weights": torch.zeros(100_000)}})
    assert folder.load_checkpoint() == state
    assert names(folder) == before


def test_a_line_that_does_not_fit_is_left_out_whole(disk, folder):
    disk.fill()

    def fill_up():
        for step in range(20, 200):
            folder.log(step, {"train/return": 1.0, "dynamics/loss": 2.0})

    with pytest.raises(Unwritable, match=f"metrics.jsonl.*{FULL}"):
        fill_up()
    content = folder.metrics.path.read_bytes()
    assert content.endswith(b"}\n")
    assert len(folder.metrics.read()) == content.count(b"\n") > 1
    disk.empty()
    folder.log(300, {"train/return": 1.0})
    assert folder.metrics.read()[-1]["step"] == 300


def test_what_is_for_people_does_not_stop_training(disk, folder, capsys):
    disk.fill()
    folder.update_curve()
    folder.write_picture("prediction-1", PICTURE, 10)
    folder.show_video("prediction", PICTURE[None], 10)
    noted = capsys.readouterr().err.splitlines()
    assert len(noted) == 4  # the picture for TensorBoard, too
    assert all(line.startswith("note: ") and FULL in line for line in noted)
    for name in ("curve.png", "prediction-1.png", "TensorBoard", "prediction.mp4"):
        assert any(name in line for line in noted), name
    disk.empty()
    folder.update_curve()
    folder.write_picture("prediction-1", PICTURE, 10)
    folder.show_video("prediction", PICTURE[None], 10)
    assert {"curve.png", "pictures", "videos"} <= set(names(folder))
    assert capsys.readouterr().err == ""


def test_a_run_that_cannot_begin_says_so(disk):
    disk.fill()
    with pytest.raises(UserError, match=FULL):
        RunFolder.create_or_resume(disk.path / "another", Run())
    disk.empty()
    RunFolder.create_or_resume(disk.path / "another", Run()).close()


def test_a_full_disk_is_noticed_before_anything_is_measured(disk, folder):
    disk.fill(free=300_000)
    with pytest.raises(UserError, match=f"evaluation.json.*{FULL}"):
        record_of(folder).check_room()
    disk.empty()
    record_of(folder).check_room()
    assert not [name for name in names(folder) if name.startswith("evaluation")]


def test_a_disk_that_fills_up_while_measuring_loses_no_episode(disk, folder):
    record = record_of(folder)
    record.add("agent", episode(1))
    before = folder.evaluation_path.read_bytes()
    disk.fill()
    record.add("agent", episode(2))
    assert FULL in str(record.problem)
    assert folder.evaluation_path.read_bytes() == before
    disk.empty()
    record.add("agent", episode(3))
    assert record.problem is None
    written = json.loads(folder.evaluation_path.read_text())
    assert [each["seed"] for each in written["unfinished"]["agent"]] == [1, 2, 3]


def test_one_can_measure_in_a_folder_that_may_not_be_written_in(disk, folder, capsys):
    record_of(folder).add("agent", episode(1))
    folder.close()
    disk.may_be_written(False)
    try:
        record = record_of(folder)
        record.check_room()
        assert "Read-only" in capsys.readouterr().err
        record.add("agent", episode(2))
        assert len(record.known("agent")) == 2
        assert "Read-only" in str(record.problem)
        with pytest.raises(UserError, match="Read-only file system.*--logdir"):
            RunFolder.create_or_resume(folder.path, Run())
    finally:
        disk.may_be_written(True)
