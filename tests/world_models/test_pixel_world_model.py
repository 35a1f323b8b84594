"""A world model on pixels: its networks' shapes, its losses by hand, and where gradients go."""

import math

import numpy as np
import pytest
import torch

from errors import UserError
from world_models.pixel_networks import (
    CNNConfig,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    TransformerDecoder,
    TransformerEncoder,
    ViTConfig,
    refuse_size,
)
from world_models.pixel_world_model import InfoNCE, PixelWorldModel, PixelWorldModelConfig
from world_models.rssm import RSSMConfig, balanced_kl

B, T, SIZE, A = 2, 4, 16, 2
VIT = ViTConfig(width=32, encoder_depth=1, decoder_depth=1, heads=2)


def make(encoder="cnn", representation="reconstruction", target="pixels", **options):
    torch.manual_seed(0)
    config = PixelWorldModelConfig(
        image_size=SIZE,
        cnn=CNNConfig(depth=4),
        vit=VIT,
        rssm=RSSMConfig(deterministic=10, hidden=9, variables=4, classes=3),
        head_layers=1,
        head_units=8,
        **options,
    )
    return PixelWorldModel(config, A, encoder, representation, target)


def batch():
    torch.manual_seed(1)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = True
    is_terminal = torch.zeros(B, T, dtype=torch.bool)
    is_terminal[1, -1] = True
    return {
        "image": torch.randint(0, 256, (B, T, SIZE, SIZE, 3), dtype=torch.uint8),
        "mask": torch.randint(0, 3, (B, T, SIZE, SIZE), dtype=torch.uint8),
        "action": torch.rand(B, T, A) * 2 - 1,
        "reward": 10.0 * torch.randn(B, T),
        "is_first": is_first,
        "is_terminal": is_terminal,
    }


# ------------------------------------------------------------------------------ networks


def test_networks_of_64_pixels_are_those_of_dreamerv2():
    """Four layers; 64 → 31 → 14 → 6 → 2 with kernels of 4, and 1 → 5 → 13 → 30 → 64 with kernels
    of 5, 5, 6 and 6."""
    encoder = ConvolutionalEncoder(CNNConfig(), 64)
    decoder = ConvolutionalDecoder(CNNConfig(), 64, 20, 3)
    down, up = ([m for m in net.layers if hasattr(m, "weight")] for net in (encoder, decoder))
    assert [tuple(m.weight.shape) for m in down] == [
        (48, 3, 4, 4), (96, 48, 4, 4), (192, 96, 4, 4), (384, 192, 4, 4),
    ]  # fmt: skip
    assert [tuple(m.weight.shape) for m in up] == [
        (1536, 192, 5, 5), (192, 96, 5, 5), (96, 48, 6, 6), (48, 3, 6, 6),
    ]  # fmt: skip
    assert encoder.outputs == decoder.spread.out_features == 1536
    assert isinstance(encoder.layers[-1], torch.nn.ELU)
    assert up[-1] is decoder.layers[-1]  # no activation after the last


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_convolutional_networks_fit_every_power_of_two(size):
    encoder = ConvolutionalEncoder(CNNConfig(2), size)
    assert encoder(torch.rand(3, size, size, 3)).shape == (3, encoder.outputs)
    assert ConvolutionalDecoder(CNNConfig(2), size, 7, 5)(torch.rand(3, 7)).shape == (
        3, size, size, 5,
    )  # fmt: skip


@pytest.mark.parametrize(("pooling", "outputs"), [("mean", 32), ("flatten", 256)])
def test_transformers_see_and_draw_every_place(pooling, outputs):
    config = ViTConfig(width=32, encoder_depth=1, decoder_depth=1, heads=2, pooling=pooling)
    torch.manual_seed(0)
    encoder, decoder = TransformerEncoder(config, 24), TransformerDecoder(config, 24, 6, 2)
    image = torch.rand(2, 24, 24, 3, requires_grad=True)
    embedding = encoder(image)
    assert embedding.shape == (2, outputs)
    (gradient,) = torch.autograd.grad(embedding.square().sum(), image)
    assert gradient.any(-1).float().mean() > 0.95
    picture = decoder(torch.randn(2, 6))
    assert picture.shape == (2, 24, 24, 2)


def test_patches_of_the_transformer_lie_where_their_tokens_do():
    decoder = TransformerDecoder(VIT, 16, 6, 1)
    numbers = torch.arange(4.0)[:, None] * 64 + torch.arange(64.0)  # token, then row and column
    decoder.tokens.forward = lambda state: torch.cat([-torch.ones(1, 64), numbers])[None]
    picture = decoder(torch.zeros(1, 6))[0, :, :, 0]
    for token, (top, left) in enumerate(((0, 0), (0, 8), (8, 0), (8, 8))):
        patch = picture[top : top + 8, left : left + 8]
        assert torch.equal(patch, numbers[token].view(8, 8))


@pytest.mark.parametrize(("encoder", "size"), [("cnn", 48), ("cnn", 8), ("vit", 20), ("vit", 0)])
def test_pictures_that_the_networks_cannot_see_are_refused(encoder, size):
    with pytest.raises(UserError, match=f"image_size must be a .*{encoder}, not {size}"):
        refuse_size(encoder, size)


# -------------------------------------------------------------------------------- losses


