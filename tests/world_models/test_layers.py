"""Layers and the optimiser against their equations, written out again in float64."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from errors import UserError
from world_models.layers import (
    MLP,
    VIT_WAVELENGTHS,
    Optimizer,
    OptimizerConfig,
    RunningScale,
    TransformerBlock,
    VisionTransformer,
    initialise,
    sincos_positions,
    symexp,
    symlog,
    token_positions,
    without_gradients,
)


class Part(nn.Module):
    """One of everything an optimiser meets: weight, bias, norm and token."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, inputs):
        return self.norm(self.linear(inputs)) + self.mask_token[0]


def zero_loss(module):
    """A loss whose gradient is zero everywhere, so that only decay can move a parameter."""
    return sum((0.0 * parameter).sum() for parameter in module.parameters())


# ------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("wavelengths", [VIT_WAVELENGTHS, (2.0, 10.0)])
@pytest.mark.parametrize(("grid", "width"), [(8, 256), (8, 64), (4, 16)])
def test_every_token_has_a_position_of_its_own(grid, width, wavelengths):
    rows = token_positions(grid, width, before=1, after=1, wavelengths=wavelengths)
    assert rows.shape == (grid * grid + 2, width)
    distance = torch.cdist(rows.double(), rows.double())
    distance.fill_diagonal_(torch.inf)
    assert distance.min() > 0.1


def test_positions_are_row_major_between_the_special_tokens():
    square = token_positions(3, 8)
    assert torch.equal(token_positions(3, 8, before=1, after=1)[1:-1], square)
    assert torch.equal(square[5], sincos_positions(torch.tensor([[1, 2]]), 8)[0])


def test_position_is_half_row_half_column_each_sine_then_cosine():
    row, column = 3.0, 7.0
    frequencies = [1.0, 1.0 / 100.0]  # 10,000^(-i/2), i = 0, 1, for width 8
    expected = []
    for coordinate in (row, column):
        expected += [math.sin(coordinate * f) for f in frequencies]
        expected += [math.cos(coordinate * f) for f in frequencies]
    actual = sincos_positions(torch.tensor([[row, column]]), 8)[0]
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_wavelengths_are_a_geometric_series_in_tokens():
    """From 2 towards 18 in a width of 8: 2 and 6, after which a row repeats."""
    places = torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 6.0], [1.0, 1.0]])
    zero, two, six, one = sincos_positions(places, 8, (2.0, 18.0))
    torch.testing.assert_close(six, zero, atol=1e-5, rtol=0)
    torch.testing.assert_close(two[0::2], zero[0::2], atol=1e-5, rtol=0)  # the shorter of the two
    assert (two - zero).abs().max() > 0.5
    assert one[2].item() == pytest.approx(-1.0)  # half of a wavelength of 2


def test_width_without_room_for_both_axes_is_the_users_error():
    with pytest.raises(UserError, match="multiple of 4"):
        token_positions(2, 6)


# ------------------------------------------------------------------------------- functions


def test_symexp_undoes_symlog():
    x = torch.cat([-torch.logspace(6, -6, 50), torch.zeros(1), torch.logspace(-6, 6, 50)]).double()
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-9, atol=1e-12)


def test_symlog_is_odd_and_logarithmic():
    x = torch.tensor([0.0, 1.0, math.e - 1.0, -(math.e**3 - 1.0)], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(2.0), 1.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(symlog(x), expected)


# ----------------------------------------------------------------------------- transformer


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + (
        norm.bias
    )


def vit_block(block, tokens):
    """Worked out again, head by head, in the tokens' precision."""
    qkv = layer_norm(tokens, block.norm_attention) @ block.query_key_value.weight.T
    qkv = qkv + block.query_key_value.bias
    width = tokens.shape[-1]
    size, parts = width // block.heads, []
    for head in range(block.heads):
        query, key, value = (
            qkv[..., part * width + head * size :][..., :size] for part in range(3)
        )
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(size), dim=-1)
        parts.append(weights @ value)
    middle = tokens + torch.cat(parts, -1) @ block.project.weight.T + block.project.bias
    hidden = layer_norm(middle, block.norm_mlp) @ block.expand.weight.T + block.expand.bias
    hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
    return middle + hidden @ block.contract.weight.T + block.contract.bias


