"""The plain baseline's eyes: what each token depends on, and that all of it learns."""

import pytest
import torch

from errors import UserError
from world_models.image_encoder import ImageEncoder, ImageEncoderConfig
from world_models.language import WordEncoder

B, V, T, SIZE, GRID, WIDTH, WORDS = 2, 2, 3, 32, 4, 16, 32
SMALL = ImageEncoderConfig(width=WIDTH, layers=3, grid=GRID, channels=8, instruction_tokens=2)
PICTURES = V * T * GRID**2


def make(config=SMALL, size=SIZE):
    torch.manual_seed(0)
    return ImageEncoder(config, V, T, size, WORDS)


def inputs(size=SIZE, batch=B):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, V, T, size, size, 3)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    instructions = ["open the drawer", "put the bowl on the plate"] * batch
    return image, *WordEncoder(WORDS)(instructions[:batch])


def squares(context):
    """The pictures' tokens, (B, V, T, G, G, D)."""
    return context[:, :PICTURES].unflatten(1, (V, T, GRID, GRID))


def test_one_context_for_each_block_of_the_policy():
    encoder = make()
    context = encoder(*inputs())
    assert (encoder.layers, encoder.width) == (3, WIDTH)
    assert len(context) == 3
    for features in context:
        assert features.shape == (B, PICTURES + 2, WIDTH)
        assert features.isfinite().all()


@pytest.mark.parametrize(("size", "grid"), [(16, 8), (64, 8), (64, 4), (128, 8)])
def test_a_picture_becomes_its_grid(size, grid):
    config = ImageEncoderConfig(width=16, grid=grid, channels=8, instruction_tokens=1)
    context = make(config, size)(*inputs(size, batch=1))
    assert context[0].shape == (1, V * T * grid * grid + 1, 16)


@pytest.mark.parametrize(("camera", "frame"), [(0, 0), (1, 2)])
def test_a_picture_changes_its_own_tokens_and_no_others(camera, frame):
    encoder, (image, text, mask) = make(), inputs()
    before = encoder(image, text, mask)[0]
    image = image.clone()
    image[0, camera, frame] = 255 - image[0, camera, frame]
    after = encoder(image, text, mask)[0]
    changed = (squares(after) - squares(before)).abs().amax(-1) > 1e-4  # (B, V, T, G, G)
    assert changed[0, camera, frame].all()
    changed[0, camera, frame] = False
    assert not changed.any()
    torch.testing.assert_close(after[:, PICTURES:], before[:, PICTURES:])


def test_a_corner_of_a_picture_matters_most_near_that_corner():
    encoder, (image, text, mask) = make(), inputs()
    patch = SIZE // GRID
    other = image.clone()
    other[:, :, :, -patch:, :patch] = 255 - other[:, :, :, -patch:, :patch]
    moved = squares(encoder(other, text, mask)[0]) - squares(encoder(image, text, mask)[0])
    moved = moved.square().sum(dim=(0, 1, 2, 5))  # (G, G)
    assert moved[GRID // 2 :, : GRID // 2].sum() > 0.5 * moved.sum()
    assert moved[-1, 0] > 10.0 * moved[0, -1]


def test_the_instruction_changes_every_token():
    encoder, (image, _, _) = make(), inputs()
    words = WordEncoder(WORDS)
    contexts = [
        encoder(image, *words([instruction] * B))[0]
        for instruction in ("put the bowl on the plate", "put the plate on the bowl")
    ]
    assert ((contexts[0] - contexts[1]).abs().amax(-1) > 1e-5).all()


def test_padding_of_the_instruction_cannot_be_seen():
    encoder, (image, text, mask) = make(), inputs()
    context = encoder(image, text, mask)[0]
    longer = torch.cat([text, torch.full_like(text, 7.0)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros_like(mask)], dim=1)
    torch.testing.assert_close(encoder(image, longer, longer_mask)[0], context)
    alone = encoder(image[:1], text[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])[0]
    torch.testing.assert_close(alone, context[:1], rtol=1e-4, atol=1e-5)


def test_equal_pictures_differ_by_camera_frame_and_place():
    encoder, (image, text, mask) = make(), inputs()
    grey = squares(encoder(torch.full_like(image, 90), text, mask)[0])[0]
    inner = grey[:, :, 1:-1, 1:-1].flatten(0, 3)  # all alike but for where they are
    distance = torch.cdist(inner, inner)
    distance.fill_diagonal_(torch.inf)
    assert distance.min() > 0.5


def test_everything_learns_from_the_policys_loss():
    encoder = make()
    loss = sum(features.square().mean() for features in encoder(*inputs()))
    for gradient in torch.autograd.grad(loss, list(encoder.parameters())):
        assert gradient.abs().sum() > 0


def test_bfloat16_is_close_to_float32():
    encoder, batch = make(), inputs()
    full = encoder(*batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(*batch)[0]
    assert (half - full).abs().mean() < 0.02 * full.abs().mean()


def test_what_does_not_fit_is_refused_in_one_sentence():
    encoder, (image, text, mask) = make(), inputs()
    with pytest.raises(UserError, match="the image encoder sees"):
        encoder(image[:, :1], text, mask)
    with pytest.raises(UserError, match="cannot be halved"):
        make(size=48)
    with pytest.raises(UserError, match="cannot be halved"):
        make(size=GRID)
    with pytest.raises(UserError, match="multiples of 8"):
        ImageEncoderConfig(width=20)
    with pytest.raises(UserError, match="layers must be at least 1"):
        ImageEncoderConfig(layers=0)
