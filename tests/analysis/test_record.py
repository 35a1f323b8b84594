"""Recorded curves are what a comparison read from the run folder."""

import json
import shutil

import pytest
import yaml

from analysis.record import record
from analysis.score_files import read
from errors import UserError


@pytest.fixture
def run_folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    config = {
        "task": "metaworld/window-close", "seed": 3,
        "agent": {"autoencoder": {"target": "pixels"}},
    }  # fmt: skip
    origin = {"command": "python run.py train", "commit": "abc", "hardware": {"cores": 2}}
    (path / "config.yaml").write_text(yaml.safe_dump({"config": config, **origin}))
    lines = [
        {"step": 10, "time": 1.5, "eval/success": 0.2},
        {"step": 20, "time": 2.5, "eval/success": 0.4},
        {"step": 25, "time": 3.5, "train/return": 1.0},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_recorded_curve_says_what_the_run_folder_says(run_folder, tmp_path):
    (path,) = record((f"small={run_folder}",), tmp_path / "curves")
    assert path.name == "small-metaworld-window-close-seed3.json"
    (entry,) = json.loads(path.read_text())
    assert entry["wall_seconds"] == 3.5
    assert (entry["commit"], entry["hardware"]) == ("abc", {"cores": 2})
    (before,), (after,) = read([f"small={run_folder}"]), read([str(path)])
    assert (before.method, before.task, before.seed) == (after.method, after.task, after.seed)
    assert before.steps.tolist() == after.steps.tolist() == [10, 20]
    assert before.scores.tolist() == after.scores.tolist() == [0.2, 0.4]
    assert after.provenance["command"] == "python run.py train"


def test_runs_whose_names_differ_by_a_dash_are_recorded_apart(run_folder, tmp_path):
    out = tmp_path / "curves"
    text = (run_folder / "config.yaml").read_text()
    for task, other in (("a/b", "x"), ("a-b", "y")):
        path = tmp_path / other
        shutil.copytree(run_folder, path)
        (path / "config.yaml").write_text(text.replace("metaworld/window-close", task))
    written = record((str(tmp_path / "x"), str(tmp_path / "y")), out)
    assert [path.name for path in written] == ["ours-a-b-seed3.json", "ours-a-b-seed3-2.json"]
    assert [json.loads(path.read_text())[0]["task"] for path in written] == ["a-b", "a/b"]
    before = written[0].read_bytes()
    with pytest.raises(UserError, match="is the curve of ours on a-b with seed 3; name another"):
        record((str(tmp_path / "x"),), out)
    assert written[0].read_bytes() == before
    record((str(tmp_path / "y"),), out)


def test_only_run_folders_are_recorded(run_folder, tmp_path):
    (path,) = record((str(run_folder),), tmp_path / "curves")
    with pytest.raises(UserError, match="not a run folder"):
        record((str(path),), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_last_evaluation_is_recorded_without_its_episodes(run_folder, tmp_path):
    success = {"count": 1, "mean": 0.5, "interval": [0.1, 0.9]}
    found = {
        "task": "metaworld/window-close", "step": 25, "seed": 7, "command": "run.py evaluate",
        "commit": "abc",
        "agent": {"success": success, "episodes": [{"return": 1.0}, {"return": 2.0}]},
        "random": {"success": None, "episodes": [{"return": 0.0}] * 2},
    }  # fmt: skip
    path = run_folder / "evaluation.json"
    path.write_text(json.dumps(found))
    (written,) = record((str(run_folder),), tmp_path / "curves")
    assert json.loads(written.read_text())[0]["evaluation"] == {
        "task": "metaworld/window-close", "step": 25, "seed": 7, "command": "run.py evaluate",
        "commit": "abc", "episodes": 2, "agent": {"success": success, "commit": "abc"},
        "random": {"success": None, "commit": "abc"},
    }  # fmt: skip

    path.write_text(json.dumps({**found, "step": 15}))  # before the curve's last evaluation
    record((str(run_folder),), tmp_path / "curves")
    assert "evaluation" not in json.loads(written.read_text())[0]

    for damaged in ("{", "[]", json.dumps(found | {"agent": 1}), json.dumps(found | {"step": "x"})):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"evaluation\.json .* evaluate "):
            record((str(run_folder),), tmp_path / "curves")
