"""The probe of the simulator's state: judged on other episodes, exact where it can be."""

import json

import numpy as np
import pytest
import torch

import envs
from agents.imitation_loading import make_imitator
from errors import UserError
from results.experiments.state_probe import (
    Episode,
    Rows,
    StateProbe,
    episodes_of,
    linear,
    main,
    markdown,
    mlp,
    probe,
    r2,
    represent,
    ridge,
    split_by_episode,
)
from tests.agents import tiny_agent
from tests.agents.received_runs import SPEC, imitation, statistics

TASK = "metaworld/drawer-close"


def rows(episodes=12, frames=20, features=6, seed=0):
    """Places that are a function of features: the first three linear, with an offset."""
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=(episodes * frames, features)).astype(np.float32)
    place = feature @ rng.normal(size=(features, 3)) + [0.1, 0.6, -0.2]
    return Rows(feature, place, np.repeat(np.arange(episodes), frames))


# ----------------------------------------------------------------------------------- split


@pytest.mark.parametrize("episodes", [2, 3, 4, 24])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_episode_is_learned_from_or_judged_on_never_both(episodes, seed):
    lengths = np.random.default_rng(seed).integers(1, 30, episodes)
    number = np.repeat(np.arange(episodes), lengths)
    judged = split_by_episode(number, seed)
    assert not set(number[judged]) & set(number[~judged])
    assert set(number[judged]) | set(number[~judged]) == set(range(episodes))
    assert len(set(number[judged])) == max(1, round(episodes / 4))


def test_other_seeds_judge_other_episodes():
    number = np.repeat(np.arange(24), 5)
    chosen = {tuple(np.unique(number[split_by_episode(number, seed)])) for seed in range(10)}
    assert len(chosen) > 1


def test_features_that_only_tell_the_episode_know_nothing_of_others():
    """Of frames split at random they would know all: the place hardly moves in an episode."""
    rng = np.random.default_rng(0)
    features = [np.tile(np.eye(16, dtype=np.float32)[k], (20, 1)) for k in range(16)]
    places = [rng.normal(size=3) + 0.01 * rng.normal(size=(20, 3)) for _ in range(16)]
    scores = probe(features, places, seed=0)
    assert scores["linear"] < 0.1
    assert scores["mlp"] < 0.1
    known = np.concatenate(features)
    everything = Rows(known, np.concatenate(places), np.repeat(np.arange(16), 20))
    half = np.random.default_rng(1).random(len(known)) < 0.5
    looked_up = ridge(everything.of(half), known[~half], 1e-6)
    assert r2(looked_up, everything.place[~half]) > 0.95


# ---------------------------------------------------------------------------------- probes


def test_r2_by_hand():
    """Deviations 1, 0, 1 and 0, 0, 0 and 2, 0, 2 squared are 10; errors squared are 2.5."""
    true = np.array([[1.0, 5.0, 2.0], [2.0, 5.0, 4.0], [3.0, 5.0, 6.0]])
    assert r2(true, true) == 1.0
    assert r2(np.tile(true.mean(0), (3, 1)), true) == 0.0
    wrong = true + [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, np.sqrt(0.5)]]
    assert r2(wrong, true) == pytest.approx(1 - 2.5 / 10)
    assert r2(true, np.tile(true[:1], (3, 1))) is None  # nothing moves


def test_ridge_is_the_same_in_frames_and_in_features():
    """Fewer frames than features are solved in frames: the equations of both, by hand."""
    for count in (5, 40):
        data = rows(1, count, features=12)
        asked = np.random.default_rng(3).normal(size=(7, 12)).astype(np.float32)
        mean, deviation = data.feature.mean(0), data.feature.std(0)
        known, new = ((x - mean).astype(float) / deviation for x in (data.feature, asked))
        penalty = 0.1 * np.square(known).sum() / min(count, 12)
        middle = data.place.mean(0)
        weight = np.linalg.inv(known.T @ known + penalty * np.eye(12)) @ known.T
        expected = new @ weight @ (data.place - middle) + middle
        np.testing.assert_allclose(ridge(data, asked, 0.1), expected, rtol=1e-5, atol=1e-5)


