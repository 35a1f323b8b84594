"""Latent dynamics: losses worked out again in float64, frozen features, dreams that line up."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.gradients import assert_gradients, numerical_gradient
from tests.world_models import rssm_reference as reference
from world_models.latent_dynamics import (
    FeatureDecoder,
    FeatureDecoderConfig,
    FeatureEncoder,
    FeatureEncoderConfig,
    LatentDynamics,
    LatentDynamicsConfig,
)
from world_models.rssm import RSSMConfig

B, T, GRID, Z, A = 3, 5, 2, 12, 2
N = 1 + GRID * GRID


def make(**options):
    torch.manual_seed(0)
    config = LatentDynamicsConfig(
        encoder=FeatureEncoderConfig(width=8, depth=1, heads=2),
        rssm=RSSMConfig(deterministic=10, hidden=9, variables=4, classes=3),
        decoder=FeatureDecoderConfig(width=8, depth=1, heads=2),
        head_layers=2,
        head_units=16,
        **options,
    )
    return LatentDynamics(config, GRID, Z, A)


def batch():
    torch.manual_seed(1)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = True
    is_terminal = torch.zeros(B, T, dtype=torch.bool)
    is_terminal[1, -1] = True
    return {
        "feature": torch.randn(B, T, N, Z),
        "action": torch.rand(B, T, A) * 2 - 1,
        "reward": 10.0 * torch.randn(B, T),
        "is_first": is_first,
        "is_terminal": is_terminal,
    }


def float64(tensor):
    return tensor.detach().double().numpy()


# ---------------------------------------------------------------------- encoder and decoder


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize(("pooling", "outputs"), [("mean", 8), ("flatten", 20)])
def test_encoder_makes_one_embedding_of_all_tokens(pooling, outputs, depth):
    config = FeatureEncoderConfig(width=8, depth=depth, heads=2, pooling=pooling, embedding=20)
    encoder = FeatureEncoder(config, GRID, Z)
    assert encoder.outputs == outputs
    feature = torch.randn(7, N, Z, requires_grad=True)
    embedding = encoder(feature)
    assert embedding.shape == (7, outputs)
    (gradient,) = torch.autograd.grad(embedding.square().sum(), feature)
    assert gradient.any(-1).all()  # no token is ignored


def test_mean_pooling_is_the_mean_of_the_transformers_tokens_with_the_class_token_last():
    encoder = FeatureEncoder(FeatureEncoderConfig(width=8, depth=1, heads=2), GRID, Z)
    seen = {}
    encoder.transformer.register_forward_hook(
        lambda _, inputs, output: seen.update(inputs=inputs[0], output=output)
    )
    feature = torch.randn(2, N, Z)
    embedding = encoder(feature)
    content = seen["inputs"] - encoder.positions
    torch.testing.assert_close(content[:, -1], encoder.project(feature[:, 0]))
    torch.testing.assert_close(content[:, :-1], encoder.project(feature[:, 1:]))
    torch.testing.assert_close(embedding, seen["output"].sum(1) / N)


def test_encoder_tells_places_apart():
    """Without positions, mean pooling could not say which of two tokens is where."""
    encoder = FeatureEncoder(FeatureEncoderConfig(width=8, depth=1, heads=2), GRID, Z)
    feature = torch.randn(1, N, Z)
    swapped = feature[:, [0, 2, 1, 3, 4]]
    assert (encoder(feature) - encoder(swapped)).abs().max() > 1e-4


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("tokens", ["mask", "linear"])
def test_decoder_makes_all_tokens_of_a_state(tokens, depth):
    config = FeatureDecoderConfig(width=8, depth=depth, heads=2, tokens=tokens, hidden=6)
    decoder = FeatureDecoder(config, 11, GRID, Z)
    output = decoder(torch.randn(T, B, 11))
    assert output.shape == (T, B, N, Z)
    assert decoder(torch.randn(B, 11)).shape == (B, N, Z)
    distances = torch.cdist(output[0, 0], output[0, 0])
    assert (distances + torch.eye(N) > 1e-4).all()  # each place says something of its own


def test_decoder_reads_its_outputs_from_mask_tokens_and_the_state_from_a_token_of_its_own():
    decoder = FeatureDecoder(FeatureDecoderConfig(width=8, depth=1, heads=2), 11, GRID, Z)
    torch.nn.init.normal_(decoder.mask_token)
    seen = {}
    decoder.transformer.register_forward_hook(
        lambda _, inputs, output: seen.update(inputs=inputs[0], output=output)
    )
    state = torch.randn(2, 11)
    output = decoder(state)
    content = seen["inputs"] - decoder.positions
    assert content.shape == (2, N + 1, 8)
    torch.testing.assert_close(content[:, -1], decoder.project(state))
    torch.testing.assert_close(content[:, :-1], decoder.mask_token.expand(2, N, 8))
    torch.testing.assert_close(output, decoder.outputs(seen["output"][:, :N]))


@pytest.mark.parametrize("tokens", ["mask", "linear"])
def test_what_is_decoded_depends_on_the_state(tokens):
    config = FeatureDecoderConfig(width=8, depth=1, heads=2, tokens=tokens)
    decoder = FeatureDecoder(config, 11, GRID, Z)
    state = torch.randn(1, 11, requires_grad=True)
    for place in range(N):
        output = decoder(state)[0, place]
        (gradient,) = torch.autograd.grad(output.square().sum(), state)
        assert gradient.any()


# -------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("predict_discount", [False, True])
@pytest.mark.parametrize("standardise", [False, True])
def test_loss_is_its_equation(predict_discount, standardise):
    """Features: summed over channels, averaged over the rest. Rewards: each with its own state."""
    model = make(
        kl_scale=0.3, reward_weight=7.0, free_nats=0.0, predict_discount=predict_discount,
        standardise_features=standardise,
    )  # fmt: skip
    data = batch()
    data["feature"] = 5.0 * data["feature"] + torch.arange(N * Z).view(N, Z)
    seen = []
    model.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(5)
    loss, posterior, metrics = model.loss(data)
    torch.manual_seed(5)
    again, prior = model.observe(data)
    assert torch.equal(again.stochastic, posterior.stochastic)
    state = posterior.feature  # (T, B, F)

    decoded, feature = float64(model.decoder(state)), float64(data["feature"])
    if standardise:  # the first batch's own mean per entry and common deviation
        moves = feature - feature.mean((0, 1))
        feature = moves / np.sqrt((moves**2).mean())
    np.testing.assert_allclose(
        float64(seen[0]).reshape(T, B, N, Z), feature.swapaxes(0, 1), rtol=1e-4, atol=1e-4
    )
    squared = [
        ((decoded[t, b, n] - feature[b, t, n]) ** 2).sum()
        for t in range(T) for b in range(B) for n in range(N)
    ]  # fmt: skip
    assert metrics["feature"].item() == pytest.approx(np.mean(squared), rel=1e-5)

    predicted, reward = float64(model.reward_head(state)[..., 0]), float64(data["reward"])
    squashed = np.sign(reward) * np.log(1 + np.abs(reward))
    expected = np.mean(
        [(predicted[t, b] - squashed[b, t]) ** 2 for t in range(T) for b in range(B)]
    )
    assert metrics["reward"].item() == pytest.approx(expected, rel=1e-5)

    q, p = (torch.softmax(x.detach().double(), -1).numpy() for x in (posterior.logits, prior))
    nats = (q * np.log(q / p)).sum((-2, -1)).mean()
    assert metrics["kl"].item() == pytest.approx(nats, rel=1e-4)

    total = metrics["feature"].item() + 7.0 * metrics["reward"].item() + 0.3 * nats
    if predict_discount:
        logit = float64(model.discount_head(state)[..., 0])
        goes_on = ~data["is_terminal"].numpy().T
        entropy = np.log1p(np.exp(np.where(goes_on, -logit, logit))).mean()
        assert metrics["discount"].item() == pytest.approx(entropy, rel=1e-5)
        total += entropy
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("standardise", [False, True])
def test_gradient_of_the_loss_is_that_of_equation_14(standardise):
    """By finite differences of the equations in float64. Given, and no gradient passes them: the
    classes drawn (straight through, a sample moves as its softmax), and in each part of the KL
    the side that the other is drawn to."""
    model = make(kl_scale=2.0, predict_discount=True, standardise_features=standardise)
    data, given = batch(), {}
    torch.manual_seed(5)
    loss, _, _ = model.loss(data)
    torch.manual_seed(5)
    noise = float64(model.rssm.exponential_noise(T, B, device=torch.device("cpu")))
    feature, action, reward = (float64(data[k]) for k in ("feature", "action", "reward"))
    if standardise:
        feature = feature - feature.mean((0, 1))
        feature = feature / np.sqrt((feature**2).mean())
    feature, action = feature.swapaxes(0, 1), action.swapaxes(0, 1)
    goes_on, squashed = ~data["is_terminal"].numpy().T, np.sign(reward) * np.log1p(np.abs(reward))

    def objective(twin):
        w, logits, priors, states = reference.weights(twin.rssm), [], [], []
        embedding = twin.encoder(torch.from_numpy(feature).flatten(0, 1)).numpy()
        deterministic, stochastic = np.zeros((B, 10)), np.zeros((B, 12))
        for t, seen in enumerate(embedding.reshape(T, B, -1)):
            led_here = action[t] if t else 0.0 * action[t]
            deterministic = reference.recur(w, stochastic, led_here, deterministic)
            logits.append(reference.posterior(w, deterministic, seen))
            priors.append(reference.prior(w, deterministic))
            stochastic = reference.straight_through(logits[-1], noise[t], given.setdefault(t, {}))
            states.append(np.concatenate([deterministic, stochastic], -1))
        state = torch.from_numpy(np.stack(states))
        features = ((twin.decoder(state).numpy() - feature) ** 2).sum(-1).mean()
        rewards = ((twin.reward_head(state)[..., 0].numpy() - squashed.T) ** 2).mean()
        logit = twin.discount_head(state)[..., 0].numpy()
        endings = np.log1p(np.exp(np.where(goes_on, -logit, logit))).mean()
        q, p = reference.softmax(np.stack(logits)), reference.softmax(np.stack(priors))
        q0, p0 = given.setdefault("q", q), given.setdefault("p", p)
        kl = 0.8 * (q0 * np.log(q0 / p)).sum((-2, -1)) + 0.2 * (q * np.log(q / p0)).sum((-2, -1))
        return features + rewards + endings + 2.0 * kl.mean()

    assert_gradients(loss, model, objective)


@pytest.mark.parametrize("free_nats", [0.01, 1.6, 50.0])
def test_kl_is_balanced_and_held_against_the_free_nats_before_it_is_scaled(free_nats):
    """Its value, and its gradients by the closed forms p − q and q·(log q/p − KL)."""
    data, captured, losses = batch(), [], []
    for scale in (0.0, 0.3):
        model = make(kl_scale=scale, free_nats=free_nats, kl_balance=0.7)
        with torch.no_grad():  # so that some steps are below 1.6 nats and others above
            for head in (model.rssm.prior_logits, model.rssm.posterior_logits):
                head.weight.mul_(3.0)
        observe = model.observe

        def observed(*inputs, observe=observe, **drawn):
            posterior, prior = observe(*inputs, **drawn)
            posterior.logits.retain_grad()
            prior.retain_grad()
            captured.append((posterior.logits, prior))
            return posterior, prior

        model.observe = observed
        torch.manual_seed(5)
        loss, _, _ = model.loss(data)
        loss.backward()
        losses.append(loss.item())
    posterior, prior = captured[-1]
    q, p = (torch.softmax(x.detach().double(), -1).numpy() for x in (posterior, prior))
    by_variable = (q * np.log(q / p)).sum(-1, keepdims=True)
    nats = by_variable.sum((-2, -1))  # (T, B)
    assert free_nats != 1.6 or 0 < (nats > free_nats).sum() < nats.size
    kl, counts = max(nats.mean(), free_nats), np.full(nats.shape, nats.mean() > free_nats)
    assert losses[1] - losses[0] == pytest.approx(0.3 * kl, rel=1e-3)

    counts = counts[..., None, None] / (T * B)
    np.testing.assert_allclose(prior.grad, 0.3 * 0.7 * (p - q) * counts, atol=1e-7)
    # The last posterior acts on nothing later: what the KL adds to its gradient is its own.
    added = captured[1][0].grad[-1] - captured[0][0].grad[-1]
    own = 0.3 * 0.3 * (q * (np.log(q / p) - by_variable) * counts)[-1]
    np.testing.assert_allclose(added, own, atol=2e-6)
    assert np.abs(own).max() > 1e-4 or not counts[-1].any()


def test_no_gradient_reaches_the_features():
    model, data = make(), batch()
    data["feature"].requires_grad_()
    loss, posterior, _ = model.loss(data)
    assert torch.autograd.grad(loss, data["feature"], retain_graph=True, allow_unused=True) == (
        None,
    )
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []  # and everything of the dynamics learns


def test_discount_is_learned_only_where_episodes_terminate():
    names = {name.split(".")[0] for name, _ in make().named_parameters()}
    assert "discount_head" not in names
    _, _, metrics = make().loss(batch())
    assert set(metrics) == {"feature", "reward", "kl"}
    episodic = make(predict_discount=True)
    assert "discount_head" in {name.split(".")[0] for name, _ in episodic.named_parameters()}
    assert "discount" in episodic.loss(batch())[2]


def test_states_come_time_first():
    model, data = make(), batch()
    posterior, prior = model.observe(data)
    assert posterior.feature.shape == (T, B, model.feature_size)
    assert prior.shape == (T, B, 4, 3)
    torch.manual_seed(0)
    whole = model.observe(data)[0].logits[0]
    alone = {name: value[:, :1] for name, value in data.items()}
    torch.manual_seed(0)
    torch.testing.assert_close(model.observe(alone)[0].logits[0], whole)  # first frames first


# ----------------------------------------------------------------------------------- dreams


@pytest.mark.parametrize("predict_discount", [False, True])
def test_dream_lines_up_states_actions_rewards_and_continuations(predict_discount):
    model, horizon = make(predict_discount=predict_discount), 4
    posterior, _ = model.observe(batch())
    start = posterior.map(lambda part: part.detach().flatten(0, 1))
    count = T * B
    asked = []

    def policy(feature, step):
        asked.append((feature, step))
        return torch.tanh(feature[:, :A] + step)

    dream = model.imagine(policy, start, horizon)
    assert dream.feature.shape == (horizon + 1, count, model.feature_size)
    assert dream.action.shape == (horizon, count, A)
    assert dream.reward.shape == dream.continuation.shape == (horizon + 1, count)
    assert [step for _, step in asked] == [0, 1, 2, 3]
    assert torch.equal(dream.feature[0], start.feature)
    size = model.rssm.config.deterministic
    for t in range(horizon):
        assert torch.equal(asked[t][0], dream.feature[t])
        assert torch.equal(dream.action[t], torch.tanh(dream.feature[t][:, :A] + t))
        # The action of state t leads to state t + 1.
        before = start._replace(
            deterministic=dream.feature[t][:, :size], stochastic=dream.feature[t][:, size:]
        )
        noise = model.rssm.exponential_noise(count, device=torch.device("cpu"))
        after = model.rssm.imagine(before, dream.action[t], noise)
        torch.testing.assert_close(after.deterministic, dream.feature[t + 1][:, :size])
    for t in range(horizon + 1):
        symlog = float64(model.reward_head(dream.feature[t])[:, 0])
        expected = np.sign(symlog) * np.expm1(np.abs(symlog))
        np.testing.assert_allclose(float64(dream.reward[t]), expected, rtol=1e-4, atol=1e-6)
        expected = np.ones(count)
        if predict_discount:
            expected = 1 / (1 + np.exp(-float64(model.discount_head(dream.feature[t])[:, 0])))
        np.testing.assert_allclose(float64(dream.continuation[t]), expected, rtol=1e-5)


def test_gradients_of_a_dream_for_its_actions_are_those_of_the_equations():
    """By finite differences in float64 of rewards and continuations of all later states."""
    model, horizon = make(predict_discount=True), 4
    with torch.no_grad():  # heads start near zero, and would feel little
        for head in (model.reward_head, model.discount_head):
            head.head.weight.mul_(20.0)
    posterior, _ = model.observe(batch())
    start = posterior.map(lambda part: part.detach()[-1])
    action = (torch.rand(horizon, B, A) * 2 - 1).requires_grad_()
    share = torch.randn(2, horizon + 1, B)
    torch.manual_seed(6)
    dream = model.imagine(lambda _, step: action[step], start, horizon)
    torch.manual_seed(6)
    noise = float64(model.rssm.exponential_noise(horizon, B, device=torch.device("cpu")))
    both = (share * torch.stack([dream.reward, dream.continuation])).sum()
    (gradient,) = torch.autograd.grad(both, action)

    w, given = reference.weights(model.rssm), {}
    heads = copy.deepcopy(nn.ModuleList([model.reward_head, model.discount_head])).double()

    @torch.no_grad()
    def objective(actions):
        deterministic, stochastic = float64(start.deterministic), float64(start.stochastic)
        states = [float64(start.feature)]
        for t in range(horizon):
            deterministic = reference.recur(w, stochastic, actions[t], deterministic)
            logits = reference.prior(w, deterministic)
            stochastic = reference.straight_through(logits, noise[t], given.setdefault(t, {}))
            states.append(np.concatenate([deterministic, stochastic], -1))
        symlog, logit = (head(torch.from_numpy(np.stack(states)))[..., 0].numpy() for head in heads)
        reward = np.sign(symlog) * np.expm1(np.abs(symlog))
        return (float64(share) * np.stack([reward, 1 / (1 + np.exp(-logit))])).sum()

    at = float64(action)
    assert both.item() == pytest.approx(objective(at), abs=1e-5)
    expected = numerical_gradient(objective, at)
    assert (np.abs(expected).max((1, 2)) > 1e-3).all()  # every step's action is felt
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_later_rewards_carry_gradients_to_earlier_actions():
    """The actor learns through the dynamics: reward t + 1 feels action t, reward t does not."""
    model = make()
    start = model.rssm.initial(2, torch.device("cpu"))
    actions = [torch.zeros(2, A, requires_grad=True) for _ in range(3)]
    dream = model.imagine(lambda _, step: actions[step], start, 3)
    felt = [
        [g is not None and bool(g.any()) for g in gradients]
        for gradients in (
            torch.autograd.grad(reward.sum(), actions, retain_graph=True, allow_unused=True)
            for reward in dream.reward
        )
    ]
    assert felt == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_paper_sizes():
    """Paper E.2: tokens 65 × 256 to a 128-wide embedding, states of 1024 + 32 · 32."""
    model = LatentDynamics(LatentDynamicsConfig(), grid=8, feature_width=256, action=4)
    with torch.no_grad():
        embedding = model.embed(torch.randn(1, 2, 65, 256))
        assert embedding.shape == (1, 2, 128)
        assert model.feature_size == 2048
        assert model.decoder(torch.randn(1, 2, 2048)).shape == (1, 2, 65, 256)
    assert len(model.encoder.transformer.blocks) == len(model.decoder.transformer.blocks) == 2


# ---------------------------------------------------------------------- standardised features


def test_standardising_makes_the_loss_blind_to_what_never_changes():
    still = 100.0 * torch.randn(N, Z, generator=torch.manual_seed(3))
    losses = []
    for shift in (torch.zeros(N, Z), still):
        model = make(standardise_features=True)
        torch.manual_seed(4)
        moved = batch()
        moved["feature"] = moved["feature"] + shift
        losses.append(model.loss(moved)[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0.0)


def test_reconstruction_is_in_the_units_of_the_features():
    model = make(standardise_features=True)
    inputs = batch()
    inputs["feature"] = 50.0 + inputs["feature"]
    _, posterior, _ = model.loss(inputs)
    assert model.reconstruct(posterior.feature).mean().item() == pytest.approx(50.0, abs=2.0)