@pytest.mark.parametrize(
    ("learning", "half", "bounds"),
    [
        (False, False, {"rtol": 1e-4, "atol": 1e-5}),
        (True, False, {"rtol": 1e-4, "atol": 1e-4}),
        (False, True, {"rtol": 0.03, "atol": 0.1}),
        (True, True, {"rtol": 0.03, "atol": 0.4}),
    ],
)
def test_block_is_the_pre_norm_vit_block(learning, half, bounds):
    """Attention is computed in other ways with and without gradients, and in half precision."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 2)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokens, wanted = torch.randn(3, 5, 8, requires_grad=learning), torch.randn(3, 5, 8)
    results = []
    for model, inputs in ((block, tokens), (copy.deepcopy(block).double(), tokens.double())):
        compute = model if model is block else functools.partial(vit_block, model)
        rounded = torch.autocast("cpu", torch.bfloat16, half and model is block)
        with rounded, torch.set_grad_enabled(learning):
            output = compute(inputs)
        found = [output]
        if learning:
            loss = (output * wanted).sum()
            found += torch.autograd.grad(loss, [tokens, *model.parameters()])
        results.append([value.double() for value in found])
    torch.testing.assert_close(*results, **bounds)


def test_without_gradients_weights_get_none_and_inputs_get_theirs():
    torch.manual_seed(0)
    block, tokens = TransformerBlock(8, 2), torch.randn(2, 3, 8, requires_grad=True)
    plain = block(tokens)
    (wanted,) = torch.autograd.grad(plain.square().sum(), tokens)
    with without_gradients(block):
        output = block(tokens)
    torch.testing.assert_close(output, plain)
    output.square().sum().backward()  # what was computed inside stays so outside
    torch.testing.assert_close(tokens.grad, wanted)
    assert all(weight.grad is None for weight in block.parameters())
    block(tokens).square().sum().backward()  # and afterwards it learns again
    assert all(weight.grad is not None for weight in block.parameters())


def test_without_gradients_leaves_every_flag_as_it_was():
    block = TransformerBlock(8, 2)
    block.expand.requires_grad_(False)  # had none before, and has none after
    flags = {name: weight.requires_grad for name, weight in block.named_parameters()}
    assert set(flags.values()) == {True, False}

    def now():
        return {name: weight.requires_grad for name, weight in block.named_parameters()}

    with without_gradients(block):
        assert not any(now().values())
        with without_gradients(block.norm_mlp):  # of a part, within
            pass
        assert not any(now().values())
    assert now() == flags
    with pytest.raises(ZeroDivisionError), without_gradients(block):
        raise ZeroDivisionError
    assert now() == flags


def test_transformer_ends_in_a_norm_and_without_blocks_changes_nothing():
    tokens = 10.0 * torch.randn(2, 5, 8)
    output = VisionTransformer(8, 1, 2)(tokens)
    torch.testing.assert_close(output.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    assert torch.equal(VisionTransformer(8, 0, 2)(tokens), tokens)


# -------------------------------------------------------------------------- initialisation


def test_initial_weights_are_glorot_with_small_heads_zero_biases_and_small_tokens():
    torch.manual_seed(0)
    mlp, part = MLP(300, 200, 2, 50), Part()
    part.mask_token = nn.Parameter(torch.zeros(1, 1, 5000))
    for module in (mlp, part):
        initialise(module)
    for linear, scale in ((mlp[0], 1.0), (mlp[2], 1.0), (mlp.head, 0.1)):
        bound = scale * math.sqrt(6.0 / (linear.in_features + linear.out_features))
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)
        assert not linear.bias.any()
    assert part.mask_token.std().item() == pytest.approx(0.02, rel=0.05)


def test_heads_are_as_small_as_asked_for():
    scaled = []
    for scale in (0.1, 1.0):
        torch.manual_seed(0)
        mlp = MLP(30, 20, 2, 5)
        initialise(mlp, scale)
        scaled.append((mlp[0].weight, mlp.head.weight))
    torch.testing.assert_close(scaled[0], (scaled[1][0], 0.1 * scaled[1][1]))


# ------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("learning_rate", [1e-6, 1.0])
def test_decay_shrinks_weights_once_per_update_whatever_the_learning_rate(learning_rate):
    part = Part()
    before = part.linear.weight.detach().clone()
    optimizer = Optimizer(
        [part], OptimizerConfig(learning_rate=learning_rate, weight_decay=0.1, warmup=100)
    )
    for _ in range(3):
        optimizer.step(zero_loss(part))
    torch.testing.assert_close(part.linear.weight.detach(), 0.9**3 * before)


def test_biases_norms_and_tokens_never_decay():
    part = Part()
    before = {name: p.detach().clone() for name, p in part.named_parameters()}
    optimizer = Optimizer([part], OptimizerConfig(weight_decay=0.1))
    optimizer.step(zero_loss(part))
    changed = {n for n, p in part.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"linear.weight"}


def test_warm_up_raises_the_step_linearly_from_its_share_to_the_whole():
    """Adam moves by its learning rate when the gradient is constant."""
    part = nn.ParameterDict({"bias": torch.zeros(1)})
    config = OptimizerConfig(learning_rate=0.5, epsilon=0.0, weight_decay=0.0, warmup=4)
    optimizer, places = Optimizer([part], config), [0.0]
    for _ in range(6):
        optimizer.step(-part["bias"].sum())
        places.append(part["bias"].item())
    moves = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert moves == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5], rel=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    """Adam's first moment after one update is 0.1 of the gradient that it was given."""
    part = nn.ParameterDict({"first": torch.zeros(1, 1), "second": torch.zeros(1, 1)})
    optimizer = Optimizer([part], OptimizerConfig(clip=1.0))
    norm = optimizer.step(30.0 * part["first"].sum() + 40.0 * part["second"].sum())
    assert norm.item() == pytest.approx(50.0)  # reported before clipping
    moments = [optimizer.adam.state[p]["exp_avg"].item() for p in optimizer.parameters]
    assert moments == pytest.approx([0.06, 0.08], rel=1e-5)


