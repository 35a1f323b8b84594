"""The presets of imitation build, and fit their windows."""

from dataclasses import replace

import pytest
import torch

from agents import imitation_presets
from agents.data_spec import DataSpec
from agents.mask_world_model import Networks
from world_models.language import make_language


@pytest.mark.parametrize("name", imitation_presets.PRESETS)
def test_presets_fit_their_windows(name):
    """Both stages take what the windows hold; on no device, as the paper's size needs."""
    agent = imitation_presets.preset(name).agent
    vae, transformer = agent.dynamics.vae, agent.dynamics.transformer
    assert bool(vae.pretrained and transformer.pretrained) == (name == "paper")
    agent = replace(
        agent,
        dynamics=replace(
            agent.dynamics,
            vae=replace(vae, pretrained=""),
            transformer=replace(transformer, pretrained=""),
        ),
    )
    windows, size = agent.windows(), {"cpu": 64, "gpu": 128, "paper": 256}[name]
    width = 4096 if agent.language == "t5" else make_language(agent.language).width
    data_spec = DataSpec(cameras=2, size=size, action_size=7, proprio_size=12)
    with torch.device("meta"):
        networks = Networks(agent, data_spec, width)
        batch = {
            "image": torch.zeros(1, 2, windows.n_obs_steps, size, size, 3, dtype=torch.uint8),
            "future": torch.zeros(1, 2, windows.future, size, size, dtype=torch.uint8),
            "future_valid": torch.ones(1, windows.future, dtype=torch.bool),
            "text": torch.zeros(1, 8, width),
            "text_mask": torch.ones(1, 8, dtype=torch.bool),
        }
        seen = {part: batch[part] for part in ("image", "text", "text_mask")}
        features = networks.world_model.features(**seen)
        chunk = torch.zeros(1, windows.chunk, 7)
        loss, _ = networks.policy.loss(chunk, chunk[..., 0] == 0, torch.zeros(1, 12), features)
    assert loss.shape == ()
    assert len(features) == agent.dynamics.transformer.layers
    if name == "paper":
        assert (windows.n_obs_steps, windows.future, windows.chunk) == (4, 9, 36)
        blocks = networks.policy.blocks
        assert (len(blocks), agent.policy.width, agent.policy.heads) == (28, 512, 16)
