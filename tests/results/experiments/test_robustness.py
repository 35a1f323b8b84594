"""Tables under visual change against numbers worked out by hand."""

import json
import shutil
from dataclasses import replace

import pytest

from errors import UserError
from results.experiments import robustness
from results.experiments.robustness import Measured, Table


def run(target, seed, plain, noise, camera, task="metaworld/window-close"):
    episodes = {"none": plain, "noise:0.5": noise, "camera:0.5": camera}
    return Measured(task, target, seed, 1000, "success", episodes, "python run.py", "c0ffee")


RUNS = [
    run("pixels", 0, [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]),
    run("pixels", 1, [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
    run("masks", 0, [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]),
    run("masks", 1, [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]),
    run("masks", 0, [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], task="metaworld/reach"),
]


def test_means_and_retain_by_hand():
    table = Table(RUNS[:2])
    assert table.mean("none")[0] == pytest.approx(0.75)
    assert table.mean("noise:0.5")[0] == pytest.approx(0.125)
    assert table.ood()[0] == pytest.approx(0.0625)
    assert table.retain()[0] == pytest.approx(0.0625 / 0.75)
    for point, (low, high) in (table.mean("none"), table.ood(), table.retain()):
        assert low <= point <= high
        assert low < high


def test_retain_is_the_mean_of_the_tasks():
    table = Table(RUNS[2:])
    assert table.retain("metaworld/window-close")[0] == pytest.approx(0.75)
    assert table.retain("metaworld/reach")[0] == pytest.approx(0.125 / 0.25)
    assert table.retain()[0] == pytest.approx((0.75 + 0.5) / 2)
    assert table.ood()[0] == pytest.approx((0.75 + 0.125) / 2)


def test_retain_over_the_shifts_of_the_paper():
    table = Table(RUNS[2:])
    assert table.retain(shifts=["noise:0.5"])[0] == pytest.approx((1.0 + 0.0) / 2)
    both, interval = table.retain(shifts=["noise:0.5", "camera:0.5"])
    assert both == pytest.approx(table.retain()[0])
    assert interval == pytest.approx(table.retain()[1])
    three = ["background:0.5", "lighting:0.3", "objects:0.5"]
    mixed = ["table:0.5", *three, "background:0.5+noise:0.5"]
    assert robustness.published_shifts(mixed) == three
    assert robustness.published_shifts(three) == []  # there are no others to leave out
    assert robustness.published_shifts(mixed[:3]) == []


def test_nothing_is_retained_of_nothing():
    table = Table([run("pixels", 0, [0, 0], [1, 0], [0, 0])])
    assert robustness.shown(table.retain()) == "undefined"


def test_report_and_its_numbers_can_be_made_again(tmp_path, capsys):
    record = {"runs": [vars(one) for one in RUNS[:4]]}
    (tmp_path / "given.json").write_text(json.dumps(record))
    first, second = tmp_path / "a", tmp_path / "b"
    robustness.main(robustness.Robustness((str(tmp_path / "given.json"),), first))
    robustness.main(robustness.Robustness((str(first / "runs.json"),), second))
    assert json.loads((first / "runs.json").read_text()) == json.loads(json.dumps(record))
    table = [
        line
        for line in (tmp_path / "b.md").read_text().splitlines()
        if line.startswith("| none (ID)")
    ]
    assert table[0].startswith("| none (ID) | 0.75 (")
    assert "| 1.00 (1.00 to 1.00) |" in table[0]
    assert (second / "robustness.png").stat().st_size > 0


def run_folder(folder, target, success):
    """What `run.py train` and `evaluate --shifts` leave of a run, in small."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "config: {task: metaworld/reach, seed: 2, steps: 1000, agent: {autoencoder: "
        f"{{target: '{target}'}}}}}}\ncommand: python run.py train\ncommit: c0ffee\n"
    )
    lines = [{"step": s, "time": s / 10, "eval/success": success} for s in (500, 1000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    episodes = {"episodes": [{"success": True}, {"success": False}]}
    evaluation = {
        "step": 1000, "shifts": ["noise:0.5"], "retained": {"score": "success"}, "agent": episodes,
        "noise:0.5": episodes, "command": "python run.py evaluate", "commit": "c0ffee",
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return str(folder)


def test_curves_of_run_folders_are_kept_and_compared_again_without_them(tmp_path, capsys):
    folders = (
        run_folder(tmp_path / "a", "pixels+masks", 0.5),
        run_folder(tmp_path / "b", "masks", 1.0),
    )
    out = tmp_path / "out"
    robustness.main(robustness.Robustness(folders, out))
    assert sorted(path.name for path in (out / "learned").iterdir()) == [
        "masks-metaworld-reach-seed2.json",
        "pixels+masks-metaworld-reach-seed2.json",
    ]
    first = (out / "curves" / "scores.json").read_text()
    assert set(json.loads(first)["tasks"]["metaworld/reach"]) == {"masks", "pixels+masks"}
    for folder in folders:
        shutil.rmtree(folder)
    shutil.rmtree(out / "curves")
    stranger = out / "learned" / "masks-metaworld-reach-seed3.json"
    stranger.write_text("not one of these runs")
    robustness.main(robustness.Robustness((str(out / "runs.json"),), out))
    again = json.loads((out / "curves" / "scores.json").read_text())
    assert again["tasks"] == json.loads(first)["tasks"]


@pytest.mark.parametrize(
    ("runs", "word"),
    [
        ([], "at least one"),
        ([RUNS[0], RUNS[0]], "two runs of metaworld/window-close, target pixels, seed 0"),
        ([RUNS[0], RUNS[4]], "different tasks"),
        ([RUNS[0], replace(RUNS[1], score="return")], "by success and some by return"),
        ([RUNS[0], Measured(*[*vars(RUNS[1]).values()][:5], {"none": [1]}, "", "")], "alike"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, runs, word):
    (tmp_path / "runs.json").write_text(json.dumps({"runs": [vars(one) for one in runs]}))
    with pytest.raises(UserError, match=word):
        robustness.read([str(tmp_path / "runs.json")])


def test_run_folder_without_shifts_says_how(tmp_path):
    (tmp_path / "config.yaml").write_text("config: {task: metaworld/reach, seed: 0, steps: 1}")
    with pytest.raises(UserError, match="--shifts all"):
        robustness.read([str(tmp_path)])
