"""The convolutional VAE: its loss by hand, what its features are, and that it learns."""

import pytest
import torch

from errors import UserError
from world_models.autoencoder import AutoencoderConfig, MaskedAutoencoder
from world_models.convolutional_vae import ConvolutionalVAE, make_autoencoder
from world_models.layers import Optimizer, OptimizerConfig, symlog

SMALL = {"kind": "vae", "image_size": 32, "width": 16}


def make(**options):
    torch.manual_seed(0)
    return make_autoencoder(AutoencoderConfig(**SMALL | options))


def batch(count=4, size=32):
    generator = torch.Generator().manual_seed(1)
    shape = (count, size, size, 3)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return {"image": image, "reward": torch.linspace(-2.0, 5.0, count)}


def test_kind_says_which_autoencoder_it_is():
    assert isinstance(make(), ConvolutionalVAE)
    sizes = {"image_size": 32, "width": 16, "heads": 2}
    assert isinstance(make_autoencoder(AutoencoderConfig(**sizes)), MaskedAutoencoder)


@pytest.mark.parametrize("target_weight", [1.0, 4.0])
def test_loss_is_the_evidence_lower_bound_and_the_reward(target_weight):
    """With unit variance it is half the squared error of all values and the KL; here over half of
    their number."""
    model, data = make(reward_weight=0.7, beta=0.5, target_weight=target_weight), batch()
    torch.manual_seed(5)
    loss, metrics = model.loss(data)
    torch.manual_seed(5)
    with torch.no_grad():
        mean, log_variance = (part.double() for part in model.posterior(data["image"]))
        noise = torch.randn(4, 16).double()
        latent = mean + log_variance.exp().sqrt() * noise
        picture, reward = model.predict(latent.float()[:, None])
        error = (picture - model.standardise(data["image"])).double().square()
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(
            normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)
        )
        values = 32 * 32 * 3
        bound = target_weight * error.sum() / 2 + 0.5 * kl.sum()
        expected = (
            bound / 4 / (values / 2) + 0.7 * (reward - symlog(data["reward"])).square().mean()
        )
    assert metrics["kl"].item() == pytest.approx(kl.sum().item() / 4, rel=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_features_are_the_means_and_draw_nothing():
    model, image = make(), batch()["image"]
    before = torch.get_rng_state()
    with torch.no_grad():
        features, reconstruction = model.features(image), model.reconstruct(image)
        assert torch.equal(features[:, 0], model.posterior(image)[0])
        assert torch.equal(reconstruction, model.predict(features)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert features.shape == (4, 1, 16)
    assert reconstruction.shape == (4, 32, 32, 3)
    assert model.feature_grid == 0


@pytest.mark.parametrize("options", [{}, {"centre_input": True, "static_image_lr_scale": 3.0}])
def test_every_weight_learns(options):
    model = make(**options)
    loss, _ = model.loss(batch())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_it_learns_to_tell_pictures_apart():
    model, data = make(width=32), batch()
    data["image"] = torch.zeros_like(data["image"])
    for index in range(4):
        data["image"][index, 8 * index : 8 * index + 8] = 255
    optimizer = Optimizer([model], OptimizerConfig(learning_rate=3e-3))
    before = model.loss(data)[1]
    for _ in range(300):
        optimizer.step(model.loss(data)[0])
    after = model.loss(data)[1]
    assert after["target"] < 0.3 * before["target"]
    assert after["reward"] < 0.3 * before["reward"]
    shown = model.reconstruct(data["image"]).detach()
    error = (shown[:, None] - model.standardise(data["image"])[None]).square().mean((2, 3, 4))
    assert error.argmin(1).tolist() == [0, 1, 2, 3]


def test_a_target_of_more_values_has_as_many():
    model, data = make(target="masks"), batch()
    data["mask"] = torch.zeros(4, 32, 32, dtype=torch.uint8)
    assert torch.isfinite(model.loss(data)[0])
    assert model.reconstruct(data["image"]).shape == (4, 32, 32, model.target.channels)


def test_picture_that_four_halvings_do_not_fit_is_the_users_error():
    with pytest.raises(UserError, match="multiple of 16, not 24"):
        AutoencoderConfig(kind="vae", image_size=24)
