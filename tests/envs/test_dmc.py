"""DeepMind Control: limits, bounds, seeds, masks."""

import gymnasium
import mujoco
import numpy as np
import pytest

import envs
from envs.rendering import Renderer

pytestmark = pytest.mark.simulator

SEEDED = [
    "cartpole-swingup",
    "finger-turn_hard",
    "point_mass-hard",
    "quadruped-escape",
    "humanoid_CMU-run",
    "lqr-lqr_6_2",
    "manipulator-bring_peg",
    "stacker-stack_2",
    "fish-swim",
    "reach_duplo",
    "reassemble_5_bricks_random_order",
]


def episode(one, seed):
    one.reset(seed=seed)
    rng = np.random.default_rng(seed)
    trace = [one.data.qpos.copy(), one.data.qvel.copy()]
    for _ in range(3):
        action = rng.uniform(-1, 1, one.action_space.shape).astype(np.float32)
        observation, reward, *_ = one.step(action)
        trace += [np.array(reward), one.data.qpos.copy(), observation["proprio"]]
        trace.append(observation["image"])
    return trace


def same(trace, other):
    return len(trace) == len(other) and all(map(np.array_equal, trace, other))


@pytest.mark.parametrize("task", SEEDED)
def test_an_episode_is_a_function_of_its_seed(task):
    used = envs.make(f"dmc/{task}", quality="fast", proprio=True, size=16)
    fresh = envs.make(f"dmc/{task}", quality="fast", proprio=True, size=16)
    first = episode(used, seed=3)
    assert not same(first, episode(used, seed=4))
    assert same(first, episode(used, seed=3))
    episode(fresh, seed=9), episode(fresh, seed=10)
    assert same(first, episode(fresh, seed=3))
    used.close(), fresh.close()


@pytest.mark.parametrize(
    ("task", "limit", "dimensions"),
    [
        ("walker-walk", 1000, 6),
        ("reach_duplo", 250, 9),
        ("lqr-lqr_2_1", 1000, 1),
        ("humanoid_CMU-run", 1000, 56),
        ("quadruped-walk", 1000, 12),
    ],
)
def test_limits_and_action_sizes(task, limit, dimensions):
    one = envs.make(f"dmc/{task}", quality="fast", size=8)
    assert one.unwrapped.max_env_steps == limit
    assert one.action_space.shape == (dimensions,)
    one.reset(seed=0)
    one.step(np.zeros(dimensions, np.float32))
    one.close()


@pytest.mark.parametrize(("task", "limit"), [("reach_duplo", 250), ("lqr-lqr_2_1", 1000)])
def test_time_limits_truncate(task, limit):
    one = envs.make(f"dmc/{task}", quality="fast", size=8)
    one.reset(seed=0)
    one.observing = False
    steps, truncated = 0, False
    while not truncated:
        *_, terminated, truncated, info = one.step(np.zeros(one.action_space.shape, np.float32))
        assert not terminated
        assert "success" not in info
        steps += info["env_steps"]
    assert steps == limit
    one.close()


def test_without_observing_nothing_is_drawn_and_the_physics_are_the_same():
    seen, unseen = (envs.make("dmc/walker-walk", quality="fast", size=8) for _ in range(2))
    unseen.observing = False
    assert unseen.reset(seed=1)[0] == {} != seen.reset(seed=1)[0]
    for _ in range(3):
        action = np.full(seen.action_space.shape, 0.5, np.float32)
        observation, *rest = unseen.step(action)
        assert observation == {}
        assert rest == list(seen.step(action)[1:])
    with pytest.raises(gymnasium.error.ResetNeeded):
        unseen.render()
    for one in (seen, unseen):
        one.close()


def test_only_a_discount_of_zero_terminates():
    import dm_env

    one = envs.make("dmc/cartpole-swingup", quality="fast", size=8, action_repeat=4)
    one.reset(seed=0)
    last = one._latest._replace(step_type=dm_env.StepType.LAST, reward=1.0)
    for discount, expected in ((0.0, (True, False)), (1.0, (False, True))):
        one._environment.step = lambda action, d=discount: last._replace(discount=d)
        _, reward, terminated, truncated, info = one.step(np.zeros(1, np.float32))
        assert (terminated, truncated) == expected
        assert (reward, info["env_steps"]) == (1.0, 1)
    one.close()


