"""How a termination goes through the loop: environment, collector, replay, windows, values.

The world is a corridor seen from above. Its left end is the goal, its right end a cliff; both end
an episode for good. Whoever stays in between runs out of time, which ends nothing.
"""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.actor_critic import lambda_return
from agents.masked_world_model import MaskedWorldModel
from agents.replay import Replay, entries_for
from agents.rollout import Collector, run_episodes
from tests.agents.tiny_agent import FAST, SIZE, TINY

CELLS, LIMIT, WINDOW = 8, 12, 6


class Corridor(gymnasium.Env):
    """A white bar that an action moves by at most a cell; the picture shows where it is."""

    observation_space = gymnasium.spaces.Dict(
        image=gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(2, CELLS - 2)), 0
        return self.observe(), {}

    def observe(self):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        wide = SIZE // CELLS
        image[:, self.place * wide : (self.place + 1) * wide] = 255
        return {"image": image}

    def step(self, action):
        self.place = int(np.clip(self.place + np.sign(action[0]), 0, CELLS - 1))
        self.time += 1
        success, fell = self.place == 0, self.place == CELLS - 1
        terminated = success or fell
        truncated = self.time >= LIMIT and not terminated
        reward = 1.0 if success else -1.0 if fell else 0.0
        info = {"success": success, "env_steps": 2}
        return self.observe(), reward, terminated, truncated, info


class InOneProcess(SyncVectorEnv):
    """Gymnasium's, with the two halves of a step that the collector asks for."""

    def step_async(self, actions):
        self.asked = actions

    def step_wait(self):
        return self.step(self.asked)


def corridors(count):
    return InOneProcess([Corridor] * count, autoreset_mode=AutoresetMode.DISABLED)


class Steady:
    """Always the same action in each environment."""

    def __init__(self, *ways):
        self.action = np.array(ways, np.float32)[:, None]

    def policy(self, observation, state, explore):
        return self.action[: len(observation["is_first"])], state


@pytest.fixture
def collected(tmp_path):
    """A replay of episodes at whose end the bar is at the goal, fell, or ran out of time."""
    environments = corridors(2)
    entries = entries_for(environments.single_observation_space, environments.single_action_space)
    replay = Replay(tmp_path / "replay", entries, 2000, seed=0)
    collector, rng = Collector(environments, seed=0), np.random.default_rng(0)
    while len(replay.records) < 60:
        drift = 0.5 * np.array([[1.0], [-1.0]]) * (len(replay.records) % 3 > 0)
        collector.begin((rng.uniform(-1, 1, (2, 1)) + drift).astype(np.float32).clip(-1, 1))
        for episode, record in collector.finish():
            replay.add_episode(episode, **record)
        collector.restart()
    environments.close()
    return replay


def place(image):
    """Cell of the bar in pictures (..., H, W, 3)."""
    return np.asarray(image)[..., 0, :: SIZE // CELLS, 0].argmax(-1)


def at_an_end(image):
    return np.isin(place(image), (0, CELLS - 1))


def test_only_what_the_task_ends_is_terminal_and_only_its_last_frame(collected):
    ends = {"goal": 0, "cliff": 0, "time": 0}
    for episode, record in collected.episodes():
        last = int(place(episode["image"])[-1])
        assert not episode["is_terminal"][:-1].any()
        assert episode["is_terminal"][-1] == (last in (0, CELLS - 1))
        assert record["success"] == (last == 0)
        if not episode["is_terminal"][-1]:
            assert record["agent_steps"] == LIMIT
        ends["goal" if last == 0 else "cliff" if last == CELLS - 1 else "time"] += 1
    assert min(ends.values()) >= 3, ends  # each kind of end was seen


def test_in_windows_a_terminal_frame_is_the_last_of_its_episode(collected):
    """Of short episodes, too, behind which a window runs on into the next."""
    batch = {k: v.numpy() for k, v in collected.sample_windows(200, WINDOW).items()}
    terminal, first = batch["is_terminal"], batch["is_first"]
    assert terminal.any()
    assert np.array_equal(terminal, at_an_end(batch["image"]))
    assert first[:, 1:][terminal[:, :-1]].all()
    assert terminal[:, :-1].any()  # so some windows do run on
    assert not batch["reward"][first].any()
    assert not batch["action"][first].any()


def test_windows_of_whole_episodes_often_show_their_end(collected):
    """A head of terminations learns from nothing else."""
    collected.prioritise_ends = True
    ends = collected.sample_windows(300, WINDOW)["is_terminal"].any(1).float().mean()
    collected.prioritise_ends = False
    assert ends > collected.sample_windows(300, WINDOW)["is_terminal"].any(1).float().mean()


def test_a_value_does_not_look_beyond_a_termination_and_does_beyond_a_time_limit():
    """V of the terminal state is its reward; of a state cut by the clock, also what may follow."""
    reward, value = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[3.0], [3.0], [9.0]])
    bootstrap = torch.tensor([9.0])
    goes_on = torch.full((3, 1), 0.9)
    ended = goes_on.clone()
    ended[1] = 0.0  # in the second state the task is over
    returns = lambda_return(reward, value, ended, bootstrap, 0.95)
    assert returns[1].item() == 1.0
    assert returns[0].item() == pytest.approx(0.9 * (0.05 * 3.0 + 0.95 * 1.0))
    assert lambda_return(reward, value, goes_on, bootstrap, 0.95)[1].item() > 1.0


def agent(predict_discount=True):
    torch.manual_seed(0)
    dynamics = replace(
        TINY.dynamics, predict_discount=predict_discount, kl_scale=0.1, free_nats=1.0
    )
    config = replace(
        TINY, dynamics=dynamics, dynamics_optimizer=replace(FAST, learning_rate=3e-3),
        batch=16, window=WINDOW,
    )  # fmt: skip
    return MaskedWorldModel(config, 1, "cpu")


def test_without_a_head_nothing_that_is_imagined_ends(collected):
    learner = agent(predict_discount=False)
    states, _ = learner.dynamics.observe(learner.sample(collected))
    assert (learner.dynamics.continuation(states.feature) == 1).all()


def test_an_episode_that_is_evaluated_ends_with_its_termination():
    environments = corridors(2)
    left, right = run_episodes(Steady(-1.0, 1.0), environments, [3, 4])
    still = run_episodes(Steady(0.0, 0.0), environments, [3])[0]
    environments.close()
    assert (left["success"], left["return"]) == (True, 1.0)
    assert (right["success"], right["return"]) == (False, -1.0)
    assert max(left["length"], right["length"]) < still["length"] == 2 * LIMIT
    assert (still["success"], still["return"]) == (False, 0.0)


def test_the_head_learns_where_episodes_end(collected):
    """From the replay's windows, by the agent's own updates of its dynamics."""
    learner = agent()
    torch.manual_seed(1)
    for _ in range(300):
        learner.update_dynamics(learner.sample(collected))
    batch = learner.sample(collected)
    with torch.no_grad():
        states, _ = learner.dynamics.observe(batch)
        goes_on = learner.dynamics.continuation(states.feature).transpose(0, 1)  # (B, T)
    terminal = batch["is_terminal"]
    assert terminal.any()
    assert goes_on[terminal].mean() < 0.3
    assert goes_on[~terminal].mean() > 0.9
