"""What the agent of imitation learns and acts on: the recorded chunk, pictures, words."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.data_spec import DataSpec
from agents.mask_world_model import MaskWorldModel
from envs.windows import open_windows, statistics
from tests.agents.tiny_imitation import TINY, record
from world_models.layers import Optimizer, OptimizerConfig

pytestmark = pytest.mark.simulator


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5")


def test_an_agent_that_has_overfitted_one_episode_repeats_its_actions(data):
    """On a world model and without one, the recorded chunk comes out."""
    windows = open_windows([data], TINY.windows().reads())
    recording = windows.recordings[0]
    count = min(24, recording.episodes[0].steps)
    chosen = [windows[index] for index in range(count)]
    batch = {
        name: torch.from_numpy(np.stack([window[name] for window in chosen]))
        for name in ("image", "proprio", "action", "action_valid", "future", "future_valid")
    }
    for world_model in ("video", "none"):
        torch.manual_seed(0)
        config = replace(
            TINY,
            world_model=world_model,
            ema_decay=0.0,
            policy=replace(TINY.policy, width=64, num_inference_steps=8),
        )
        agent = MaskWorldModel(config, DataSpec(1, 32, 4, 4), statistics([recording]), "cpu")
        caption = agent.caption([recording.instruction] * count)
        batch |= caption
        if world_model == "video":
            agent.dynamics_loss(batch)
            agent.update_ema(1)
            agent.begin("policy")
        optimizer = Optimizer(
            agent.stage("policy").modules, OptimizerConfig(3e-3, clip=1.0, anneal=300, final=0.1)
        )
        for update in range(300):
            loss, _ = agent.policy_loss(batch)
            optimizer.step(loss) if world_model == "none" else (
                optimizer.accumulate(loss),
                optimizer.apply(),
            )
            agent.update_ema(update)
        chunk = agent.act(
            batch["image"], batch["proprio"][:, -1], caption, torch.Generator().manual_seed(0)
        )
        error = (chunk - batch["action"]).abs()[batch["action_valid"]]
        assert error.mean() < 0.1, world_model


@pytest.mark.parametrize("world_model", ["video", "none", "blind"])
def test_what_the_actions_depend_on(data, world_model):
    """Pictures, unless the agent is blind; proprioception and words always."""
    windows = open_windows([data], TINY.windows().reads())
    one, other = windows[2], windows[20]
    torch.manual_seed(0)
    config = replace(TINY, world_model=world_model)
    statistic = statistics(windows.recordings)
    agent = MaskWorldModel(config, DataSpec(1, 32, 4, 4), statistic, "cpu")
    # what starts at zero passes nothing on
    for part in agent.ema.parameters():
        part += 0.05 * torch.randn_like(part)

    def act(image, proprio, words):
        image, proprio = (torch.from_numpy(part[None]) for part in (image, proprio[-1]))
        return agent.act(image, proprio, agent.caption([words]), torch.Generator().manual_seed(1))

    chunk = act(one["image"], one["proprio"], "close it")
    seen = not torch.equal(chunk, act(other["image"], one["proprio"], "close it"))
    assert seen == (world_model != "blind")
    assert not torch.equal(chunk, act(one["image"], other["proprio"], "close it"))
    assert not torch.equal(chunk, act(one["image"], one["proprio"], "open the window"))
