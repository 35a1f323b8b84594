"""Collecting and evaluating in real Gymnasium vector environments of a task made up here."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from agents.rollout import (
    EVALUATION,
    FINAL_EVALUATION,
    TRAINING,
    Collector,
    RandomAgent,
    episode_seed,
    run_episodes,
)


class Clock(gymnasium.Env):
    """Shows its seed, its time and the last action. The seed decides length, end and success.

    It ends after 3 + seed % 4 steps, terminated when the seed is even; the last step is a short
    one, of 1 environment step instead of 2. Success shows in step 2 only, for seeds 0, 1 mod 3.
    """

    observation_space = gymnasium.spaces.Dict(
        image=gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8),
        clock=gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64),
    )
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time = seed, 0
        return self.observe(0.0), {}

    def observe(self, last):
        clock = np.array([self.seed, self.time, last])
        return {"image": np.full((2, 2, 3), self.time, np.uint8), "clock": clock}

    def step(self, action):
        self.time += 1
        over = self.time == length(self.seed)
        info = {"success": self.time == 2 and self.seed % 3 < 2, "env_steps": 1 if over else 2}
        reward = 10.0 * self.time + float(action[0])
        terminated = over and self.seed % 2 == 0
        return self.observe(float(action[0])), reward, terminated, over and not terminated, info


class Silent(Clock):
    """A suite without success."""

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {"env_steps": info["env_steps"]}


def length(seed):
    return 3 + seed % 4


@pytest.fixture
def make():
    """Makes vector environments and closes them when the test is over."""
    opened = []

    def make(kind=AsyncVectorEnv, count=2, environment=Clock):
        opened.append(kind([environment] * count, autoreset_mode=AutoresetMode.DISABLED))
        return opened[-1]

    yield make
    for environments in opened:
        environments.close()


class Counter:
    """Acts by how often it was asked since the last `is_first`; keeps what it was shown."""

    def __init__(self):
        self.shown, self.explored = [], []

    def policy(self, observation, state, explore):
        first = observation["is_first"]
        state = np.zeros(len(first)) if state is None else state
        state = np.where(first, 0, state + 1)
        self.shown.append((observation["clock"].copy(), first.copy()))
        self.explored.append(explore)
        return np.stack([0.01 * (state + 1), -state], -1).astype(np.float32), state


def collect(collector, steps, rng=None):
    """Step with random actions; return the finished episodes."""
    rng = rng or np.random.default_rng(0)
    finished = []
    for _ in range(steps):
        shape = collector.envs.action_space.shape
        collector.begin(rng.uniform(-1, 1, shape).astype(np.float32))
        finished += collector.finish()
        collector.restart()
    return finished


# ------------------------------------------------------------------------------- collecting


def test_collected_episodes_follow_the_one_convention(make):
    """Action and reward stand beside the observation that they led to."""
    episodes = collect(Collector(make(count=3), seed=5), 40)
    assert len(episodes) >= 15
    ends = set()
    for episode, record in episodes:
        seed, time, led_here = episode["clock"].T
        assert set(seed) == {record["seed"]}
        steps = length(record["seed"])
        np.testing.assert_array_equal(time, np.arange(steps + 1))
        assert not episode["action"][0].any()
        np.testing.assert_allclose(episode["action"][:, 0], led_here, rtol=1e-6)
        assert episode["reward"][0] == 0.0
        np.testing.assert_allclose(episode["reward"][1:], 10 * time[1:] + led_here[1:], rtol=1e-6)
        np.testing.assert_array_equal(episode["is_first"], time == 0)
        terminated = record["seed"] % 2 == 0
        np.testing.assert_array_equal(episode["is_terminal"], (time == steps) & terminated)
        assert np.array_equal(episode["image"][:, 1, 0, 2], time)
        assert record["env_steps"] == 2 * steps - 1
        assert record["success"] == (record["seed"] % 3 < 2)
        assert record["return"] == pytest.approx(episode["reward"].sum(), rel=1e-6)
        ends.add(terminated)
    assert ends == {True, False}


def test_collector_shows_the_policy_the_start_of_each_episode(make):
    collector = Collector(make(), seed=5)
    assert collector.observation["is_first"].all()
    for _ in range(12):
        collector.begin(np.zeros((2, 2), np.float32))
        collector.finish()
        collector.restart()
        seed, time, _ = collector.observation["clock"].T
        assert (time < length(seed)).all()  # nobody is shown an end
        np.testing.assert_array_equal(collector.observation["is_first"], time == 0)
        assert (collector.observation["image"][:, 0, 0, 0] == time).all()


def test_steps_of_unfinished_episodes_are_counted(make):
    collector = Collector(make(count=2), seed=5)
    assert (collector.agent_steps, collector.env_steps) == (0, 0)
    agent_steps = env_steps = 0
    for step in range(1, 20):
        for episode, record in collect(collector, 1):
            agent_steps += len(episode["reward"]) - 1
            env_steps += record["env_steps"]
        assert agent_steps + collector.agent_steps == 2 * step
        # Each finished episode had one short step.
        shorts = 2 * agent_steps - env_steps
        assert env_steps + collector.env_steps == 4 * step - shorts


def test_episodes_take_their_seeds_in_turn_and_go_on_where_a_run_stopped(make):
    collector = Collector(make(count=2), seed=5)
    seeds = {record["seed"] for _, record in collect(collector, 30)}
    in_turn = [episode_seed(5, TRAINING, ordinal) for ordinal in range(collector.started)]
    assert seeds <= set(in_turn)
    assert len(set(in_turn) - seeds) == 2  # those still running
    again = Collector(make(count=2), seed=5, started=7)
    assert again.observation["clock"][:, 0].tolist() == [
        episode_seed(5, TRAINING, 7),
        episode_seed(5, TRAINING, 8),
    ]


def test_cutting_keeps_unfinished_episodes_as_a_time_limit_would(make):
    collector = Collector(make(count=2), seed=5)
    collect(collector, 2)  # no episode is that short
    cut = collector.cut()
    assert len(cut) == 2
    for episode, record in cut:
        assert len(episode["reward"]) == 3
        assert not episode["is_terminal"].any()
        assert record["env_steps"] == 4
    assert (collector.agent_steps, collector.env_steps) == (0, 0)


@pytest.mark.parametrize("limit", [7, 8])
def test_episodes_can_be_cut_sooner_than_their_task_ends(make, limit):
    """Only those that go on longer; the next start comes at once, with the next seed."""
    collector = Collector(make(count=2), seed=5, limit=limit)  # four steps of 2, or an end before
    episodes = collect(collector, 30)
    own = 0
    for episode, record in episodes:
        steps = min(length(record["seed"]), 4)
        assert len(episode["reward"]) == steps + 1
        ended = length(record["seed"]) == steps
        assert record["env_steps"] == 2 * steps - ended
        assert episode["is_terminal"][-1] == (ended and record["seed"] % 2 == 0)
        own += ended
    assert 0 < own < len(episodes)
    in_turn = {episode_seed(5, TRAINING, ordinal) for ordinal in range(collector.started)}
    assert len(in_turn - {record["seed"] for _, record in episodes}) == 2  # those still running


def test_episode_that_just_ended_is_not_cut_again(make):
    collector = Collector(make(count=1), seed=5)
    steps = length(episode_seed(5, TRAINING, 0))
    collect(collector, steps - 1)
    collector.begin(np.zeros((1, 2), np.float32))
    assert len(collector.finish()) == 1
    assert collector.cut() == []


def test_suite_without_success_records_none(make):
    (_, record), *_ = collect(Collector(make(environment=Silent), seed=5), 8)
    assert record["success"] is None


# ------------------------------------------------------------------------------- evaluating


@pytest.mark.parametrize("kind", [AsyncVectorEnv, SyncVectorEnv])
@pytest.mark.parametrize("count", [1, 3])
def test_every_seed_is_played_once_and_reported_in_order(make, kind, count):
    """Whatever the number of workers, also with more seeds than workers and unequal episodes."""
    seeds, agent = [11, 4, 7, 12, 5, 9, 6], Counter()
    results = run_episodes(agent, make(kind, count), seeds)
    assert [result["seed"] for result in results] == seeds
    for result in results:
        steps = length(result["seed"])
        expected = sum(10.0 * t + 0.01 * t for t in range(1, steps + 1))
        assert result["return"] == pytest.approx(expected, rel=1e-6)
        assert result["length"] == 2 * steps - 1  # environment steps
        assert result["success"] is (result["seed"] % 3 < 2)  # in any step, not the last
        assert "frames" not in result


def test_an_episode_can_end_at_its_first_success(make):
    agent = Counter()
    for result in run_episodes(agent, make(count=2), [11, 4, 7, 12, 9], until_success=True):
        succeeds = result["seed"] % 3 < 2  # in step 2
        assert result["success"] is succeeds
        assert result["length"] == (4 if succeeds else 2 * length(result["seed"]) - 1)
    for clock, is_first in agent.shown:
        np.testing.assert_array_equal(is_first, clock[:, 1] == 0)
    silent = run_episodes(Counter(), make(environment=Silent), [11, 4], until_success=True)
    assert [result["length"] for result in silent] == [2 * length(seed) - 1 for seed in (11, 4)]


def test_evaluation_does_not_explore_and_tells_the_agent_where_episodes_start(make):
    agent = Counter()
    run_episodes(agent, make(count=2), [11, 4, 7])
    assert agent.explored == [False] * len(agent.explored)
    for clock, is_first in agent.shown:
        np.testing.assert_array_equal(is_first, clock[:, 1] == 0)


def test_more_workers_than_seeds_do_no_harm(make):
    results = run_episodes(Counter(), make(count=3), [7])
    assert [(r["seed"], r["length"]) for r in results] == [(7, 2 * length(7) - 1)]


def test_recorded_frames_are_the_whole_episode(make):
    for result in run_episodes(Counter(), make(count=2), [11, 4, 7], record=True):
        frames = result["frames"]
        assert frames.shape == (length(result["seed"]) + 1, 2, 2, 3)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames[:, 0, 0, 0], np.arange(len(frames)))


def test_success_of_a_suite_that_has_none_is_none(make):
    results = run_episodes(Counter(), make(environment=Silent), [11, 4])
    assert [result["success"] for result in results] == [None, None]


# ------------------------------------------------------------------------ seeds and chance


def test_training_and_evaluations_never_meet_on_a_start():
    training = {episode_seed(0, TRAINING, ordinal) for ordinal in range(2000)}
    evaluation = {
        episode_seed(0, EVALUATION, step, index)
        for step in range(10_000, 510_000, 5_000) for index in range(10)
    }  # fmt: skip
    final = {episode_seed(0, FINAL_EVALUATION, index) for index in range(1000)}
    assert len(training) == 2000
    assert len(evaluation) == 1000
    assert training.isdisjoint(evaluation | final)
    assert evaluation.isdisjoint(final)


def test_runs_of_different_seeds_have_different_starts():
    assert not (
        {episode_seed(0, TRAINING, ordinal) for ordinal in range(500)}
        & {episode_seed(1, TRAINING, ordinal) for ordinal in range(500)}
    )


def test_random_actions_fill_the_action_space():
    space = gymnasium.spaces.Box(
        np.array([-1, 2, -np.inf], np.float32), np.array([1, 5, np.inf], np.float32)
    )
    agent = RandomAgent(space, seed=0)
    actions, state = agent.policy({"is_first": np.zeros(4000, bool)}, None, explore=True)
    assert actions.shape == (4000, 3)
    assert actions.dtype == np.float32
    assert state is None
    assert np.isfinite(actions).all()
    np.testing.assert_allclose(actions[:, :2].min(0), [-1, 2], atol=0.01)
    np.testing.assert_allclose(actions[:, :2].max(0), [1, 5], atol=0.01)
    np.testing.assert_allclose(actions[:, :2].mean(0), [0, 3.5], atol=0.1)
    assert actions[:, 2].std() == pytest.approx(1.0, rel=0.1)


def test_extreme_actions_are_at_the_bounds_each_dimension_on_its_own():
    space = gymnasium.spaces.Box(
        np.array([-1, 2, -np.inf], np.float32), np.array([1, 5, np.inf], np.float32)
    )
    agent = RandomAgent(space, seed=0, extreme=True)
    actions, _ = agent.policy({"is_first": np.zeros(4000, bool)}, None, explore=True)
    corners, counts = np.unique(actions[:, :2], axis=0, return_counts=True)
    assert corners.tolist() == [[-1, 2], [-1, 5], [1, 2], [1, 5]]
    assert counts.min() > 900
    assert actions[:, 2].std() == pytest.approx(1.0, rel=0.1)
