"""What a world model can be asked to predict, and how a user's own target is refused or taken."""

import numpy as np
import pytest
import torch

from errors import UserError
from world_models.autoencoder import AutoencoderConfig, MaskedAutoencoder
from world_models.targets import PixelTarget, Standardise, make_target

OWN_TARGET = '''
import torch

class Brightness:
    """One value a pixel: how bright it is."""

    channels = 1

    def loss(self, prediction, batch):
        brightness = batch["image"].float().mean(-1, keepdim=True) / 255.0
        return (prediction - brightness).abs().mean()

    def to_image(self, prediction):
        return (255.0 * prediction).clamp(0, 255).to(torch.uint8).expand(*prediction.shape[:-1], 3)

class Silent:
    channels = 1

class Demanding:
    def __init__(self, classes):
        self.channels = classes
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_targets_of_a_user.py").write_text(OWN_TARGET)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_targets_of_a_user"


def test_every_pixel_value_comes_back_exactly():
    values = torch.arange(256, dtype=torch.uint8)
    image = values.view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    standardise = Standardise()
    assert torch.equal(standardise.undo(standardise(image)), image)


def test_standardised_pixels_have_imagenet_statistics():
    image = torch.randint(0, 256, (2, 3, 5, 3), dtype=torch.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (image.numpy().astype(np.float64) / 255.0 - mean) / std
    actual = Standardise()(image)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_prediction_too_bright_for_a_picture_is_clipped():
    assert torch.equal(
        PixelTarget().to_image(torch.tensor([[[[-90.0, 0.0, 90.0]]]])),
        torch.tensor([[[[0, 116, 255]]]], dtype=torch.uint8),  # 255 · 0.456 = 116.3
    )


def test_pixel_loss_is_the_mean_squared_error_of_the_standardised_picture():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    prediction = torch.randn(2, 8, 8, 3)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    target = (image.numpy() / 255.0 - mean) / std
    expected = ((prediction.double().numpy() - target) ** 2).mean()
    assert PixelTarget().loss(prediction, {"image": image}).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_target_of_a_user_is_predicted_with_its_own_channels(own_module):
    config = AutoencoderConfig(
        image_size=16, width=16, encoder_depth=1, decoder_depth=1, heads=2,
        target=f"{own_module}:Brightness",
    )  # fmt: skip
    autoencoder = MaskedAutoencoder(config)
    batch = {
        "image": torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8),
        "reward": torch.zeros(3),
    }
    loss, metrics = autoencoder.loss(batch)
    assert torch.isfinite(loss)
    prediction, _ = autoencoder.decode(autoencoder.encode(batch["image"]))
    assert prediction.shape == (3, 16, 16, 1)
    assert autoencoder.target.to_image(prediction).shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("pixel", "pixels"),  # the names there are
        ("no_such_module_here:Target", "no_such_module_here"),
        ("{own}:Missing", "Missing"),
        ("{own}:Demanding", "classes"),
        ("{own}:Silent", "loss, to_image"),
        ("{own}:", "package.module:Class"),
        (":Brightness", "Brightness"),
        ("", "package.module:Class"),
    ],
)
def test_target_that_cannot_be_used_is_the_users_error(own_module, name, word):
    with pytest.raises(UserError, match=word):
        make_target(name.format(own=own_module))
