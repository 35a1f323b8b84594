"""Online agents that see several cameras, in the real simulator."""

from dataclasses import replace

import numpy as np
import pytest

import agents
from agents.exporting import export
from agents.online_evaluation import evaluate, final_seeds
from agents.online_loading import load_agent
from agents.presets import preset
from agents.recorded_episodes import open_source
from agents.replay import Replay
from envs import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from errors import UserError
from experiment.run_folder import RunFolder
from tests.agents.online_runs import (
    EPISODE,
    Photographed,
    album_of,
    differences,
    run,
    tiny,
    tiny_dreamer,
)
from tests.agents.tiny_agent import SIZE

pytestmark = pytest.mark.simulator
CAMERAS = "corner2,gripperPOV"


def seeing(config, camera=CAMERAS):
    return replace(config, environment=replace(config.environment, camera=camera))


def masked(**changes):
    """Masked World Models of masks, whose frames are shifted too."""
    agent = tiny().agent
    autoencoder = replace(agent.autoencoder, target="pixels+masks")
    return tiny(agent=replace(agent, autoencoder=autoencoder, random_shift=2), **changes)


METHODS = {"masked-world-model": masked, "dreamer": tiny_dreamer}


@pytest.fixture(scope="module", params=METHODS)
def kept(request, tmp_path_factory):
    """A run that sees two cameras, and its configuration."""
    config = seeing(METHODS[request.param](steps=2 * EPISODE, evaluate_first=2 * EPISODE))
    return run(tmp_path_factory.mktemp("views") / "run", config, Photographed), config


def test_both_are_kept_and_acted_on(kept):
    path, _ = kept
    assert Replay.at(path / "replay").entries["image"].shape == (2, SIZE, SIZE, 3)
    agent, config, _ = load_agent(path)
    image = np.zeros((3, 2, SIZE, SIZE, 3), np.uint8)
    image[1, 0] = image[2, 1] = 255  # one camera's picture each
    seen = {"image": image, "is_first": np.ones(3, bool)}
    _, state = agent.policy(seen, None, explore=False)
    logits = state["logits"].flatten(1)
    assert len({tuple(row.tolist()) for row in logits}) == 3
    (episode,) = evaluate(agent, config, final_seeds(1, 1), 1, record=True)
    assert episode["frames"].shape[1:] == (SIZE, 2 * SIZE, 3)  # beside each other


def test_predictions_of_both_are_shown(kept):
    path, _ = kept
    agent, _, _ = load_agent(path)
    video = agent.report(Replay.at(path / "replay"), rows=2, length=8)["prediction"]
    assert video.shape[:2] == (8, 2 * 2 * SIZE)
    assert (path / "videos").exists()


@pytest.mark.parametrize("kept", ["masked-world-model"], indirect=True)
def test_it_goes_on_bit_for_bit(kept):
    path, config = kept
    photograph = [picture for step, picture in album_of(path) if step == EPISODE][-1]
    run(photograph, config)
    assert differences(photograph, path) == []


def test_it_is_exported(kept, tmp_path):
    path, _ = kept
    report = export(path, tmp_path / "policy", half=False, onnx=True)
    assert report.onnx.inputs["image"] == (1, 2, SIZE, SIZE, 3)
    policy = agents.load(tmp_path / "policy")
    assert policy.observation["image"].shape == (2, SIZE, SIZE, 3)
    assert policy.act({"image": np.zeros((2, SIZE, SIZE, 3), np.uint8)}).shape == (4,)
    with pytest.raises(UserError, match="image of the observation is"):
        policy.act({"image": np.zeros((SIZE, SIZE, 3), np.uint8)})


def test_a_run_of_one_camera_is_no_source(kept, tmp_path):
    _, config = kept
    other = seeing(config, "corner2")
    with RunFolder.create_or_resume(tmp_path / "run", other):
        pass
    with pytest.raises(UserError, match="has camera corner2, this run corner2 and gripperPOV"):
        open_source(str(tmp_path / "run"), config, CAMERAS.split(","))


def test_both_are_read_from_files(tmp_path):
    path = tmp_path / "drawer.hdf5"
    task = "metaworld/drawer-close"
    collect(task, 1, path, ScriptedActor, EnvironmentConfig(camera=CAMERAS, quality="fast"), seed=3)
    view = EnvironmentConfig(camera=CAMERAS, quality="fast", orientation="opengl")
    config = replace(preset("cpu", task), environment=view)
    one, both = (
        list(open_source(str(path), config, cameras).episodes())[0][0]
        for cameras in (["gripperPOV"], CAMERAS.split(","))
    )
    for name, axes in (("image", 5), ("mask", 4)):
        assert both[name].ndim == axes
        np.testing.assert_array_equal(both[name][:, 1], one[name])
        assert not np.array_equal(both[name][:, 0], one[name])
    with pytest.raises(UserError, match="has camera corner2 and gripperPOV, this run topview"):
        open_source(str(path), config, ["topview"])
