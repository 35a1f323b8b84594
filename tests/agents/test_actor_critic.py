"""Behaviour learning: returns and losses against float64, and who learns from what."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from agents.actor_critic import ActorCritic, ActorCriticConfig, lambda_return
from errors import UserError
from tests.gradients import assert_gradients
from world_models.latent_dynamics import (
    FeatureDecoderConfig,
    FeatureEncoderConfig,
    LatentDynamics,
    LatentDynamicsConfig,
)
from world_models.layers import OptimizerConfig
from world_models.recurrent_world_model import Trajectory
from world_models.rssm import RSSMConfig, State

H, B, F, A = 5, 4, 6, 2
FAST = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0)


def make(**options):
    torch.manual_seed(0)
    options = {
        "horizon": H, "layers": 2, "units": 16, "normalise_reward": False,
        "actor_optimizer": FAST, "critic_optimizer": FAST, **options,
    }  # fmt: skip
    behaviour = ActorCritic(ActorCriticConfig(**options), F, A)
    with torch.no_grad():  # heads start near zero, where many mistakes would not show
        behaviour.actor.layers.head.weight.mul_(20.0)
        behaviour.critic.head.weight.mul_(20.0)
        for parameter in behaviour.target_critic.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return behaviour


class Film:
    """A world that shows the same states and rewards whatever is done in it."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.feature = torch.randn(H + 1, B, F, generator=generator)
        self.reward = 3.0 * torch.randn(H + 1, B, generator=generator)
        self.continuation = torch.rand(H + 1, B, generator=generator)

    def imagine(self, policy, start, horizon):
        action = torch.stack([policy(self.feature[t], t) for t in range(horizon)])
        return Trajectory(self.feature, action, self.reward, self.continuation)


class Slide:
    """A world whose state moves by the first action and pays its new position."""

    def imagine(self, policy, start, horizon):
        features, actions = [start.deterministic], []
        for t in range(horizon):
            actions.append(policy(features[-1], t))
            features.append(features[-1] + torch.nn.functional.pad(actions[-1][:, :1], (0, F - 1)))
        feature = torch.stack(features)
        return Trajectory(feature, torch.stack(actions), feature[..., 0],
                          torch.ones(horizon + 1, len(features[0])))  # fmt: skip


def start(batch=B):
    return State(torch.zeros(batch, F), torch.zeros(batch, 0), torch.zeros(batch, 0, 0))


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(module, before):
    return all(torch.equal(p, before[name]) for name, p in module.named_parameters())


# ---------------------------------------------------------------------------------- returns


def test_two_steps_of_the_lambda_return_by_hand():
    """γ = 0.9, λ = 0.5: V₁ = 2 + 0.9·10 = 11 and V₀ = 1 + 0.9·(½·5 + ½·11) = 8.2."""
    reward, value = torch.tensor([[1.0], [2.0]]), torch.tensor([[99.0], [5.0]])
    discount, bootstrap = torch.full((2, 1), 0.9), torch.tensor([10.0])
    returns = lambda_return(reward, value, discount, bootstrap, 0.5)
    torch.testing.assert_close(returns, torch.tensor([[8.2], [11.0]]))


def n_step_definition(reward, value, discount, bootstrap, lambda_):
    """The λ-return as the mixture of n-step returns that defines it."""
    length = len(reward)
    value = np.concatenate([value, bootstrap[None]])
    returns = np.zeros_like(reward)
    for t in range(length):
        n_step = []
        for end in range(t + 1, length + 1):
            total, weight = 0.0, 1.0
            for i in range(t, end):
                total = total + weight * reward[i]
                weight = weight * discount[i]
            n_step.append(total + weight * value[end])
        for n, n_return in enumerate(n_step[:-1]):
            returns[t] += (1 - lambda_) * lambda_**n * n_return
        returns[t] += lambda_ ** (len(n_step) - 1) * n_step[-1]
    return returns


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
def test_lambda_return_mixes_the_n_step_returns(lambda_):
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 8, 3))
    discount, bootstrap = rng.uniform(0, 1, (8, 3)), rng.normal(size=3)
    expected = n_step_definition(reward, value, discount, bootstrap, lambda_)
    tensors = (torch.tensor(x) for x in (reward, value, discount, bootstrap))
    np.testing.assert_allclose(lambda_return(*tensors, lambda_), expected, rtol=1e-12)


