"""The video model of masks: its published size, its small one, and sizes of one's own."""

import pytest
import torch
import tyro

from world_models.mask_dynamics import MaskDynamics, MaskDynamicsConfig, small

CAPTION = 6


def test_the_defaults_are_the_papers_size():
    with torch.device("meta"):
        model = MaskDynamics(MaskDynamicsConfig(), cameras=2, caption_width=4096)
        image = torch.zeros(1, 2, 4, 256, 256, 3, dtype=torch.uint8)
        text, text_mask = torch.zeros(1, 8, 4096), torch.ones(1, 8, dtype=torch.bool)
    assert (model.patch, model.stride, model.layers, model.width) == (32, 8, 28, 2048)
    count = {
        name: sum(parameter.numel() for parameter in getattr(model, name).parameters())
        for name in ("transformer", "vae")
    }
    assert round(count["transformer"] / 1e9, 2) == 1.92
    assert round(count["vae"] / 1e6) == 419
    with torch.no_grad():
        features = model.features(image, text, text_mask, pruning=0.4)
    tokens = (4 + 2) * 8 * 8  # four pictures and two latent frames of the future
    kept = tokens - int(0.4 * tokens)
    assert [feature.shape for feature in features] == [(1, 2 * kept, 2048)] * 28


@pytest.mark.parametrize("target", ["masks", "pixels"])
@pytest.mark.parametrize("size", [64, 128])
def test_the_small_size_fits_the_pictures_it_is_made_for(target, size):
    torch.manual_seed(0)
    model = MaskDynamics(small(target), cameras=1, caption_width=CAPTION)
    batch = {
        "image": torch.zeros(1, 1, 4, size, size, 3, dtype=torch.uint8),
        "future": torch.zeros(1, 1, 9, size, size, *[3] * (target == "pixels"), dtype=torch.uint8),
        "future_valid": torch.ones(1, 9, dtype=torch.bool),
        "text": torch.zeros(1, 3, CAPTION),
        "text_mask": torch.ones(1, 3, dtype=torch.bool),
    }
    assert model.loss(batch)[0].isfinite()


def test_every_size_can_be_said_on_the_command_line():
    words = "--vae.widths 8 16 --vae.scaling True False --vae.blocks 1 1 0 --transformer.layers 2"
    config = tyro.cli(MaskDynamicsConfig, args=[*words.split(), "--target", "pixels"])
    assert config.vae.widths == (8, 16)
    assert config.vae.scaling == (True, False)
    assert (config.transformer.layers, config.target) == (2, "pixels")
