"""Experts: they solve their tasks, repeat themselves, and say where there is none."""

import numpy as np
import pytest

import envs
from envs.experts import PHASES, _grasps_across, _grasps_of_rim, expert
from errors import UserError

pytestmark = pytest.mark.simulator

LONGEST = 160
"""Steps of a good LIBERO demonstration; the suites allow 220 and 280."""


@pytest.fixture
def unseen(monkeypatch, request):
    """``unseen(task)``: an environment that draws nothing, which is most of a step's time."""
    made = []

    def make(task, **options):
        if task.startswith("libero/"):
            request.getfixturevalue("libero_assets")
        made.append(envs.make(task, quality="fast", size=8, **options))
        monkeypatch.setattr(made[-1], "observing", False)
        return made[-1]

    yield make
    for one in made:
        one.close()


def episode(one, seed, noise=0.0, steps=None):
    """One expert's episode until success: whether it succeeded, and its actions (T, A)."""
    one.reset(seed=seed)
    acting = expert(one, noise, np.random.default_rng(seed))
    acting.begin()
    actions, info, done = [], {"success": False}, False
    while not (done or info["success"] or len(actions) == steps):
        actions.append(acting.action())
        _, _, terminated, truncated, info = one.step(actions[-1])
        done = terminated or truncated
    return info["success"], np.array(actions)


@pytest.mark.parametrize("task", ["window-close", "drawer-open", "pick-place"])
def test_metaworlds_experts_succeed_at_the_published_action_repeat(task, unseen):
    one = unseen(f"metaworld/{task}")
    assert one.action_repeat == 2
    assert all(episode(one, seed)[0] for seed in range(3))


@pytest.mark.parametrize(
    ("task", "seeds"),
    [
        pytest.param("object/0", [0], id="a can"),
        pytest.param("object/1", [0, 1], id="a flat box"),
        pytest.param("object-shuffled/3", [0, 2], id="a bottle anywhere"),
        pytest.param("spatial/2", [0, 1], id="a bowl"),
    ],
)
def test_liberos_expert_succeeds_soon(task, seeds, unseen):
    one = unseen(f"libero/{task}")
    for seed in seeds:
        success, actions = episode(one, seed)
        assert success
        assert len(actions) < LONGEST
        assert actions.dtype == np.float32
        assert all(one.action_space.contains(action) for action in actions)
        # Closed around the object, and opened again above the target.
        grippers = actions[:, -1]
        assert set(grippers) == {-1, 1}
        assert grippers[0] == grippers[-1] == -1


def box(half_sizes, yaw=0.0, turned_around=(0, 0)):
    """Points of a box that stands on the ground, (P, 3)."""
    axes = [np.linspace(-half, half, 9) for half in half_sizes]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 3) + [*turned_around, half_sizes[2]]
    cos, sin = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


@pytest.mark.parametrize("degrees", [-60, 0, 30, 85])
def test_a_box_is_grasped_across_its_narrower_side(degrees):
    """At yaw 0 the fingers move along y, the narrower side of a box that is not turned."""
    grasps = _grasps_across(box([0.04, 0.02, 0.01], np.radians(degrees)))
    best = min(grasps, key=lambda grasp: grasp.cost)
    assert np.degrees(best.yaw) == pytest.approx(degrees)
    np.testing.assert_allclose(best.entry[:2], 0, atol=1e-9)
    # Deep, but not into the ground
    assert 0.005 < best.entry[2] < 0.01


def test_what_is_too_wide_is_grasped_by_its_wall():
    """A ring of twelve flat pieces, 5 cm from its middle: one finger on either side of one."""
    pieces = [
        box([0.001, 0.012, 0.02], angle, (0.05, 0)) for angle in np.radians(np.arange(0, 360, 30))
    ]
    bowl = np.concatenate([[[0, 0, 0]], *pieces])
    assert not _grasps_across(bowl)
    centres = np.array([piece.mean(0) + [0, 0, 1e-3] for piece in pieces])  # in the upper half
    for grasp in _grasps_of_rim(bowl, centres):
        assert np.linalg.norm(grasp.grip[:2]) == pytest.approx(0.05, abs=0.002)
        assert np.linalg.norm(grasp.entry[:2]) <= np.linalg.norm(grasp.grip[:2]) + 1e-9
        closing = np.array([-np.sin(grasp.yaw), np.cos(grasp.yaw)])
        outwards = grasp.grip[:2] / np.linalg.norm(grasp.grip[:2])
        assert abs(closing @ outwards) == pytest.approx(1)


