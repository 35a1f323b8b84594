"""The video model of masks: its target, its flow, its cameras, its errors."""

import dataclasses

import pytest
import torch
from torch import nn

from errors import UserError
from world_models.mask_dynamics import (
    MaskDynamics,
    MaskDynamicsConfig,
    interpolate,
    photometric_jitter,
)
from world_models.video_targets import make_video_target
from world_models.video_transformer import LTXVideoTransformer3DModel, TransformerConfig
from world_models.video_vae import LatentStatistics, VideoVAEConfig

B, V, H, FUTURE, SIZE, L, CAPTION = 2, 2, 3, 5, 16, 4, 6
G, K, C, D = 4, 3, 5, 24  # f_s = 8 and f_t = 2: a 2×2 grid, 3 latent frames of the future
N = (H + K) * G
VAE = VideoVAEConfig(C, widths=(8,), blocks=(0, 0), scaling=(True,))
TINY = MaskDynamicsConfig(
    vae=VAE,
    transformer=TransformerConfig(layers=3, heads=2, head_width=D // 2),
    future_frames=FUTURE,
)


def make(cameras=V, seed=0, **options):
    torch.manual_seed(seed)
    return MaskDynamics(dataclasses.replace(TINY, **options), cameras, CAPTION)


def make_batch(cameras=V, seed=1, pixels=False):
    generator = torch.Generator().manual_seed(seed)
    shape = (B, cameras, FUTURE, SIZE, SIZE)
    future = torch.randint(0, 256 if pixels else 8, shape + (3,) * pixels, generator=generator)
    image = torch.randint(0, 256, (B, cameras, H, SIZE, SIZE, 3), generator=generator)
    return {
        "image": image.to(torch.uint8),
        "future": future.to(torch.uint8),
        "future_valid": torch.ones(B, FUTURE, dtype=torch.bool),
        "text": torch.randn(B, L, CAPTION, generator=generator),
        "text_mask": torch.ones(B, L, dtype=torch.bool),
    }


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def seen(batch):
    return batch["image"], batch["text"], batch["text_mask"]


@torch.no_grad()
def encode(model, batch):
    """Latents of history (B, V, H·G, C) and future (B, V, K·G, C), not normalised."""
    history = model._history(batch["image"] / 127.5 - 1)
    return history, model._tokens(model._encode(model.target.encode(batch).flatten(0, 1))[0])


class Recorder(nn.Module):
    """In the transformer's place: notes what it is given and answers `answer` everywhere."""

    def __init__(self, answer=0.0):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, latents, positions, timestep, *others):
        self.calls.append((latents, timestep))
        return torch.full_like(latents, self.answer), []


# ------------------------------------------------------------------------------- the targets


def test_a_users_own_target_is_taken_and_half_a_one_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_video_target.py").write_text(
        "from world_models.video_targets import PixelVideoTarget\n"
        "class Dim(PixelVideoTarget):\n"
        "    def encode(self, batch):\n"
        "        return 0.5 * super().encode(batch)\n"
        "class Four(Dim):\n"
        "    channels = 4\n"
    )
    batch = make_batch(pixels=True)
    model = make(target="own_video_target:Dim")
    assert model.target.encode(batch).abs().max() <= 0.5
    assert model.loss(batch)[0].isfinite()
    for name, complaint in {
        "own_video_target:Four": "3 channels",
        "world_models.targets:PixelTarget": "lacks encode and decode",
        "pixels+masks": "lacks encode and decode",
        "mask": "unknown target 'mask'",
    }.items():
        with pytest.raises(UserError, match=complaint):
            make_video_target(name)


# ------------------------------------------------------------------------------- the latents


def test_the_model_counts_every_latent_once_while_it_trains_and_none_otherwise():
    model, batch = make(jitter=0.0), make_batch()
    model.eval().loss(batch)
    assert model.statistics.count == 0
    model.train().loss(batch)
    assert model.statistics.count == B * V * N
    latents = torch.cat(encode(model, batch), dim=2).flatten(0, 2)
    torch.testing.assert_close(model.statistics.mean, latents.mean(0))
    torch.testing.assert_close(model.statistics.variance, latents.var(0, correction=0))


