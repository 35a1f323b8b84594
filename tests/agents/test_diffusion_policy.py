"""The action head: flow matching by hand, and LTX-Video's block."""

import copy

import pytest
import torch
import torch.nn.functional as F

from agents.diffusion_policy import (
    ActionBlock,
    DiffusionPolicy,
    DiffusionPolicyConfig,
    euler,
    rotary_positions,
    rotate,
)
from errors import UserError
from world_models.imports import hide_broken_torchvision

B, H, A, P, N, C, LAYERS = 3, 6, 2, 4, 5, 24, 2
SMALL = {"width": 32, "heads": 4, "chunk": H, "n_action_steps": 3}


def make(seed=0, proprio=P, **options):
    torch.manual_seed(seed)
    config = DiffusionPolicyConfig(**SMALL | options)
    policy = DiffusionPolicy(config, LAYERS, C, A, proprio)
    with torch.no_grad():  # the last layer starts at 0, where every mistake is hidden
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return policy


def inputs(batch=B, seed=1):
    generator = torch.Generator().manual_seed(seed)
    actions = 2.0 * torch.rand(batch, H, A, generator=generator) - 1.0
    proprio = torch.randn(batch, P, generator=generator)
    context = [torch.randn(batch, N, C, generator=generator) for _ in range(LAYERS)]
    return actions, proprio, context


def seeded(seed=2):
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------- flow matching


def test_loss_is_the_squared_distance_to_the_straight_line_from_noise_to_actions():
    policy, (actions, proprio, context) = make(), inputs()
    valid = torch.ones(B, H, dtype=torch.bool)
    valid[0, 4:] = valid[2, 1:] = False
    loss, metrics = policy.loss(actions, valid, proprio, context, seeded())

    generator = seeded()
    noise = torch.randn(actions.shape, generator=generator).double()
    s = torch.rand(B, generator=generator).double()
    clean = torch.where(valid[:, :, None], actions, 0.0).double()
    noisy = torch.stack([(1 - s[b]) * noise[b] + s[b] * clean[b] for b in range(B)])
    predicted = policy.velocity(noisy.float(), s.float(), proprio, policy.read(context)).double()
    squares, distances = [], []
    for b in range(B):
        for t in range(H):
            if valid[b, t]:
                wanted = actions[b, t].double() - noise[b, t]
                squares.append((predicted[b, t] - wanted).square().mean())
                reached = noisy[b, t] + (1 - s[b]) * predicted[b, t]
                distances.append((reached - actions[b, t]).abs().mean())
    torch.testing.assert_close(loss.double(), torch.stack(squares).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(metrics["action_flow"], loss.detach())
    expected = torch.stack(distances).mean()
    torch.testing.assert_close(metrics["action_error"].double(), expected, rtol=1e-5, atol=0)


def test_padded_actions_have_no_gradient_and_no_effect():
    policy, (actions, proprio, context) = make(), inputs()
    valid = torch.ones(B, H, dtype=torch.bool)
    valid[1, 2:] = False
    actions.requires_grad_()
    loss, _ = policy.loss(actions, valid, proprio, context, seeded())
    (gradient,) = torch.autograd.grad(loss, actions)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).all()
    other = torch.where(valid[:, :, None], actions.detach(), torch.nan)
    assert policy.loss(other, valid, proprio, context, seeded())[0] == loss


def test_a_batch_of_padding_alone_has_loss_zero():
    policy, (actions, proprio, context) = make(), inputs()
    loss, _ = policy.loss(actions, torch.zeros(B, H, dtype=torch.bool), proprio, context)
    assert loss == 0


def test_everything_learns_the_backbone_too():
    policy, (actions, proprio, context) = make(), inputs()
    for features in context:
        features.requires_grad_()
    loss, _ = policy.loss(actions, torch.ones(B, H, dtype=torch.bool), proprio, context)
    learned = [*policy.parameters(), *context]
    for gradient in torch.autograd.grad(loss, learned):  # raises where one takes no part
        assert gradient.abs().sum() > 0


