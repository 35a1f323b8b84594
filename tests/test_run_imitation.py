"""The commands around demonstrations and imitation as a user meets them."""

import json
import shutil
from pathlib import Path

import h5py
import pytest
from matplotlib import pyplot

from errors import UserError
from results.experiments import imitation as report
from run import main
from tests.refusals import refusal

pytestmark = pytest.mark.simulator

DRAWER = "metaworld/drawer-close"
SMALL = [
    "--dynamics-steps", "2", "--policy-steps", "2", "--batch", "2", "--workers", "0",
    "--evaluate-episodes", "1", "--evaluate-envs", "1", "--agent.dynamics.vae.windows", "1",
    "--agent.dynamics.transformer.layers", "1", "--agent.policy.width", "32",
    "--agent.policy.num-inference-steps", "1", "--agent.policy.n-action-steps", "16",
    "--agent.precision", "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    arguments = ["--task", DRAWER, "--episodes", "2", "--out", str(folder)]
    assert main(["collect", *arguments, "--environment.size", "64"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = ["--data", str(demos), "--task", DRAWER, "--logdir", str(folder)]
    assert main(["imitate", *data, *SMALL]) == 0
    return folder


def test_what_is_recorded_can_be_looked_at_and_given_masks(demos, tmp_path, capsys):
    path = demos / "metaworld-drawer-close.hdf5"
    picture, film = tmp_path / "sheet.png", tmp_path / "film.mp4"
    assert main(["inspect", str(path), "--picture", str(picture), "--video", str(film)]) == 0
    said = capsys.readouterr().out
    for words in ("drawer close", "2, 2 successful", "corner2", "robot", "hand", "before_action"):
        assert words in said
    assert picture.stat().st_size > 1000
    assert film.stat().st_size > 1000
    assert main(["annotate", "--data", str(demos), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / path.name).exists()
    assert main(["annotate", "--data", str(demos), "--out", str(tmp_path / "out")]) == 0
    assert "is there already" in capsys.readouterr().out


def test_what_was_learned_without_a_simulator_and_proprioception_is_evaluated_in_one(
    demos, tmp_path, capsys
):
    data, run = tmp_path / "drawer.hdf5", tmp_path / "run"
    shutil.copy(demos / "metaworld-drawer-close.hdf5", data)
    with h5py.File(data, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/proprio"]
    given = ["--data", str(data), "--task", "none", "--logdir", str(run), *SMALL]
    assert main(["imitate", *given]) == 0
    assert not (run / "evaluation.json").exists()
    assert main(["evaluate", "--logdir", str(run), "--task", DRAWER, "--episodes", "1"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert len(found["agent"]["episodes"]) == 1
    said = refusal(capsys, "evaluate", "--logdir", run, "--task", DRAWER, "--data", data)
    assert "give one of them" in said


def test_annotating_in_place_again_has_nothing_left_to_do(demos, capsys):
    path = demos / "metaworld-drawer-close.hdf5"
    before = path.stat().st_mtime_ns
    assert main(["annotate", "--data", str(demos), "--in-place"]) == 0
    assert "has masks already" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


def test_collecting_again_leaves_finished_files_alone(demos, capsys):
    before = (demos / "metaworld-drawer-close.hdf5").stat().st_mtime_ns
    assert main(["collect", "--task", DRAWER, "--episodes", "2", "--out", str(demos)]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (demos / "metaworld-drawer-close.hdf5").stat().st_mtime_ns == before


def test_an_agent_of_imitation_is_measured_by_task_under_shifts_and_pruned(trained, capsys):
    arguments = ["--episodes", "1", "--shifts", "noise:0.2", "--token-pruning", "0.1,0.9"]
    more = ["--video", "--n-action-steps", "4", "--random"]
    assert main(["evaluate", "--logdir", str(trained), *arguments, *more]) == 0
    said = capsys.readouterr().out
    for words in ("agent", "random", "noise:0.2", "pruned 0.9", "nPAUC", "4 of 16 actions"):
        assert words in said
    found = json.loads((trained / "evaluation.json").read_text())
    assert found["agent"]["tasks"].keys() == {DRAWER}
    assert found["pruning"]["ratios"] == [0.1, 0.9]
    assert found["command"]
    assert (trained / "videos" / "evaluation.mp4").stat().st_size > 1000


def test_measured_runs_are_reported_and_the_report_can_be_made_again(trained, tmp_path, capsys):
    measured = ["--episodes", "2", "--shifts", "noise:0.2", "--token-pruning", "0.1,0.5", "--video"]
    assert main(["evaluate", "--logdir", str(trained), *measured]) == 0
    first, second = tmp_path / "first", tmp_path / "second"
    report.main(report.Imitation((str(trained),), first))
    report.main(report.Imitation((str(first / "measured.json"),), second))
    video = trained / "videos" / "evaluation.mp4"
    assert 1000 < (first / "run.mp4").stat().st_size < video.stat().st_size
    page, again = ((tmp_path / f"{name}.md").read_text() for name in ("first", "second"))
    assert page.replace("first", "second") == again
    found = json.loads((trained / "evaluation.json").read_text())
    low, high = found["noise:0.2"]["success"]["interval"]
    mean = found["noise:0.2"]["success"]["mean"]
    assert f"| noise:0.2 | {mean:.2f} ({low:.2f} to {high:.2f}) |" in page
    assert f"| {found['pruning']['area']:.3f} |" in page
    assert "(first/measured.png)" in page
    drawn = pyplot.imread(first / "measured.png")
    assert drawn.std() > 0.05  # something is on it
    (tmp_path / "file").write_text("")
    for out, words in (("file", "cannot write .*file"), ("page.md", "name a folder"), ("", "name")):
        with pytest.raises(UserError, match=words):
            report.main(report.Imitation((str(trained),), Path(out and tmp_path / out)))
    shutil.copy(trained / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="has not been evaluated yet; python run.py evaluate"):
        report.read([str(tmp_path)])

    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    (damaged / "videos" / "evaluation.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"evaluation\.mp4 was not made smaller.*with --video"):
        report.main(report.Imitation((str(damaged),), tmp_path / "third"))


def test_an_agent_can_be_told_something_else(trained, capsys):
    tasks = f"{DRAWER},metaworld/window-open"
    more = ["--task", tasks, "--episodes", "1", "--swap-instructions"]
    assert main(["evaluate", "--logdir", str(trained), *more]) == 0
    assert "swapped" in capsys.readouterr().out
    found = json.loads((trained / "evaluation.json").read_text())
    assert found["instructions"] == {DRAWER: "window open", "metaworld/window-open": "drawer close"}
    assert set(found["swapped"]["tasks"]) == set(tasks.split(","))


def test_mistakes_are_one_line(demos, trained, tmp_path, capsys):
    imitate = ["imitate", "--data", demos, "--task", DRAWER, "--logdir", tmp_path / "run"]
    cases = {
        "no file or folder": ["imitate", "--data", tmp_path / "nowhere", "--task", DRAWER],
        "imitate needs --data, for example": ["imitate", "--task", DRAWER],
        "unknown task 'metaworld/drawer-clos'": [*imitate[:4], "metaworld/drawer-clos",
                                                 "--logdir", tmp_path / "run"],
        "unknown preset": [*imitate, "--preset", "huge"],
        "see python run.py imitate --help": [*imitate, "--preset"],
        "unknown target": [*imitate, "--target", "depth"],
        "--world-model is video, none or blind": [*imitate, "--world-model", "rnn"],
        "--token-pruning takes two or more": ["evaluate", "--logdir", trained,
                                              "--token-pruning", "0.9,0.1"],
        "--world-model is video, none or blind, not 'lstm'": [*imitate, "--world_model", "lstm"],
        "needs tasks with different instructions, not 'drawer close'": [
            "evaluate", "--logdir", trained, "--swap-instructions"],
        "--n-action-steps is 99": ["evaluate", "--logdir", trained, "--n-action-steps", "99"],
        "give a folder as --out": ["collect", "--task", "metaworld/mt10", "--episodes", "1",
                                   "--out", tmp_path / "one.hdf5"],
        "--episodes is 0": ["collect", "--task", DRAWER, "--episodes", "0", "--out", tmp_path],
        "has no scripted expert": ["collect", "--task", "dmc/walker-walk", "--episodes", "1",
                                   "--out", tmp_path],
        "exclude each other": ["annotate", "--data", demos, "--in-place", "--out", tmp_path],
        "must be numbers": ["collect", "--task", DRAWER, "--episodes", "1", "--out", tmp_path,
                            "--noise", "nan"],
        "would become": ["annotate", "--data", demos / "metaworld-drawer-close.hdf5",
                         demos / "metaworld-drawer-close.hdf5", "--out", tmp_path / "x"],
        "nowhere.hdf5": ["inspect", tmp_path / "nowhere.hdf5"],
    }  # fmt: skip
    for words, arguments in cases.items():
        assert words in refusal(capsys, *arguments), words
        assert not (tmp_path / "run" / "config.yaml").exists(), words
