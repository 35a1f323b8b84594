"""`run.py evaluate --policy` and of exported policies, in the real simulator."""

import json

import pytest

import agents
from experiment.checkpoint import load_checkpoint, save_checkpoint
from run import main
from tests.agents.received_runs import received_imitation, with_weights
from tests.agents.test_policy import told
from tests.agents.test_policy_server import served

pytestmark = pytest.mark.simulator
TASK = "metaworld/drawer-close"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose agent has learned nothing, and acts every 20th step."""
    made = with_weights(received_imitation(tmp_path_factory.mktemp("untrained") / "run"))
    state = load_checkpoint(made / "checkpoint.pt")
    state["view"]["action_repeat"] = 20
    save_checkpoint(made / "checkpoint.pt", state)
    return told(made, **{TASK: "drawer close"})


def episodes(path, row="agent"):
    found = json.loads((path / "evaluation.json").read_text())[row]["episodes"]
    return [(e["seed"], e["return"], e["length"], e["success"]) for e in found]


def test_a_served_policy_is_measured_as_its_run_is(folder, tmp_path, capsys):
    """One environment, as one connection's noise is that of one actor."""
    assert main(["evaluate", "--logdir", str(folder), "--episodes", "1"]) == 0
    out = tmp_path / "measured"
    with served(agents.load(folder)) as port:
        command = [
            "evaluate", "--policy", f"ws://127.0.0.1:{port}", "--task", TASK, "--episodes", "1",
            "--logdir", str(out),
        ]  # fmt: skip
        assert main([*command, "--random", "--shifts", "noise:0.2", "--video"]) == 0
        printed = capsys.readouterr().out
        assert "noise:0.2" in printed
        assert "random" in printed
        assert episodes(out) == episodes(folder)
        assert (out / "videos" / "evaluation.mp4").stat().st_size > 1000
        assert main(command) == 0
        assert "measured before: 1 of agent" in capsys.readouterr().out
        for more, said in (
            (["--logdir", str(folder)], "is a run folder"),
            (["--task", "panda/nothing"], "unknown task"),
            (["--keys", "image/3=a"], "the task is seen by 1"),
            (["--n-action-steps", "0"], "--n-action-steps is 0"),
        ):
            assert main([*command, *more]) == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
    assert main(command) == 2
    assert "no policy answers at" in capsys.readouterr().err


def test_options_of_a_policy_need_one(folder, capsys):
    for more, said in (
        ([], "needs --logdir"),
        (["--logdir", str(folder), "--token", "x"], "--token is for a --policy"),
        (["--logdir", str(folder), "--environment.size", "32"], "--environment is for a --policy"),
        (["--policy", "ws://127.0.0.1:1"], "--policy needs --task"),
        (["--policy", "nonsense", "--task", TASK], "--policy is an address"),
    ):
        assert main(["evaluate", *more]) == 2
        assert said in capsys.readouterr().err


def test_options_of_export_are_checked_first(capsys):
    for more, said in (
        (["--license", "a\nb: c"], "--license is 'a\\nb: c'"),
        (["--license", ""], "--license is ''"),
        (["--task", TASK], "--task says what an --onnx graph does"),
    ):
        assert main(["export", "--logdir", "nowhere", "--out", "nowhere", *more]) == 2
        assert said in capsys.readouterr().err


def test_an_exported_policy_is_evaluated_like_a_run(folder, tmp_path, capsys):
    out = tmp_path / "exported"
    assert main(["export", "--logdir", str(folder), "--out", str(out)]) == 0
    assert "numbers that act" in capsys.readouterr().out
    for _ in range(2):
        assert main(["evaluate", "--logdir", str(out), "--episodes", "1", "--video"]) == 0
    assert "measured before: 1 of agent" in capsys.readouterr().out
    assert (out / "videos" / "evaluation.mp4").stat().st_size > 1000