def test_the_vae_redraws_samples_and_its_divergence_is_weighted():
    model = make(vae=dataclasses.replace(VAE, kl_weight=0.5), target="pixels").eval()
    batch = make_batch(pixels=True)
    loss, metrics = model.loss(batch, seeded())

    generator = seeded()

    def redraw(pictures):
        """What comes back, by the posterior's mean and standard deviation, and its divergence."""
        posterior = model.vae.encode(pictures.permute(0, 4, 1, 2, 3)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latent = posterior.mean + posterior.logvar.exp().sqrt() * noise
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Normal(posterior.mean, posterior.logvar.exp().sqrt()),
            torch.distributions.Normal(torch.zeros(()), torch.ones(())),
        )
        picture = model.vae.decode(latent).sample.permute(0, 2, 3, 4, 1)
        return (picture - pictures).abs().mean(), divergence.sum() / len(pictures)

    rgb, near = redraw(batch["image"][:, :, -1:].flatten(0, 1) / 127.5 - 1)
    target, far = redraw(batch["future"].flatten(0, 1) / 127.5 - 1)
    torch.testing.assert_close(metrics["vae/rgb"], rgb)
    torch.testing.assert_close(metrics["vae/target"], target)
    torch.testing.assert_close(metrics["vae/kl"], near + far)
    torch.testing.assert_close(loss, metrics["flow"] + rgb + target + 0.5 * (near + far))


# ---------------------------------------------------------------------------------- the flow


def test_interpolation_goes_straight_from_noise_to_data():
    noise = torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64)
    data = torch.tensor([[5.0], [5.0], [5.0]], dtype=torch.float64)
    time = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert interpolate(noise, data, time).flatten().tolist() == [1.0, 2.0, 5.0]


def test_the_flow_loss_is_the_distance_to_data_minus_noise():
    """By hand, from what the transformer was given: z_0 = (z_s − s·z_1)/(1 − s)."""
    model, batch = make().eval(), make_batch()
    model.statistics.update(torch.cat(encode(model, batch), dim=2))
    answer = 0.3
    model.transformer = Recorder(answer)
    _, metrics = model.loss(batch, seeded())
    [(latents, timestep)] = model.transformer.calls
    history, future = (model.statistics.normalise(z).double() for z in encode(model, batch))
    assert timestep.shape == (B, H + K)
    assert timestep.dtype == torch.float32
    torch.testing.assert_close(latents[:, :, : H * G].double(), history)  # clean, and says so
    assert (timestep[:, :H] == 0).all()
    s = (1 - timestep[:, -1].double() / 1000)[:, None, None, None]
    assert ((s > 0) & (s < 1)).all()
    assert (timestep[:, H:] == timestep[:, -1:]).all()
    noise = (latents[:, :, H * G :].double() - s * future) / (1 - s)
    assert abs(noise.mean()) < 0.2
    assert abs(noise.std() - 1) < 0.2
    velocity = -answer  # LTX's output points from data to noise
    expected = (velocity - (future - noise)).square().mean()
    torch.testing.assert_close(metrics["flow"].double(), expected, rtol=1e-4, atol=0)


