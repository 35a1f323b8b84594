"""The page of Mask2Act: rows by plan and demonstrations, with numbers worked out by hand."""

import json
from dataclasses import replace

import pytest

from agents.imitation_config import ImitationConfig
from agents.imitation_presets import preset
from errors import UserError
from experiment.run_folder import RunFolder
from results.experiments import mask2act
from results.experiments.mask2act import Mask2Act, success


def episodes(**by_task):
    return [
        {"task": f"metaworld/{task}", "success": bool(one), "return": 0.0, "length": 3}
        for task, successes in by_task.items()
        for one in successes
    ]


def run_folder(path, plan="masks", rows=None, **changes):
    """What `run.py imitate` and `evaluate` leave of a run, in small."""
    config = preset("cpu", "mask2act")
    changes = {"data": ("demos",), "task": "metaworld/reach"} | changes
    config = replace(config, agent=replace(config.agent, plan=plan), **changes)
    with RunFolder.create_or_resume(path, config):
        (path / "metrics.jsonl").write_text('{"step": 1, "time": 1800.0}\n')
    if rows is not None:
        found = {"updates": 10, "command": "python run.py evaluate", "commit": "c0ffee00"}
        found |= {name: {"episodes": each} for name, each in rows.items()}
        (path / "evaluation.json").write_text(json.dumps(found))
    return str(path)


def test_tasks_weigh_the_same_however_many_episodes_they_have():
    runs = [{"name": "a", "rows": {"agent": episodes(reach=(1, 1, 1, 1), push=(0,))}}]
    assert success(runs) == pytest.approx((0.5, 0.5, 0.5))
    runs[0]["rows"]["agent"] = episodes(reach=[0, 1] * 50)
    mean, low, high = success(runs)
    assert mean == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.02)


def test_a_row_of_each_plan_and_number_of_demonstrations(tmp_path):
    agent = {"agent": episodes(reach=(1, 0, 1, 1))}
    shifted = agent | {"background:0.5": episodes(reach=(1, 0, 0, 0))}
    videos = run_folder(tmp_path / "videos", task="metaworld/push")
    runs = [
        run_folder(tmp_path / "none", "none", agent),
        run_folder(tmp_path / "masks0", rows=shifted),
        run_folder(tmp_path / "masks1", rows=agent, seed=1),
        run_folder(tmp_path / "masks5", rows=agent, demonstrations=5,
                   dynamics_from=str(tmp_path / "masks0")),
        run_folder(tmp_path / "other", rows=agent, dynamics_from=videos),
    ]  # fmt: skip
    mask2act.report(Mask2Act(tuple(runs), tmp_path / "out"))
    page = (tmp_path / "out.md").read_text()
    cells = [line.split(" | ")[:4] for line in page.splitlines() if line.startswith("| ")]
    assert [[cell.strip("| ") for cell in row] for row in cells] == [
        ["plan", "demonstrations", "seeds", "success"],
        ["masks", "5", "1", "0.75 (0.25 to 1.00)"],
        ["masks", "10", "2", "0.75 (0.38 to 1.00)"],
        ["none", "10", "1", "0.75 (0.25 to 1.00)"],
        ["masks, planner of other tasks", "10", "1", "0.75 (0.25 to 1.00)"],
    ]
    assert "| masks | 10 | 2 | 0.75 (0.38 to 1.00) | 0.25 (0.00 to 0.75) | 0.78 |" in page
    assert (tmp_path / "out" / "measured.png").stat().st_size > 5000
    mask2act.report(Mask2Act((str(tmp_path / "out" / "measured.json"),), tmp_path / "again"))
    assert (tmp_path / "again.md").read_text().split("\n## ")[1:] == [
        part.replace("out/", "again/") for part in page.split("\n## ")[1:]
    ]


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(UserError, match="has not been evaluated yet"):
        mask2act.read([run_folder(tmp_path / "run")])
    other = preset("cpu")
    assert isinstance(other, ImitationConfig)
    config = replace(other, data=("demos",), task="metaworld/reach")
    with RunFolder.create_or_resume(tmp_path / "other", config):
        pass
    with pytest.raises(UserError, match="no run of mask2act, but of mask-world-model"):
        mask2act.read([str(tmp_path / "other")])
    (tmp_path / "measured.json").write_text("[]")
    with pytest.raises(UserError, match=r"no measured\.json of this script"):
        mask2act.read([str(tmp_path / "measured.json")])
