"""Meta-World: the published protocol, the same numbers from the same seed, physics left alone."""

import mujoco
import numpy as np
import pytest

import envs
from envs.rendering import Renderer

pytestmark = pytest.mark.simulator

TASKS = envs.tasks("metaworld")


@pytest.fixture(scope="module", params=TASKS)
def one(request):
    """Each of the 50 tasks in turn; pytest runs all tests of one before it makes the next."""
    environment = envs.make(request.param, quality="fast", masks=True)
    environment.reset(seed=1)
    yield environment
    environment.close()


def episode(one, seed, steps=4):
    """What the physics did: rewards, and positions and velocities after every step."""
    one.reset(seed=seed)
    rng = np.random.default_rng(seed)
    trace = [one.data.qpos.copy(), one.data.qvel.copy(), one.model.site_pos.copy()]
    for _ in range(steps):
        action = rng.uniform(-1, 1, one.action_space.shape).astype(np.float32)
        _, reward, *_ = one.step(action)
        trace += [np.array(reward), one.data.qpos.copy(), one.data.qvel.copy()]
    return trace


def same(trace, other):
    return len(trace) == len(other) and all(map(np.array_equal, trace, other))


def test_groups_of_tasks_are_the_packages_own():
    from metaworld import env_dict

    def named(tasks):
        return [f"metaworld/{name.removesuffix('-v3')}" for name in tasks]

    assert set(envs.expand("metaworld/mt10")) == set(named(env_dict.MT10_V3))
    assert envs.expand("metaworld/ml10-train") == named(env_dict.ML10_V3["train"])
    assert envs.expand("metaworld/ml10-test") == named(env_dict.ML10_V3["test"])


def test_an_episode_is_a_function_of_its_seed(one):
    first = episode(one, seed=3)
    assert not same(first, episode(one, seed=4))
    fresh = envs.make(f"metaworld/{one.name}", quality="fast", size=8)
    assert same(first, episode(fresh, seed=3))
    assert same(first, episode(one, seed=3))
    fresh.close()


def test_unseeded_resets_go_on_from_the_seed_of_make():
    starts = []
    for _ in range(2):
        one = envs.make("metaworld/reach", quality="fast", size=8, seed=7)
        goals = []
        for _ in range(3):
            one.reset()
            goals.append(one.model.site("goal").pos.copy())
        starts.append(np.array(goals))
        one.close()
    np.testing.assert_array_equal(*starts)
    assert len(np.unique(starts[0], axis=0)) == 3


def test_rendering_at_any_quality_leaves_the_physics_alone_and_shows_one_scene(one):
    """Bit-identical episodes drawn fast, otherwise, and not at all; pictures close together."""
    expected = episode(one, seed=5, steps=2)
    fast = one._image.astype(int)
    renderers = {
        quality: Renderer(one.model, 64, 64, quality, upside_down=True)
        for quality in ("full", "smooth")
    }
    quality = one.model.vis.quality
    kept = quality.shadowsize, quality.offsamples
    quality.shadowsize = quality.offsamples = 0
    renderers["unshadowed"] = Renderer(one.model, 64, 64, "full", upside_down=True)
    quality.shadowsize, quality.offsamples = kept
    pictures = {}

    def observe_in_full():
        for name, renderer in renderers.items():
            with one._as_drawn():
                renderer.update(one.data, one.camera_numbers[0])
            pictures[name] = renderer.image().astype(int)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "observing", False)
        assert same(expected, episode(one, seed=5, steps=2))
        one.reset(seed=5)
        observe_in_full()
        actions = np.random.default_rng(5).uniform(-1, 1, (2, 4)).astype(np.float32)
        one.step(actions[0])
        one.step(actions[1])
        np.testing.assert_array_equal(one.data.qpos, expected[-2])
        np.testing.assert_array_equal(one.data.qvel, expected[-1])
        observe_in_full()
    # results/render_quality.md: means of 8 to 11 against full, nearly all of it shadows and edges;
    # what thinning the meshes adds to a picture without either is under 2.
    assert np.abs(fast - pictures["full"]).mean() < 16
    assert np.abs(fast - pictures["unshadowed"]).mean() < 2
    from_full = np.abs(pictures["smooth"] - pictures["full"]).mean()
    assert from_full < np.abs(fast - pictures["full"]).mean()
    for renderer in renderers.values():
        renderer.close()


def test_every_mask_shows_the_robot_and_something_of_the_task(one):
    table = one._class_table
    seen = set(np.unique(one.reset(seed=1)[0]["mask"]))
    for _ in range(2):
        seen |= set(np.unique(one.step(np.zeros(4, np.float32))[0]["mask"]))
    assert {0, 1, 2} <= seen
    assert seen & {3, 4, 5, 6}
    assert 3 in table[int(mujoco.mjtObj.mjOBJ_GEOM)]
    one.reset(seed=2)
    assert one._class_table is table


@pytest.mark.parametrize("task", ["reach", "pick-place", "push", "soccer", "sweep-into"])
def test_goal_markers_are_in_the_mask(task, environment):
    one = environment(f"metaworld/{task}", quality="fast", masks=True)
    assert all((one.reset(seed=seed)[0]["mask"] == 4).any() for seed in range(3))


def test_goal_markers_stand_where_the_task_says(one):
    one.reset(seed=1)
    one.step(np.zeros(4, np.float32))
    before = one.data.site_xpos.copy()
    with one._as_drawn():
        for site, position in one._simulation._target_site_config:
            np.testing.assert_array_equal(one.data.site(site).xpos, position[:3])
    np.testing.assert_array_equal(one.data.site_xpos, before)


