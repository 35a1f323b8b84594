"""Whole runs of DreamerV2 in the real simulator: kills, resumes, masks, and the commands around.

The loop and its bookkeeping are tested with Masked World Models (`test_online.py`); here is what
depends on the agent.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agents.dreamer import Dreamer
from agents.online_evaluation import evaluate, final_seeds
from agents.online_loading import load_agent
from agents.online_run import make_envs
from agents.replay import Replay
from errors import UserError
from experiment.run_folder import RunFolder
from tests.agents.online_runs import (
    EPISODE,
    STEPS,
    UPDATES,
    Photographed,
    album_of,
    checkpoint,
    differences,
    equal,
    lines,
    never_backwards,
    records,
    run,
    tiny,
    tiny_dreamer,
)

pytestmark = pytest.mark.simulator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def clockless():
    """Lines of the log are the same however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.training.LOG_SECONDS", 1e9)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("straight") / "run", tiny_dreamer(), Photographed)


@pytest.fixture(scope="module")
def album(straight):
    """The run folder after each of its checkpoints, with the step of each."""
    return album_of(straight)


def test_run_takes_its_steps_learns_and_is_evaluated(straight):
    assert never_backwards(straight)
    assert checkpoint(straight)["step"] == STEPS
    log = lines(straight)
    assert [line["step"] for line in log if "eval/success" in line] == [1000, 1500, 2000]
    assert log[-1]["updates/dynamics"] == log[-1]["updates/actor"] == UPDATES + 5
    assert {"dynamics/target", "dynamics/kl", "behaviour/actor"} <= set().union(*log)
    for name in ("curve.png", "videos/prediction.mp4"):
        assert (straight / name).stat().st_size > 0


def test_trained_agent_can_be_loaded_and_evaluated(straight):
    agent, config, step = load_agent(straight, "cpu")
    assert isinstance(agent, Dreamer)
    assert (config, step) == (tiny_dreamer(), STEPS)
    assert equal(agent.state_dict(), checkpoint(straight)["agent"])
    for shift in (None, "lighting:0.5"):
        (result,) = evaluate(agent, config, final_seeds(3, 1), 3, shift=shift)
        assert result["length"] == EPISODE


@pytest.mark.parametrize(
    ("step", "which"), [(EPISODE, 1), (3 * EPISODE, -1)], ids=["pretraining", "learning"]
)
def test_run_resumed_from_a_checkpoint_goes_on_bit_for_bit(straight, album, tmp_path, step, which):
    before = [picture for at, picture in album if at == step][which]
    killed = shutil.copytree(before, tmp_path / "run")
    assert checkpoint(killed)["agent"]["updates"] < UPDATES
    run(killed, tiny_dreamer())
    assert differences(killed, straight) == []
    assert lines(killed) == lines(straight)
    assert records(killed) == records(straight)


def test_episodes_finished_after_the_checkpoint_are_gone_through_again(straight, album, tmp_path):
    path = shutil.copytree([p for at, p in album if at == 3 * EPISODE][-1], tmp_path / "run")
    before = [p for at, p in album if at == 2 * EPISODE][-1]
    shutil.copy(before / "checkpoint.pt", path / "checkpoint.pt")
    run(path, tiny_dreamer())
    assert differences(path, straight) == []
    assert lines(path) == lines(straight)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run whose decoder predicts masks, and which learns from a run of the other method, too."""
    folder = tmp_path_factory.mktemp("masked")
    other = run(folder / "other", tiny(steps=EPISODE))
    config = predicting_masks(recorded=(str(other),), evaluate_first=2 * EPISODE)
    return run(folder / "run", config, Photographed)


def predicting_masks(**changes):
    return tiny_dreamer(agent=tiny_dreamer().agent.predicting("masks"), **changes)


def test_masks_are_learned_from_but_acting_sees_the_picture_alone(masked):
    agent, config, _ = load_agent(masked, "cpu")
    learning, acting = (make_envs(config, 1, training=training) for training in (True, False))
    try:
        assert set(learning.single_observation_space.spaces) == {"image", "mask"}
        assert set(acting.single_observation_space.spaces) == {"image"}
    finally:
        learning.close()
        acting.close()
    (result,) = evaluate(agent, config, final_seeds(3, 1), 3)
    assert result["length"] == EPISODE
    measured = {name for line in lines(masked) for name in line if "/iou/" in name}
    assert {"dynamics/iou/background", "dynamics/iou/robot"} <= measured
    replay = Replay.at(masked / "replay")
    assert "recorded" in replay.records[0]
    video = agent.report(replay, rows=2, length=8)["prediction"]
    assert video.shape == (8, 2 * 16, 4 * 16, 3)  # picture, truth, reconstruction, prediction


def test_run_that_predicts_masks_resumes_bit_for_bit(masked, tmp_path):
    first, *_ = sorted((masked.parent / "run-album").glob("*"))
    shutil.copytree(first, tmp_path / "run")
    config, *_ = load_agent(masked, "cpu")[1:]
    assert differences(run(tmp_path / "run", config), masked) == []


@pytest.mark.parametrize(
    "agent",
    [
        replace(tiny_dreamer().agent, encoder="vit"),
        replace(tiny_dreamer().agent, representation="contrastive"),
    ],
    ids=["vit", "contrastive"],
)
def test_variants_learn_from_the_first_step_to_the_last(tmp_path, agent):
    path = run(tmp_path / "run", tiny_dreamer(agent=agent, steps=2 * EPISODE))
    assert checkpoint(path)["step"] == 2 * EPISODE
    assert load_agent(path, "cpu")[1].agent == agent


def test_a_folder_of_one_method_is_refused_to_the_other(straight):
    with pytest.raises(UserError, match="was started with method = dreamer"):
        RunFolder.create_or_resume(straight, tiny())


if __name__ == "__main__":
    run(Path(sys.argv[1]), tiny_dreamer(evaluate_first=3 * EPISODE))
