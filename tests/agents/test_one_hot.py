"""Discrete actions: one-hot samples with straight-through gradients, and agents that take them."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.actor_critic import ActorCritic, ActorCriticConfig, OneHotChoice
from agents.data_spec import DataSpec
from agents.dreamer import Dreamer
from agents.imitation_evaluation import check_agreement
from agents.masked_world_model import MaskedWorldModel
from agents.rollout import RandomAgent
from envs.environment import OneHot
from errors import UserError
from tests.agents.tiny_agent import TINY, TINY_DREAMER, A, make_replay, observation
from world_models.layers import OptimizerConfig
from world_models.recurrent_world_model import Trajectory

F = 5
FASTER = OptimizerConfig(learning_rate=1e-2)


def test_samples_are_one_hot_and_as_frequent_as_their_probabilities():
    torch.manual_seed(0)
    choice = OneHotChoice(torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3))
    samples = choice.sample(torch.rand(20_000, 3))
    torch.testing.assert_close(samples.sum(-1), torch.ones(20_000))
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(samples.mean(0), torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)
    assert choice.mode[0].tolist() == [1.0, 0.0, 0.0]


def test_gradients_go_straight_through_to_the_probabilities():
    logits = torch.tensor([[0.2, -0.1, 0.4]], requires_grad=True)
    worth = torch.tensor([1.0, -2.0, 3.0])
    (OneHotChoice(logits).sample(torch.tensor([[0.1, 0.9, 0.3]])) * worth).sum().backward()
    sampled, logits.grad = logits.grad.clone(), None
    (torch.softmax(logits, -1) * worth).sum().backward()
    torch.testing.assert_close(sampled, logits.grad)


def test_entropy_and_log_probability_are_those_of_a_categorical():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    known = torch.distributions.Categorical(logits=logits)
    choice, actions = OneHotChoice(logits), torch.tensor([0, 5, 2, 2])
    torch.testing.assert_close(choice.entropy(), known.entropy())
    one_hot = torch.nn.functional.one_hot(actions, 6).float()
    torch.testing.assert_close(choice.log_prob(one_hot), known.log_prob(actions))


class Bandit:
    """A world in which the second of three actions pays, and nothing else matters."""

    def __init__(self, differentiable=True):
        self.differentiable = differentiable

    def imagine(self, policy, start, horizon):
        feature = torch.ones(len(start.deterministic), F)
        actions = torch.stack([policy(feature, step) for step in range(horizon)])
        paid = actions if self.differentiable else actions.detach()
        reward = torch.cat([torch.zeros_like(paid[:1, :, 1]), paid[:, :, 1]])
        features = feature.expand(horizon + 1, *feature.shape)
        return Trajectory(features, actions, reward, torch.ones_like(reward))


class Start:
    deterministic = torch.zeros(16, 1)


@pytest.mark.parametrize(("reinforce", "differentiable"), [(0.0, True), (1.0, False), (0.5, True)])
def test_the_action_that_pays_is_found(reinforce, differentiable):
    """Through the model, by REINFORCE where no gradient passes it, and by both."""
    torch.manual_seed(0)
    config = ActorCriticConfig(
        horizon=4, layers=1, units=16, normalise_reward=False, reinforce=reinforce,
        target_every=1, actor_optimizer=FASTER, critic_optimizer=FASTER,
    )  # fmt: skip
    behaviour = ActorCritic(config, F, 3, discrete=True)
    world = Bandit(differentiable)
    for _ in range(60):
        behaviour.step(*behaviour.losses(world, Start()))
    assert behaviour.actor(torch.ones(1, F)).mean[0, 1] > 0.9


def test_without_reinforce_nothing_is_learned_where_no_gradient_passes():
    """The check above can fail."""
    torch.manual_seed(0)
    config = ActorCriticConfig(horizon=4, layers=1, units=16, entropy=0.0)
    behaviour = ActorCritic(config, F, 3, discrete=True)
    losses = behaviour.losses(Bandit(differentiable=False), Start())
    losses[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in behaviour.actor.parameters())


def test_random_actions_of_a_discrete_space_are_one_hot_and_all_occur():
    for extreme in (False, True):
        agent = RandomAgent(OneHot(4), extreme=extreme)
        actions, _ = agent.policy({"is_first": np.zeros(200, bool)}, None, True)
        assert actions.dtype == np.float32
        assert {tuple(action) for action in actions} == {tuple(row) for row in np.eye(4)}


@pytest.mark.parametrize(
    ("kind", "config"), [(MaskedWorldModel, TINY), (Dreamer, TINY_DREAMER)], ids=["mwm", "dreamer"]
)
def test_agents_act_in_one_hot_vectors_and_learn_from_them(kind, config, tmp_path):
    torch.manual_seed(0)
    agent = kind(config, A, "cpu", discrete=True)
    replay = make_replay(tmp_path)
    list(agent.pretrain(replay))
    metrics = agent.update(replay)
    assert all(torch.isfinite(value).all() for value in metrics.values())
    for explore in (True, False):
        action, state = agent.policy(observation(5, is_first=True), None, explore)
        assert action.dtype == np.float32
        assert {tuple(row) for row in action} <= {tuple(row) for row in np.eye(A)}
        torch.manual_seed(1)
    best = agent.behaviour.actor(torch.cat([state["deterministic"], state["stochastic"]], -1))
    np.testing.assert_array_equal(action.argmax(-1), best.mean.argmax(-1).numpy())


def test_imitation_refuses_them_in_one_line():
    spec = DataSpec(cameras=1, size=16, action_size=A, proprio_size=2)
    with pytest.raises(UserError, match="discrete, which imitation does not learn"):
        check_agreement(spec, spaces.Dict(), OneHot(A))


def test_a_share_of_reinforce_outside_of_zero_to_one_is_refused():
    with pytest.raises(UserError, match="reinforce must be from 0 to 1, not 1.5"):
        ActorCriticConfig(reinforce=1.5)
