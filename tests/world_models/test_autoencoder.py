"""The masked autoencoder: what is dropped, what is predicted from where, and the paper's sizes."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from errors import UserError
from tests.gradients import assert_gradients
from world_models.autoencoder import AutoencoderConfig, MaskedAutoencoder
from world_models.layers import Optimizer, OptimizerConfig

SMALL = {"image_size": 64, "width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
PATCH = 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedAutoencoder(AutoencoderConfig(**SMALL))


def pictures(batch, size=64):
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)


def replace_output(module, change):
    """Intervene: `module` returns `change(output)` until the handle is removed."""
    return module.register_forward_hook(lambda _, inputs, output: change(output))


# --------------------------------------------------------------------------------- masking


def test_sixteen_of_sixty_four_tokens_stay_at_a_ratio_of_three_quarters(model):
    keep = model.random_keep(100, torch.device("cpu"))
    assert keep.shape == (100, 16)
    assert keep.min() >= 0
    assert keep.max() <= 63
    assert all(len(set(row)) == 16 for row in keep.tolist())  # without replacement


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.25, 48), (0.5, 32), (0.75, 16), (0.9, 6), (0.999, 1)]
)
def test_mask_ratio_decides_how_many_tokens_stay(ratio, kept):
    model = MaskedAutoencoder(AutoencoderConfig(**SMALL, mask_ratio=ratio))
    assert model.random_keep(1, torch.device("cpu")).shape == (1, kept)


def test_every_token_and_every_pair_of_neighbours_stays_equally_often(model):
    torch.manual_seed(1)
    images, tokens, kept = 8000, 64, 16
    keep = model.random_keep(images, torch.device("cpu"))
    stays = torch.zeros(images, tokens).scatter_(1, keep, 1.0).numpy()
    share = kept / tokens
    # Without replacement the counts are correlated, which the factor (N − 1)/N corrects.
    deviation = (stays.sum(0) - images * share) ** 2 / (images * share * (1 - share))
    assert deviation.sum() * (tokens - 1) / tokens < stats.chi2.ppf(1 - 1e-6, tokens - 1)
    pair = kept * (kept - 1) / (tokens * (tokens - 1))
    together = (stays[:, :-1] * stays[:, 1:]).mean(0)
    assert np.abs(together - pair).max() < 5 * np.sqrt(pair * (1 - pair) / images)


def test_each_image_is_masked_on_its_own(model):
    keep = model.random_keep(20, torch.device("cpu"))
    assert len({tuple(sorted(row)) for row in keep.tolist()}) == 20


def test_dropped_features_cannot_be_seen(model):
    image, keep = pictures(2), torch.tensor([[3, 40, 7], [3, 40, 7]])
    with torch.no_grad():
        before = model.encode(image, keep)
        dropped = [token for token in range(64) if token not in (3, 40, 7)]

        def disturb(features):
            features = features.clone()
            features[:, dropped] += 100.0
            return features

        handle = replace_output(model.stem, disturb)
        after = model.encode(image, keep)
        handle.remove()
    assert torch.equal(before, after)


def test_kept_feature_remembers_where_it_came_from(model):
    """A plain picture looks the same in the middle: only the position can tell its places apart."""
    image = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    with torch.no_grad():
        there = model.encode(image, torch.tensor([[18]]))
        elsewhere = model.encode(image, torch.tensor([[45]]))
    assert (there - elsewhere).abs().max() > 1e-3


# ------------------------------------------------------------------------ unmasked features


def test_unmasked_features_ignore_the_seed_and_draw_nothing(model):
    image = pictures(2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model.encode(image)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(model.encode(image), first)


def test_unmasked_features_keep_the_order_of_the_places(model):
    """Given the places in another order, the encoder returns the same tokens in that order."""
    image, order = pictures(2), torch.randperm(64)
    with torch.no_grad():
        plain, shuffled = model.encode(image), model.encode(image, order.expand(2, -1))
        torch.testing.assert_close(shuffled[:, 0], plain[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shuffled[:, 1:], plain[:, 1 + order], rtol=1e-4, atol=1e-5)
        for left, right in zip(
            model.decode(shuffled, order.expand(2, -1)), model.decode(plain), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_token_sees_its_own_patch_of_the_picture(model):
    row, column = 5, 2
    image = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    marked = image.clone()
    marked[0, PATCH * row + 3 : PATCH * row + 5, PATCH * column + 3 : PATCH * column + 5] = 255
    with torch.no_grad():
        change = (model.stem_features(marked) - model.stem_features(image))[0].norm(dim=-1)
    reached = set(change.nonzero().flatten().tolist())
    around = {8 * r + c for r in range(row - 1, row + 2) for c in range(column - 1, column + 2)}
    assert 8 * row + column in reached
    assert reached <= around


def test_learning_without_masking_draws_no_random_number():
    model = MaskedAutoencoder(AutoencoderConfig(**SMALL, mask_ratio=0.0))
    batch = {"image": pictures(2), "reward": torch.zeros(2)}
    before = torch.get_rng_state()
    loss, _ = model.loss(batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.loss(batch)[0], loss)


# --------------------------------------------------------------------------------- decoder


def test_decoder_reads_mask_tokens_at_dropped_places_and_for_the_reward(model):
    keep = torch.tensor([[9, 0, 33]])
    tokens, seen = torch.randn(1, 4, 16), {}
    handle = model.decoder.register_forward_pre_hook(
        lambda _, inputs: seen.update(sequence=inputs[0])
    )
    with torch.no_grad():
        model.decode(tokens, keep)
        handle.remove()
        content = seen["sequence"][0] - model.positions[0]
        mapped = model.decoder_input(tokens)[0]
        mask = model.mask_token.flatten()
    assert content.shape == (1 + 64 + 1, 16)
    known = {0: mapped[0], 1 + 9: mapped[1], 1 + 0: mapped[2], 1 + 33: mapped[3]}
    for place in range(66):
        torch.testing.assert_close(content[place], known.get(place, mask), rtol=1e-4, atol=1e-5)


def test_reward_is_read_from_the_reward_tokens_own_final_representation(model):
    """Not from the last patch, as in the authors' code: each output hangs on its own token only."""
    image = pictures(2)
    with torch.no_grad():
        tokens = model.encode(image)
        pixels, reward = model.decode(tokens)

        def disturb(place):
            def change(sequence):
                sequence = sequence.clone()
                sequence[:, place] += torch.linspace(-3, 3, 16)
                return sequence

            handle = replace_output(model.decoder, change)
            result = model.decode(tokens)
            handle.remove()
            return result

        changed_pixels, changed_reward = disturb(-1)
        assert torch.equal(changed_pixels, pixels)
        assert (changed_reward - reward).abs().min() > 1e-2

        for token in (0, 22, 63):
            changed_pixels, changed_reward = disturb(1 + token)
            assert torch.equal(changed_reward, reward)
            row, column = divmod(token, 8)
            patch = (
                slice(None),
                slice(PATCH * row, PATCH * (row + 1)),
                slice(PATCH * column, PATCH * (column + 1)),
            )
            assert (changed_pixels[patch] != pixels[patch]).any()
            changed_pixels[patch] = pixels[patch]
            assert torch.equal(changed_pixels, pixels)

        assert torch.equal(disturb(0)[0], pixels)  # the class token predicts nothing itself


