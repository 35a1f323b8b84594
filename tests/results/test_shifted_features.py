"""The same episode under another look: what moves, and what does not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.imitation import imitate, load_agent
from agents.imitation_presets import preset
from agents.run_folder import RunFolder
from envs.recording import ScriptedActor, collect
from envs.simulation import EnvironmentConfig
from errors import UserError
from results.shifted_features import ShiftedFeatures, films, main, measure

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


@pytest.fixture(scope="module")
def episodes(run):
    """An agent, what its task is called, and one episode as it is and under another background."""
    agent, _, view, _ = load_agent(run, "cpu")
    options = ShiftedFeatures((str(run),), run, episodes=1)
    (plain,), actions, instruction = films(view, TASK, "", options)
    (shifted,), _, _ = films(view, TASK, "background:0.5", options, actions)
    return agent, instruction, plain, shifted


def test_only_the_pictures_differ(episodes):
    _, instruction, plain, shifted = episodes
    assert instruction
    assert plain.image.shape == (plain.steps, 1, 32, 32, 3)
    assert np.array_equal(plain.proprio, shifted.proprio)
    assert np.array_equal(plain.mask, shifted.mask)
    background = plain.mask == 0
    changed = (plain.image != shifted.image).any(-1)
    assert changed[background].mean() > 0.5


def test_nothing_moves_where_nothing_changed(episodes):
    agent, instruction, plain, _ = episodes
    found = measure(agent, instruction, plain, plain)
    assert found["features"] == found["action"] == 0
    assert 0 < found["iou"] < 1


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


def test_the_report_has_a_row_for_every_shift(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["shifted_features.py"])
    out = tmp_path / "shifted"
    main(ShiftedFeatures((str(run),), out, shifts="noise:0.5,lighting:0.3", episodes=1))
    written = json.loads((out / "measured.json").read_text())["runs"]["run"]
    assert list(written) == ["none", "noise:0.5", "lighting:0.3"]
    assert written["none"]["features"] == 0 < written["noise:0.5"]["features"]
    report = (tmp_path / "shifted.md").read_text()
    assert f"| noise:0.5 | {written['noise:0.5']['features']:.2f} |" in report


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="name at least one run folder"):
        main(ShiftedFeatures((), tmp_path))
    with pytest.raises(UserError):
        main(ShiftedFeatures((str(tmp_path / "nothing"),), tmp_path))
