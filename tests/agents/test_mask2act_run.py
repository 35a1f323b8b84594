"""Whole runs of Mask2Act in the real simulator: resumed, taken over, and refused."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from agents.imitation import imitate
from agents.imitation_config import Mask2ActRunConfig
from agents.imitation_evaluation import Evaluation, Row
from agents.imitation_loading import load_agent
from agents.mask2act_config import WITHOUT_TOKENS
from envs.demonstrations import read_header
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from errors import UserError
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from run import main
from tests.agents.online_runs import Photographed, equal
from tests.agents.test_mask2act import TINY
from tests.refusals import refusal
from world_models.plan_targets import PLANS

pytestmark = pytest.mark.simulator

TASKS = ("metaworld/drawer-close", "metaworld/reach")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Three demonstrations of each task, 32 pixels, all suites' usual camera."""
    folder = tmp_path_factory.mktemp("demonstrations")
    seen = EnvironmentConfig(size=32, quality="fast")
    for task in TASKS:
        path = folder / f"{task.rpartition('/')[2]}.hdf5"
        collect(task, 3, path, ScriptedActor, seen, seed=3)
    return folder


def configured(demos, **fields):
    given = {
        "data": (str(demos),), "task": ",".join(TASKS), "dynamics_steps": 3, "policy_steps": 3,
        "batch": 2, "workers": 0, "evaluate_episodes": 1, "evaluate_envs": 1, "agent": TINY,
        "videos": 3, "demonstrations": 2, "checkpoint_seconds": 0.0,
    }  # fmt: skip
    return Mask2ActRunConfig(**(given | fields))


def learned(config, folder, kind=RunFolder):
    with kind.create_or_resume(folder, config) as opened:
        imitate(config, opened)
    return load_checkpoint(folder / "checkpoint.pt")