def test_reward_token_attends_to_the_picture(model):
    with torch.no_grad():
        _, reward = model.decode(model.encode(pictures(8)))
    assert reward.std() > 1e-3


def test_patches_put_together_are_the_picture(model):
    picture = torch.randn(2, 64, 64, 3)
    patches = torch.stack(
        [
            picture[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].reshape(2, -1)
            for r in range(8)
            for c in range(8)
        ],
        dim=1,
    )  # (B, N, 8·8·3), each patch row by row with its channels innermost
    handle = replace_output(model.target_head, lambda _: patches)
    prediction, _ = model.decode(torch.randn(2, 65, 16))
    handle.remove()
    assert torch.equal(prediction, picture)


# ------------------------------------------------------------------------------------ loss


def test_loss_is_the_error_of_all_pixels_and_of_the_symlog_reward():
    torch.manual_seed(0)
    model = MaskedAutoencoder(AutoencoderConfig(**SMALL, reward_weight=0.7, target_weight=0.4))
    batch = {"image": pictures(5), "reward": torch.tensor([0.0, 1.0, -3.0, 250.0, 0.01])}
    torch.manual_seed(3)
    loss, metrics = model.loss(batch)
    torch.manual_seed(3)
    with torch.no_grad():
        keep = model.random_keep(5, torch.device("cpu"))
        pixels, reward = model.decode(model.encode(batch["image"], keep), keep)

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    target = (batch["image"].numpy() / 255.0 - mean) / std
    pixel_loss = np.mean((pixels.numpy().astype(np.float64) - target) ** 2)
    true = batch["reward"].numpy().astype(np.float64)
    squashed = np.sign(true) * np.log(1.0 + np.abs(true))
    reward_loss = np.mean((reward.numpy() - squashed) ** 2)
    assert metrics["target"].item() == pytest.approx(pixel_loss, rel=1e-5)
    assert metrics["reward"].item() == pytest.approx(reward_loss, rel=1e-5)
    assert loss.item() == pytest.approx(0.4 * pixel_loss + 0.7 * reward_loss, rel=1e-5)


