"""What a world model can be asked to predict, and how a user's own target is refused or taken."""

import numpy as np
import pytest
import torch

from errors import UserError
from mask_classes import NAMES, PALETTE, UNLABELLED
from world_models.autoencoder import AutoencoderConfig, MaskedAutoencoder
from world_models.targets import (
    MaskTarget,
    PixelTarget,
    Standardise,
    WeightedSum,
    class_iou,
    make_target,
    reads,
    target_image,
)

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

class Edges:
    channels = 1

    def loss(self, prediction, batch):
        grey = batch["image"].float().mean(-1)
        edge = torch.nn.functional.pad(grey.diff(dim=2).abs(), (0, 1)) / 255.0
        return (prediction[..., 0] - edge).square().mean()

    def to_image(self, prediction):
        return (prediction.clamp(0, 1) * 255).to(torch.uint8).expand(*prediction.shape[:-1], 3)

class Silent:
    channels = 1

class Empty(Brightness):
    channels = 0

class Broken(Brightness):
    def __init__(self):
        raise FileNotFoundError("no weights")

class Wordy(Brightness):
    loss = "mean"

class Deep(Brightness):
    reads = ("depth",)

class Spelled(Brightness):
    reads = "mask"

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
    assert torch.equal(standardise.denormalise(standardise(image)), image)


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
        ("{own}:Empty", "channels = 0"),
        ("{own}:Broken", "FileNotFoundError: no weights"),
        ("{own}:Wordy", "must be methods"),
        ("{own}:Deep", "depth"),
        ("{own}:Spelled", "it can read"),
        ("pixels+", "sum of them"),
        ("pixels+{own}:Silent:2", "loss, to_image"),
        ("pixels:0+masks", "must be above 0"),
        ("masks:-1", "must be above 0"),
        ("masks:nan", "must be above 0"),
        ("{own}:", "package.module:Class"),
        (":Brightness", "Brightness"),
        ("", "package.module:Class"),
    ],
)
def test_target_that_cannot_be_used_is_the_users_error(own_module, name, word):
    with pytest.raises(UserError, match=word):
        make_target(name.format(own=own_module))


def random_masks(*shape, labelled=True):
    mask = torch.randint(0, 3, shape, dtype=torch.uint8)
    if not labelled:
        mask[..., 0] = UNLABELLED
    return mask


@pytest.mark.parametrize("labelled", [True, False])
def test_mask_loss_is_cross_entropy_weighted_by_the_rarity_of_a_class(labelled):
    torch.manual_seed(0)
    prediction, mask = torch.randn(2, 6, 6, 8), random_masks(2, 6, 6, labelled=labelled)
    mask[0, 0, 1] = 7  # a class of a single pixel
    logits, classes = prediction.double().numpy().reshape(-1, 8), mask.numpy().reshape(-1)
    known = classes != UNLABELLED
    logits, classes = logits[known], classes[known]
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weight = (np.bincount(classes, minlength=8)[classes] / len(classes)) ** -0.5
    expected = -(weight * log_probability[np.arange(len(classes)), classes]).sum() / weight.sum()
    assert MaskTarget().loss(prediction, {"mask": mask}).item() == pytest.approx(expected, rel=1e-5)


def test_a_gripper_of_twenty_pixels_counts():
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, :4, :5] = 2
    target = MaskTarget()
    weight = target.weights(target.counts(mask))
    share = 20 * weight[2] / (20 * weight[2] + (64 * 64 - 20) * weight[0])
    assert share.item() == pytest.approx(0.0656, abs=1e-3)  # 0.005 of the pixels
    assert (weight[[1, 3, 4, 5, 6, 7]] == 0).all()


def test_frames_without_labels_teach_nothing():
    prediction = torch.randn(1, 4, 4, 8, requires_grad=True)
    mask = torch.full((1, 4, 4), UNLABELLED, dtype=torch.uint8)
    loss = MaskTarget().loss(prediction, {"mask": mask})
    loss.backward()
    assert loss.item() == 0.0
    assert (prediction.grad == 0).all()


def test_iou_by_hand():
    mask = torch.tensor([[0, 0, 1, 1], [2, 2, 2, UNLABELLED]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 5]])
    iou = class_iou(predicted, mask)
    assert iou[:3].tolist() == pytest.approx([1 / 4, 2 / 3, 1 / 3])
    assert iou[3:].isnan().all()  # predicted for an unlabelled pixel only, or nowhere


def test_what_masks_measure():
    mask = random_masks(2, 8, 8)
    perfect = torch.nn.functional.one_hot(mask.long(), 8).float()
    measured = MaskTarget().measure(perfect, {"mask": mask})
    assert set(measured) == {f"iou/{n.replace(' ', '_')}" for n in NAMES} | {"iou/mean"}
    assert measured["iou/robot"] == measured["iou/mean"] == 1.0
    assert measured["iou/other_object"].isnan()


def test_predicted_and_true_masks_are_shown_in_the_palette():
    target, mask = MaskTarget(), random_masks(2, 4, 4, labelled=False)
    perfect = torch.nn.functional.one_hot(mask.clamp(max=7).long(), 8).float()
    known = mask != UNLABELLED
    expected = torch.from_numpy(PALETTE[mask.clamp(max=7).numpy()])
    assert torch.equal(target.to_image(perfect)[known], expected[known])
    assert torch.equal(target_image(target, {"mask": mask})[known], expected[known])
    assert (target_image(target, {"mask": mask})[~known] == 128).all()


def test_masks_are_asked_for_by_those_who_learn_from_them(own_module):
    assert reads(make_target("masks")) == reads(make_target("pixels+masks")) == ("mask",)
    assert reads(make_target("pixels")) == reads(make_target(f"{own_module}:Edges")) == ()
    with pytest.raises(UserError, match="masks=True"):
        MaskTarget().loss(torch.zeros(1, 4, 4, 8), {"image": torch.zeros(1, 4, 4, 3)})


def test_weighted_sum_of_targets(own_module):
    torch.manual_seed(0)
    both = make_target(f"pixels:2+masks:0.5+{own_module}:Brightness")
    assert isinstance(both, WeightedSum)
    assert both.channels == 3 + 8 + 1
    batch = {
        "image": torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8),
        "mask": random_masks(2, 8, 8),
    }
    prediction = torch.randn(2, 8, 8, 12)
    pixels, masks, brightness = (
        make_target(name).loss(part, batch).item()
        for name, part in zip(
            ("pixels", "masks", f"{own_module}:Brightness"),
            prediction.split([3, 8, 1], dim=-1),
            strict=True,
        )
    )
    expected = 2 * pixels + 0.5 * masks + brightness
    assert both.loss(prediction, batch).item() == pytest.approx(expected, rel=1e-6)
    measured = both.measure(prediction, batch)
    assert measured["loss/masks"].item() == pytest.approx(masks)
    assert "iou/hand" in measured
    assert both.to_image(prediction).shape == both.target_image(batch).shape == (2, 8, 24, 3)
    assert torch.equal(both.target_image(batch)[:, :, :8], batch["image"])


def test_third_party_target_learns(own_module):
    torch.manual_seed(0)
    config = AutoencoderConfig(
        image_size=16, width=16, encoder_depth=1, decoder_depth=1, heads=2, mask_ratio=0.5,
        target=f"{own_module}:Edges+masks",
    )  # fmt: skip
    autoencoder = MaskedAutoencoder(config)
    batch = {
        "image": torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8),
        "mask": random_masks(4, 16, 16),
        "reward": torch.zeros(4),
    }
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, metrics = autoencoder.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["target"].item())
    assert losses[-1] < 0.8 * losses[0]
