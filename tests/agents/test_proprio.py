"""Online agents that see the robot's own state beside the picture, in the real simulator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import agents
from agents.exporting import export
from agents.online_evaluation import evaluate, final_seeds
from agents.online_loading import load_agent
from errors import UserError
from experiment.checkpoint import load_checkpoint, save_checkpoint
from tests.agents.online_runs import (
    EPISODE,
    Photographed,
    album_of,
    differences,
    lines,
    run,
    tiny,
    tiny_dreamer,
)

pytestmark = pytest.mark.simulator
METHODS = {"masked-world-model": tiny, "dreamer": tiny_dreamer}


def seeing(config):
    return replace(config, environment=replace(config.environment, proprio=True))


def short(make):
    return make(steps=2 * EPISODE, evaluate_first=2 * EPISODE)


@pytest.fixture(scope="module", params=METHODS)
def kept(request, tmp_path_factory):
    """A run that sees proprioception, and its configuration."""
    config = seeing(short(METHODS[request.param]))
    return run(tmp_path_factory.mktemp("proprio") / "run", config, Photographed), config


def test_it_is_learned_from_and_acted_on(kept):
    path, _ = kept
    assert any("dynamics/proprio" in line for line in lines(path))
    agent, config, _ = load_agent(path)
    assert agent.parameter_counts()["dynamics/proprioception"] > 0
    size = agent.dynamics.proprioception.scale.mean.shape[0]
    assert agent.dynamics.proprioception.scale.mean.abs().sum() > 0
    picture = agent.config.image_size
    seen = {"image": np.zeros((2, picture, picture, 3), np.uint8), "is_first": np.ones(2, bool)}
    proprio = np.zeros((2, size), np.float32)
    proprio[1] = 1.0
    _, state = agent.policy({**seen, "proprio": proprio}, None, explore=False)
    assert not torch.equal(state["logits"][0], state["logits"][1])
    assert len(evaluate(agent, config, final_seeds(1, 1), 1)) == 1


def test_it_is_exported(kept, tmp_path):
    path, _ = kept
    report = export(path, tmp_path / "policy", half=False, onnx=True)
    assert report.onnx.inputs["proprio"] == (1, load_agent(path)[0].proprio_size)
    policy = agents.load(tmp_path / "policy")
    assert set(policy.observation) == {"image", "proprio"}
    with pytest.raises(UserError, match="the observation has no 'proprio'"):
        policy.act({"image": np.zeros(policy.observation["image"].shape, np.uint8)})


def test_it_goes_on_bit_for_bit(kept):
    path, config = kept
    photograph = [picture for step, picture in album_of(path) if step == EPISODE][-1]
    run(photograph, config)
    assert differences(photograph, path) == []


def test_agents_from_before_see_the_picture_alone(tmp_path):
    path = run(tmp_path / "run", short(tiny))
    state = load_checkpoint(path / "checkpoint.pt")
    assert state.pop("proprio") == 0
    save_checkpoint(path / "checkpoint.pt", state)
    agent, config, _ = load_agent(path)
    assert agent.dynamics.proprioception is None
    assert "dynamics/proprioception" not in agent.parameter_counts()
    with pytest.raises(UserError, match="holds no proprioception"):
        run(tmp_path / "other", replace(seeing(config), recorded=(str(path),)))
