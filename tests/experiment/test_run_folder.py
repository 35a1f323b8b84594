"""The run folder: what it refuses, what survives a kill, what comes back as it was saved."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import yaml

from errors import UserError
from experiment.run_folder import RunFolder


@dataclass(frozen=True)
class Encoder:
    depth: int = 2
    widths: tuple[int, ...] = (8, 16)
    pooling: Literal["mean", "flatten"] = "mean"
    learning_rate: float = 1e-4


@dataclass(frozen=True)
class Run:
    task: str = "metaworld/reach"
    steps: int = 1000
    seed: int = 3
    camera: str | int | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    clip: float | None = 100.0
    encoder: Encoder = field(default_factory=Encoder)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "one"


def contents(path):
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def refused(path, config, *words):
    """Expect a refusal that says all of ``words`` in one line and changes nothing on disk."""
    before = contents(path) if path.is_dir() else None
    with pytest.raises(UserError) as error:
        RunFolder.create_or_resume(path, config)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    if before is not None:
        assert contents(path) == before


# ------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "config",
    [
        Run(),
        Run(camera="corner2", clip=None, scale=(-1.0, 2.5)),
        Run(camera=2, encoder=Encoder(5, (1,), "flatten", 3e-5)),
    ],
)
def test_configuration_comes_back_equal(path, config):
    RunFolder.create_or_resume(path, config).close()
    assert RunFolder.read_config(path, Run) == config


def test_record_names_command_commit_versions_and_hardware(path):
    RunFolder.create_or_resume(path, Run()).close()
    record = yaml.safe_load((path / "config.yaml").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["mujoco"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", record["commit"])
    assert record["command"].startswith("python ")
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["threads"] == torch.get_num_threads()


def test_same_configuration_resumes_and_leaves_the_file_alone(path):
    RunFolder.create_or_resume(path, Run()).close()
    before = (path / "config.yaml").read_bytes()
    RunFolder.create_or_resume(path, Run()).close()
    assert (path / "config.yaml").read_bytes() == before


def test_larger_steps_continue_and_are_recorded(path, monkeypatch):
    for steps in (1000, 2000):
        monkeypatch.setattr("sys.argv", ["run.py", "train", "--steps", str(steps)])
        RunFolder.create_or_resume(path, Run(steps=steps)).close()
    assert RunFolder.read_config(path, Run).steps == 2000
    record = yaml.safe_load((path / "config.yaml").read_text())
    assert record["command"] == "python run.py train --steps 2000"


def test_smaller_steps_are_refused(path):
    RunFolder.create_or_resume(path, Run(steps=1000)).close()
    refused(path, Run(steps=999), "steps", "1000", "999", "--logdir")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Run(task="metaworld/push"), ("task", "metaworld/reach", "metaworld/push")),
        (Run(encoder=Encoder(depth=7)), ("encoder.depth", "2", "7")),
        (Run(encoder=Encoder(widths=(8, 17))), ("encoder.widths", "[8, 16]", "[8, 17]")),
        (Run(clip=None), ("clip", "100.0", "None")),
        (Run(seed=4, task="metaworld/push", steps=5000), ("task", "1 more")),
    ],
)
def test_any_other_difference_is_refused_and_named(path, config, words):
    RunFolder.create_or_resume(path, Run()).close()
    refused(path, config, *words, "--logdir")


def test_folder_of_another_version_is_refused_by_field_name(path):
    RunFolder.create_or_resume(path, Run()).close()
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("depth:", "layers:"))
    refused(path, Run(), "encoder.layers = 2", "now does not exist")
    with pytest.raises(UserError, match=r"unknown encoder\.layers"):
        RunFolder.read_config(path, Run)


def test_field_younger_than_the_run_takes_its_default(path):
    RunFolder.create_or_resume(path, Run()).close()
    file = path / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "depth:" not in line and "clip" not in line))
    assert RunFolder.read_config(path, Run) == Run()
    RunFolder.create_or_resume(path, Run()).close()
    refused(path, Run(encoder=Encoder(depth=7)), "encoder.depth", "2", "7")
    RunFolder.create_or_resume(path, Run(steps=2000)).close()
    assert RunFolder.read_config(path, Run) == Run(steps=2000)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("depth: 2", "depth: two", "encoder.depth"),
        ("pooling: mean", "pooling: max", "encoder.pooling"),
        ("clip: 100.0", "clip: [1]", "clip"),
    ],
)
def test_wrong_value_in_a_recorded_configuration_is_named(path, old, new, named):
    RunFolder.create_or_resume(path, Run()).close()
    file = path / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(named)):
        RunFolder.read_config(path, Run)


def test_numbers_edited_by_hand_are_read_as_numbers(path):
    RunFolder.create_or_resume(path, Run()).close()
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("0.0001", "1e-4").replace("100.0", "100"))
    assert RunFolder.read_config(path, Run) == Run()


@pytest.mark.parametrize("text", ["config: [", "", "- 1", "config: 3", "\x00"])
def test_broken_yaml_is_refused(path, text):
    RunFolder.create_or_resume(path, Run()).close()
    (path / "config.yaml").write_text(text)
    refused(path, Run(), "config.yaml", "--logdir")
    with pytest.raises(UserError, match="config.yaml"):
        RunFolder.read_config(path, Run)


# ------------------------------------------------------------------------- paths and the lock


def test_foreign_folder_is_refused(path):
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("mine")
    refused(path, Run(), "not a run folder", "--logdir")


def test_file_in_place_of_the_folder_is_refused(path):
    path.parent.mkdir()
    path.write_text("mine")
    refused(path, Run(), "is a file", "--logdir")
    assert path.read_text() == "mine"
    refused(path / "below", Run(), "--logdir")


def test_missing_run_is_refused_and_not_made(path):
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.read_config(path, Run)
    assert not path.exists()
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(path)


def test_folder_whose_making_was_cut_off_is_taken(path):
    path.mkdir(parents=True)
    (path / "lock").touch()
    (path / "config.yaml.tmp").write_text("config: {ta")
    RunFolder.create_or_resume(path, Run()).close()
    assert RunFolder.read_config(path, Run) == Run()


def test_second_training_process_is_refused_until_the_first_is_gone(path):
    RunFolder.create_or_resume(path, Run()).close()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time\n"
            "file = open(sys.argv[1], 'a')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\n"
            "print('locked', flush=True)\n"
            "time.sleep(600)",
            path / "lock",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"locked\n"
        refused(path, Run(), "another process", "--logdir")
        assert RunFolder.open(path).path == path
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    RunFolder.create_or_resume(path, Run()).close()


def test_refusal_names_the_process_and_close_gives_the_lock_up(path):
    first = RunFolder.create_or_resume(path, Run())
    refused(path, Run(), f"id {os.getpid()}")
    first.close()
    first.close()
    RunFolder.create_or_resume(path, Run()).close()


def test_a_removed_lock_file_lets_nobody_in(path):
    with RunFolder.create_or_resume(path, Run()):
        (path / "lock").unlink()
        for _ in range(2):  # the refused one has not made it anew either
            refused(path, Run(), "another process", "--logdir")
        assert not (path / "lock").exists()
    RunFolder.create_or_resume(path, Run()).close()
    assert (path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"12345678901" * 20])
def test_a_lock_file_that_says_nothing_is_no_obstacle(path, content):
    with RunFolder.create_or_resume(path, Run()):
        (path / "lock").write_bytes(content)
        refused(path, Run(), "id unknown")


def test_a_refused_configuration_does_not_keep_the_lock(path):
    RunFolder.create_or_resume(path, Run()).close()
    refused(path, Run(seed=9), "seed")
    RunFolder.create_or_resume(path, Run()).close()


# ------------------------------------------------------------------------- metrics


@pytest.fixture
def folder(path):
    with RunFolder.create_or_resume(path, Run()) as folder:
        yield folder


def test_metrics_are_one_json_object_a_line(folder):
    folder.start_clock(previous_seconds=100.0)
    folder.log(10, {"train/return": 1.5})
    folder.log(20, {"eval/success": np.float32(0.5), "loss/actor": float("nan")})
    lines = [json.loads(line) for line in folder.metrics.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert lines[0]["train/return"] == 1.5
    assert lines[1]["eval/success"] == 0.5
    assert lines[1]["loss/actor"] is None
    assert 100.0 <= lines[0]["time"] <= lines[1]["time"] < 160.0


def tensorboard_steps(path, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def test_steps_never_go_backwards_after_a_cut(path):
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.log(10, {"train/return": 1.0})
        folder.log(20, {"train/return": 2.0})
        position = folder.metrics.position()
        folder.log(30, {"train/return": 3.0})
        folder.log(40, {"train/return": 4.0})
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.metrics.cut(position, step=20)
        folder.log(35, {"train/return": 5.0})
        assert [line["step"] for line in folder.metrics.read()] == [10, 20, 35]
    assert tensorboard_steps(path, "train/return") == [10, 20, 35]


def test_cut_to_nothing_starts_over(path):
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.log(0, {"train/return": 1.0})
        folder.log(10, {"train/return": 1.0})
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.metrics.cut(0, step=0)
        assert folder.metrics.read() == []
        folder.log(5, {"train/return": 1.0})
    assert tensorboard_steps(path, "train/return") == [5]


def test_a_line_torn_by_a_kill_is_dropped(path):
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.log(10, {"train/return": 1.0})
        whole = folder.metrics.position()
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 20, "tra')
    with RunFolder.create_or_resume(path, Run()) as folder:
        assert [line["step"] for line in folder.metrics.read()] == [10]
        # Even where the checkpoint counted bytes that a power cut took away again.
        folder.metrics.cut(whole + 1000, step=20)
        assert folder.metrics.position() == whole
        folder.log(30, {"train/return": 3.0})
        assert [line["step"] for line in folder.metrics.read()] == [10, 30]


LINE = b'{"step": 20, "time": 1.0, "train/return": 2.0}\n'


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b'{"step": 20, "tra\n', "is not JSON"),
        (b"\0" * 40 + LINE, "is not JSON"),
        (b"\xff\xfe\n", "is not JSON"),
        (b"\n", "is not JSON"),
        (b"[" * 100_000 + b"\n", "is not JSON"),
        (b"9" * 5000 + b"\n", "is not JSON"),
        (b"20\n", "has no step"),
        (b'{"time": 1.0}\n', "has no step"),
        (b'{"step": "20"}\n', "has no step"),
        (b'{"step": -1}\n', "has no step"),
        (b'{"step": true}\n', "has no step"),
        (b'{"step": 1e3}\n', "has no step"),
        (b'{"step": 1' + b"0" * 400 + b"}\n", "has no step"),
        (b'{"step": 20, "loss": NaN}\n', "'loss' that is no finite number"),
        (b'{"step": 20, "loss": 1e999}\n', "no finite number"),
        (b'{"step": 20, "loss": -1' + b"0" * 400 + b"}\n", "no finite number"),
        (b'{"step": 20, "loss": "x"}\n', "no finite number"),
        (b'{"step": 20, "eval/success": [1]}\n', "no finite number"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_changed(path, damaged, words):
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.log(10, {"train/return": 1.0})
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + damaged + LINE)
    before = file.read_bytes()
    with RunFolder.create_or_resume(path, Run()) as folder:
        for reading in (folder.metrics.read, lambda: folder.metrics.cut(len(before), step=20)):
            with pytest.raises(UserError, match=rf"metrics\.jsonl line 2 .*{words}") as error:
                reading()
            assert "\n" not in str(error.value)
        assert file.read_bytes() == before
        # What a checkpoint knows nothing of may be damaged: it is forgotten.
        folder.metrics.cut(before.index(b"\n") + 1, step=20)
        assert [line["step"] for line in folder.metrics.read()] == [10]


def test_a_log_of_holes_is_refused_by_its_size(path):
    with RunFolder.create_or_resume(path, Run()) as folder:
        folder.metrics.path.touch()
        os.truncate(folder.metrics.path, 2**40)
        with pytest.raises(UserError, match=r"metrics\.jsonl is longer than"):
            folder.metrics.read()


def test_elapsed_counts_on_from_before(folder):
    folder.start_clock(50.0)
    first = folder.elapsed
    time.sleep(0.02)
    assert 50.0 <= first < first + 0.02 <= folder.elapsed < 80.0


# ------------------------------------------------------------------------- pictures


def test_videos_written_at_the_same_time_are_whole(folder):
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    with ThreadPoolExecutor(3) as pool:
        for written in [pool.submit(folder.write_video, "film", frames, 10) for _ in range(3)]:
            path = written.result()
    _, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert seconds == pytest.approx(2)
    assert os.listdir(path.parent) == ["film.mp4"]


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_curve_is_drawn_once_there_is_something_to_draw(folder):
    folder.update_curve()
    assert not folder.curve_path.exists()
    folder.log(5, {"loss/actor": 1.0})
    folder.update_curve()
    assert not folder.curve_path.exists()
    folder.log(10, {"train/return": 3.0})
    folder.update_curve()
    assert is_png(folder.curve_path)
    before = folder.curve_path.read_bytes()
    folder.log(20, {"eval/success": 0.5, "eval/return": 100.0})
    folder.update_curve()
    assert is_png(folder.curve_path)
    assert folder.curve_path.read_bytes() != before


@pytest.mark.parametrize("begun", [False, True])
def test_a_larger_budget_that_could_not_begin_is_not_written_down(tmp_path, begun):
    path = tmp_path / "run"
    RunFolder.create_or_resume(path, Run()).close()
    before = (path / "config.yaml").read_bytes()
    with RunFolder.create_or_resume(path, Run(steps=2000)) as folder:
        assert (path / "config.yaml").read_bytes() != before
        if begun:
            folder.start_clock()
        folder.abandon()  # as a mistake of the user's does
    assert ((path / "config.yaml").read_bytes() == before) == (not begun)