def test_linear_probe_finds_a_linear_map_and_draws_nothing():
    learned, held_out = rows(seed=0), rows(seed=0).of(np.arange(240) < 40)
    before = torch.get_rng_state()
    assert r2(linear(learned, held_out.feature, 0), held_out.place) > 0.999
    mlp(learned, held_out.feature, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_mlp_finds_what_no_linear_probe_can():
    data = rows(episodes=40, features=2)
    data = data._replace(place=np.abs(data.feature[:, [0, 1, 0]]).astype(float))
    judged = split_by_episode(data.episode, 0)
    learned, held_out = data.of(~judged), data.of(judged)
    assert r2(mlp(learned, held_out.feature, 0), held_out.place) > 0.9
    assert r2(linear(learned, held_out.feature, 0), held_out.place) < 0.3


# ------------------------------------------------------------------------------ the agents


def test_an_agent_is_asked_with_pictures_actions_and_where_an_episode_begins():
    agent, size = tiny_agent.make(), tiny_agent.SIZE
    image = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    action = np.ones((5, tiny_agent.A), np.float32)
    episode = Episode(image, action, {"hand": np.zeros((5, 3))})
    torch.manual_seed(0)
    found = represent(agent, episode)
    first = torch.tensor([[True, False, False, False, False]])
    batch = {
        "image": torch.from_numpy(image)[None],
        "action": torch.from_numpy(action)[None],
        "is_first": first,
    }
    torch.manual_seed(0)
    with torch.no_grad():
        expected = agent.representation(batch)[0]
    np.testing.assert_array_equal(found, expected.numpy())
    assert len(found) == 5
    with pytest.raises(UserError, match="MaskWorldModel has no representation"):
        represent(make_imitator(imitation(), SPEC, statistics(), "cpu"), episode)


def test_the_report_says_what_was_seen_and_leaves_empty_what_does_not_move():
    task = {
        "seen": True, "episodes": 4, "frames": 44, "features": 9,
        "r2": {"hand": {"linear": 0.5, "mlp": 0.75}, "object": {"linear": None, "mlp": None}},
    }  # fmt: skip
    runs = {"a": {"trained on": "x", "step": 3, "tasks": {"x": task, "y": task | {"seen": False}}}}
    page = markdown(runs, "python -m somewhere")
    assert "| a | x | seen | hand | 0.50 | 0.75 | 4 | 44 | 9 |" in page
    assert "| a | y | unseen | object |  |  | 4 | 44 | 9 |" in page
    assert "`python -m somewhere`" in page


@pytest.mark.parametrize("wrong", [{"episodes": 3}, {"steps": 0}, {"seed": -1}])
def test_options_that_cannot_be(tmp_path, wrong):
    with pytest.raises(UserError, match="must be at least"):
        StateProbe(("run",), tmp_path / "out", **wrong)


# ------------------------------------------------------------------------------- simulator


@pytest.mark.simulator
def test_places_are_the_hand_and_the_object_and_they_move():
    """The expert closes the drawer with its hand, which is 3.4 cm from the handle's middle then."""
    environment = envs.make(TASK, size=16, quality="fast")
    try:
        environment.reset(seed=0)
        places = environment.places()
        assert list(places) == ["hand", "object"]
        assert all(place.shape == (3,) for place in places.values())
        np.testing.assert_allclose(places["hand"], environment.effector())
    finally:
        environment.close()
    view = {"size": 16, "quality": "fast"}
    options = StateProbe((), None, episodes=4, steps=60)
    episodes = episodes_of(TASK, view, options)
    closing, random = episodes[0].places, episodes[1].places
    gaps = np.linalg.norm(closing["hand"] - closing["object"], axis=1)
    assert gaps.min() < 0.05 < gaps[0]
    assert np.linalg.norm(closing["object"][-1] - closing["object"][0]) > 0.05
    assert len(random["hand"]) == len(episodes[1].image) == len(episodes[1].action) == 61
    again = episodes_of(TASK, view, options)
    for one, other in zip(episodes, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.places["hand"], other.places["hand"])


@pytest.mark.simulator
def test_runs_are_probed_on_tasks_they_know_and_do_not(trained_briefly, tmp_path, capsys):
    run = trained_briefly(tmp_path / "run", TASK)
    tasks = (TASK, "metaworld/drawer-open")
    main(StateProbe((str(run),), tmp_path / "out", tasks=tasks, episodes=4, steps=12, device="cpu"))
    measured = json.loads((tmp_path / "out" / "measured.json").read_text())
    found = measured["runs"]["run"]["tasks"]
    assert [found[task]["seen"] for task in tasks] == [True, False]
    assert found[TASK]["r2"]["hand"].keys() == {"linear", "mlp"}
    assert found[TASK]["features"] == (1 + 4 * 4) * 64
    assert (tmp_path / "out" / "r2.png").stat().st_size > 1000
    assert (tmp_path / "out.md").read_text() in capsys.readouterr().out
