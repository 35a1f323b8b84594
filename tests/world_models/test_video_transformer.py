"""The transformer of several cameras: the library's for one, and who sees whom."""

import torch

from world_models.video_transformer import (
    LTXVideoTransformer3DModel,
    TransformerConfig,
    make_transformer,
)

B, V, H, K, G, L, CAPTION = 2, 2, 3, 3, 4, 4, 6
C, D, N = 5, 24, (H + K) * G


def make():
    torch.manual_seed(0)
    config = TransformerConfig(layers=3, heads=2, head_width=D // 2)
    return make_transformer(config, C, CAPTION)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def transformer_inputs(views, seed=5):
    generator = seeded(seed)
    return {
        "latents": torch.randn(B, views, N, C, generator=generator),
        "positions": 8 * torch.rand(3, N, generator=generator),
        "timestep": 1000 * torch.rand(B, H + K, generator=generator),
        "view": torch.zeros(views, D),
        "text": torch.randn(B, L, CAPTION, generator=generator),
        "text_mask": torch.tensor([[True] * L, [True, True] + [False] * (L - 2)]),
        "cross_view_every": 3,
    }


def test_with_one_camera_the_transformer_is_the_librarys():
    model, inputs = make(), transformer_inputs(1)
    output, features = model(**inputs)
    expected = LTXVideoTransformer3DModel.forward(
        model,
        hidden_states=inputs["latents"][:, 0],
        encoder_hidden_states=inputs["text"],
        timestep=inputs["timestep"].repeat_interleave(G, dim=1),
        encoder_attention_mask=inputs["text_mask"],
        video_coords=inputs["positions"].expand(B, 3, N),
        return_dict=False,
    )[0]
    torch.testing.assert_close(output[:, 0], expected)
    assert [feature.shape for feature in features] == [(B, N, D)] * 3


def test_cameras_see_each_other_in_the_cross_view_blocks_alone():
    model, inputs = make(), transformer_inputs(V)
    other = inputs["latents"].clone()
    other[:, 1] += 1.0
    for every, sees in ((0, False), (3, True), (4, False)):  # of three blocks
        inputs["cross_view_every"] = every
        first, features = model(**inputs)
        second, changed = model(**inputs | {"latents": other})
        assert bool((first[:, 0] != second[:, 0]).any()) is sees
        assert (first[:, 1] != second[:, 1]).any()
        for index, (before, after) in enumerate(zip(features, changed, strict=True)):
            alike = torch.equal(before[:, :N], after[:, :N])
            assert alike is not (sees and index == 2)
    window = inputs["latents"][:1], inputs["timestep"][:1]
    alone, _ = model(
        **inputs
        | {"text": inputs["text"][:1], "text_mask": inputs["text_mask"][:1]}
        | {"latents": window[0], "timestep": window[1], "cross_view_every": 3}
    )
    inputs["cross_view_every"] = 3
    torch.testing.assert_close(model(**inputs)[0][:1], alone)  # windows never see each other


def test_a_camera_is_known_by_its_view_token():
    model, inputs = make(), transformer_inputs(V)
    inputs["latents"] = inputs["latents"][:, :1].expand(-1, V, -1, -1)
    output, _ = model(**inputs)
    torch.testing.assert_close(output[:, 0], output[:, 1])
    inputs["view"] = torch.randn(V, D, generator=seeded())
    output, _ = model(**inputs)
    assert (output[:, 0] - output[:, 1]).abs().max() > 1e-3


def test_kept_tokens_keep_position_and_time():
    """Attention does not care for order: every token kept, but turned around, is the same set."""
    model, inputs = make(), transformer_inputs(V)
    output, features = model(**inputs)
    backwards = torch.arange(N - 1, -1, -1).expand(B, V, N)
    turned, turned_features = model(**inputs, keep=backwards)
    torch.testing.assert_close(turned.flip(2), output)
    last = turned_features[-1].unflatten(1, (V, N)).flip(2).flatten(1, 2)
    torch.testing.assert_close(last, features[-1])
