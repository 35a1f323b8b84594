"""The distribution of actions: density, entropy, samples and their gradients against scipy's."""

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from agents.actor_critic import TruncatedNormal

MEANS = [-0.999, -0.6, 0.0, 0.35, 0.999]
STDS = [0.1, 0.4, 1.0]


def both(mean, std):
    ours = TruncatedNormal(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64)
    )
    return ours, truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)


def by_finite_differences(function, mean, std, step=1e-5):
    by_mean = (function(mean + step, std) - function(mean - step, std)) / (2 * step)
    by_std = (function(mean, std + step) - function(mean, std - step)) / (2 * step)
    return [by_mean, by_std]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", STDS)
def test_truncated_normal_is_scipys(mean, std):
    ours, scipys = both(mean, std)
    uniform = np.linspace(0.001, 0.999, 41)
    samples = ours.sample(torch.tensor(uniform)).numpy()
    np.testing.assert_allclose(samples, scipys.ppf(uniform), atol=2e-6)
    density = ours.log_prob(torch.tensor(samples)[:, None]).numpy()
    np.testing.assert_allclose(density, scipys.logpdf(samples), rtol=1e-6, atol=1e-7)
    assert ours.entropy().item() == pytest.approx(float(scipys.entropy()), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("uniform", [1e-3, 0.37, 0.999])
def test_samples_move_with_mean_and_std_as_finite_differences_say(mean, std, uniform):
    parameters = torch.tensor([mean, std], dtype=torch.float64, requires_grad=True)
    sample = TruncatedNormal(*parameters).sample(torch.tensor(uniform, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(sample, parameters)
    expected = by_finite_differences(lambda *at: both(*at)[1].ppf(uniform), mean, std)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mean", [-1.0, *MEANS, 0.7, 1.0])
@pytest.mark.parametrize("std", [*STDS, 0.3])
def test_gradients_of_entropy_and_density_are_those_of_scipys(mean, std):
    parameters = torch.tensor([mean, std], dtype=torch.float64, requires_grad=True)
    distribution = TruncatedNormal(parameters[:1], parameters[1:])
    (gradient,) = torch.autograd.grad(distribution.entropy(), parameters, retain_graph=True)
    expected = by_finite_differences(lambda *at: float(both(*at)[1].entropy()), mean, std)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)
    for value in (-0.9999, 0.3, 0.9999):
        density = distribution.log_prob(torch.tensor([value], dtype=torch.float64))
        (gradient,) = torch.autograd.grad(density, parameters, retain_graph=True)
        expected = by_finite_differences(
            lambda mean, std, value=value: both(mean, std)[1].logpdf(value), mean, std
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)


def test_entropy_and_density_add_up_over_the_dimensions_of_an_action():
    mean, std = torch.tensor([[0.2, -0.5]]), torch.tensor([[0.3, 0.8]])
    whole = TruncatedNormal(mean, std)
    parts = [TruncatedNormal(mean[:, i : i + 1], std[:, i : i + 1]) for i in range(2)]
    value = torch.tensor([[0.1, 0.4]])
    torch.testing.assert_close(whole.entropy(), parts[0].entropy() + parts[1].entropy())
    torch.testing.assert_close(
        whole.log_prob(value), sum(p.log_prob(value[:, i : i + 1]) for i, p in enumerate(parts))
    )


@pytest.mark.parametrize("std", [1e-3, 1e-2, 0.1, 1.0])
def test_nothing_overflows_at_the_edges_of_the_action_space(std):
    """float32, as in training: means at ±1 and the extreme quantiles."""
    mean = torch.tensor([-1.0, -0.999, 0.0, 0.999, 1.0])[:, None].expand(-1, 3).clone()
    uniform = torch.tensor([0.0, 0.5, 1.0 - 2.0**-24]).expand(5, 3)
    mean.requires_grad_()
    spread = torch.full((5, 3), std, requires_grad=True)
    distribution = TruncatedNormal(mean, spread)
    sample = distribution.sample(uniform)
    assert (sample.abs() < 1).all()
    total = sample.sum() + distribution.entropy().sum()
    total = total + distribution.log_prob(sample.detach()).sum()
    gradients = torch.autograd.grad(total, (mean, spread))
    for tensor in (sample, distribution.entropy(), distribution.log_prob(sample), *gradients):
        assert torch.isfinite(tensor).all()


def test_mode_is_where_the_density_is_highest():
    for mean in (-0.9, 0.0, 0.35):
        ours, _ = both(mean, 0.4)
        grid = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
        assert ours.mode.item() == pytest.approx(grid[ours.log_prob(grid).argmax()].item())