def test_small_gradients_are_not_scaled_up_to_the_clip():
    part = nn.ParameterDict({"only": torch.zeros(1, 1)})
    optimizer = Optimizer([part], OptimizerConfig(clip=1.0))
    assert optimizer.step(0.3 * part["only"].sum()).item() == pytest.approx(0.3)
    moment = optimizer.adam.state[optimizer.parameters[0]]["exp_avg"].item()
    assert moment == pytest.approx(0.03, rel=1e-5)


@pytest.mark.parametrize("epsilon_hat", [False, True])
def test_updates_are_adam_with_clip_decay_and_warm_up(epsilon_hat):
    torch.manual_seed(0)
    part = Part()
    config = OptimizerConfig(
        learning_rate=1e-2, epsilon=1e-2, clip=0.5, weight_decay=1e-3, warmup=5,
        epsilon_hat=epsilon_hat,
    )  # fmt: skip
    optimizer = Optimizer([part], config)
    reference = Part().double()
    reference.load_state_dict(part.state_dict())
    first = {n: torch.zeros_like(p) for n, p in reference.named_parameters()}
    second = {n: torch.zeros_like(p) for n, p in reference.named_parameters()}
    clipped = []
    for update in range(1, 9):
        inputs, target = torch.randn(6, 3), torch.randn(6, 4)
        optimizer.step((part(inputs) - target).square().mean())

        loss = (reference(inputs.double()) - target.double()).square().mean()
        names = [name for name, _ in reference.named_parameters()]
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        clipped.append(norm > config.clip)
        rate = config.learning_rate * min(1.0, update / config.warmup)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                gradient = gradient * min(1.0, config.clip / norm)
                parameter = reference.get_parameter(name)
                if name == "linear.weight":
                    parameter.mul_(1.0 - config.weight_decay)
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                if epsilon_hat:  # as TensorFlow writes it
                    rate_t = rate * math.sqrt(1.0 - 0.999**update) / (1.0 - 0.9**update)
                    step = rate_t * first[name] / (second[name].sqrt() + config.epsilon)
                else:
                    mean = first[name] / (1.0 - 0.9**update)
                    size = (second[name] / (1.0 - 0.999**update)).sqrt()
                    step = rate * mean / (size + config.epsilon)
                parameter.sub_(step)
    assert any(clipped)
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(
            parameter.double(), reference.get_parameter(name), rtol=1e-4, atol=1e-6
        )