def test_truncation_bootstraps_and_termination_does_not():
    reward, value = torch.ones(3, 2), torch.full((3, 2), 7.0)
    discount = torch.full((3, 2), 0.9)
    discount[1, 1] = 0.0  # in the second column the episode ends in state 1
    returns = lambda_return(reward, value, discount, torch.full((2,), 100.0), 0.95)
    assert returns[2, 0].item() == pytest.approx(1 + 0.9 * 100)  # the horizon is no end
    assert returns[1, 1].item() == 1.0  # its own reward and nothing after it
    assert returns[0, 1].item() == pytest.approx(1 + 0.9 * (0.05 * 7 + 0.95 * 1))


# ------------------------------------------------------------------------------------ actor


@pytest.mark.parametrize("largest", [1.0, 2.1])
def test_actors_mean_is_a_tanh_and_its_std_lies_between_the_smallest_and_the_largest(largest):
    behaviour = make(min_std=0.1, max_std=largest)
    with torch.no_grad():
        behaviour.actor.layers.head.weight.zero_()
        behaviour.actor.layers.head.bias.copy_(torch.tensor([0.5, -50.0, -50.0, 50.0]))
        distribution = behaviour.actor(torch.randn(1, F))
    torch.testing.assert_close(distribution.mean, torch.tensor([[math.tanh(0.5), -1.0]]))
    torch.testing.assert_close(distribution.std, torch.tensor([[0.1, largest]]))


@pytest.mark.parametrize("wrong", [{"min_std": 0.0}, {"min_std": 1.1}, {"max_std": math.inf}])
def test_standard_deviations_that_cannot_be_are_refused(wrong):
    with pytest.raises(
        UserError, match="min_std must be above 0 and max_std finite and no smaller"
    ):
        ActorCriticConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"head_scale": 0.0}, {"std_head_scale": -1.0}])
def test_heads_of_no_size_are_refused(wrong):
    with pytest.raises(UserError, match="head_scale and std_head_scale must be above 0"):
        ActorCriticConfig(**wrong)


# ----------------------------------------------------------------------------------- losses


def test_heads_of_mean_and_deviation_begin_as_small_as_asked_for():
    """The others are drawn as without it."""

    def weights(**options):
        torch.manual_seed(0)
        part = ActorCritic(ActorCriticConfig(layers=1, units=16, **options), F, A)
        head = part.actor.layers.head.weight.detach()
        return head[:A], head[A:], part.critic.head.weight.detach()

    mean, deviation, critic = weights()
    published = weights(head_scale=0.1**0.5, std_head_scale=1.0)
    expected = (mean * 10**0.5, deviation * 10.0, critic * 10**0.5)
    torch.testing.assert_close(published, expected)


@pytest.mark.parametrize("normalise", [False, True])
def test_losses_are_equations_10_and_12(normalise):
    behaviour, film = make(
        normalise_reward=normalise, entropy=0.1, discount=0.9, reward_decay=0.7
    ), Film()  # fmt: skip
    actor_loss, critic_loss, _ = behaviour.losses(film, start())

    with torch.no_grad():
        value = behaviour.target_critic(film.feature)[..., 0].double().numpy()
        predicted = behaviour.critic(film.feature)[..., 0].double().numpy()
        distribution = behaviour.actor(film.feature)
        mean, std = (x.double().numpy() for x in (distribution.mean, distribution.std))
    entropy = truncnorm.entropy((-1 - mean) / std, (1 - mean) / std, mean, std).sum(-1)
    reward, discount = film.reward.double().numpy(), 0.9 * film.continuation.double().numpy()
    if normalise:
        reward = reward / (0.7 * 1.0 + 0.3 * np.abs(reward).mean())
    returns = n_step_definition(reward[:H], value[:H], discount[:H], value[H], 0.95)
    actor_terms, critic_terms = [], []
    for b in range(B):
        for t in range(H):
            weight = math.prod(discount[:t, b])  # how likely, and how late, state t is
            critic_terms.append(weight * 0.5 * (predicted[t, b] - returns[t, b]) ** 2)
            if t < H - 1:  # the action in state t shows first in the return of t + 1
                actor_terms.append(-weight * (returns[t + 1, b] + 0.1 * entropy[t, b]))
    assert actor_loss.item() == pytest.approx(np.mean(actor_terms), rel=1e-4)
    assert critic_loss.item() == pytest.approx(np.mean(critic_terms), rel=1e-4)


