"""A run folder of somebody else: whatever links are in it, nothing outside of it is changed."""

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from errors import UserError
from experiment.evaluation_record import EvaluationRecord
from experiment.run_folder import RunFolder

PICTURE = np.zeros((8, 8, 3), np.uint8)


@dataclass(frozen=True)
class Run:
    task: str = "metaworld/reach"
    steps: int = 1000
    seed: int = 3


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A run folder with one of everything."""
    path = tmp_path_factory.mktemp("used") / "run"
    with RunFolder.create_or_resume(path, Run()) as folder:
        (path / "replay").mkdir()
        (path / "replay" / "reward.bin").write_bytes(bytes(8))
        use(folder)
    return path


@pytest.fixture
def run(used, tmp_path):
    return shutil.copytree(used, tmp_path / "run")


@pytest.fixture
def outside(tmp_path):
    """A folder that nothing may be written in: a file, and a folder with another one."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_text("mine")
    (path / "folder").mkdir()
    (path / "folder" / "metrics.jsonl").write_text("mine")
    return path


def use(folder):
    """Write everything that training and an evaluation write."""
    folder.log(10, {"train/return": 1.0})
    folder.update_curve()
    folder.write_picture("prediction-0001", PICTURE, 10)
    folder.show_video("prediction", PICTURE[None], 10)
    folder.save_checkpoint(
        {"agent": {}, "task": "x", "random": {}, "evaluated": 0, "seconds": 0.0}
        | {"metrics_position": folder.metrics.position()}
    )
    evaluate(folder)


def evaluate(folder):
    record = EvaluationRecord(folder.evaluation_path, {"task": "x", "seed": 0})
    record.add("agent", {"seed": 1, "return": 0.0, "success": None, "length": 1})
    folder.write_video("evaluation", PICTURE[None], 10)


def refusal(function, folder):
    """The link that a function refuses to follow; None if it does not come to that."""
    try:
        function(folder)
    except UserError as error:
        return Path(str(error).partition(" is a symbolic link")[0])


def untouched(outside):
    files = {path.relative_to(outside): path.read_text() for path in outside.rglob("file")}
    names = sorted(path.name for path in outside.rglob("*"))
    return (
        names == ["file", "folder", "metrics.jsonl"]
        and set(files.values()) == {"mine"}
        and (outside / "folder" / "metrics.jsonl").read_text() == "mine"
    )


def replace(path, make):
    """Put something in the place of a file or folder, which need not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)


FILES = [
    "config.yaml.tmp",
    "metrics.jsonl",
    "lock",
    "checkpoint.pt",
    "checkpoint.pt.tmp",
    "dynamics.pt",
    "curve.png",
    "curve.png.tmp",
    "evaluation.json",
    "events.out.tfevents.1.host.1.0",
    "replay/reward.bin",
    "videos/prediction.mp4",
    "videos/prediction.tmp.mp4",
    "pictures/prediction-0001.png.tmp",
]
FOLDERS = ["replay", "videos", "pictures"]


@pytest.mark.parametrize("name", FILES + FOLDERS)
@pytest.mark.parametrize("kind", ["absolute", "relative", "to nothing", "to a folder"])
def test_training_refuses_a_link_before_it_writes(run, outside, name, kind):
    target = outside / ("folder" if kind == "to a folder" or name in FOLDERS else "file")
    if kind == "to nothing":
        target = outside / "nothing"
    shown = os.path.relpath(target, (run / name).parent) if kind == "relative" else target
    replace(run / name, lambda path: path.symlink_to(shown))
    with pytest.raises(UserError, match="is a symbolic link") as refused:
        RunFolder.create_or_resume(run, Run())
    assert str(run / name) in str(refused.value)
    assert untouched(outside)


@pytest.mark.parametrize("name", ["videos", "pictures", "metrics.jsonl", "curve.png.tmp"])
def test_a_link_that_is_put_there_later_is_not_followed(run, outside, name):
    with RunFolder.create_or_resume(run, Run()) as folder:
        target = outside / ("folder" if name in FOLDERS else "file")
        replace(run / name, lambda path: path.symlink_to(target))
        assert refusal(use, folder) in (None, run / name)
    assert untouched(outside)


@pytest.mark.parametrize(
    "name",
    ["videos", "videos/evaluation.tmp.mp4", "videos/evaluation.mp4", "evaluation.json.tmp",
     "evaluation.lock"],
)  # fmt: skip
def test_an_evaluation_does_not_follow_a_link(run, outside, name):
    target = outside / ("folder" if name in FOLDERS else "file")
    replace(run / name, lambda path: path.symlink_to(target))
    assert refusal(evaluate, RunFolder.open(run)) in (None, run / name)
    assert untouched(outside)


def test_a_copy_made_with_hard_links_stays_as_it_is(run, tmp_path):
    """As `cp -al` and backups make them."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, copy_function=os.link, ignore=shutil.ignore_patterns("replay"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert len(before) > 8
    with RunFolder.create_or_resume(run, Run(steps=2000)) as folder:
        use(folder)
        assert len(folder.metrics.read()) == 2
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_replay_with_second_names_is_refused(run, outside):
    os.link(run / "replay" / "reward.bin", outside / "folder" / "reward.bin")
    with pytest.raises(UserError, match=r"reward\.bin has a second name elsewhere"):
        RunFolder.create_or_resume(run, Run())


def test_the_run_folder_itself_may_be_a_link(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run)
    with RunFolder.create_or_resume(link, Run()) as folder:
        use(folder)
        with pytest.raises(UserError, match="another process"):
            RunFolder.create_or_resume(run, Run())


@pytest.mark.parametrize("name", [name for name in FILES if "/" not in name
                                  and "events" not in name and "config" not in name])  # fmt: skip
@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_something_else_where_a_run_has_a_file_is_refused(run, name, kind, monkeypatch):
    monkeypatch.chdir(run)  # names of sockets are short

    def make(path):
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)

    replace(run / name, make)
    with pytest.raises(UserError) as refused:
        RunFolder.create_or_resume(run, Run())
    assert str(run / name) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_run_has_a_folder_is_refused(run, name):
    replace(run / name, lambda path: path.write_text("mine"))
    with pytest.raises(UserError, match=f"{name} is not a folder"):
        RunFolder.create_or_resume(run, Run())
    assert (run / name).read_text() == "mine"


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    for opened in (lambda path: RunFolder.create_or_resume(path, Run()), RunFolder.open):
        with pytest.raises(UserError, match="--logdir"):
            opened(tmp_path / ("a" * 300))
