"""The recurrent state-space model against its equations, written out step by step in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.gradients import numerical_gradient
from tests.world_models import rssm_reference as reference
from world_models.rssm import RSSM, RSSMConfig, State, balanced_kl, categorical_kl

T, B, E, A, R, S, K = 6, 3, 5, 2, 7, 4, reference.K
SMALL = {"deterministic": R, "hidden": 9, "variables": S, "classes": K}


def make(seed=0, **options):
    torch.manual_seed(seed)
    rssm = RSSM(RSSMConfig(**SMALL, **options), E, A)
    with torch.no_grad():  # biases and norms away from their neutral values
        for parameter in rssm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return rssm


def sequences(seed=1):
    torch.manual_seed(seed)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0] = True
    is_first[3, 1] = True
    return torch.randn(T, B, E), torch.rand(T, B, A) * 2 - 1, is_first


@pytest.mark.parametrize("gate_bias", [False, True])
def test_observing_follows_the_equations_step_by_step(gate_bias):
    rssm = make(gate_bias=gate_bias)
    assert (rssm.cell.gates.bias is not None) == gate_bias
    embedding, action, is_first = sequences()
    torch.manual_seed(7)
    posterior, prior = rssm.observe(embedding, action, is_first)
    torch.manual_seed(7)
    noise = rssm.exponential_noise(T, B, device=torch.device("cpu")).double().numpy()

    w = reference.weights(rssm)
    deterministic, stochastic = np.zeros((B, R)), np.zeros((B, S * K))
    for t in range(T):
        first = is_first[t].numpy()
        led_here = action[t].double().numpy()
        deterministic[first], stochastic[first], led_here[first] = 0.0, 0.0, 0.0
        deterministic = reference.recur(w, stochastic, led_here, deterministic)
        logits = reference.posterior(w, deterministic, embedding[t].double().numpy())
        stochastic = reference.one_hot(logits, noise[t])
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(posterior.deterministic[t].detach(), deterministic, **close)
        np.testing.assert_allclose(posterior.logits[t].detach(), logits, **close)
        np.testing.assert_allclose(posterior.stochastic[t].detach(), stochastic, atol=1e-6)
        np.testing.assert_allclose(prior[t].detach(), reference.prior(w, deterministic), **close)


@pytest.mark.parametrize("zero_first_action", [False, True])
def test_first_action_of_a_window_counts_unless_it_is_to_be_zero(zero_first_action):
    """Only where a window begins: a later step, and a step that goes on from a state, keep it."""
    rssm = make(zero_first_action=zero_first_action)
    embedding, action, is_first = sequences()
    is_first[:] = False
    noise = rssm.exponential_noise(T, B, device=torch.device("cpu"))

    def observed(actions, start=None):
        return rssm.observe(embedding, actions, is_first, start, noise)[0].deterministic

    first, second = action.clone(), action.clone()
    first[0], second[1] = 0.0, 0.0
    assert torch.equal(observed(action), observed(first)) == zero_first_action
    assert torch.equal(observed(action)[0], observed(second)[0])
    assert not torch.equal(observed(action), observed(second))
    goes_on = rssm.initial(B, torch.device("cpu"))
    assert not torch.equal(observed(action, goes_on), observed(first, goes_on))
    assert not is_first.any()  # the batch is left as it was


def test_imagining_follows_the_equations_with_the_prior():
    rssm = make()
    torch.manual_seed(2)
    stochastic = torch.eye(K)[torch.randint(K, (B, S))].flatten(1)
    start = State(torch.randn(B, R).tanh(), stochastic, torch.zeros(B, S, K))
    action, noise = torch.randn(B, A), rssm.exponential_noise(B, device=torch.device("cpu"))
    after = rssm.imagine(start, action, noise)

    w = reference.weights(rssm)
    deterministic = reference.recur(
        w, *(x.double().numpy() for x in (stochastic, action, start.deterministic))
    )
    logits = reference.prior(w, deterministic)
    np.testing.assert_allclose(after.deterministic.detach(), deterministic, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.logits.detach(), logits, rtol=1e-4, atol=1e-4)
    expected = reference.one_hot(logits, noise.double().numpy())
    np.testing.assert_allclose(after.stochastic.detach(), expected, atol=1e-6)


def test_feature_is_the_deterministic_then_the_stochastic_state():
    rssm = make()
    posterior, _ = rssm.observe(*sequences())
    assert posterior.feature.shape == (T, B, rssm.feature_size) == (T, B, R + S * K)
    assert torch.equal(posterior.feature[..., :R], posterior.deterministic)


# -------------------------------------------------------------------------------- is_first


def test_nothing_before_is_first_reaches_what_comes_after():
    """Neither the past observations, nor the past states, nor the action that led across."""
    rssm = make()
    embedding, action, is_first = sequences()
    is_first[3] = True
    torch.manual_seed(3)
    one, one_prior = rssm.observe(embedding, action, is_first)
    embedding[:3], action[:4] = 5.0, 0.9
    torch.manual_seed(3)
    other, other_prior = rssm.observe(embedding, action, is_first)
    assert not torch.equal(one.deterministic[:3], other.deterministic[:3])
    for left, right in zip((*one, one_prior), (*other, other_prior), strict=True):
        assert torch.equal(left[3:], right[3:])


def test_is_first_makes_any_start_the_zero_state():
    rssm = make()
    embedding, action, is_first = sequences()
    torch.manual_seed(3)
    fresh, _ = rssm.observe(embedding, torch.cat([torch.zeros_like(action[:1]), action[1:]]),
                            torch.cat([torch.zeros_like(is_first[:1]), is_first[1:]]))  # fmt: skip
    used = State(torch.randn(B, R), torch.rand(B, S * K), torch.zeros(B, S, K))
    torch.manual_seed(3)
    reset, _ = rssm.observe(embedding, action, is_first, used)
    for left, right in zip(fresh, reset, strict=True):
        assert torch.equal(left, right)


def test_resetting_one_sequence_leaves_its_neighbours_alone():
    rssm = make()
    embedding, action, is_first = sequences()
    torch.manual_seed(3)
    one, _ = rssm.observe(embedding, action, is_first)
    is_first = is_first.clone()
    is_first[4, 1] = True
    torch.manual_seed(3)
    other, _ = rssm.observe(embedding, action, is_first)
    assert torch.equal(one.deterministic[:, [0, 2]], other.deterministic[:, [0, 2]])
    assert not torch.equal(one.deterministic[4:, 1], other.deterministic[4:, 1])


def test_observing_goes_on_from_a_given_state():
    rssm = make()
    embedding, action, _ = sequences()
    nothing = torch.zeros(1, B, dtype=torch.bool)
    start = State(torch.randn(B, R), torch.rand(B, S * K), torch.zeros(B, S, K))
    posterior, _ = rssm.observe(embedding[:1], action[:1], nothing, start)
    expected = reference.recur(
        reference.weights(rssm),
        *(x.double().numpy() for x in (start.stochastic, action[0], start.deterministic)),
    )
    np.testing.assert_allclose(posterior.deterministic[0].detach(), expected, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------- sampling


def test_samples_are_one_hot_and_follow_the_softmax():
    rssm, draws = make(), 40_000
    torch.manual_seed(4)
    logits = 1.5 * torch.randn(S, K)
    logits[0] = torch.tensor([0.0, -7.0, 0.0])  # a rare class
    noise = rssm.exponential_noise(draws, device=torch.device("cpu"))
    samples = rssm.sample(logits.expand(draws, S, K), noise).view(draws, S, K)
    hot = samples.round()
    torch.testing.assert_close(samples, hot, rtol=0, atol=1e-6)
    assert torch.equal(hot.sum(-1), torch.ones(draws, S))
    expected = reference.softmax(logits.double().numpy())
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(hot.mean(0).double().numpy() - expected) < 5 * error).all()


def test_variables_are_sampled_independently():
    rssm, draws = make(), 20_000
    torch.manual_seed(5)
    noise = rssm.exponential_noise(draws, device=torch.device("cpu"))
    samples = rssm.sample(torch.zeros(draws, S, K), noise).view(draws, S, K)
    both = (samples[:, 0, 0] * samples[:, 1, 0]).mean().item()
    assert both == pytest.approx(1 / 9, abs=5 * math.sqrt(1 / 9 * 8 / 9 / draws))


def test_gradient_of_a_sample_is_the_gradient_of_its_softmax():
    rssm = make()
    logits = torch.randn(B, S, K, requires_grad=True)
    weight = torch.randn(B, S * K)
    sample = rssm.sample(logits, rssm.exponential_noise(B, device=torch.device("cpu")))
    through = torch.autograd.grad((weight * sample).sum(), logits)[0]
    plain = torch.autograd.grad((weight * torch.softmax(logits, -1).flatten(1)).sum(), logits)[0]
    torch.testing.assert_close(through, plain)
    assert through.any()


# -------------------------------------------------------------------------------------- KL


def kl(q_logits, p_logits):
    q, p = reference.softmax(q_logits), reference.softmax(p_logits)
    return (q * (np.log(q) - np.log(p))).sum((-2, -1))


def test_kl_of_two_variables_computed_by_hand():
    """½ ln 2 + ½ ln ⅔ = 0.14384 for fair against (¼, ¾); a variable against itself adds nothing."""
    q = torch.tensor([[0.5, 0.5], [0.3, 0.7]], dtype=torch.float64).log()
    p = torch.tensor([[0.25, 0.75], [0.3, 0.7]], dtype=torch.float64).log()
    assert categorical_kl(q, p).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    both = categorical_kl(torch.stack([q[0], q[0]]), torch.stack([p[0], p[0]])).item()
    assert both == pytest.approx(math.log(2) + math.log(2 / 3))  # variables add up


def test_kl_loss_pulls_the_prior_four_times_as_hard_as_the_posterior():
    rng = np.random.default_rng(0)
    q, p = rng.normal(size=(2, 5, S, K)), rng.normal(size=(2, 5, S, K))
    posterior, prior = (torch.tensor(x, requires_grad=True) for x in (q, p))
    loss, mean = balanced_kl(posterior, prior, balance=0.8, free_nats=0.0)
    assert loss.item() == pytest.approx(kl(q, p).mean(), rel=1e-9)
    assert mean.item() == pytest.approx(kl(q, p).mean(), rel=1e-9)
    loss.backward()
    expected_prior = 0.8 * numerical_gradient(lambda x: kl(q, x).mean(), p)
    expected_posterior = 0.2 * numerical_gradient(lambda x: kl(x, p).mean(), q)
    np.testing.assert_allclose(prior.grad, expected_prior, atol=1e-8)
    np.testing.assert_allclose(posterior.grad, expected_posterior, atol=1e-8)


def test_kl_below_the_free_nats_has_no_gradient():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(4, S, K))
    p = q + 0.01 * rng.normal(size=(4, S, K))
    posterior, prior = (torch.tensor(x, requires_grad=True) for x in (q, p))
    loss, mean = balanced_kl(posterior, prior, balance=0.8, free_nats=0.01)
    assert mean.item() == pytest.approx(kl(q, p).mean())
    assert mean.item() < 0.01
    assert loss.item() == pytest.approx(0.01)
    loss.backward()
    assert not prior.grad.any()
    assert not posterior.grad.any()


def test_free_nats_are_counted_on_the_batch_mean():
    """One state far above and three at zero: the mean is above, so every state learns."""
    q, p = np.zeros((4, 1, 2)), np.zeros((4, 1, 2))
    q[0, 0, 0] = 4.0
    posterior, prior = (torch.tensor(x, requires_grad=True) for x in (q, p))
    nats = kl(q, p)
    assert nats[1] == 0 < 0.1 < nats.mean() < nats[0]
    loss, _ = balanced_kl(posterior, prior, balance=0.8, free_nats=0.1)
    assert loss.item() == pytest.approx(nats.mean())  # not the mean of max(nats, 0.1)


# -------------------------------------------------------------------------- initialisation


def test_split_dense_layers_start_as_glorot_of_the_whole_layer():
    torch.manual_seed(0)
    config = RSSMConfig(deterministic=64, hidden=256, variables=16, classes=16)
    rssm = RSSM(config, embedding=64, action=4)
    for parts in (
        (rssm.input_stochastic, rssm.input_action),
        (rssm.posterior_deterministic, rssm.posterior_embedding),
    ):
        bound = math.sqrt(6.0 / (sum(part.in_features for part in parts) + config.hidden))
        for part in parts:
            assert part.weight.abs().max() <= bound
            assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)


def test_initial_state_is_zero():
    state = make().initial(B, torch.device("cpu"))
    assert [tuple(part.shape) for part in state] == [(B, R), (B, S * K), (B, S, K)]
    assert not any(part.any() for part in state)


def test_normalisation_and_weights_of_the_cell_have_the_published_form():
    cell = make().cell
    assert isinstance(cell.norm, nn.LayerNorm)
    assert cell.norm.normalized_shape == (3 * R,)  # one norm over all three gates
    assert cell.norm.eps == 1e-3