def test_infonce_by_hand():
    """Three states and pictures of two numbers each, worked out with ln and exp."""
    contrast = InfoNCE(state=2, embedding=2)
    with torch.no_grad():
        contrast.project.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    state = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    embedding = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    root = math.sqrt(2.0)
    by_hand = [[2 / root, 0.0, -1 / root], [0.0, 2 / root, 1 / root], [2 / root, 2 / root, 0.0]]
    np.testing.assert_allclose(contrast.scores(state, embedding).tolist(), by_hand, rtol=1e-6)
    expected = np.mean(
        [math.log(sum(map(math.exp, row))) - row[own] for own, row in enumerate(by_hand)]
    )
    loss, accuracy = contrast.loss(state, embedding)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert accuracy.item() == pytest.approx(2 / 3)


def test_states_and_pictures_that_say_nothing_are_contrasted_at_chance():
    contrast = InfoNCE(state=3, embedding=5)
    loss, _ = contrast.loss(torch.zeros(7, 3), torch.randn(7, 5))
    assert loss.item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("discount", [False, True])
def test_loss_is_the_sum_of_its_parts(discount):
    model, given = make(predict_discount=discount, reward_weight=3.0, target_weight=5.0), batch()
    noise = model.exponential_noise(B, T, torch.device("cpu"))
    with torch.no_grad():
        loss, posterior, metrics = model.loss(given, noise)
        states, prior = model.observe(given, noise)
        feature = states.feature
        image = model.standardise(given["image"]).transpose(0, 1)
        target = (model.reconstruct(feature) - image).square().mean()
        symlog = given["reward"].sign() * given["reward"].abs().log1p()
        reward = (model.reward_head(feature)[..., 0] - symlog.T).square().mean()
        kl, _ = balanced_kl(states.logits, prior, 0.8, 0.01)
        expected = 5.0 * target + 3.0 * reward + kl
        if discount:
            ends = given["is_terminal"].T
            expected -= torch.where(
                ends, (1 - model.continuation(feature)).log(), model.continuation(feature).log()
            ).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["target"], target)
    torch.testing.assert_close(posterior.deterministic, states.deterministic)
    assert set(metrics) == {"reward", "kl", "target"} | ({"discount"} if discount else set())


def test_contrast_takes_the_place_of_the_decoder():
    """Every state of a batch against every picture of it, of its own window and of the others."""
    model, given = make(representation="contrastive"), batch()
    assert model.decoder is None
    noise = model.exponential_noise(B, T, torch.device("cpu"))
    with torch.no_grad():
        loss, _, metrics = model.loss(given, noise)
        states, prior = model.observe(given, noise)
        kl, _ = balanced_kl(states.logits, prior, 0.8, 0.01)
        feature = states.feature.transpose(0, 1).flatten(0, 1)
        embedding = model.embed(given["image"]).flatten(0, 1)
        scores = feature @ model.contrast.project.weight.T @ embedding.T
        scores = scores / embedding.shape[1] ** 0.5
        contrast = (scores.logsumexp(1) - scores.diagonal()).mean()
    assert scores.shape == (B * T, B * T)
    torch.testing.assert_close(metrics["contrast"], contrast)
    torch.testing.assert_close(loss, contrast + metrics["reward"] + kl)


@pytest.mark.parametrize("encoder", ["cnn", "vit"])
@pytest.mark.parametrize("representation", ["reconstruction", "contrastive"])
def test_everything_learns_from_the_loss_end_to_end(encoder, representation):
    options = {"static_image_lr_scale": 20.0, "centre_input": True}
    model = make(encoder, representation, **options)
    loss, posterior, _ = model.loss(batch())
    loss.backward()
    assert not any(part.requires_grad for part in posterior)
    without = [
        name
        for name, parameter in model.named_parameters()
        if (parameter.grad is None or not parameter.grad.any()) and name.endswith("weight")
    ]
    assert without == []
    assert ("static_image" in dict(model.named_parameters())) == (representation != "contrastive")


def test_static_image_is_added_to_every_reconstruction_and_learns_faster():
    model = make(static_image_lr_scale=20.0)
    feature = torch.randn(3, 2, model.feature_size)
    before = model.reconstruct(feature)
    with torch.no_grad():
        model.static_image[:3] = torch.tensor([1.0, 2.0, 3.0])  # the first pixel
    difference = model.reconstruct(feature) - before
    assert difference.shape == (3, 2, SIZE, SIZE, 3)
    expected = torch.zeros_like(difference)
    expected[:, :, 0, 0] = 20.0 * torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=1e-5)


def test_input_is_centred_by_what_has_been_seen():
    model, given = make(centre_input=True), batch()
    model.loss(given)
    pixels = model.standardise(given["image"])
    torch.testing.assert_close(model.centre.mean, pixels.mean((0, 1)), atol=1e-5, rtol=1e-4)
    assert int(model.centre.batches) == 1


@pytest.mark.parametrize("target", ["masks", "pixels:1+masks:0.5"])
def test_decoder_predicts_what_the_target_asks_for(target):
    model, given = make(target=target), batch()
    loss, _, metrics = model.loss(given)
    assert torch.isfinite(loss)
    assert "iou/mean" in metrics
    assert model.reconstruct(torch.zeros(2, 3, model.feature_size)).shape == (
        2, 3, SIZE, SIZE, model.target.channels,
    )  # fmt: skip


def test_embedding_of_a_picture_does_not_depend_on_its_neighbours():
    model, given = make(), batch()
    with torch.no_grad():
        embedding = model.embed(given["image"])
        assert embedding.shape == (B, T, model.encoder.outputs)
        torch.testing.assert_close(embedding[1, 2], model.embed(given["image"][1, 2:3])[0])