def test_history_is_clean_in_training_and_outside_and_features_look_at_pure_noise():
    model, batch = make(jitter=0.0), make_batch()
    model.freeze_statistics()
    model.transformer = Recorder()
    history, _ = encode(model, batch)
    for call in (
        lambda: model.train().loss(batch, seeded()),
        lambda: model.eval().loss(batch, seeded()),
        lambda: model.eval().features(*seen(batch)),
    ):
        call()
        latents, timestep = model.transformer.calls[-1]
        assert (timestep[:, :H] == 0).all()
        torch.testing.assert_close(latents[:, :, : H * G], history)
    assert (timestep[:, H:] == 1000).all()  # features: the future is pure noise


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_that_share_of_the_windows_learns_from_pure_noise_and_none_outside_training(share):
    model, batch = make(pure_noise=share), make_batch()
    model.transformer = Recorder()

    def futures(calls):
        return torch.cat([timestep[:, -1] for _, timestep in calls])

    for seed in range(100):
        model.train().loss(batch, seeded(seed))
    times = futures(model.transformer.calls)
    pure = times == 1000
    # Half of 200 windows, drawn one by one, is 100 with a deviation of 7.
    assert abs(pure.float().mean() - share) <= (0.12 if 0 < share < 1 else 0)
    if share < 1:
        assert 300 < times[~pure].mean() < 700  # uniform
    for latents, timestep in model.transformer.calls:
        for row in (timestep[:, -1] == 1000).nonzero()[:, 0]:
            noise = latents[row, :, H * G :]
            assert abs(noise.mean()) < 0.4
            assert abs(noise.std() - 1) < 0.3
    model.transformer = Recorder()
    model.eval().loss(batch, seeded())
    assert (futures(model.transformer.calls) < 1000).all()


def test_the_loss_does_not_see_what_is_said_about_the_history_or_invalid_frames():
    model, batch = make().train(), make_batch()
    batch["future_valid"][0, 2:] = False  # of latent frames {0}, {1, 2}, {3, 4} the first is whole
    outputs = []

    def note(module, inputs, output):
        output[0].retain_grad()
        outputs.append(output[0])

    model.transformer.register_forward_hook(note)
    model.loss(batch, seeded())[0].backward()
    gradient = outputs[0].grad.unflatten(2, (H + K, G)).abs().sum((1, 3, 4))  # (B, T)
    assert (gradient > 0).tolist() == [[False] * H + [True, False, False], [False] * H + [True] * 3]


