"""The same episode under another look: what moves, and what does not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.imitation import imitate
from agents.imitation_loading import load_agent
from agents.imitation_presets import preset
from agents.online_loading import load_agent as load_online_agent
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from errors import UserError
from experiment.run_folder import RunFolder
from mask_classes import NAMES
from results.experiments.shifted_features import (
    Film,
    ShiftedFeatures,
    by_seed,
    films,
    main,
    markdown,
    measure,
    measure_online,
    subject,
)

TASK = "metaworld/drawer-close"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of imitate, two updates old."""
    folder = tmp_path_factory.mktemp("shifted")
    data = folder / "drawer.hdf5"
    collect(TASK, 1, data, ScriptedActor, EnvironmentConfig(size=32, quality="fast"))
    default = preset("cpu")
    config = replace(
        default, data=(str(data),), task=TASK, dynamics_steps=1, policy_steps=1, batch=2,
        workers=0, evaluate_episodes=1, evaluate_envs=1,
        agent=replace(default.agent, precision="float32"),
    )  # fmt: skip
    with RunFolder.create_or_resume(folder / "run", config) as opened:
        imitate(config, opened)
    return folder / "run"


def filmed(run):
    options = ShiftedFeatures((str(run),), run, episodes=1)
    seen = subject(run, "cpu")
    (plain,), instruction = films(seen, TASK, "", options)
    (shifted,), _ = films(seen, TASK, "background:0.5", options, [plain.actions])
    return instruction, plain, shifted


@pytest.fixture(scope="module")
def episodes(run):
    """An agent, what its task is called, and one episode as it is and under another background."""
    agent, *_ = load_agent(run, "cpu")
    return agent, *filmed(run)


@pytest.mark.simulator
def test_only_the_pictures_differ(episodes):
    _, instruction, plain, shifted = episodes
    assert instruction
    assert plain.image.shape == (plain.steps, 1, 32, 32, 3)
    assert np.array_equal(plain.proprio, shifted.proprio)
    assert np.array_equal(plain.mask, shifted.mask)
    background = plain.mask == 0
    changed = (plain.image != shifted.image).any(-1)
    assert changed[background].mean() > 0.5


@pytest.mark.simulator
def test_nothing_moves_where_nothing_changed(episodes):
    agent, instruction, plain, _ = episodes
    found = measure(agent, instruction, plain, plain)
    assert found["features"] == found["action"] == 0
    assert 0 < found["iou"] < 1


@pytest.mark.simulator
def test_how_far_features_move_is_measured_against_the_episode(episodes):
    """Two windows by hand, and an agent whose features are the mean colour."""
    agent, instruction, plain, shifted = episodes
    steps = list(range(0, plain.steps, 4))
    colours = torch.from_numpy(plain.image.mean((1, 2, 3))[steps]).float()  # (n, 3)
    moved = torch.from_numpy(shifted.image.mean((1, 2, 3))[steps]).float()
    features = agent.features

    def mean_colour(image, caption, generator):
        return [image[:, 0, -1].float().mean((1, 2))[:, None]]

    agent.features = mean_colour
    try:
        agent.act = lambda image, *rest: image[:, 0, -1].float().mean((1, 2))
        found = measure(agent, instruction, plain, shifted)
    finally:
        agent.features = features
        del agent.act
    own = (colours - colours.mean(0)).square().mean().sqrt()
    by = (moved - colours).square().mean().sqrt()
    assert found["features"] == pytest.approx(float(by / own), rel=1e-4)
    assert found["action"] == pytest.approx(float(by), rel=1e-4)


@pytest.mark.simulator
def test_the_report_has_a_row_for_every_shift(run, tmp_path):
    out = tmp_path / "shifted"
    main(ShiftedFeatures((str(run),), out, shifts="noise:0.5,lighting:0.3", episodes=1))
    written = json.loads((out / "measured.json").read_text())["runs"]["run"]
    assert list(written) == ["none", "noise:0.5", "lighting:0.3"]
    assert written["none"]["features"] == 0 < written["noise:0.5"]["features"]
    report = (tmp_path / "shifted.md").read_text()
    assert f"Made by `{json.loads((out / 'measured.json').read_text())['command']}`" in report
    assert f"| noise:0.5 | {written['noise:0.5']['features']:.2f} |" in report


@pytest.fixture(scope="module", params=["masks", "pixels+masks"])
def online(request, trained_briefly, tmp_path_factory):
    """A run folder of train, one update old."""
    return trained_briefly(tmp_path_factory.mktemp("online") / "run", TASK, request.param)


@pytest.mark.simulator
def test_an_agent_trained_online_says_what_it_would_do_in_the_experts_episode(online):
    _, plain, shifted = filmed(online)
    agent, *_ = load_online_agent(online, "cpu")
    still = measure_online(agent, plain, plain)
    assert still["features"] == still["action"] == 0
    found = measure_online(agent, plain, shifted)
    assert found["features"] > 0 < found["action"]
    with torch.no_grad():
        logits = agent.autoencoder.decode(
            agent.autoencoder.encode(torch.from_numpy(shifted.image[:, 0]))
        )[0][..., -len(NAMES) :]
    predicted, mask = logits.argmax(-1).numpy(), shifted.mask[:, 0]
    ious = [
        ((predicted == k) & (mask == k)).sum() / ((predicted == k) | (mask == k)).sum()
        for k in np.union1d(predicted, mask)
    ]
    assert found["iou"] == pytest.approx(np.mean(ious), rel=1e-5)
    # Acting, it has seen the pictures so far, and what the expert did in place of its own action.
    once = Film(plain.image[:3], plain.mask[:3], plain.proprio[:3], plain.actions[:2])
    grey = replace(once, image=np.full_like(once.image, 128))

    def would_do(film):
        torch.manual_seed(0)
        state, chosen = None, []
        for step, done in enumerate([*film.actions, np.zeros(4, np.float32)]):
            seen = {"image": film.image[step], "is_first": np.array([step == 0])}
            action, state = agent.policy(seen, state, explore=False)
            chosen.append(action[0])
            state = agent.acted(state, done[None])
        return np.stack(chosen)

    expected = np.sqrt(np.square(would_do(grey) - would_do(once)).mean())
    assert measure_online(agent, once, grey)["action"] == pytest.approx(expected, rel=1e-5)


def test_seeds_of_a_run_are_one_column():
    def found(features):
        return {"none": {"features": features, "action": 0.5, "iou": None}}

    runs = {"a-seed0": found(1.0), "a-seed1": found(2.0), "b-seed0": found(3.0)}
    assert by_seed(runs) == {"a": found(1.5), "b-seed0": found(3.0)}
    assert "| a: features | action | IoU | b-seed0: features" in markdown(runs, "it")


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="name at least one run folder"):
        main(ShiftedFeatures((), tmp_path))
    with pytest.raises(UserError):
        main(ShiftedFeatures((str(tmp_path / "nothing"),), tmp_path))
