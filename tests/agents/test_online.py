"""Whole runs of a tiny agent in the real simulator: steps, kills, resumes, and losses gone wrong.

An episode of Meta-World is 500 environment steps; at 20 of them per agent step it is over soon.
"""

import json
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
from agents.online import train
from agents.online_config import OnlineConfig
from agents.online_evaluation import evaluate
from agents.online_loading import load_agent
from agents.online_run import make_envs
from agents.presets import preset
from agents.replay import Replay
from agents.rollout import EVALUATION, FINAL_EVALUATION, TRAINING, episode_seed, run_episodes
from agents.training import MetricMean
from envs import EnvironmentConfig
from envs.recording import collect
from errors import UserError
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from mask_classes import UNLABELLED
from tests.agents.tiny_agent import SIZE, TINY
from world_models.layers import OptimizerConfig

pytestmark = pytest.mark.simulator

ROOT = Path(__file__).parents[2]
EPISODE = 500
STEPS, REPEAT = 4 * EPISODE, 20
PREFILL, UPDATE_EVERY = EPISODE // REPEAT, 4
# Updates are made while a step is taken, for the steps before it.
UPDATES = (STEPS // REPEAT - 1 - PREFILL) // UPDATE_EVERY


def tiny(**changes) -> OnlineConfig:
    """Checkpoints at every boundary and after every pretraining update."""
    agent = replace(
        TINY, autoencoder_batch=8, batch=2, window=8, autoencoder_pretraining=3, joint_pretraining=2
    )
    config = replace(
        preset("cpu", "metaworld/window-close"),
        steps=STEPS,
        threads=1,
        environment=EnvironmentConfig(size=SIZE, action_repeat=REPEAT, quality="fast"),
        episode_steps=0,
        agent=agent,
        prefill=PREFILL,
        update_every=UPDATE_EVERY,
        replay_capacity=500,
        evaluate_first=2 * EPISODE,
        evaluate_every=EPISODE,
        evaluate_episodes=1,
        evaluate_envs=1,
        checkpoint_seconds=0.0,
    )
    return replace(config, **changes)


class Photographed(RunFolder):
    """Copies itself after every checkpoint: what the disk holds if the process dies right then."""

    def save_checkpoint(self, state):
        super().save_checkpoint(state)
        album = self.path.parent / f"{self.path.name}-album"
        shutil.copytree(self.path, album / f"{len(list(album.glob('*'))):02}")


class Still:
    """A policy that does nothing."""

    def begin(self, seed):
        pass

    def action(self, observation):
        return np.zeros(2, np.float32)


def run(path, config, kind=RunFolder):
    with kind.create_or_resume(path, config) as folder:
        train(config, folder)
    return path


def lines(path):
    """metrics.jsonl without what the clock decides."""
    clock = ("time", "updates_per_second")
    return [
        {name: value for name, value in json.loads(line).items() if name not in clock}
        for line in (path / "metrics.jsonl").read_text().splitlines()
    ]


def records(path):
    written = (path / "replay" / "episodes.jsonl").read_text().splitlines()
    return [json.loads(line) for line in written]


def checkpoint(path):
    state = load_checkpoint(path / "checkpoint.pt")
    return {name: state[name] for name in ("agent", "replay", "random", "evaluated", "step")}


def equal(left, right):
    """Equality of nested states, tensors to the bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def differences(left, right):
    """Which parts of two checkpoints are not the same to the bit."""
    left, right = checkpoint(left), checkpoint(right)
    return [name for name in left if not equal(left[name], right[name])]


def never_backwards(path):
    steps = [line["step"] for line in lines(path)]
    return steps == sorted(steps)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("straight") / "run", tiny(), Photographed)


@pytest.fixture(scope="module")
def album(straight):
    """The run folder after each of its checkpoints, with the step of each."""
    pictures = sorted((straight.parent / "run-album").glob("*"))
    return [(checkpoint(picture)["step"], picture) for picture in pictures]


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
        (result,) = evaluate(policy, config, episodes=1, seed=3, record=policy is None)
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


# ------------------------------------------------------------------------ what is predicted


def predicting(target, **changes):
    agent = tiny().agent
    seeing = replace(agent.autoencoder, target=target)
    return tiny(agent=replace(agent, autoencoder=seeing), **changes)


def test_several_cameras_are_refused_by_their_option(tmp_path):
    config = tiny()
    seeing = replace(config.environment, camera="corner2,gripperPOV")
    with pytest.raises(UserError, match=r"sees one camera.* --environment\.camera"):
        run(tmp_path / "run", replace(config, environment=seeing))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run whose world model predicts masks."""
    config = predicting("masks", evaluate_first=2 * EPISODE)
    return run(tmp_path_factory.mktemp("masked") / "run", config, Photographed)


def test_masks_are_learned_from_but_acting_sees_the_picture_alone(masked):
    config = predicting("masks")
    learning, acting = (make_envs(config, 1, training=training) for training in (True, False))
    try:
        assert set(learning.single_observation_space.spaces) == {"image", "mask"}
        assert set(acting.single_observation_space.spaces) == {"image"}
    finally:
        learning.close()
        acting.close()
    agent, config, _ = load_agent(masked, "cpu")
    (result,) = evaluate(agent, config, episodes=1, seed=3)  # on environments without masks
    assert result["length"] == EPISODE
    replay = Replay.at(masked / "replay")
    assert replay.entries["mask"].shape == (16, 16)
    assert {0, 1}.issubset(np.unique(replay.sample_frames(20)["mask"]))


def test_the_log_tells_the_iou_of_the_classes_that_are_there(masked):
    measured = {name for line in lines(masked) for name in line if "/iou/" in name}
    assert {"autoencoder/iou/background", "autoencoder/iou/robot"} <= measured


def test_the_video_shows_predicted_masks_beside_the_true_ones(masked):
    agent, _, _ = load_agent(masked, "cpu")
    video = agent.report(Replay.at(masked / "replay"), rows=2, length=8)["prediction"]
    assert video.shape == (8, 2 * 16, 4 * 16, 3)  # picture, truth, reconstruction, prediction


def test_run_that_predicts_masks_resumes_bit_for_bit(masked, tmp_path):
    first, *_ = sorted((masked.parent / "run-album").glob("*"))
    shutil.copytree(first, tmp_path / "run")
    resumed = run(tmp_path / "run", predicting("masks", evaluate_first=2 * EPISODE))
    assert differences(resumed, masked) == []


def test_masks_recorded_elsewhere_teach_a_run_that_draws_none(masked, tmp_path):
    config = predicting("pixels+masks", recorded=(str(masked),), render_masks=False)
    path = run(tmp_path / "run", config)
    theirs, ours = Replay.at(masked / "replay"), Replay.at(path / "replay")
    kept = list(ours.episodes())
    assert len(kept) == 4 + 4
    for (episode, record), (source, _) in zip(kept[:4], theirs.episodes(), strict=True):
        assert record["recorded"] == str(masked)
        np.testing.assert_array_equal(episode["mask"], source["mask"])
        np.testing.assert_array_equal(episode["image"], source["image"])
    for episode, record in kept[4:]:
        assert "recorded" not in record
        assert (episode["mask"] == UNLABELLED).all()
    assert checkpoint(path)["step"] == ours.env_steps == STEPS  # theirs are no steps of ours
    assert never_backwards(path)


def test_demonstrations_teach_a_run_that_draws_no_masks(tmp_path):
    data = tmp_path / "closed.hdf5"
    seen = EnvironmentConfig(size=16, action_repeat=REPEAT, quality="fast")
    collect("dmc/point_mass-easy", 2, data, lambda _: Still(), seen)
    config = predicting("masks", recorded=(str(data),), render_masks=False, steps=2 * EPISODE)
    path = run(tmp_path / "run", replace(config, task="dmc/point_mass-easy"))
    first, second, own, *_ = Replay.at(path / "replay").episodes()
    for episode, record in (first, second):
        assert record["recorded"] == str(data)
        assert (episode["mask"] != UNLABELLED).all()
    assert (own[0]["mask"] == UNLABELLED).all()


def test_copying_that_was_cut_off_is_taken_up_again(masked, tmp_path):
    config = predicting("masks", recorded=(str(masked),), steps=EPISODE)
    whole = run(tmp_path / "whole", config)
    shutil.copytree(whole, tmp_path / "cut")
    index = tmp_path / "cut" / "replay" / "episodes.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:2]))
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / "cut" / name).unlink()
    run(tmp_path / "cut", config)
    assert records(tmp_path / "cut") == records(whole)


