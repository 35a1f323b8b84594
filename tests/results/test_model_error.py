"""Predicted beside real rewards: in a world that is known to the number, and of a trained agent."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.online import load_agent, train
from agents.presets import preset
from agents.replay import Replay
from agents.rollout import FINAL_EVALUATION, episode_seed
from agents.run_folder import RunFolder
from errors import UserError
from results.model_error import (
    AHEAD,
    DREAMS,
    END,
    TAIL,
    ModelError,
    failure,
    main,
    play,
    predict,
    reward_error,
)
from world_models.latent_dynamics import LatentDynamics
from world_models.rssm import State

TASK = "metaworld/window-close"


class Odometer:
    """A world model that is right by construction: its state is the distance gone, the sum of all
    actions, and the reward is that, times `factor`."""

    imagine = LatentDynamics.imagine

    def __init__(self, factor=1.0):
        self.factor = factor
        self.rssm = SimpleNamespace(race=lambda steps, *_, **__: [None] * steps, imagine=self._go)

    @staticmethod
    def _state(distance):
        empty = torch.zeros(*distance.shape[:-1], 0)
        return State(distance, empty, empty)

    def _go(self, state, action, _):
        return self._state(state.deterministic + action)

    def observe(self, batch):
        return self._state(batch["action"].transpose(0, 1).cumsum(0)), None

    def reward(self, feature):
        return self.factor * feature[..., 0]

    def continuation(self, feature):
        return torch.ones_like(feature[..., 0])


def knowing(factor=1.0, push=0.0):
    """An agent of that model, whose actor always plays `push`."""

    def actor(feature):
        return SimpleNamespace(mode=torch.full((len(feature), 1), push))

    return SimpleNamespace(
        device=torch.device("cpu"),
        features=lambda image: image,
        dynamics=Odometer(factor),
        behaviour=SimpleNamespace(actor=actor),
    )


def walk(steps, seed=0):
    """An episode whose rewards are the distance gone."""
    action = np.random.default_rng(seed).uniform(-1, 1, (steps, 1)).astype(np.float32)
    action[0] = 0
    return {
        "image": np.zeros((steps, 2, 2, 3), np.uint8),
        "action": action,
        "reward": action[:, 0].cumsum(),
        "is_first": np.arange(steps) == 0,
    }


def test_who_knows_the_world_predicts_every_step_ahead_of_every_step():
    episode = walk(40)
    predicted = predict(knowing(), episode, 7)
    assert predicted.shape == (8, 40)
    for ahead in range(8):
        np.testing.assert_allclose(
            predicted[ahead, : 40 - ahead], episode["reward"][ahead:], atol=1e-5
        )
        assert np.isnan(predicted[ahead, 40 - ahead :]).all()


def test_errors_by_hand():
    """Of a model that believes in twice the reward, over episodes of unequal length: the error is
    the reward itself. One is too short to look far ahead in."""
    episodes = [walk(30, seed=1), walk(8, seed=2)]
    found = reward_error(knowing(factor=2.0), episodes)
    rewards = [episode["reward"] for episode in episodes]
    assert found.deviation == pytest.approx(np.concatenate(rewards).std())
    assert list(found.error) == list(AHEAD)
    for ahead in AHEAD:
        left = np.concatenate([reward[ahead:] for reward in rewards])
        assert found.error[ahead] == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-5)
        assert found.bias[ahead] == pytest.approx(left.mean(), rel=1e-4)
    short = reward_error(knowing(), [walk(8)])
    assert list(short.error) == [ahead for ahead in AHEAD if ahead < 8]


def test_where_an_episode_failed_the_dream_goes_on_from_before_its_end():
    episode = walk(200)
    episode["reward"][:] = 3.0  # what came has nothing to do with what the model knows
    distance = episode["action"][:, 0].cumsum()
    found = failure(knowing(push=0.5), episode)
    assert found.real == pytest.approx(3.0)
    assert found.seen == pytest.approx(distance[-END:].mean(), rel=1e-4)
    begin = 200 - 1 - TAIL
    dreamt = distance[begin] + 0.5 * np.arange(TAIL - END + 1, TAIL + 1).mean()
    assert found.imagined == pytest.approx((dreamt,) * 3, rel=1e-4)
    whole = failure(knowing(push=0.5), walk(20))  # shorter than the tail: from its beginning
    assert whole.imagined[1] == pytest.approx(0.5 * np.arange(10, 20).mean(), rel=1e-4)
    assert DREAMS > 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of train, one update old."""
    folder = tmp_path_factory.mktemp("model_error") / "run"
    default = preset("cpu", TASK)
    config = replace(
        default, steps=500, prefill=250, evaluate_episodes=1, evaluate_first=1000,
        environment=replace(default.environment, size=32), update_every=250,
        agent=replace(
            default.agent, autoencoder_pretraining=2, joint_pretraining=1,
            autoencoder=replace(default.agent.autoencoder, image_size=32),
        ),
    )  # fmt: skip
    with RunFolder.create_or_resume(folder, config) as opened:
        train(config, opened)
    return folder


def test_starts_are_those_of_evaluate_and_episodes_as_the_replay_keeps_them(run):
    agent, config, _ = load_agent(run, "cpu")
    played = play(agent, config, 2, seed=3)
    seeds = [episode_seed(3, FINAL_EVALUATION, index) for index in range(2)]
    assert [record["seed"] for _, record in played] == seeds
    (kept, _), *_ = Replay.at(run / "replay").episodes()
    for episode, _ in played:
        assert {name: array.shape for name, array in episode.items()} == {
            name: array.shape for name, array in kept.items()
        }


def test_the_report_says_what_was_measured(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["model_error.py"])
    out = tmp_path / "error"
    main(ModelError((str(run),), out, episodes=1))
    written = json.loads((out / "measured.json").read_text())
    found = written["runs"]["run"]
    assert (found["task"], found["step"], found["episodes"]) == (TASK, 500, 1)
    agent, *_ = load_agent(run, "cpu")
    *_, (newest, _) = Replay.at(run / "replay").episodes()
    rewards = np.asarray(newest["reward"])
    assert found["replay"]["deviation"] == pytest.approx(rewards.std())
    again = reward_error(agent, [newest])  # other model states are sampled
    for ahead in AHEAD:
        assert found["replay"]["error"][str(ahead)] == pytest.approx(again.error[ahead], rel=0.1)
    report = (tmp_path / "error.md").read_text()
    assert report == capsys.readouterr().out[:-1]
    new = found["new starts"]
    assert (
        f"| run | 1 new starts | {new['deviation']:.2f} | {new['error']['0']:.2f}"
        f" (bias {new['bias']['0']:+.2f}) |"
    ) in report
    assert list(found["failures"]) == ["0"]  # one update old, it succeeds nowhere
    assert f"| run | 0 | {found['failures']['0']['real']:.1f} |" in report


def test_what_cannot_be_measured_is_one_sentence(run, tmp_path):
    with pytest.raises(UserError, match="name at least one run folder"):
        main(ModelError((), tmp_path / "out"))
    with pytest.raises(UserError, match="same name"):
        main(ModelError((str(run), str(run)), tmp_path / "out"))
    with pytest.raises(UserError):
        main(ModelError((str(tmp_path / "nothing"),), tmp_path / "out"))
    with pytest.raises(UserError, match="at least 1, not 0"):
        ModelError((str(run),), tmp_path / "out", episodes=0)
