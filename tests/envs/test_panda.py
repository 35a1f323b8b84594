"""The panda tasks: actions, ends of episodes, rewards, masks, replays, experts, errors."""

import json
import sys

import h5py
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.annotation import annotate
from envs.environment_config import EnvironmentConfig
from envs.experts import expert
from envs.panda import INVALID_REWARD, LARGEST_TURN, MAX_ENV_STEPS, SUCCESS_REWARD
from envs.recording import ScriptedActor, collect
from envs.shifts import SHIFTS
from errors import UserError
from mask_classes import BACKGROUND, HAND, ROBOT

pytestmark = pytest.mark.simulator

TASKS = envs.tasks("panda")
STILL = np.array([0, 0, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture(scope="module")
def arm():
    """One task, without pictures, for what is the same in all."""
    one = envs.make("panda/reach-target", quality="fast", size=8, proprio=True)
    yield one
    one.close()


def turned(joint, amount=1.0, gripper=1.0):
    """The action that turns one joint."""
    action = np.zeros(8, np.float32)
    action[joint], action[-1] = amount, gripper
    return action


def trace(one, seed, steps=3):
    """Pictures, rewards and physics along random actions."""
    observation, info = one.reset(seed=seed)
    rng = np.random.default_rng(seed)
    found = [observation["image"], one.data.qpos.copy(), one.model.geom_rgba.copy()]
    for _ in range(steps):
        observation, reward, *_ = one.step(rng.uniform(-1, 1, 8).astype(np.float32))
        found += [observation["image"], np.array(reward), one.data.qpos.copy()]
    return found


def same(first, second):
    return all(map(np.array_equal, first, second))


def physics(task, steps=2, **options):
    """What happens, in numbers, however it is drawn."""
    one = envs.make(task, size=16, **options)
    one.reset(seed=5)
    rng = np.random.default_rng(5)
    found = []
    for _ in range(steps):
        _, reward, terminated, *_ = one.step(rng.uniform(-1, 1, 8).astype(np.float32))
        found += [reward, terminated, *one.data.qpos, *one.data.qvel, *one.data.qacc_warmstart]
    one.close()
    return np.array(found)


@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_accepts_it_and_its_masks_show_every_part(task):
    one = envs.make(task, quality="fast", masks=True, proprio=True)
    check_env(one, skip_close_check=True)
    assert one.action_space.shape == (8,)
    assert one.observation_space["proprio"].shape == (12,)
    seen = set()
    for seed in range(2):
        observation, info = one.reset(seed=seed)
        seen |= set(np.unique(observation["mask"]))
    assert seen == {BACKGROUND, ROBOT, HAND, *one.scene.parts.values()}
    assert info["instruction"] == one.instruction
    assert len(one.instruction.split()) > 2
    one.close()


@pytest.mark.parametrize("task", ["panda/pick-and-lift", "panda/open-drawer"])
def test_an_episode_is_a_function_of_its_seed(task):
    used, fresh = (envs.make(task, quality="fast", size=16) for _ in range(2))
    first = trace(used, seed=3)
    assert not same(first, trace(used, seed=4))
    assert same(first, trace(used, seed=3))
    assert same(first, trace(fresh, seed=3))
    used.close(), fresh.close()


def test_one_in_an_action_turns_a_joint_by_its_share_in_every_control_step(arm):
    arm.reset(seed=0)
    for joint in range(7):
        before = arm.joint_angles
        _, _, terminated, _, info = arm.step(turned(joint, -0.6))
        assert not terminated
        expected = np.zeros(7)
        expected[joint] = -0.6 * LARGEST_TURN * info["env_steps"]
        np.testing.assert_allclose(arm.joint_angles - before, expected, atol=0.01)


def test_the_gripper_opens_and_closes(arm):
    observation, _ = arm.reset(seed=0)
    widths = [np.ptp(observation["proprio"][7:9])]
    for command in (-0.1, 0.1):
        observation, *_ = arm.step(turned(0, 0, command))
        widths.append(np.ptp(observation["proprio"][7:9]))
    np.testing.assert_allclose(widths, [0.08, 0.0, 0.08], atol=2e-3)


def test_a_motion_out_of_a_joints_range_ends_the_episode_and_is_not_begun(arm):
    arm.reset(seed=0)
    over, steps = False, 0
    while not over:
        before = arm.joint_angles
        _, reward, over, truncated, info = arm.step(turned(6))
        steps += 1
    assert steps < 30
    assert not truncated
    assert info["success"] is False
    assert reward == pytest.approx(INVALID_REWARD, abs=0.5)
    limit = arm.joint_ranges[6, 1]
    assert limit - 2 * LARGEST_TURN < before[6] < arm.joint_angles[6] + 1e-6 <= limit + 1e-3


def test_a_motion_into_the_table_ends_the_episode(arm):
    arm.reset(seed=0)
    over, steps = False, 0
    while not over:
        observation, _, over, truncated, info = arm.step(turned(1))
        steps += 1
    assert not truncated
    assert not info["success"]
    assert 2 < steps < 20
    assert observation["proprio"][-1] < 0.05  # the fingertips' height
    inside = (arm.joint_ranges[:, 0] < arm.joint_angles) & (
        arm.joint_angles < arm.joint_ranges[:, 1]
    )
    assert inside.all()


def test_standing_still_pays_nothing_and_time_truncates(arm):
    arm.observing = False
    arm.reset(seed=0)
    steps, total, truncated = 0, 0.0, False
    while not truncated:
        _, reward, terminated, truncated, info = arm.step(STILL)
        assert not terminated
        steps, total = steps + info["env_steps"], total + reward
    arm.observing = True
    assert steps == MAX_ENV_STEPS == 200
    assert abs(total) < 0.01


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_which_ends_the_episode_and_pays(task):
    one = envs.make(task, quality="fast", size=8)
    one.observing = False
    one.reset(seed=7)
    way = one.scene.distance(one.world)
    acting = expert(one)
    acting.begin()
    total, steps, over = 0.0, 0, False
    while not over:
        action = acting.action()
        assert one.action_space.contains(action)
        _, reward, over, truncated, info = one.step(action)
        total, steps, over = total + reward, steps + 1, over or truncated
    assert info["success"]
    assert not truncated
    assert 3 < steps < 60
    # Progress adds up to the way that was gone.
    left = one.scene.distance(one.world)
    assert total == pytest.approx(10 * (way - left) + SUCCESS_REWARD)
    one.close()


def test_an_expert_works_under_noise():
    one = envs.make("panda/take-lid-off", quality="fast", size=8)
    one.observing = False
    one.reset(seed=3)
    acting = expert(one, 0.1, np.random.default_rng(3))
    acting.begin()
    over = False
    while not over:
        _, _, terminated, truncated, info = one.step(acting.action())
        over = terminated or truncated
    assert info["success"]
    one.close()


def test_a_variation_is_what_the_instruction_names(arm):
    _, info = arm.reset(seed=0)
    assert "red" in info["instruction"]
    _, info = arm.reset(seed=0, options={"variation": 2})
    assert "blue" in info["instruction"]
    target = arm.model.geom_bodyid == arm.model.body("target").id
    assert arm.model.geom_rgba[target][0, :3].argmax() == 2
    told = {arm.reset(seed=s, options={"variation": "seed"})[1]["instruction"] for s in range(6)}
    assert len(told) > 2
    for wrong in (99, -1, "green", 1.5):
        with pytest.raises(UserError, match="number from 0"):
            arm.reset(options={"variation": wrong})


@pytest.mark.parametrize("task", TASKS)
def test_what_happens_is_the_same_at_every_quality_and_under_every_shift(task):
    plain = physics(task, quality="fast")
    every = "+".join(f"{name}:1" for name in SHIFTS)
    for options in (
        {"quality": "smooth"},
        {"quality": "full"},
        {"quality": "fast", "shift": every},
    ):
        np.testing.assert_array_equal(physics(task, **options), plain)


def test_a_recorded_state_is_shown_as_it_was_seen():
    one, other = (
        envs.make("panda/pick-and-lift", quality="fast", masks=True, proprio=True, size=32)
        for _ in range(2)
    )
    one.reset(seed=1)
    model = one.recorded_model()
    seen, *_ = one.step(turned(0, -1, -1))
    other.reset(seed=2)
    other.restore(model)
    shown = other.show(one.recorded_state())
    for name in ("image", "mask"):
        np.testing.assert_array_equal(shown[name], seen[name])
    np.testing.assert_allclose(shown["proprio"], seen["proprio"], atol=1e-6)
    one.close(), other.close()


def test_demonstrations_are_recorded_and_annotated(tmp_path):
    config = EnvironmentConfig(size=32, quality="fast", camera="front,wrist")
    path, out = tmp_path / "demo.hdf5", tmp_path / "masks.hdf5"
    collect("panda/push-button", 1, path, ScriptedActor, config, seed=0)
    annotate(path, out, tracks=True)
    with h5py.File(path) as before, h5py.File(out) as after:
        told = json.loads(after["data"].attrs["problem_info"])["language_instruction"]
        assert told == "push the button"
        old, new = before["data/demo_0"], after["data/demo_0"]
        assert new["actions"].shape[1] == 8
        assert old["dones"][-1] == 1
        for camera in ("front", "wrist"):
            for kind in ("rgb", "mask"):
                name = f"obs/{camera}_{kind}"
                np.testing.assert_array_equal(new[name][()], old[name][()])
        assert new["obs/front_effector"].shape == (len(new["actions"]), 2)


def test_without_the_arms_model_a_sentence_says_what_to_install(monkeypatch):
    from envs import panda_model

    monkeypatch.setattr(panda_model.importlib.util, "find_spec", lambda name: None)
    panda_model._compiled.cache_clear()
    with pytest.raises(UserError, match=r"pip install '\.\[panda\]'") as error:
        envs.make("panda/reach-target")
    assert len(str(error.value).splitlines()) == 1


def test_robosuite_itself_is_not_imported(arm):
    """It would compile functions while it is imported, for seconds."""
    assert arm.model.nq
    if "libero" not in sys.modules:
        assert "robosuite" not in sys.modules
