"""Predicted beside real rewards: in a world that is known to the number, and of a trained agent."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.imitation_presets import preset as imitation_preset
from agents.online_loading import load_agent
from agents.replay import Replay
from agents.rollout import FINAL_EVALUATION, episode_seed
from errors import UserError
from experiment.run_folder import RunFolder
from results.experiments.model_error import (
    AHEAD,
    DREAMS,
    END,
    TAIL,
    ModelError,
    ending,
    main,
    markdown,
    measure,
    play,
    predict,
    reward_error,
    subject,
)
from world_models.latent_dynamics import LatentDynamics
from world_models.rssm import State

TASK = "metaworld/window-close"


class Odometer:
    """A world model that is right by construction: its state is the distance gone, the sum of all
    actions, and the reward is that, times `factor`. Its dreams stray, each by what `stray` adds to
    every step."""

    imagine = LatentDynamics.imagine

    def __init__(self, factor=1.0, stray=None):
        self.factor, self.stray = factor, stray
        self.rssm = SimpleNamespace(
            exponential_noise=self._noise, imagine=self._go, observe=self._observe
        )

    def _noise(self, steps, count, **_):
        return [0.0 if self.stray is None else self.stray[:count, None]] * steps

    @staticmethod
    def _state(distance):
        empty = torch.zeros(*distance.shape[:-1], 0)
        return State(distance, empty, empty)

    def _go(self, state, action, noise):
        return self._state(state.deterministic + action + noise)

    def embed(self, feature):
        return feature.flatten(2)

    def _observe(self, embedding, action, is_first, start):
        assert embedding.shape[:2] == action.shape[:2] == is_first.shape
        return self._state(action.cumsum(0)), None

    def reward(self, feature):
        return self.factor * feature[..., 0]

    def continuation(self, feature):
        return torch.ones_like(feature[..., 0])


def knowing(factor=1.0, push=0.0, stray=None):
    """An agent of that model, whose actor always plays `push`."""

    def actor(feature):
        return SimpleNamespace(mode=torch.full((len(feature), 1), push))

    return SimpleNamespace(
        device=torch.device("cpu"),
        features=lambda image: image.float(),
        dynamics=Odometer(factor, stray),
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


def test_who_knows_the_world_predicts_every_step_from_every_step_before():
    episode = walk(40)
    predicted = predict(knowing(), episode, 7)
    assert predicted.shape == (8, 40)
    for ahead in range(8):
        np.testing.assert_allclose(predicted[ahead, ahead:], episode["reward"][ahead:], atol=1e-5)
        assert np.isnan(predicted[ahead, :ahead]).all()
    short = predict(knowing(), walk(3), 7)
    assert np.isfinite(short).sum() == 3 + 2 + 1


def test_errors_by_hand():
    """Of a model that believes in twice the reward, over episodes of unequal length: the error is
    the reward itself, of the same steps however far ahead. One episode is too short."""
    episodes = [walk(30, seed=1), walk(8, seed=2), walk(12, seed=3)]
    found = reward_error(knowing(factor=2.0), episodes)
    assert found.episodes == 2
    rewards = np.concatenate([episodes[0]["reward"][10:], episodes[2]["reward"][10:]])
    assert found.deviation == pytest.approx(rewards.std())
    assert list(found.error) == list(AHEAD)
    for ahead in AHEAD:
        assert found.error[ahead] == pytest.approx(np.sqrt(np.mean(rewards**2)), rel=1e-5)
        assert found.bias[ahead] == pytest.approx(rewards.mean(), rel=1e-4)
    with pytest.raises(UserError, match="more than 10 agent steps"):
        reward_error(knowing(), [walk(8)])


def test_where_an_episode_ends_the_dreams_go_on_from_before():
    episode = walk(200)
    episode["reward"] = np.arange(200.0)  # what came has nothing to do with what the model knows
    distance = episode["action"][:, 0].cumsum()
    stray = torch.from_numpy(np.random.default_rng(0).standard_normal(DREAMS).astype(np.float32))
    found = ending(knowing(push=0.5, stray=stray), episode)
    begin = 200 - 1 - TAIL
    assert found.real == pytest.approx(199 - (END - 1) / 2)
    assert found.before == pytest.approx(begin - (END - 1) / 2)
    assert found.seen == pytest.approx(distance[-END:].mean(), rel=1e-4)
    steps = np.arange(TAIL - END + 1, TAIL + 1).mean()
    dreams = distance[begin] + (0.5 + stray.numpy()) * steps
    assert found.imagined == pytest.approx(np.quantile(dreams, [0.05, 0.5, 0.95]), rel=1e-4)
    whole = ending(knowing(push=0.5), walk(20))  # shorter than the tail: from its beginning
    assert whole.imagined == pytest.approx((0.5 * np.arange(10, 20).mean(),) * 3, rel=1e-4)
    assert whole.before == 0.0


@pytest.fixture(scope="module")
def run(trained_briefly, tmp_path_factory):
    """A run folder of train, one update old."""
    return trained_briefly(tmp_path_factory.mktemp("model_error") / "run", TASK)


@pytest.mark.simulator
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


@pytest.mark.simulator
def test_the_report_says_what_was_measured(run, tmp_path, capsys):
    out = tmp_path / "error"
    main(ModelError((str(run),), out, episodes=1))
    found = json.loads((tmp_path / "error.json").read_text())["runs"]["run"]
    assert (found["task"], found["step"]) == (TASK, 500)
    agent, *_ = load_agent(run, "cpu")
    ((newest, _),) = Replay.at(run / "replay").episodes(newest=1)
    assert found["replay"]["deviation"] == pytest.approx(np.asarray(newest["reward"])[10:].std())
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
    assert list(found["endings"]) == ["0"]  # one update old, it succeeds nowhere
    end = found["endings"]["0"]
    assert f"| run | 0 | {end['before']:.1f} | {end['real']:.1f} |" in report


@pytest.mark.simulator
def test_the_report_counts_the_episodes_that_there_are(run):
    measured = measure(subject(run, "cpu"), ModelError((str(run),), run, episodes=3))
    kept = len(list(Replay.at(run / "replay").episodes()))
    assert measured["replay"]["episodes"] == kept < 3 == measured["new starts"]["episodes"]
    assert f"| run | {kept} newest of the replay |" in markdown({"run": measured}, "it")
    without = markdown({"run": {**measured, "endings": {}}}, "it")
    assert without.rstrip().endswith("|---|---|---|---|---|---|")


@pytest.mark.simulator
def test_what_cannot_be_measured_is_one_sentence(run, tmp_path):
    def refused(inputs, match, **options):
        with pytest.raises(UserError, match=match):
            main(ModelError(tuple(map(str, inputs)), tmp_path / "out", **options))

    refused([], "name at least one run folder")
    refused([run, run], "same name")
    refused([run, tmp_path / "nothing"], "nothing")
    refused([run], "at least 1", episodes=0)
    refused([run], "at least 0", seed=-1)
    young = tmp_path / "young"
    shutil.copytree(run, young)
    (young / "replay" / "episodes.jsonl").write_text("")
    refused([run, young], "young has no whole episode yet")
    imitation = tmp_path / "imitation"
    with RunFolder.create_or_resume(imitation, imitation_preset("cpu")):
        pass
    refused([imitation], "is a run of imitate; name runs of run.py train")
    assert not (tmp_path / "out.md").exists()