def test_proprioception_is_clean_while_actions_are_at_s():
    policy, (actions, proprio, context) = make(), inputs()
    s = torch.tensor([0.0, 0.25, 1.0])
    assert policy.timesteps(s).tolist() == [[0.0, 1000.0], [0.0, 750.0], [0.0, 0.0]]
    seen = []
    for block in policy.blocks:
        block.register_forward_pre_hook(lambda block, args: seen.append(args[2]))
    policy.velocity(actions, s, proprio, policy.read(context))
    for time in seen:  # (B, 1 + H, 6, D)
        assert torch.equal(time[0, 0], time[1, 0])
        assert (time[:, 1:] == time[:, 1:2]).all()  # one vector for all actions
        torch.testing.assert_close(time[2, 1], time[2, 0])  # at s = 1 actions are clean too
        assert not torch.allclose(time[1, 1], time[1, 0], atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_euler_along_the_exact_field_of_one_point_ends_there(steps):
    point, noise = torch.randn(2, B, H, A, generator=seeded())
    times = []

    def field(sample, s):
        times.append(s)
        return (point - sample) / (1.0 - s[:, None, None])

    torch.testing.assert_close(euler(field, noise, steps), point)
    expected = [torch.full((B,), step / steps) for step in range(steps)]
    torch.testing.assert_close(times, expected)


def test_sample_follows_the_velocity_from_noise():
    policy, (_, proprio, context) = make(), inputs()
    chunk, steps = torch.randn(B, H, A, generator=seeded()), policy.config.num_inference_steps
    with torch.no_grad():
        read = policy.read(context)
        for step in range(steps):
            s = torch.full((B,), step / steps)
            chunk = chunk + policy.velocity(chunk, s, proprio, read) / steps
    torch.testing.assert_close(policy.sample(proprio, context, seeded()), chunk)


def test_an_untrained_head_stands_still():
    _, proprio, context = inputs()
    policy = DiffusionPolicy(DiffusionPolicyConfig(**SMALL), LAYERS, C, A, P)
    noise = torch.randn(B, H, A, generator=seeded())
    assert torch.equal(policy.sample(proprio, context, seeded()), noise)


def test_eight_chunks_are_learned_by_heart():
    torch.manual_seed(0)
    config = DiffusionPolicyConfig(width=64, heads=4, chunk=H, n_action_steps=3)
    policy = DiffusionPolicy(config, LAYERS, C, A, P)
    actions, proprio, context = inputs(batch=8)
    # Several noises of each in a batch.
    many = actions.repeat(8, 1, 1), torch.ones(64, H, dtype=torch.bool), proprio.repeat(8, 1)
    many = *many, [features.repeat(8, 1, 1) for features in context]
    generator, updates = seeded(), 200
    adam = torch.optim.Adam(policy.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda update: min(1.0, (update + 1) / 20) * (1.0 - update / updates)
    )
    for _ in range(updates):
        adam.zero_grad()
        policy.loss(*many, generator)[0].backward()
        adam.step()
        schedule.step()
    for _ in range(3):
        error = (policy.sample(proprio, context, generator) - actions).abs()
        assert error.mean() < 0.05
        assert error.mean((1, 2)).max() < 0.1  # of the worst chunk; another's actions: 0.7
    # It knows them from their context, not from their number.
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    chunk = policy.sample(proprio[order], [features[order] for features in context], generator)
    assert (chunk - actions[order]).abs().mean() < 0.05


# ------------------------------------------------------------------------------ reproducible


def test_same_seed_same_chunk():
    policy, (_, proprio, context) = make(), inputs()
    chunk = policy.sample(proprio, context, seeded())
    assert chunk.shape == (B, H, A)
    assert chunk.dtype == torch.float32
    assert not chunk.requires_grad
    assert torch.equal(chunk, policy.sample(proprio, context, seeded()))
    assert not torch.equal(chunk, policy.sample(proprio, context, seeded(3)))
    assert not torch.equal(chunk, policy.sample(proprio, context, seeded(), steps=4))


def test_saved_and_loaded_same_chunk(tmp_path):
    policy, (_, proprio, context) = make(), inputs()
    torch.save(policy.state_dict(), tmp_path / "policy.pt")
    other = make(seed=5)
    other.load_state_dict(torch.load(tmp_path / "policy.pt", weights_only=True))
    chunks = [p.sample(proprio, context, seeded()) for p in (policy, other, copy.deepcopy(policy))]
    assert torch.equal(chunks[0], chunks[1])
    assert torch.equal(chunks[0], chunks[2])


def test_bfloat16_is_close_to_float32():
    policy, (actions, proprio, context) = make(), inputs()
    valid = torch.ones(B, H, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = policy.loss(actions, valid, proprio, context, seeded())
        chunk = policy.sample(proprio, context, seeded())
    full, _ = policy.loss(actions, valid, proprio, context, seeded())
    assert half.dtype == chunk.dtype == torch.float32
    assert abs(half - full) < 0.02 * full
    difference = chunk - policy.sample(proprio, context, seeded())
    assert difference.abs().mean() < 0.02 * chunk.abs().mean()


# ------------------------------------------------------------------------------- the network


def diffusers_block(*sizes):
    """LTX-Video's block of the library, imported as the world model does."""
    hide_broken_torchvision()
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock

    return LTXVideoTransformerBlock(*sizes)


def test_a_block_is_ltx_videos():
    torch.manual_seed(0)
    width, heads, tokens = 32, 4, 1 + H
    theirs = diffusers_block(width, heads, width // heads, C)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours, names = ActionBlock(width, heads, C), {}
    for attn, attention in (("attn1", "self_attention"), ("attn2", "cross_attention")):
        names |= {f"{attn}.norm_{x[0]}": f"{attention}.norm_{x}" for x in ("query", "key")}
        names |= {f"{attn}.to_{x[0]}": f"{attention}.{x}" for x in ("query", "key", "value")}
        names[f"{attn}.to_out.0"] = f"{attention}.project"
    names |= {"ff.net.0.proj": "expand", "ff.net.2": "contract"}
    weights = {}
    for name, value in theirs.state_dict().items():
        module, _, kind = name.rpartition(".")
        weights["modulation" if not module else f"{names[module]}.{kind}"] = value
    ours.load_state_dict(weights)

    sequence, context = torch.randn(B, tokens, width), torch.randn(B, N, C)
    time, angles = torch.randn(B, tokens, 6, width), rotary_positions(tokens, width // heads)
    each = angles.repeat_interleave(2, dim=-1).repeat(1, heads)[None]  # (1, tokens, width)
    expected = theirs(sequence, context, time.flatten(2), image_rotary_emb=(each.cos(), each.sin()))
    actual = ours(sequence, ours.cross_attention.keys_values(context), time, angles)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_rotary_positions_are_relative():
    query, key = torch.randn(2, 1, 1, 1, 16, generator=seeded()).expand(2, 1, 1, 9, 16)
    angles = rotary_positions(9, 16)
    scores = (rotate(query, angles) @ rotate(key, angles).mT)[0, 0]  # (9, 9)
    torch.testing.assert_close(scores[:-1, :-1], scores[1:, 1:], rtol=1e-4, atol=1e-5)
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-3
    torch.testing.assert_close(rotate(query, angles).norm(dim=-1), query.norm(dim=-1))


def test_each_block_reads_its_own_layer_as_a_set_of_tokens():
    policy, (_, proprio, context) = make(), inputs()
    chunk = policy.sample(proprio, context, seeded())
    for layer in range(LAYERS):
        changed = list(context)
        changed[layer] = torch.randn_like(context[layer])
        assert not torch.allclose(policy.sample(proprio, changed, seeded()), chunk, atol=1e-3)
    swapped = policy.sample(proprio, context[::-1], seeded())
    assert not torch.allclose(swapped, chunk, atol=1e-3)
    turned = policy.sample(proprio, [features.flip(1) for features in context], seeded())
    torch.testing.assert_close(turned, chunk, rtol=1e-4, atol=1e-4)


def test_how_large_the_backbones_features_are_does_not_matter():
    policy, (_, _, context) = make(), inputs()
    read, larger = policy.read(context), policy.read([100.0 * features for features in context])
    torch.testing.assert_close(larger, read)


def test_an_action_is_told_its_place_beside_rotary_distances():
    policy, (_, proprio, context) = make(), inputs()
    policy.angles.zero_()  # of the rotary positions nothing is left
    alike = torch.ones(B, H, A)
    velocity = policy.velocity(alike, torch.zeros(B), proprio, policy.read(context))
    assert (torch.cdist(velocity, velocity) + torch.eye(H) > 1e-3).all()


def test_the_context_is_projected_once_whatever_the_steps():
    policy, (_, proprio, context) = make(), inputs()
    calls = []
    for block in policy.blocks:
        block.cross_attention.value.register_forward_hook(lambda *_: calls.append(1))
    policy.sample(proprio, context, steps=7)
    assert len(calls) == LAYERS


def test_samples_of_a_batch_do_not_mix():
    policy, (actions, proprio, context) = make(), inputs()
    s = torch.tensor([0.1, 0.5, 0.9])
    together = policy.velocity(actions, s, proprio, policy.read(context))
    for b in range(B):
        one = slice(b, b + 1)
        read = policy.read([features[one] for features in context])
        alone = policy.velocity(actions[one], s[one], proprio[one], read)
        torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_proprioception_is_read_and_may_be_missing():
    policy, (_, proprio, context) = make(), inputs()
    chunk = policy.sample(proprio, context, seeded())
    assert not torch.allclose(policy.sample(proprio + 1.0, context, seeded()), chunk, atol=1e-3)
    blind = make(proprio=0)
    assert blind.sample(torch.zeros(B, 0), context, seeded()).shape == (B, H, A)


def test_the_defaults_are_the_papers():
    config = DiffusionPolicyConfig()
    assert (config.width, config.heads, config.chunk, config.num_inference_steps) == (
        512,
        16,
        36,
        10,
    )


def test_what_does_not_fit_is_refused_in_one_sentence():
    policy, (actions, proprio, context) = make(), inputs()
    valid = torch.ones(B, H, dtype=torch.bool)
    with pytest.raises(UserError, match="2 blocks, the context 3 layers"):
        policy.sample(proprio, [*context, context[0]])
    with pytest.raises(UserError, match=r"context \(B, N, 24\), not \(3, 5, 25\)"):
        policy.loss(actions, valid, proprio, [F.pad(features, (0, 1)) for features in context])
    with pytest.raises(UserError, match="chunks of 6 actions of size 2"):
        policy.loss(actions[:, :-1], valid[:, :-1], proprio, context)
    for wrong in ({"width": 34}, {"heads": 0}, {"chunk": 2}, {"num_inference_steps": 0}):
        with pytest.raises(UserError):
            DiffusionPolicyConfig(**SMALL | wrong)