def test_the_flow_loss_sends_no_gradient_into_the_vae_and_every_weight_gets_one():
    model, batch = make().train(), make_batch()
    parameters = dict(model.named_parameters())
    total, metrics = model.loss(batch, seeded())
    gradients = dict(zip(parameters, torch.autograd.grad(total, parameters.values()), strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all((gradient != 0).any() for gradient in gradients.values())

    model.transformer = Recorder()  # without the flow's part, the VAE's gradient is the same
    model.statistics = LatentStatistics(C)
    total, _ = model.loss(batch, seeded())
    for name, parameter in model.vae.named_parameters():
        (alone,) = torch.autograd.grad(total, parameter, retain_graph=True)
        torch.testing.assert_close(alone, gradients["vae." + name])
    assert set(metrics) >= {"flow", "vae/rgb", "vae/target", "vae/kl", "vae/iou/mean"}


def test_a_frozen_vae_learns_nothing_and_the_loss_is_the_flows():
    model, batch = make().train(), make_batch()
    model.freeze_vae()
    loss, metrics = model.loss(batch, seeded())
    assert set(metrics) == {"flow"}
    assert loss == metrics["flow"]
    loss.backward()
    assert all(parameter.grad is None for parameter in model.vae.parameters())


def test_jitter_changes_all_pictures_of_a_window_alike_and_the_history_only():
    picture = torch.rand(2, 1, 1, 4, 4, 3, generator=seeded()).expand(2, V, H, 4, 4, 3) * 2 - 1
    assert torch.allclose(photometric_jitter(picture, 0.0), picture, atol=1e-6)
    changed = photometric_jitter(picture, 0.3, seeded())
    assert (changed - picture).abs().max() > 0.02
    assert changed.abs().max() <= 1
    torch.testing.assert_close(changed, changed[:, :1, :1].expand_as(changed))
    factors = changed.add(1).mean((1, 2, 3, 4, 5)) / picture.add(1).mean((1, 2, 3, 4, 5))
    assert factors[0] != factors[1]
    assert ((factors > 0.6) & (factors < 1.35)).all()  # clipping takes a little away

    model, batch = make(jitter=0.3).train(), make_batch()
    model.freeze_statistics()
    model.transformer = Recorder()
    model.loss(batch, seeded())
    history, future = encode(model, batch)
    latents, timestep = model.transformer.calls[-1]
    assert (latents[:, :, : H * G] - history).abs().max() > 1e-3
    model.config = dataclasses.replace(model.config, jitter=0.0)
    state = seeded()
    torch.rand(3, B, generator=state)  # the jitter's draws
    model.loss(batch, state)
    torch.testing.assert_close(
        model.transformer.calls[-1][0][:, :, H * G :], latents[:, :, H * G :]
    )


# ------------------------------------------------------------------------------ what it reads


def test_absent_caption_tokens_do_not_matter_and_present_ones_do():
    model, batch = make().eval(), make_batch()
    batch["text_mask"][:, -1] = False
    before = model.features(*seen(batch), generator=seeded())
    batch["text"][:, -1] += 10.0
    after = model.features(*seen(batch), generator=seeded())
    torch.testing.assert_close(before, after)
    batch["text"][:, 0] += 10.0
    after = model.features(*seen(batch), generator=seeded())
    assert (before[-1] - after[-1]).abs().max() > 1e-3


def test_positions_are_seconds_from_the_present_and_pixels():
    model = make(frame_rate=5.0)
    seconds, rows, columns = model._positions(H, K, (2, 2), torch.device("cpu"))
    first = seconds.view(-1, G)
    assert (first == first[:, :1]).all()
    frames = torch.tensor([-2, -1, 0, 1, 2, 4])  # of latent frames {1}, {2, 3}, {4, 5} the first
    torch.testing.assert_close(first[:, 0], frames / 5.0)
    assert rows[:G].tolist() == [0, 0, 8, 8]
    assert columns[:G].tolist() == [0, 8, 0, 8]


# ---------------------------------------------------------------------- features and pruning


def test_features_are_one_forward_and_one_tensor_a_block():
    model, batch = make().eval(), make_batch()
    calls = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    features = model.features(*seen(batch), generator=seeded())
    assert len(calls) == 1
    assert [feature.shape for feature in features] == [(B, V * N, D)] * model.layers
    assert model.width == D


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.5, 0.9])
def test_pruning_drops_the_floor_of_the_share_of_each_cameras_tokens(ratio):
    model, batch = make().eval(), make_batch()
    features = model.features(*seen(batch), pruning=ratio, generator=seeded())
    kept = N - int(ratio * N)
    assert all(feature.shape == (B, V * kept, D) for feature in features)
    again = model.features(*seen(batch), pruning=ratio, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    other = model.features(*seen(batch), pruning=ratio, generator=seeded(4))
    assert not torch.equal(features[0], other[0])


def test_pruning_nothing_is_not_pruning_bit_for_bit():
    model, batch = make().eval(), make_batch()
    whole = model.features(*seen(batch), generator=seeded())
    none = model.features(*seen(batch), pruning=0.0, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(whole, none, strict=True))


def test_weights_saved_and_loaded_give_the_same_features_and_prediction(tmp_path):
    model, batch = make(), make_batch()
    model.loss(batch, seeded())
    model.freeze_statistics()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = make(seed=9)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for one in (model, other):
        one.eval()
    first = model.features(*seen(batch), pruning=0.3, generator=seeded())
    second = other.features(*seen(batch), pruning=0.3, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    futures = [m.predict(*seen(batch), steps=2, generator=seeded()) for m in (model, other)]
    assert torch.equal(*futures)
    assert futures[0].shape == (B, V, FUTURE, SIZE, SIZE, 3)
    assert futures[0].abs().max() <= 1
    assert other.statistics.frozen


def test_prediction_follows_the_velocity_to_the_data():
    """Whatever the noise, a velocity of data − noise leads there: here to the mean latent."""
    model, batch = make().eval(), make_batch()
    model.statistics.update(torch.randn(100, C, generator=seeded()) + 3)
    noise = torch.randn(B, V, K * G, C, generator=seeded())

    class Towards(nn.Module):
        def forward(self, latents, *others):
            return torch.cat([latents[:, :, : H * G], noise], dim=2), []  # LTX: noise − 0

    model.transformer = Towards()
    predicted = model.predict(*seen(batch), steps=3, generator=seeded())
    mean = model.statistics.mean[:, None, None, None].expand(B * V, C, K, 2, 2)
    expected = model._decode(mean).unflatten(0, (B, V)).clamp(-1, 1)
    torch.testing.assert_close(predicted, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- precision, weights, errors


def test_bfloat16_stays_close_and_keeps_losses_and_statistics_in_float32():
    model, batch = make(jitter=0.0).train(), make_batch()
    loss, metrics = model.loss(batch, seeded())
    exact = model.statistics.mean.clone()
    model.statistics = LatentStatistics(C)
    timesteps = []
    model.transformer.register_forward_pre_hook(lambda module, inputs: timesteps.append(inputs[2]))
    with torch.autocast("cpu", torch.bfloat16):
        low, low_metrics = model.loss(batch, seeded())
    low.backward()
    assert low.dtype == model.statistics.mean.dtype == timesteps[0].dtype == torch.float32
    assert all(metric.dtype == torch.float32 for metric in low_metrics.values())
    for name in ("flow", "vae/rgb", "vae/target"):
        torch.testing.assert_close(low_metrics[name], metrics[name], rtol=0.03, atol=0)
    torch.testing.assert_close(model.statistics.mean, exact, rtol=0.05, atol=0.01)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_pretrained_model_starts_from_a_folder(tmp_path):
    torch.manual_seed(4)
    model = make(seed=4)
    LTXVideoTransformer3DModel.from_config(model.transformer.config).save_pretrained(
        tmp_path / "transformer"
    )
    model.vae.save_pretrained(tmp_path / "vae")
    options = {
        "vae": VideoVAEConfig(pretrained=str(tmp_path)),
        "transformer": TransformerConfig(pretrained=str(tmp_path)),
    }
    loaded = make(**options)
    saved = LTXVideoTransformer3DModel.from_pretrained(tmp_path / "transformer").state_dict()
    assert all(torch.equal(w, saved[n]) for n, w in loaded.transformer.state_dict().items())
    for name, weight in model.vae.state_dict().items():
        assert torch.equal(weight, loaded.vae.state_dict()[name])
    assert loaded.loss(make_batch())[0].isfinite()
    with pytest.raises(UserError, match="caption_channels = 6, not 7"):
        MaskDynamics(dataclasses.replace(TINY, **options), V, CAPTION + 1)


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_a_missing_folder_is_one_sentence(tmp_path, part):
    config = {"vae": VideoVAEConfig, "transformer": TransformerConfig}[part]
    with pytest.raises(UserError, match=f"no {part} can be loaded from") as error:
        make(**{part: config(pretrained=str(tmp_path / "nowhere"))})
    assert "\n" not in str(error.value)


def test_frames_and_pictures_that_do_not_fit_are_one_sentence():
    with pytest.raises(UserError, match="a multiple of 2 frames and 1 more.*it has 4"):
        make(future_frames=4)
    model, batch = make(), make_batch()
    with pytest.raises(UserError, match="it has 4"):
        model.loss(batch | {"future": batch["future"][:, :, :4]})
    with pytest.raises(UserError, match="multiples of 8 pixels.*16×12"):
        model.predict(batch["image"][..., :12, :], batch["text"], batch["text_mask"])
    with pytest.raises(UserError, match="made for 2 cameras, not 1"):
        model.features(batch["image"][:, :1], batch["text"], batch["text_mask"])
    with pytest.raises(UserError, match="pruning"):
        model.features(*seen(batch), pruning=1.0)
    with pytest.raises(UserError, match="steps"):
        model.predict(*seen(batch), steps=0)
    for make_config in (
        lambda: MaskDynamicsConfig(jitter=1.0),
        lambda: VideoVAEConfig(widths=(8, 8)),
        lambda: VideoVAEConfig(latent_channels=0),
        lambda: TransformerConfig(heads=3, head_width=3),
        lambda: TransformerConfig(layers=0),
    ):
        with pytest.raises(UserError):
            make_config()
