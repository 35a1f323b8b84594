"""World models that see several cameras: whose picture is whose, and what goes where."""

import pytest
import torch

from world_models.autoencoder import PATCH, AutoencoderConfig
from world_models.convolutional_vae import make_autoencoder
from world_models.latent_dynamics import (
    FeatureDecoderConfig,
    FeatureEncoderConfig,
    LatentDynamics,
    LatentDynamicsConfig,
)
from world_models.layers import token_positions
from world_models.pixel_networks import CNNConfig, ViTConfig
from world_models.pixel_world_model import PixelWorldModel, PixelWorldModelConfig
from world_models.rssm import RSSMConfig
from world_models.views import as_channels, from_channels, stacked, views_stacked

V, S, A = 2, 16, 3
RSSM = RSSMConfig(deterministic=12, hidden=12, variables=4, classes=4)
SMALL = {"image_size": S, "width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}


def pictures(*leading, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*leading, V, S, S, 3), dtype=torch.uint8, generator=generator)


def test_each_camera_lies_below_the_one_before():
    image = pictures(3, 5)
    one = stacked(image)
    assert one.shape == (3, 5, V * S, S, 3)
    assert torch.equal(one[:, :, S:], image[:, :, 1])
    mask = image[..., 0]
    batch = views_stacked({"image": image, "mask": mask, "reward": torch.zeros(3, 5)}, V)
    assert torch.equal(batch["image"], one)
    assert torch.equal(batch["mask"], one[..., 0])
    assert batch["reward"].shape == (3, 5)


def test_channels_hold_the_cameras_beside_each_other():
    image = pictures(3)
    channels = as_channels(stacked(image), V)
    assert torch.equal(channels[..., 3:], image[:, 1])
    assert torch.equal(from_channels(channels, V), stacked(image))


def test_every_token_of_every_camera_has_a_place_of_its_own():
    rows = token_positions(8, 64, before=1, after=1, wavelengths=(2.0, 10.0), views=V)
    assert rows.shape == (1 + V * 64 + 1, 64)
    distances = torch.cdist(rows, rows) + 10 * torch.eye(len(rows))
    assert distances.min() > 0.1


@pytest.mark.parametrize("centre", [False, True])
def test_a_camera_is_convolved_by_itself(centre):
    torch.manual_seed(0)
    model = make_autoencoder(AutoencoderConfig(**SMALL, centre_input=centre), V)
    image, other = pictures(2), pictures(2)
    other[:, 1] = pictures(2, seed=1)[:, 1]
    features, changed = (model.stem_features(stacked(i)) for i in (image, other))
    tokens = (S // PATCH) ** 2
    assert features.shape == (2, V * tokens, 16)
    assert torch.equal(features[:, :tokens], changed[:, :tokens])
    assert not torch.equal(features[:, tokens:], changed[:, tokens:])
    # The rest sees all cameras together.
    assert not torch.equal(*(model.features(stacked(i))[:, 1 : 1 + tokens] for i in (image, other)))


def test_masked_pixels_are_of_the_camera_whose_patches_are_dropped():
    torch.manual_seed(0)
    model = make_autoencoder(AutoencoderConfig(**SMALL, mask="pixels", mask_ratio=0.5), V)
    tokens = (S // PATCH) ** 2
    keep = torch.arange(tokens).expand(2, tokens)  # the first camera's alone
    image, other = pictures(2), pictures(2)
    other[:, 1] = 0
    assert torch.equal(*(model.encode(stacked(i), keep) for i in (image, other)))
    other[:, 0] = 0
    assert not torch.equal(*(model.encode(stacked(i), keep) for i in (image, other)))


@pytest.mark.parametrize("kind", ["mae", "vae"])
@pytest.mark.parametrize("target", ["pixels", "pixels:1+masks:0.5"])
def test_an_autoencoder_learns_to_draw_all_cameras(kind, target):
    torch.manual_seed(0)
    config = AutoencoderConfig(**SMALL, kind=kind, target=target, static_image_lr_scale=20.0)
    model = make_autoencoder(config, V)
    batch = views_stacked(
        {
            "image": pictures(4),
            "mask": torch.zeros(4, V, S, S, dtype=torch.uint8),
            "reward": torch.zeros(4),
        },
        V,
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss, metrics = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["target"].item())
    assert losses[-1] < losses[0]
    drawn = model.reconstruct(batch["image"])
    assert drawn.shape == (4, V * S, S, model.target.channels)
    features = model.features(batch["image"])
    assert features.shape[1] == 1 + V * model.feature_grid**2


def steps(rows, length):
    """The part of a batch that is no picture: episodes that begin with the window."""
    return {
        "action": torch.zeros(rows, length, A),
        "reward": torch.zeros(rows, length),
        "is_first": torch.arange(length).expand(rows, length) == 0,
        "is_terminal": torch.zeros(rows, length, dtype=torch.bool),
    }


def dynamics(**options):
    torch.manual_seed(0)
    config = LatentDynamicsConfig(
        encoder=FeatureEncoderConfig(width=8, depth=1, heads=2),
        rssm=RSSM,
        decoder=FeatureDecoderConfig(width=8, depth=1, heads=2, **options),
        head_layers=1, head_units=16, standardise_features=True,
    )  # fmt: skip
    return LatentDynamics(config, 2, 16, A, views=V)


@pytest.mark.parametrize("tokens", ["mask", "linear"])
def test_dynamics_see_and_predict_the_tokens_of_all_cameras(tokens):
    model = dynamics(tokens=tokens)
    batch = {
        "feature": torch.randn(3, 5, 1 + V * 4, 16),
        **steps(3, 5),
    }
    loss, posterior, _ = model.loss(batch)
    loss.backward()
    assert model.reconstruct(posterior.feature).shape == (5, 3, 1 + V * 4, 16)
    feature = batch["feature"].clone().requires_grad_()
    model.embed(feature).sum().backward()
    assert (feature.grad.abs().sum((0, 1, 3)) > 0).all()


@pytest.mark.parametrize("encoder", ["cnn", "vit"])
def test_a_model_on_pixels_sees_and_draws_each_camera(encoder):
    torch.manual_seed(0)
    config = PixelWorldModelConfig(
        image_size=S,
        cnn=CNNConfig(depth=4),
        vit=ViTConfig(width=32, encoder_depth=1, decoder_depth=1, heads=2),
        centre_input=True, static_image_lr_scale=20.0,
        rssm=RSSM, head_layers=1, head_units=16,
    )  # fmt: skip
    model = PixelWorldModel(config, A, encoder, views=V)
    image, other = pictures(2, 1), pictures(2, 1)
    other[:, :, 1] = 0
    assert not torch.equal(*(model.embed(stacked(i)) for i in (image, other)))
    batch = {
        "image": stacked(image),
        **steps(2, 1),
    }
    loss, posterior, _ = model.loss(batch)
    loss.backward()
    drawn = model.reconstruct(posterior.feature)
    assert drawn.shape == (1, 2, V * S, S, 3)
    # The second camera's part comes from channels of its own.
    (gradient,) = torch.autograd.grad(model.reconstruct(posterior.feature)[..., S:, :, :].sum(),
                                      model.static_image)  # fmt: skip
    first, second = gradient.view(V, -1)
    assert not first.any()
    assert second.all()