def test_recorded_runs_that_cannot_be_used_are_named(masked, straight, tmp_path):
    with pytest.raises(UserError, match="there is no .*nowhere; --recorded takes"):
        run(tmp_path / "a", predicting("masks", recorded=(str(tmp_path / "nowhere"),)))
    with pytest.raises(UserError, match="with --recorded"):
        predicting("masks", render_masks=False)
    with pytest.raises(UserError, match="has no masks and none are drawn"):
        run(tmp_path / "c", predicting("masks", recorded=(str(straight),), render_masks=False))
    turned = predicting("masks", recorded=(str(masked),))
    turned = replace(turned, environment=replace(turned.environment, orientation="mirrored"))
    with pytest.raises(
        UserError, match="has orientation upright, this run mirrored; give the same"
    ):
        run(tmp_path / "d", turned)
    other = run(
        tmp_path / "other",
        tiny(
            steps=EPISODE,
            environment=EnvironmentConfig(size=24, action_repeat=REPEAT, quality="fast"),
            agent=replace(
                tiny().agent, autoencoder=replace(tiny().agent.autoencoder, image_size=24)
            ),
        ),
    )
    with pytest.raises(
        UserError, match="has picture edge 24, this run 16; give the same --environment.size"
    ):
        run(tmp_path / "b", predicting("masks", recorded=(str(other),)))


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
            told.append(None if state is None else state[1][0].tolist())
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

    def listen(*arguments):
        results = run_episodes(*arguments)
        lengths.extend(result["length"] for result in results)
        return results

    monkeypatch.setattr("agents.online_run.run_episodes", listen)
    config = tiny(episode_steps=240, steps=300, prefill=12, evaluate_first=10**9)
    path = run(tmp_path / "run", config)
    assert [record["env_steps"] for record in records(path)] == [240, 60]
    run(path, replace(config, steps=600))  # resumed, with the limit it was started with
    assert [record["env_steps"] for record in records(path)] == [240, 60, 240, 60]
    (result,) = evaluate(None, config, episodes=1, seed=3)
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


