"""Whole runs of a tiny agent in the real simulator: steps, kills, resumes, and losses gone wrong.

An episode of Meta-World is 500 environment steps; at 20 of them per agent step it is over soon.
"""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.masked_world_model import MaskedWorldModel
from agents.online_evaluation import evaluate, final_seeds
from agents.online_loading import load_agent
from agents.replay import Replay
from agents.rollout import EVALUATION, FINAL_EVALUATION, TRAINING, episode_seed, run_episodes
from agents.training import MetricMean
from envs import EnvironmentConfig
from errors import UserError
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from experiment.stopping import Interrupts, Stopped
from tests.agents.online_runs import (
    EPISODE,
    PREFILL,
    REPEAT,
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
    train_until,
    wait_for,
)
from world_models.layers import OptimizerConfig

pytestmark = pytest.mark.simulator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("straight") / "run", tiny(), Photographed)


@pytest.fixture(scope="module")
def album(straight):
    """The run folder after each of its checkpoints, with the step of each."""
    return album_of(straight)


def interrupted(album, step, which=-1):
    """The photograph taken at `step`, the last one unless `which` says so."""
    return [picture for at, picture in album if at == step][which]


# --------------------------------------------------------------------------- one plain run


def test_steps_are_environment_steps_and_never_go_backwards(straight):
    assert never_backwards(straight)
    finished = [(li["step"], li["train/length"]) for li in lines(straight) if "train/length" in li]
    assert finished == [(EPISODE * n, EPISODE) for n in (1, 2, 3, 4)]
    assert [record["agent_steps"] for record in records(straight)] == [EPISODE // REPEAT] * 4
    assert checkpoint(straight)["step"] == STEPS


def test_evaluations_come_when_they_are_due_and_at_the_end(straight):
    evaluated = [li["step"] for li in lines(straight) if "eval/success" in li]
    assert evaluated == [1000, 1500, 2000]
    assert (straight / "curve.png").exists()
    assert (straight / "videos" / "prediction.mp4").exists()


def test_updates_begin_after_the_prefill_and_keep_their_ratio(straight):
    last = lines(straight)[-1]
    assert last["updates/actor"] == UPDATES + 2
    assert last["updates/dynamics"] == UPDATES + 2
    assert last["updates/autoencoder"] == UPDATES + 5
    first = [li["step"] for li in lines(straight) if "autoencoder/target" in li][0]
    assert first == EPISODE  # the prefill is one episode


def test_starts_of_training_are_never_those_of_an_evaluation(straight):
    training = {record["seed"] for record in records(straight)}
    assert training == {episode_seed(0, TRAINING, ordinal) for ordinal in range(4)}
    assert not training & {episode_seed(0, EVALUATION, step, 0) for step in (1000, 1500, 2000)}


def test_evaluating_does_not_change_what_is_learned(straight, tmp_path):
    config = tiny(evaluate_first=10**9, evaluate_episodes=2)
    quiet = run(tmp_path / "run", config)
    assert differences(quiet, straight) == []


def test_trained_agent_can_be_loaded_and_evaluated(straight):
    agent, config, step = load_agent(straight, "cpu")
    assert (config, step) == (tiny(), STEPS)
    assert equal(agent.state_dict(), checkpoint(straight)["agent"])
    for policy in (agent, None):
        (result,) = evaluate(policy, config, final_seeds(3, 1), 3, record=policy is None)
        assert result["seed"] == episode_seed(3, FINAL_EVALUATION, 0)
        assert result["length"] == EPISODE
    assert result["frames"].shape == (EPISODE // REPEAT + 1, 16, 16, 3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"num_envs": 0}, "num_envs"),
        ({"update_every": 0}, "update_every"),
        ({"evaluate_episodes": 0}, "evaluate_episodes"),
        ({"random_share": 1.5}, "random_share"),
        ({"episode_steps": -1}, "episode_steps"),
        ({"environment": EnvironmentConfig(size=64)}, "image_size is 16"),
    ],
)
def test_configuration_that_cannot_run_is_refused_at_once(changes, word):
    with pytest.raises(UserError, match=word):
        tiny(**changes)


# ----------------------------------------------------------------------------- the log


def test_a_measurement_that_a_batch_cannot_make_is_left_out_and_a_loss_is_not():
    mean, nan = MetricMean(), torch.tensor(math.nan)
    for value, iou in ((1.0, nan), (3.0, torch.tensor(0.5)), (5.0, torch.tensor(0.7))):
        mean.add({"a/loss": torch.tensor(value), "a/iou/hand": iou, "a/iou/goal": nan})
    assert mean.take() == pytest.approx({"a/loss": 3.0, "a/iou/hand": 0.6})
    mean.add({"a/loss": nan})
    assert math.isnan(mean.take()["a/loss"])


# ----------------------------------------------------------------------------- exploration


