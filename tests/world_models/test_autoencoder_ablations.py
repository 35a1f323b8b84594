"""Ablations of the masked autoencoder as values of a field: what is masked, what is predicted, what
the dynamics read."""

import pytest
import torch

from errors import UserError
from world_models.autoencoder import AutoencoderConfig, MaskedAutoencoder

SMALL = {"image_size": 64, "width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
KEEP = torch.tensor([[9, 10, 36], [0, 63, 20]])


def make(**options):
    torch.manual_seed(0)
    return MaskedAutoencoder(AutoencoderConfig(**SMALL, **options))


def pictures(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, generator=generator)


def with_other_pixels(image, patches):
    """The pictures with other pixels wherever a row of `patches` (B, K) does not say so."""
    kept = torch.zeros(len(image), 64, dtype=torch.bool).scatter(1, patches, True)
    kept = kept.view(-1, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return torch.where(kept[..., None], image, pictures(len(image), seed=1))


# --------------------------------------------------------------------------- what is masked


@pytest.mark.parametrize("centre_input", [False, True])
@torch.no_grad()
def test_masked_pixels_cannot_be_seen_and_pixels_of_masked_features_can(centre_input):
    """A convolutional feature has seen pixels of its neighbours before these were masked."""
    image = pictures(2)
    other = with_other_pixels(image, KEEP)
    assert not torch.equal(image, other)
    blind, seeing = (make(mask=mask, centre_input=centre_input) for mask in ("pixels", "features"))
    assert torch.equal(blind.encode(image, KEEP), blind.encode(other, KEEP))
    assert not torch.equal(seeing.encode(image, KEEP), seeing.encode(other, KEEP))
    own = with_other_pixels(image, torch.tensor([[9, 10], [0, 63]]))
    assert not torch.equal(blind.encode(image, KEEP), blind.encode(own, KEEP))


@torch.no_grad()
def test_pixels_are_masked_before_the_convolutions():
    """What the first one is given: the kept patches as they are, 0 everywhere else."""
    model, image, given = make(mask="pixels"), pictures(2), []
    model.stem.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.encode(image, KEEP)
    standardised = model.standardise(image)
    for row, patches in enumerate(KEEP.tolist()):
        for patch in range(64):
            top, left = 8 * (patch // 8), 8 * (patch % 8)
            place = (row, slice(top, top + 8), slice(left, left + 8))
            expected = standardised[place] if patch in patches else torch.zeros(8, 8, 3)
            assert torch.equal(given[0][place], expected)


@torch.no_grad()
def test_what_is_masked_in_training_changes_no_unmasked_feature():
    image = pictures(2)
    features = [make(mask=mask).features(image) for mask in ("features", "pixels", "none")]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


@pytest.mark.parametrize("options", [{"mask": "none"}, {"mask_ratio": 0.0}])
def test_without_a_mask_nothing_is_drawn_and_all_is_seen(options):
    model, image = make(**options), pictures(2)
    before = torch.get_rng_state()
    assert model.random_keep(2, image.device) is None
    loss, _ = model.loss({"image": image, "reward": torch.zeros(2)})
    assert torch.equal(torch.get_rng_state(), before)
    prediction, _ = model.predict(model.features(image))
    assert torch.equal(model.reconstruct(image), prediction)
    assert torch.isfinite(loss)


# ------------------------------------------------------------------------ what is predicted


@pytest.mark.parametrize(("weight", "same"), [(0.0, True), (1.0, False)])
def test_without_its_weight_the_reward_teaches_nothing(weight, same):
    model, image = make(reward_weight=weight), pictures(3)
    gradients = []
    for reward in (torch.zeros(3), torch.tensor([5.0, -1.0, 100.0])):
        loss, _ = model.loss({"image": image, "reward": reward}, KEEP[[0, 1, 0]])
        weights = [model.stem.layers[0].weight, model.target_head.weight]
        gradients.append(torch.autograd.grad(loss, weights))
    assert all(map(torch.equal, *gradients)) == same


# --------------------------------------------------------------------- what dynamics read


@torch.no_grad()
def test_class_token_alone_is_the_first_of_all_features():
    image, every, alone = pictures(2), make(), make(features="class")
    assert (every.feature_grid, alone.feature_grid) == (8, 0)
    assert every.features(image).shape == (2, 65, 16)
    assert torch.equal(alone.features(image), every.features(image)[:, :1])


@torch.no_grad()
def test_class_token_alone_predicts_as_if_all_else_were_masked():
    model = make(features="class")
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    token = torch.randn(2, 1, 16)
    sequences = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: sequences.append(inputs[0]))
    picture, reward = model.predict(token)
    assert (picture.shape, reward.shape) == ((2, 64, 64, 3), (2,))
    content = sequences[0] - model.positions
    mask = model.mask_token.expand(2, 65, -1)
    torch.testing.assert_close(content[:, 1:], mask, rtol=1e-4, atol=1e-5)
    assert torch.equal(picture, model.decode(token, nothing)[0])


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_depths_are_numbers_of_blocks(depth):
    sizes = SMALL | {"encoder_depth": depth, "decoder_depth": 2}
    model = MaskedAutoencoder(AutoencoderConfig(**sizes))
    assert (len(model.encoder.blocks), len(model.decoder.blocks)) == (depth, 2)


def test_beta_below_nothing_is_the_users_error():
    with pytest.raises(UserError, match="beta must be at least 0"):
        AutoencoderConfig(beta=-1.0)