def test_actions_reach_the_simulators_own_bounds():
    one = envs.make("dmc/reach_duplo", quality="fast", size=8)
    spec = one._environment.action_spec()
    assert spec.maximum.max() > 1
    assert spec.maximum.min() < 1
    ones = np.ones(9, np.float32)
    np.testing.assert_allclose(one._rescale(ones), spec.maximum)
    np.testing.assert_allclose(one._rescale(-3 * ones), spec.minimum)
    np.testing.assert_allclose(one._rescale(0 * ones), (spec.minimum + spec.maximum) / 2)
    one.close()


def test_actions_without_bounds_are_passed_on_unchanged():
    one = envs.make("dmc/lqr-lqr_6_2", quality="fast", size=8)
    assert np.isinf(one.action_space.high).all()
    np.testing.assert_array_equal(one._rescale(np.array([3, -0.5], np.float32)), [3, -0.5])
    one.close()


def test_lqr_is_one_system_everywhere():
    stiffness = []
    for seed in (1, 2):
        one = envs.make("dmc/lqr-lqr_2_1", seed=seed)
        stiffness.append(one.model.jnt_stiffness.copy())
        one.close()
    np.testing.assert_array_equal(*stiffness)


def test_the_quadruped_is_seen_by_camera_2_and_others_by_0(environment):
    assert environment("dmc/quadruped-fetch", quality="fast", masks=True).camera_numbers == [2]
    assert environment("dmc/walker-walk", quality="fast", masks=True).camera_numbers == [0]


def test_manipulation_does_not_render_its_own_cameras():
    one = envs.make("dmc/reach_duplo", quality="fast", size=8, proprio=True)
    observation, _ = one.reset(seed=0)
    assert observation["proprio"].size < 100
    one.close()


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ("walker-walk", {0, 1}),
        ("cartpole-two_poles", {0, 1}),
        ("ball_in_cup-catch", {0, 1, 3}),
        ("finger-spin", {0, 1, 3}),
        ("reacher-easy", {0, 1, 2, 4}),
        ("point_mass-easy", {0, 1, 4}),
        ("manipulator-insert_peg", {0, 1, 2, 3, 4, 6}),
        ("stacker-stack_2", {0, 1, 2, 3, 4, 5}),
        ("dog-fetch", {0, 1}),
        ("quadruped-fetch", {0, 1, 4}),  # the ball is often out of sight
        ("reach_duplo", {0, 1, 2, 3}),
        ("place_brick", {0, 1, 2, 3, 4}),
    ],
)
def test_masks_name_agent_and_objects(task, classes, environment):
    one = environment(f"dmc/{task}", quality="fast", masks=True)
    seen = set()
    for seed in range(4):
        seen |= set(np.unique(one.reset(seed=seed)[0]["mask"]).tolist())
    assert classes <= seen


@pytest.mark.parametrize("task", ["cartpole-swingup", "quadruped-escape", "reach_duplo"])
def test_full_quality_is_exactly_mujocos_own_picture_the_right_way_up(task):
    one = envs.make(f"dmc/{task}", quality="full")
    one.reset(seed=0)
    image = one.reset(seed=1)[0]["image"]  # the second episode: height fields are uploaded again
    reference = mujoco.Renderer(one.model, 64, 64)
    reference.update_scene(one.data, one.camera_numbers[0])
    np.testing.assert_array_equal(image, reference.render())
    reference.close()
    one.close()


def test_fast_and_full_pictures_show_the_same_scene(environment):
    for task in ("walker-walk", "quadruped-fetch", "dog-fetch", "reach_duplo"):
        one = environment(f"dmc/{task}", quality="fast", masks=True)
        fast = one.reset(seed=1)[0]["image"].astype(int)
        renderer = Renderer(one.model, 64, 64, "full")
        renderer.update(one.data, one.camera_numbers[0])
        assert np.abs(fast - renderer.image()).mean() < 20
        renderer.close()