@pytest.fixture(scope="module")
def finished(demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    learned(configured(demos), folder, Photographed)
    return folder


def test_a_run_leaves_what_a_user_looks_for(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    keys = set().union(*lines)
    assert {"planner/dice", "planner/iou/objects", "executor/loss", "eval/success"} <= keys
    for name in ("dynamics.pt", "curve.png", "pictures/prediction-0000003.png"):
        assert (finished / name).stat().st_size > 0
    agent, config, _, updates = load_agent(finished)
    assert (updates, config.method) == (6, "mask2act")
    assert set(agent.goals) == set(TASKS)


def test_which_demonstrations_are_used_is_written_down_and_a_function_of_the_seed(
    finished, demos, tmp_path
):
    chosen = json.loads((finished / "demonstrations.json").read_text())
    assert {stage: set(tasks) for stage, tasks in chosen.items()} == {
        "planner": set(TASKS),
        "executor": set(TASKS),
    }
    for task in TASKS:
        assert len(chosen["planner"][task]) == 3
        assert len(chosen["executor"][task]) == 2
        assert set(chosen["executor"][task]) <= set(chosen["planner"][task])
    others = []
    for seed in range(1, 6):
        folder = tmp_path / str(seed)
        learned(configured(demos, seed=seed, dynamics_steps=0, policy_steps=0), folder)
        others.append(json.loads((folder / "demonstrations.json").read_text())["executor"])
    assert any(other != chosen["executor"] for other in others)


@pytest.mark.parametrize("which", [1, 4], ids=["planner", "executor"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(finished, demos, tmp_path, which):
    album = sorted((finished.parent / "run-album").glob("*"))
    killed = shutil.copytree(album[which], tmp_path / "run")
    assert load_checkpoint(killed / "checkpoint.pt")["updates"] < 6
    found = learned(configured(demos), killed)
    expected = load_checkpoint(finished / "checkpoint.pt")
    for part in ("agent", "random", "updates", "evaluated"):
        assert equal(found[part], expected[part]), part


def test_another_runs_planner_is_taken_over_bit_for_bit(finished, demos, tmp_path):
    """Pre-trained on two tasks, the executor on one of them with fewer demonstrations."""
    config = configured(
        demos / "reach.hdf5", task="metaworld/reach", dynamics_from=str(finished), demonstrations=1
    )
    state = learned(config, tmp_path / "run")
    assert (state["updates"], state["stage"]) == (3, "executor")
    taken = load_checkpoint(tmp_path / "run" / "dynamics.pt")
    assert equal(taken, load_checkpoint(finished / "dynamics.pt"))
    other = configured(demos, dynamics_from=str(finished), agent=replace(TINY, ahead=(5,)))
    with pytest.raises(UserError, match=r"made with another --agent\.ahead"):
        learned(other, tmp_path / "other")


@pytest.mark.parametrize("plan", [*PLANS, *WITHOUT_TOKENS])
def test_every_plan_runs_through_both_stages(demos, tmp_path, plan):
    config = configured(
        demos, agent=replace(TINY, plan=plan), task=TASKS[0], dynamics_steps=1, policy_steps=1
    )
    state = learned(config, tmp_path / "run")
    assert state["stage"] == "executor"
    assert (tmp_path / "run" / "dynamics.pt").exists() == (plan != "none")


def test_evaluation_shows_goals_of_ones_own(finished, demos):
    with Evaluation(
        str(finished), [TASKS[0]], 1, 0, goals=[str(demos / "drawer-close.hdf5")]
    ) as run:
        found = run.measure([Row("agent")])
    assert set(found["agent"]["tasks"]) == {TASKS[0]}


# ----------------------------------------------------------------------------- refused


def stripped(demos, folder, kinds):
    folder.mkdir()
    path = folder / "reach.hdf5"
    shutil.copy(demos / "reach.hdf5", path)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for kind in kinds:
                del demo[f"obs/corner2_{kind}"]
    return path


@pytest.mark.parametrize(
    ("plan", "kinds", "words"),
    [
        ("masks", ["mask"], "annotate --data {path}`"),
        ("trajectory", ["effector"], "annotate --data {path} --tracks`"),
        ("points", ["tracks", "visible"], "annotate --data {path} --tracks`"),
    ],
)
def test_data_that_lacks_what_a_plan_needs_names_the_command(
    demos, tmp_path, capsys, plan, kinds, words
):
    path = stripped(demos, tmp_path / "data", kinds)
    given = ["--method", "mask2act", "--plan", plan, "--data", path, "--task", "metaworld/reach"]
    given += ["--videos", "0", "--demonstrations", "0", "--logdir", tmp_path / "run"]
    assert words.format(path=path) in refusal(capsys, "imitate", *given)


def test_annotating_adds_what_was_missing(demos, tmp_path):
    path = stripped(demos, tmp_path / "data", ["mask", "tracks", "visible", "effector"])
    assert main(["annotate", "--data", str(path), "--in-place", "--tracks"]) == 0
    assert read_header(path).tracks
    with h5py.File(path) as found, h5py.File(demos / "reach.hdf5") as recorded:
        for kind in ("tracks", "visible", "effector", "mask"):
            name = f"data/demo_1/obs/corner2_{kind}"
            np.testing.assert_array_equal(found[name], recorded[name])


def test_more_demonstrations_than_there_are(demos, tmp_path, capsys):
    given = ["--method", "mask2act", "--data", demos, "--task", TASKS[0], "--videos", "3"]
    error = refusal(
        capsys, "imitate", *given, "--demonstrations", "4", "--logdir", tmp_path / "run"
    )
    assert "--demonstrations is 4" in error
    assert "3 successful demonstrations of metaworld/drawer-close" in error


def test_a_goal_picture_of_another_task(finished, demos, capsys):
    given = ["--logdir", finished, "--task", TASKS[0], "--episodes", "1"]
    error = refusal(capsys, "evaluate", *given, "--goals", demos / "reach.hdf5")
    assert "reach.hdf5 shows metaworld/reach done, which is not evaluated" in error
    error = refusal(
        capsys, "evaluate", "--logdir", finished, "--task", "metaworld/push", "--episodes", "1"
    )
    assert "no goal picture of metaworld/push" in error
    assert "--goals" in error


def test_options_of_the_other_method_are_refused(finished, capsys):
    for option, words in (
        (["--n-action-steps", "2"], "mask2act predicts one"),
        (["--token-pruning", "0.1,0.4"], "no video tokens to prune"),
    ):
        given = ["--logdir", finished, "--task", TASKS[0], "--episodes", "1"]
        assert words in refusal(capsys, "evaluate", *given, *option)


def test_the_papers_size():
    """ResNet-18 of 11.2 M twice (planner; the executor's of the wrist), two transformers."""
    from agents.data_spec import DataSpec
    from agents.imitation_presets import preset
    from agents.mask2act_networks import Networks

    with torch.device("meta"):
        networks = Networks(preset("paper", "mask2act").agent, DataSpec(2, 128, 7, 12), 96)
    assert networks.planner.encoder.resnet.channels == 512
    assert len(networks.executor.encoders) == 1
    image = torch.zeros(1, 2, 8, 128, 128, 3, dtype=torch.uint8, device="meta")
    plan, view = networks.planner({"view": image[:, 0], "goal": image[:, 0, 0]})
    action = networks.executor(image, torch.zeros(1, 8, 12, device="meta"), plan, view)
    assert plan.shape == (1, 8, 256)
    assert action.shape == (1, 8, 7)