def test_an_object_that_is_lost_on_the_way_is_fetched_again(unseen):
    one = unseen("libero/object/1")
    one.reset(seed=0)
    acting = expert(one)
    acting.begin()
    joint = one.model.body(acting._object).jntadr[0]
    pose = slice(one.model.jnt_qposadr[joint], one.model.jnt_qposadr[joint] + 7)
    at_first = one.data.qpos[pose].copy()
    phases, success, done = [], False, False
    while not done:
        _, _, success, truncated, _ = one.step(acting.action())
        done = success or truncated
        if not phases or phases[-1] != acting._phase:
            phases.append(acting._phase)
            if phases.count("carry") == 1 and phases[-1] == "carry":
                one.data.qpos[pose] = at_first
    assert success
    names = [name for name in PHASES if name != "free"]  # nothing hangs over it
    assert phases[:5] == names[:5]
    assert phases[5:8] == names[:3]


def test_an_expert_works_under_noise(unseen):
    assert episode(unseen("libero/object/1"), 0, noise=0.2)[0]
    assert episode(unseen("metaworld/drawer-open"), 0, noise=0.2)[0]


@pytest.mark.parametrize("task", ["metaworld/pick-place", "libero/object/0"])
def test_noise_changes_an_action_but_not_the_gripper(task, unseen):
    one = unseen(task)
    one.reset(seed=0)
    actions = {}
    for noise, seed in [(0.0, 0), (0.3, 0), (0.3, 1)]:
        acting = expert(one, noise, np.random.default_rng(seed))
        acting.begin()
        actions[noise, seed] = acting.action()
    plain, *noisy = actions.values()
    for action in noisy:
        assert (action[:-1] != plain[:-1]).any()
        assert action[-1] == plain[-1]
        assert one.action_space.contains(action)
    assert (noisy[0] != noisy[1]).any()


@pytest.mark.parametrize("task", ["metaworld/pick-place", "libero/spatial/2"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_same_seed_gives_the_same_actions(task, noise, unseen):
    one = unseen(task)
    first = episode(one, 3, noise, steps=12)[1]
    np.testing.assert_array_equal(first, episode(one, 3, noise, steps=12)[1])
    assert (first != episode(one, 4, noise, steps=12)[1]).any()


@pytest.mark.parametrize("task", ["metaworld/pick-place", "libero/object/0"])
def test_asking_for_an_action_leaves_the_simulator_alone(task, unseen):
    one = unseen(task)
    one.reset(seed=0)
    acting = expert(one)
    acting.begin()
    before = [one.data.qpos.copy(), one.data.qvel.copy(), one.data.qacc_warmstart.copy()]
    memory = np.array(getattr(one._simulation, "_prev_obs", 0))
    first = acting.action()
    for value, after in zip(
        before, [one.data.qpos, one.data.qvel, one.data.qacc_warmstart], strict=True
    ):
        np.testing.assert_array_equal(value, after)
    np.testing.assert_array_equal(memory, getattr(one._simulation, "_prev_obs", 0))
    np.testing.assert_array_equal(acting.action(), first)


def test_a_task_without_an_expert_says_which_have_one(unseen):
    with pytest.raises(UserError, match="dmc/cartpole-swingup has no scripted expert.*metaworld"):
        expert(unseen("dmc/cartpole-swingup"))


def test_a_libero_task_without_an_expert_says_which_have_one(unseen):
    sentence = "libero/goal/0 has no scripted expert.*libero/object/0 to 9, libero/spatial/0 to 9"
    with pytest.raises(UserError, match=sentence):
        expert(unseen("libero/goal/0"))


def test_noise_needs_a_generator(unseen):
    with pytest.raises(ValueError, match="generator"):
        expert(unseen("metaworld/reach"), noise=0.1)