def test_epsilon_before_the_correction_makes_first_steps_of_small_gradients_smaller():
    """Of a gradient as small as epsilon: a half of the learning rate, or 1 / (1 + √1000)."""
    steps = {}
    for epsilon_hat in (False, True):
        part = nn.Linear(1, 1, bias=False)
        config = OptimizerConfig(1e-3, epsilon=1e-3, weight_decay=0.0, epsilon_hat=epsilon_hat)
        before = part.weight.item()
        Optimizer([part], config).step(1e-3 * part.weight.sum())
        steps[epsilon_hat] = (before - part.weight.item()) / 1e-3
    assert steps[False] == pytest.approx(1 / 2, rel=1e-3)
    assert steps[True] == pytest.approx(1 / (1 + math.sqrt(1000)), rel=1e-3)


def test_gradients_of_parts_add_up_to_one_update_and_unreached_weights_get_none():
    """Two halves accumulated step as the whole does; a second update begins from nothing."""
    torch.manual_seed(0)
    whole, parts = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]), None
    parts = copy.deepcopy(whole)
    batch = torch.randn(8, 3)
    config = OptimizerConfig(0.1, clip=1e9, weight_decay=0.0)
    one, other = Optimizer([whole], config), Optimizer([parts], config)
    untouched = parts[1].weight.clone()
    for _ in range(2):
        other.accumulate(parts[0](batch[:4]).square().mean() / 2)
        other.accumulate(parts[0](batch[4:]).square().mean() / 2)
        norm = other.apply()
        loss = whole[0](batch).square().mean() + 0.0 * whole[1](batch).sum()
        torch.testing.assert_close(norm, one.step(loss))
        torch.testing.assert_close(parts[0].weight, whole[0].weight)
    assert torch.equal(parts[1].weight, untouched)


def test_restored_optimiser_goes_on_as_if_never_stopped():
    torch.manual_seed(0)
    config = OptimizerConfig(learning_rate=1e-2, warmup=10)
    part, restored = Part(), Part()
    optimizer, restored_optimizer = Optimizer([part], config), Optimizer([restored], config)
    inputs = torch.randn(6, 3)
    for _ in range(3):
        optimizer.step(part(inputs).square().sum())
    restored.load_state_dict(part.state_dict())
    restored_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, its in ((part, optimizer), (restored, restored_optimizer)):
        its.step(module(inputs).square().sum())
    for left, right in zip(part.parameters(), restored.parameters(), strict=True):
        assert torch.equal(left, right)


def test_learning_rate_rises_falls_and_stays():
    config = OptimizerConfig(learning_rate=1.0, warmup=4, anneal=10, final=0.2)
    shares = [config.share(update) for update in (1, 2, 4, 9, 14, 15, 1000)]
    assert shares == pytest.approx([0.25, 0.5, 1.0, 0.6, 0.2, 0.2, 0.2])
    assert OptimizerConfig().share(1) == OptimizerConfig().share(10_000) == 1.0
    parameter = torch.nn.Linear(1, 1)
    optimizer = Optimizer([parameter], config)
    for _ in range(9):
        optimizer.step(parameter(torch.ones(1, 1)).sum())
    assert optimizer.adam.param_groups[0]["lr"] == pytest.approx(0.6)


# ------------------------------------------------------------------------------ running scale


def test_running_scale_averages_its_first_batches_and_then_moves_by_a_hundredth():
    scale = RunningScale(5, 2)
    batches = [
        torch.randn(4, 3, 5, 2, generator=torch.manual_seed(seed)) + seed for seed in range(103)
    ]
    mean = variance = 0.0
    for number, batch in enumerate(batches, start=1):
        scale.update(batch)
        rate, values = max(1.0 / number, 0.01), batch.double().numpy()
        mean = mean + rate * (values.mean((0, 1)) - mean)
        variance = variance + rate * (((values - mean) ** 2).mean() - variance)
        if number in (1, 2, 100, 103):
            np.testing.assert_allclose(scale.mean, mean, rtol=1e-4)
            np.testing.assert_allclose(scale.variance, variance, rtol=1e-4)
    assert rate == 0.01


def test_scaled_values_have_deviation_one_and_come_back_as_they_were():
    scale = RunningScale(5, 2)
    values = 3.0 + 0.2 * torch.randn(4, 3, 5, 2)
    scale.update(values)
    standardised = scale.standardise(values)
    assert standardised.square().mean().item() == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(scale.denormalise(standardised), values)