def test_known_end_of_a_start_state_counts_in_place_of_the_prediction():
    known = torch.tensor([1.0, 0.0, 1.0, 0.0])
    behaviour, film = make(), Film()
    told = behaviour.losses(film, start(), known)[:2]
    film.continuation[0] = known
    seen = make().losses(film, start())[:2]
    assert [loss.item() for loss in told] == [loss.item() for loss in seen]
    film.continuation[0] = 0.5
    assert make().losses(film, start())[1] != seen[1]


class Valley:
    """A world in which everything depends smoothly on the actions: states, rewards, endings."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        shapes = {"move": (F, F), "act": (A, F), "pay": (F, 1), "end": (F, 1)}
        self.maps = {k: torch.randn(s, generator=generator) for k, s in shapes.items()}

    def imagine(self, policy, start, horizon):
        maps = {name: value.to(start.deterministic.dtype) for name, value in self.maps.items()}
        features, actions = [start.deterministic], []
        for t in range(horizon):
            actions.append(policy(features[-1], t))
            features.append(torch.tanh(features[-1] @ maps["move"] + actions[-1] @ maps["act"]))
        feature = torch.stack(features)
        reward, goes_on = (feature @ maps[name] for name in ("pay", "end"))
        return Trajectory(
            feature, torch.stack(actions), reward[..., 0], torch.sigmoid(goes_on[..., 0])
        )


@pytest.mark.parametrize("normalise", [False, True])
def test_actors_gradient_is_that_of_equation_12(normalise):
    """By finite differences of the objective in float64: the return is felt through rewards, values
    and endings of later states; weights, the scale of rewards and the state that is acted on
    are given."""
    behaviour, world = make(
        normalise_reward=normalise, entropy=0.1, discount=0.9, reward_decay=0.1
    ), Valley()  # fmt: skip
    torch.manual_seed(2)  # starts from which no loss cancels to where float32 tells little
    begin = State(torch.randn(B, F), torch.zeros(B, 0), torch.zeros(B, 0, 0))
    torch.manual_seed(7)
    loss, _, _ = behaviour.losses(world, begin)
    torch.manual_seed(7)
    uniform = torch.rand(H, B, A).double().numpy()
    critic = copy.deepcopy(behaviour.target_critic).double()
    given = {}

    def objective(actor):
        entropy = np.zeros((H, B))
        seen = given.setdefault("seen", {})

        def policy(feature, step):
            # Later states are moved by earlier actions; the actor learns nothing through seeing it.
            raw = actor(seen.setdefault(step, feature)).numpy()
            mean, std = np.tanh(raw[:, :A]), 0.1 + 0.9 / (1 + np.exp(-raw[:, A:]))
            bounds = (-1 - mean) / std, (1 - mean) / std
            entropy[step] = truncnorm.entropy(*bounds, mean, std).sum(-1)
            return torch.from_numpy(truncnorm.ppf(uniform[step], *bounds, mean, std))

        dream = world.imagine(policy, begin.map(torch.Tensor.double), H)
        value = critic(dream.feature)[..., 0].numpy()
        reward, discount = dream.reward.numpy(), 0.9 * dream.continuation.numpy()
        if normalise:
            reward = reward / given.setdefault("scale", 0.1 + 0.9 * np.abs(reward).mean())
        returns = n_step_definition(reward[:H], value[:H], discount[:H], value[H], 0.95)
        before = np.concatenate([np.ones((1, B)), discount])
        weight = given.setdefault("weight", before.cumprod(0)[: H - 1])
        return -(weight * (returns[1:] + 0.1 * entropy[: H - 1])).mean()

    assert_gradients(loss, behaviour.actor.layers, objective)


def test_reward_scale_is_a_moving_average_of_the_imagined_rewards_size():
    behaviour, film = make(normalise_reward=True), Film()
    film.reward = torch.full((H + 1, B), -10.0)
    scales = [behaviour.losses(film, start())[2]["reward_scale"].item() for _ in range(3)]
    assert scales == pytest.approx([1.09, 1.1791, 1.267309])
    assert behaviour.reward_scale.item() == pytest.approx(scales[-1])


def test_reward_scale_stays_one_without_normalisation():
    behaviour = make(normalise_reward=False)
    behaviour.losses(Film(), start())
    assert behaviour.reward_scale.item() == 1.0


# ------------------------------------------------------------------------------ who learns


def real_world():
    torch.manual_seed(0)
    config = LatentDynamicsConfig(
        encoder=FeatureEncoderConfig(width=8, depth=1, heads=2),
        rssm=RSSMConfig(deterministic=4, hidden=5, variables=1, classes=2),
        decoder=FeatureDecoderConfig(width=8, depth=1, heads=2),
        head_layers=1, head_units=8, predict_discount=True,
    )  # fmt: skip
    return LatentDynamics(config, grid=2, feature_width=8, action=A)


def test_behaviour_learning_leaves_the_world_model_and_its_gradients_alone():
    behaviour, world = make(), real_world()
    before = parameters(world)
    behaviour.step(*behaviour.losses(world, world.rssm.initial(B, torch.device("cpu"))))
    assert same(world, before)
    assert all(p.grad is None for p in world.parameters())


def test_each_loss_teaches_its_own_network_only():
    behaviour, world = make(), real_world()
    actor_loss, critic_loss, _ = behaviour.losses(world, world.rssm.initial(B, torch.device("cpu")))

    def reached(loss, module):
        gradients = torch.autograd.grad(
            loss, list(module.parameters()), retain_graph=True, allow_unused=True
        )
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert all(reached(actor_loss, behaviour.actor))
    assert not any(reached(actor_loss, behaviour.critic))
    assert all(reached(critic_loss, behaviour.critic))
    assert not any(reached(critic_loss, behaviour.actor))
    assert not any(reached(critic_loss, world))
    assert not any(p.requires_grad for p in behaviour.target_critic.parameters())


class Asking:
    """A world that asks what an action would be in a state and how that depends on the state."""

    def imagine(self, policy, start, horizon):
        feature = torch.randn(H + 1, B, F, requires_grad=True)
        action = torch.stack([policy(feature[t], t) for t in range(horizon)])
        assert action.requires_grad
        (self.felt,) = torch.autograd.grad(
            action.sum(), feature, retain_graph=True, allow_unused=True
        )
        return Trajectory(feature, action, torch.ones(H + 1, B), torch.ones(H + 1, B))


def test_states_reach_the_actor_without_their_gradient():
    world = Asking()
    make().losses(world, start())
    assert world.felt is None


def test_actor_learns_to_move_towards_reward():
    """The sign of everything: the state, not the reward, carries the gradient to the action."""
    behaviour = make(entropy=0.0)

    def mean():
        return behaviour.actor(torch.zeros(1, F)).mean[0, 0].item()

    before = mean()
    for _ in range(40):
        behaviour.step(*behaviour.losses(Slide(), start(32)))
    assert mean() > max(0.5, before + 0.2)


def test_entropy_bonus_widens_the_actor():
    behaviour, film = make(entropy=1.0), Film()
    film.reward.zero_()
    before = behaviour.actor(film.feature).entropy().mean().item()
    for _ in range(20):
        behaviour.step(*behaviour.losses(film, start()))
    assert behaviour.actor(film.feature).entropy().mean().item() > before + 0.1


def test_critic_learns_the_return():
    """With λ = 1 and everything ending at once, the value of a state is its own reward."""
    behaviour, film = make(lambda_=1.0), Film()
    film.continuation = torch.zeros(H + 1, B)
    film.continuation[0] = 1.0  # so that states 0 and 1 have weight
    first = behaviour.losses(film, start())[1].item()
    for _ in range(300):
        behaviour.step(*behaviour.losses(film, start()))
    assert behaviour.losses(film, start())[1].item() < 0.02 * first
    torch.testing.assert_close(behaviour.critic(film.feature[1])[:, 0].detach(), film.reward[1],
                               atol=0.5, rtol=0)  # fmt: skip


# --------------------------------------------------------------------------- target critic


def test_target_critic_is_a_copy_made_every_so_many_updates():
    behaviour, film = make(target_every=3, target_rate=1.0), Film()
    before = parameters(behaviour.target_critic)
    copied = []
    for _ in range(7):
        behaviour.step(*behaviour.losses(film, start()))
        copied.append(same(behaviour.target_critic, parameters(behaviour.critic)))
        if len(copied) < 3:
            assert same(behaviour.target_critic, before)
    assert copied == [False, False, True, False, False, True, False]


def test_target_critic_can_follow_as_a_moving_average():
    behaviour, film = make(target_every=1, target_rate=0.1), Film()
    expected = parameters(behaviour.target_critic)
    for _ in range(3):
        behaviour.step(*behaviour.losses(film, start()))
        for name, parameter in behaviour.critic.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    for name, parameter in behaviour.target_critic.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_target_critic_starts_as_the_critic():
    behaviour = ActorCritic(ActorCriticConfig(layers=1, units=8), F, A)
    assert same(behaviour.target_critic, parameters(behaviour.critic))