def test_the_first_picture_shows_the_pose_the_physics_has(one):
    """Drawing again after a full forward pass changes nothing."""
    first = one.reset(seed=6)[0]["image"]
    mujoco.mj_forward(one.model, one.data)
    np.testing.assert_array_equal(one._observe()["image"], first)


def test_the_picture_is_upright_and_mirrored(environment):
    """The sky is above, the table below, and the world's +x, the camera's side, to the right."""
    one = environment("metaworld/reach", quality="fast", masks=True)
    observation, _ = one.reset(seed=0)
    image, mask = observation["image"].astype(int), observation["mask"]
    sky = np.array([127, 126, 122])  # the scene's sky: .50 .495 .48
    assert np.abs(image[2, :40] - sky).max() < 12
    wood = image[50:60, 5:25].mean((0, 1))
    assert wood[0] > wood[2] + 15  # brown
    rows = np.nonzero(mask == 2)[0]
    arm_rows = np.nonzero(mask == 1)[0]
    assert arm_rows.min() < rows.min()  # the arm comes down to the hand from above
    # The published observation is the flipped render of the upside-down camera.
    reference = mujoco.Renderer(one.model, 64, 64)
    reference.update_scene(one.data, "corner2")
    expected = reference.render()[::-1].astype(int)
    reference.close()
    assert np.abs(image - expected).mean() < 16
    assert np.abs(image[::-1] - expected).mean() > 30


def test_several_cameras_show_what_each_shows_alone(environment):
    """Of which one is mounted upside down and the other is not."""
    both = environment(
        "metaworld/reach", camera="corner2,gripperPOV", quality="fast", masks=True, proprio=True
    )
    seen, _ = both.reset(seed=4)
    seen = both.step(np.ones(4, np.float32))[0]
    assert both.observation_space.contains(seen)
    assert {name: value.shape for name, value in seen.items()} == {
        "image": (2, 64, 64, 3),
        "mask": (2, 64, 64),
        "proprio": (4,),
    }
    assert both.render().shape == (64, 128, 3)
    assert [both.upside_down(number) for number in both.camera_numbers] == [True, False]
    for index, camera in enumerate(both.cameras):
        one = environment("metaworld/reach", camera=camera, quality="fast", masks=True)
        one.reset(seed=4)
        alone = one.step(np.ones(4, np.float32))[0]
        np.testing.assert_array_equal(seen["image"][index], alone["image"])
        np.testing.assert_array_equal(seen["mask"][index], alone["mask"])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [("opengl", lambda picture: picture[::-1]), ("mirrored", lambda picture: picture[:, ::-1])],
)
def test_an_orientation_turns_picture_and_mask_alike(orientation, turned, environment):
    upright, _ = environment("metaworld/reach", quality="fast", masks=True).reset(seed=0)
    one = environment("metaworld/reach", quality="fast", masks=True, orientation=orientation)
    seen, _ = one.reset(seed=0)
    for name, value in seen.items():
        np.testing.assert_array_equal(value, turned(upright[name]))


def test_full_quality_is_exactly_mujocos_own_picture():
    one = envs.make("metaworld/button-press", quality="full")
    image = one.reset(seed=0)[0]["image"]
    reference = mujoco.Renderer(one.model, 64, 64)
    with one._as_drawn():
        reference.update_scene(one.data, "corner2")
    np.testing.assert_array_equal(image, reference.render()[::-1])
    np.testing.assert_allclose(one.model.camera("corner2").pos, (0.75, 0.075, 0.7))
    reference.close()
    one.close()


@pytest.mark.parametrize(("repeat", "last"), [(1, 1), (2, 2), (3, 2)])
def test_an_episode_is_500_control_steps_at_any_action_repeat(repeat, last):
    one = envs.make("metaworld/drawer-close", quality="fast", size=8, action_repeat=repeat)
    one.reset(seed=0)
    one.observing = False
    steps, truncated = 0, False
    while not truncated:
        *_, terminated, truncated, info = one.step(np.zeros(4, np.float32))
        assert not terminated
        steps += info["env_steps"]
    assert steps == one.unwrapped.max_env_steps == 500
    assert info["env_steps"] == last
    one.close()


def test_rewards_are_summed_and_success_is_kept_over_the_repeats(environment):
    single = envs.make("metaworld/drawer-close", quality="fast", size=8, action_repeat=1)
    double = envs.make("metaworld/drawer-close", quality="fast", size=8, action_repeat=2)
    single.reset(seed=0), double.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        parts = [single.step(action) for _ in range(2)]
        _, reward, _, _, info = double.step(action)
        assert reward == parts[0][1] + parts[1][1]
        assert info["success"] is (parts[0][4]["success"] or parts[1][4]["success"])
    answers = iter(
        [(1.0, False, False, {"success": True}), (1.0, False, False, {"success": False})]
    )
    double._step_simulation = lambda action: next(answers)
    assert double.step(action)[4] == {"success": True, "env_steps": 2}
    single.close(), double.close()


def test_the_scripted_expert_succeeds():
    """The simulation underneath is the suite's own: its expert solves it."""
    from metaworld.policies import ENV_POLICY_MAP

    one = envs.make("metaworld/window-close", quality="fast", size=8, action_repeat=1)
    one.reset(seed=0)
    one.observing = False
    policy, success = ENV_POLICY_MAP["window-close-v3"](), False
    one._simulation._partially_observable = False
    for _ in range(200):
        state = one._simulation._get_obs()
        action = np.clip(policy.get_action(state), -1, 1).astype(np.float32)
        success = success or one.step(action)[4]["success"]
    assert success
    one.close()