def test_share_of_the_blocks_stays_random_and_the_agent_knows_what_it_did(tmp_path, monkeypatch):
    hold, share = 5, 0.4
    told, policy = [], MaskedWorldModel.policy

    def listening(self, observation, state, explore):
        if explore:
            told.append(None if state is None else state["action"][0].tolist())
        return policy(self, observation, state, explore)

    monkeypatch.setattr(MaskedWorldModel, "policy", listening)
    config = tiny(
        random_hold=hold, random_share=share, random_actions="extreme", evaluate_first=10**9
    )
    path = run(tmp_path / "run", config)
    length = EPISODE // REPEAT  # five blocks an episode; a frame holds the action that led to it
    replay = Replay.at(path / "replay")
    actions = torch.from_numpy(np.array(replay._arrays["action"]))
    actions = actions[: len(records(path)) * (length + 1)].view(-1, length + 1, 4)[:, 1:]
    blocks = actions.reshape(-1, hold, 4)
    held = (blocks == blocks[:, :1]).all((1, 2))
    assert held[: length // hold].all()  # the prefill
    expected = []
    for block in range(len(blocks)):
        rng = np.random.default_rng([config.seed, block])
        random = torch.from_numpy(2 * rng.random((1, 4)).round() - 1).float()
        rng.standard_normal((1, 4))  # what an unbounded action would be
        expected.append(block < length // hold or rng.random(1)[0] < share)
        if expected[-1]:
            torch.testing.assert_close(blocks[block], random.expand(hold, 4))
    assert held.tolist() == expected
    assert 0 < sum(expected[length // hold :]) < len(blocks) - length // hold

    learned = actions[1:].reshape(-1, 4)
    assert len(told) == len(learned)
    for step, before in enumerate(told):
        if step % length:
            assert before == learned[step - 1].tolist()


def test_training_episodes_can_be_shorter_than_those_of_evaluations(tmp_path, monkeypatch):
    lengths = []

    def listen(*arguments, **options):
        results = run_episodes(*arguments, **options)
        lengths.extend(result["length"] for result in results)
        return results

    monkeypatch.setattr("agents.online_run.run_episodes", listen)
    config = tiny(episode_steps=240, steps=300, prefill=12, evaluate_first=10**9)
    path = run(tmp_path / "run", config)
    assert [record["env_steps"] for record in records(path)] == [240, 60]
    run(path, replace(config, steps=600))  # resumed, with the limit it was started with
    assert [record["env_steps"] for record in records(path)] == [240, 60, 240, 60]
    (result,) = evaluate(None, config, final_seeds(3, 1), 3)
    assert [*lengths, result["length"]] == [EPISODE] * 3  # at the end of each run, and after


# ---------------------------------------------------------------------- killed and resumed


@pytest.mark.parametrize(
    ("step", "which"), [(EPISODE, 1), (3 * EPISODE, -1)], ids=["pretraining", "learning"]
)
def test_run_resumed_from_a_checkpoint_goes_on_bit_for_bit(straight, album, tmp_path, step, which):
    killed = shutil.copytree(interrupted(album, step, which), tmp_path / "run")
    assert checkpoint(killed)["agent"]["updates"] < UPDATES
    run(killed, tiny())
    assert differences(killed, straight) == []
    assert lines(killed) == lines(straight)
    assert records(killed) == records(straight)


def test_larger_budget_goes_on_from_a_finished_run_bit_for_bit(straight, tmp_path):
    path = run(tmp_path / "run", tiny(steps=2 * EPISODE))
    assert checkpoint(path)["step"] == 2 * EPISODE
    run(path, tiny(replay_memory="device"))  # where samples are taken from may change
    assert differences(path, straight) == []
    assert never_backwards(path)


def test_finished_run_is_left_as_it_is(straight, tmp_path):
    path = shutil.copytree(straight, tmp_path / "run")
    before = (path / "checkpoint.pt").read_bytes()
    run(path, tiny())
    assert (path / "checkpoint.pt").read_bytes() == before
    assert lines(path) == lines(straight)


@pytest.mark.parametrize(
    ("known", "newest"), [(0, 2), (1, 3), (2, 3), (3, 4)],
    ids=["no checkpoint", "before pretraining", "on the way", "at the end"],
)  # fmt: skip
def test_episodes_finished_after_the_checkpoint_are_gone_through_again(
    straight, album, tmp_path, known, newest
):
    """Killed between storing an episode and the checkpoint that would have followed: the run that
    goes on is the one that nobody killed."""
    path = shutil.copytree(interrupted(album, newest * EPISODE), tmp_path / "run")
    (path / "checkpoint.pt").unlink()
    if known:
        before = interrupted(album, known * EPISODE, 0 if known == 1 else -1)
        shutil.copy(before / "checkpoint.pt", path / "checkpoint.pt")
    stored = (path / "replay" / "episodes.jsonl").read_text()
    run(path, tiny())
    assert (path / "replay" / "episodes.jsonl").read_text().startswith(stored)
    assert differences(path, straight) == []
    assert lines(path) == lines(straight)
    assert records(path) == records(straight)


def test_run_told_to_stop_in_an_episode_goes_on_in_its_middle(straight, tmp_path):
    """SIGTERM at a moment that only the step decides; twice, to go on from where it went on."""
    path = tmp_path / "run"
    for at in (2 * EPISODE + 10 * REPEAT, 2 * EPISODE + 15 * REPEAT):
        with Interrupts(), pytest.raises(Stopped), RunFolder.create_or_resume(path, LAZY) as folder:
            train_until(at, LAZY, folder)
        assert checkpoint(path)["step"] == at
        assert len(records(path)) == 2
    run(path, LAZY)
    assert differences(path, straight) == []
    assert records(path) == records(straight)


def test_evaluation_that_was_stopped_begins_anew(straight, album, tmp_path):
    """Its checkpoint is the first at its step: nothing had been evaluated there."""
    killed = shutil.copytree(interrupted(album, 3 * EPISODE, 0), tmp_path / "run")
    assert checkpoint(killed)["evaluated"] == 2 * EPISODE
    run(killed, tiny())
    assert differences(killed, straight) == []
    assert lines(killed) == lines(straight)


LAZY = tiny(checkpoint_seconds=1e9)


def test_killed_process_leaves_a_folder_that_trains_on(straight, tmp_path):
    """SIGKILL in the middle of an episode, at a moment nobody chose."""
    path, config = tmp_path / "run", tiny(evaluate_first=3 * EPISODE)
    process = subprocess.Popen(
        [sys.executable, __file__, path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    try:
        index = path / "replay" / "episodes.jsonl"
        wait_for(lambda: index.exists() and len(records(path)) >= 2, process)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before, kept = records(path), checkpoint(path)["replay"]["episodes"]
    assert 2 <= len(before) < 4
    assert 1 <= kept <= len(before)
    run(path, config)
    assert records(path)[: len(before)] == before
    assert records(path) == records(straight)
    assert differences(path, straight) == []
    assert never_backwards(path)


# ------------------------------------------------------------------- several environments


def test_steps_of_all_environments_count_together(tmp_path):
    acted, policy = [], MaskedWorldModel.policy

    def counted(self, observation, state, explore):
        acted.append((len(observation["is_first"]), explore))
        return policy(self, observation, state, explore)

    config = tiny(num_envs=2, update_every=2, prefill=2 * PREFILL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedWorldModel, "policy", counted)
        path = run(tmp_path / "run", config, Photographed)
    assert [record["env_steps"] for record in records(path)] == [EPISODE] * 4
    assert never_backwards(path)
    assert lines(path)[-1]["step"] == config.steps
    assert RunFolder.open(path).config.read()["hardware"]["renderer"]  # by name

    # As many environments as agent steps owe an update: one policy call of all of them for each.
    updates = (STEPS // REPEAT - 2 * PREFILL) // config.update_every
    assert checkpoint(path)["agent"]["updates"] == updates
    assert [count for count, explore in acted if explore] == [2] * updates

    album = sorted((tmp_path / "run-album").glob("*"))
    killed = next(picture for picture in album if checkpoint(picture)["step"] == 1000)
    run(killed, config)
    assert differences(killed, path) == []


# --------------------------------------------------------------------- losses gone wrong


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("autoencoder", "dynamics/feature"),  # whose losses are the first to read the bad weights
        ("dynamics", "behaviour/actor"),
        ("critic", "behaviour/critic"),
        ("actor", "the actor's action"),
    ],
)
def test_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path, part, named):
    agent, diverging = tiny().agent, OptimizerConfig(learning_rate=1e30)
    if part in ("actor", "critic"):
        behaviour = replace(agent.behaviour, **{f"{part}_optimizer": diverging})
        agent = replace(agent, behaviour=behaviour)
    else:
        agent = replace(agent, **{f"{part}_optimizer": diverging})
    # Without pretraining, the prefill's checkpoint comes before the first update.
    config = tiny(agent=replace(agent, autoencoder_pretraining=0, joint_pretraining=0))
    path = tmp_path / "run"
    with pytest.raises(UserError) as error:
        run(path, config)
    message = str(error.value)
    assert named in message
    assert re.search(r"not finite at step \d+", message)
    assert str(path / "checkpoint.pt") in message
    assert "\n" not in message

    state = load_checkpoint(path / "checkpoint.pt")
    weights = state["agent"]["modules"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert load_agent(path, "cpu")[2] == state["step"] == EPISODE
    for line in lines(path):
        assert all(value is not None and math.isfinite(value) for value in line.values())


def test_loss_that_is_not_finite_before_any_checkpoint_says_so(tmp_path):
    agent = replace(tiny().agent, autoencoder_optimizer=OptimizerConfig(learning_rate=1e30))
    with pytest.raises(UserError, match="autoencoder/.*no checkpoint yet"):
        run(tmp_path / "run", tiny(agent=agent, checkpoint_seconds=1e9))


if __name__ == "__main__":
    run(Path(sys.argv[1]), tiny(evaluate_first=3 * EPISODE))