@pytest.mark.parametrize("lr_scale", [0.0, 20.0])
def test_gradient_of_the_loss_is_that_of_equation_13(lr_scale):
    """By finite differences in float64: what the reward has to say shapes the features, too."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(AutoencoderConfig(**SMALL, static_image_lr_scale=lr_scale))
    batch = {"image": pictures(3), "reward": torch.tensor([0.0, 1.0, -30.0])}
    keep = model.random_keep(3, torch.device("cpu"))
    loss, _ = model.loss(batch, keep)
    true = batch["reward"].double()
    squashed = true.sign() * true.abs().log1p()

    def objective(twin):
        pixels, reward = twin.decode(twin.encode(batch["image"], keep), keep)
        assert pixels.dtype == reward.dtype == torch.float64
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        target = (batch["image"].double() / 255.0 - mean.double()) / std.double()
        return (pixels - target).square().mean().item() + (reward - squashed).square().mean().item()

    assert_gradients(loss, model, objective)


def test_every_parameter_learns_from_the_loss(model):
    loss, _ = model.loss({"image": pictures(4), "reward": torch.randn(4)})
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


# ---------------------------------------------------------------------------- static scenes


def moving_square(batch, seed, brightness=0):
    """One static picture, and a white square somewhere on it."""
    still = torch.randint(0, 120, (64, 64, 3), generator=torch.manual_seed(9)) + brightness
    image = still.to(torch.uint8).repeat(batch, 1, 1, 1)
    places = torch.randint(0, 56, (batch, 2), generator=torch.manual_seed(seed))
    for picture, (row, column) in zip(image, places.tolist(), strict=True):
        picture[row : row + 8, column : column + 8] = 255
    return {"image": image, "reward": torch.zeros(batch)}


def test_centred_input_is_blind_to_what_never_changes():
    features = []
    for brightness in (0, 100):
        torch.manual_seed(0)
        model = MaskedAutoencoder(AutoencoderConfig(**SMALL, centre_input=True))
        batch = moving_square(8, seed=1)
        batch["image"] = batch["image"] // 2 + brightness  # the square's contrast stays
        model.loss(batch)
        features.append(model.encode(batch["image"]))
    torch.testing.assert_close(*features, rtol=1e-3, atol=1e-4)


def test_centring_learns_from_training_batches_only():
    model = MaskedAutoencoder(AutoencoderConfig(**SMALL, centre_input=True))
    model.encode(pictures(2))
    assert model.centre.batches == 0
    model.loss({"image": pictures(2), "reward": torch.zeros(2)})
    assert model.centre.batches == 1


def test_static_image_is_learned_much_faster_than_through_the_tokens():
    losses = {}
    for scale in (0.0, 20.0):
        torch.manual_seed(0)
        model = MaskedAutoencoder(AutoencoderConfig(**SMALL, static_image_lr_scale=scale))
        optimizer = Optimizer([model], OptimizerConfig(learning_rate=2e-3))
        for update in range(60):
            loss, metrics = model.loss(moving_square(8, seed=update))
            optimizer.step(loss)
        losses[scale] = metrics["target"].item()
    assert losses[20.0] < 0.5 * losses[0.0]


def test_first_prediction_is_the_same_with_a_static_image():
    outputs = []
    for scale in (0.0, 20.0):
        torch.manual_seed(0)
        model = MaskedAutoencoder(AutoencoderConfig(**SMALL, static_image_lr_scale=scale))
        outputs.append(model.decode(model.encode(moving_square(2, seed=0)["image"]))[0])
    assert torch.equal(*outputs)


def test_picture_that_never_changes_has_a_finite_loss():
    options = {"centre_input": True, "static_image_lr_scale": 20.0}
    model = MaskedAutoencoder(AutoencoderConfig(**SMALL, **options))
    batch = {"image": pictures(1).expand(4, -1, -1, -1), "reward": torch.zeros(4)}
    for _ in range(2):
        loss, _ = model.loss(batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert torch.isfinite(loss)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("inside", [False, True])
def test_static_image_is_read_under_its_old_name_too(inside):
    """Checkpoints once called it `still`, alone and as part of an agent."""

    def make(seed):
        torch.manual_seed(seed)
        model = MaskedAutoencoder(AutoencoderConfig(**SMALL, static_image_lr_scale=20.0))
        model.static_image.data.normal_()
        return nn.ModuleDict({"autoencoder": model, "other": nn.Linear(2, 2)}) if inside else model

    saved = make(seed=1).state_dict()
    old = {name.replace("static_image", "still"): value for name, value in saved.items()}
    assert ("autoencoder.still" if inside else "still") in old
    names = list(old)
    for state in (old, saved):
        other = make(seed=2)
        other.load_state_dict(state)
        assert other.state_dict().keys() == saved.keys()
        assert all(torch.equal(value, saved[n]) for n, value in other.state_dict().items())
    assert list(old) == names  # what was given stays as it was


def test_a_static_image_that_a_model_does_not_have_is_not_dropped_silently():
    with_one = MaskedAutoencoder(AutoencoderConfig(**SMALL, static_image_lr_scale=1.0)).state_dict()
    with_one["still"] = with_one.pop("static_image")
    with pytest.raises(RuntimeError, match="static_image"):
        MaskedAutoencoder(AutoencoderConfig(**SMALL)).load_state_dict(with_one)


# ----------------------------------------------------------------------------- paper's sizes


def test_paper_sizes():
    """Paper E.1: 64 features and the class token, 256 wide; the stem has D/8, D/4, D/2 channels."""
    model = MaskedAutoencoder(AutoencoderConfig())
    with torch.no_grad():
        features = model.encode(pictures(2))
        pixels, reward = model.decode(features)
    assert features.shape == (2, 65, 256)
    assert pixels.shape == (2, 64, 64, 3)
    assert reward.shape == (2,)
    convolutions = [layer for layer in model.stem.layers if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 256]
    assert [c.kernel_size for c in convolutions] == [(4, 4)] * 3 + [(1, 1)]
    assert (len(model.encoder.blocks), len(model.decoder.blocks)) == (4, 3)
    assert {block.heads for block in (*model.encoder.blocks, *model.decoder.blocks)} == {4}


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"image_size": 60}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": -0.1}, "mask_ratio"),
        ({"width": 12}, "width"),
        ({"heads": 3}, "heads"),
        ({"stem_channels": 0}, "stem_channels"),
    ],
)
def test_sizes_that_do_not_fit_are_the_users_error(sizes, word):
    with pytest.raises(UserError, match=word):
        MaskedAutoencoder(AutoencoderConfig(**SMALL | sizes))