@pytest.mark.parametrize("newest", [3, 4], ids=["on the way", "at the end"])
def test_episode_finished_after_the_checkpoint_counts_with_the_updates_it_owes(
    straight, album, tmp_path, newest
):
    """Killed between storing an episode and the checkpoint that would have followed."""
    path = shutil.copytree(interrupted(album, newest * EPISODE), tmp_path / "run")
    before = interrupted(album, (newest - 1) * EPISODE)
    shutil.copy(before / "checkpoint.pt", path / "checkpoint.pt")
    run(path, tiny())
    assert records(path) == records(straight)[:newest] + records(path)[newest:]
    assert checkpoint(path)["step"] == STEPS
    assert never_backwards(path)
    finished = [li for li in lines(path) if "train/length" in li]
    assert [li["step"] for li in finished] == [EPISODE * n for n in (1, 2, 3, 4)]
    for line, record in zip(finished, records(path), strict=True):
        assert line["train/return"] == record["return"]
    assert checkpoint(path)["agent"]["updates"] == UPDATES


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_process_leaves_a_folder_that_trains_on(tmp_path):
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
    assert sum(record["env_steps"] for record in records(path)) == STEPS
    assert checkpoint(path)["step"] == STEPS
    assert checkpoint(path)["agent"]["updates"] == UPDATES
    assert never_backwards(path)


# ------------------------------------------------------------------- several environments


def test_steps_of_all_environments_count_together(tmp_path):
    config = tiny(num_envs=2, prefill=2 * PREFILL)
    path = run(tmp_path / "run", config, Photographed)
    assert [record["env_steps"] for record in records(path)] == [EPISODE] * 4
    assert never_backwards(path)
    assert lines(path)[-1]["step"] == config.steps
    last = STEPS // REPEAT - 2  # agent steps before the last, which both take together
    assert checkpoint(path)["agent"]["updates"] == (last - 2 * PREFILL) // UPDATE_EVERY

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
