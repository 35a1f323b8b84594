"""Acting: what the agent remembers from step to step, and what it draws."""

import numpy as np
import torch

from tests.agents.tiny_agent import A, forgets_an_ended_episode, make, make_replay, observation
from world_models.rssm import State


def model_state(state):
    return State(*(state[name] for name in State._fields))


def test_policy_starts_afresh_where_an_episode_does():
    forgets_an_ended_episode(make())


def test_policy_remembers_its_last_action():
    agent = make()
    _, state = agent.policy(observation(2, is_first=True), None, explore=True)
    second = observation(2, seed=1)
    torch.manual_seed(4)
    _, one = agent.policy(second, state, explore=True)
    torch.manual_seed(4)
    _, other = agent.policy(second, {**state, "action": -state["action"]}, explore=True)
    assert not torch.equal(one["deterministic"], other["deterministic"])


def test_policy_filters_as_learning_does(tmp_path):
    """Acting through an episode gives the states that observing it as a window gives."""
    agent = make()
    batch = make_replay(tmp_path).sample_windows(1, 6)
    posterior, _ = agent.dynamics.observe({**batch, "feature": agent.features(batch["image"])})
    state = None
    for t in range(6):
        step = {"image": batch["image"][:, t].numpy(), "is_first": batch["is_first"][:, t].numpy()}
        if state is not None:  # what was done then, and the state that was sampled then
            before = posterior.map(lambda part, t=t: part[t - 1].detach())
            state = {**before._asdict(), "action": batch["action"][:, t]}
        elif not step["is_first"].any():
            before = agent.dynamics.rssm.initial(1, "cpu")
            state = {**before._asdict(), "action": batch["action"][:, 0]}
        _, state = agent.policy(step, state, explore=True)
        torch.testing.assert_close(state["deterministic"], posterior.deterministic[t])
        torch.testing.assert_close(state["logits"], posterior.logits[t], rtol=1e-4, atol=1e-4)


def test_evaluation_takes_the_mode_in_a_sampled_state():
    agent = make()
    seen = observation(4, is_first=True)
    action, state = agent.policy(seen, None, explore=False)
    assert action.shape == (4, A)
    assert action.dtype == np.float32
    with torch.no_grad():
        distribution = agent.behaviour.actor(model_state(state).feature)
    assert np.array_equal(action, distribution.mean.numpy())
    assert np.array_equal(action, state["action"].numpy())
    states = {
        agent.policy(seen, None, explore=False)[1]["stochastic"].numpy().tobytes() for _ in range(5)
    }
    assert len(states) > 1


def test_exploration_samples_the_actors_distribution():
    agent, count = make(), 3000
    one = observation(1, is_first=True)
    seen = {"image": one["image"].repeat(count, 0), "is_first": np.ones(count, bool)}
    action, state = agent.policy(seen, None, explore=True)
    assert (np.abs(action) <= 1).all()
    with torch.no_grad():
        distribution = agent.behaviour.actor(model_state(state).feature)
    # A quantile of a sample is uniform.
    low, high = distribution.low_cdf, distribution.high_cdf
    scaled = (torch.from_numpy(action) - distribution.mean) / distribution.std
    quantile = (torch.special.ndtr(scaled) - low) / (high - low)
    histogram = torch.histc(quantile, 10, 0, 1) / quantile.numel()
    torch.testing.assert_close(histogram, torch.full((10,), 0.1), atol=0.015, rtol=0)
