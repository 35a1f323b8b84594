"""LIBERO: the evaluation protocol, what its two cameras and their masks show, its errors."""

import os
import pathlib
import subprocess
import sys

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import libero, libero_package
from envs.global_generator import global_generator
from envs.rendering import Renderer
from errors import UserError
from mask_classes import HAND, OBJECT, OTHER, ROBOT

pytestmark = pytest.mark.simulator

TASKS = [f"libero/{part}/{number}" for part in ("spatial", "object", "goal", "10")
         for number in range(10)]  # fmt: skip
LIMITS = {"spatial": 220, "object": 280, "goal": 300, "10": 520}
"""Control steps of an episode."""
STILL = np.zeros(7, np.float32)
GEOM, SITE = int(mujoco.mjtObj.mjOBJ_GEOM), int(mujoco.mjtObj.mjOBJ_SITE)
REPOSITORY = pathlib.Path(envs.__file__).parents[1]


@pytest.fixture(scope="module")
def basket(libero_assets):
    """The first task of libero_object, shared by the tests that do not care which task it is."""
    one = envs.make("libero/object/0", quality="fast", masks=True, proprio=True)
    yield one
    one.close()


@pytest.fixture(scope="module")
def stove(libero_assets):
    """ "Turn on the stove"."""
    one = envs.make("libero/goal/7", quality="fast", masks=True)
    yield one
    one.close()


def episode(one, seed, steps=3):
    """What the physics did: positions and velocities at the start and after every step."""
    one.reset(seed=seed)
    rng = np.random.default_rng(seed)
    trace = [one.data.qpos.copy(), one.data.qvel.copy(), one.model.body_pos.copy()]
    for _ in range(steps):
        one.step(rng.uniform(-1, 1, 7).astype(np.float32))
        trace += [one.data.qpos.copy(), one.data.qvel.copy()]
    return trace


def same(trace, other):
    return len(trace) == len(other) and all(map(np.array_equal, trace, other))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_shows_the_robot_and_what_the_instruction_speaks_of(task, libero_assets):
    one = envs.make(task, quality="fast", masks=True)
    first, _ = one.reset(seed=0, options={"init_state": 0})
    second, reward, terminated, truncated, info = one.step(STILL)
    assert one.observation_space.contains(first)
    assert one.observation_space.contains(second)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"success": False, "env_steps": 1}
    assert one.max_env_steps == LIMITS[task.split("/")[1]]
    assert len(one.init_states) == 50

    table, hand = (set(np.unique(mask)) for mask in first["mask"])
    assert {ROBOT, HAND} <= table
    assert HAND in hand
    objects = one.objects_of_interest
    assert 1 <= len(objects) <= OTHER - OBJECT
    assert set(range(OBJECT, OBJECT + len(objects))) <= table
    # what is named after an object is drawn as that object, and as nothing else
    geoms = one._class_table[GEOM]
    for number, name in enumerate(objects, OBJECT):
        bodies = {one.model.body(one.model.geom_bodyid[geom]).name
                  for geom in np.flatnonzero(geoms == number)}  # fmt: skip
        assert bodies
        assert all(body.startswith(f"{name}_") for body in bodies)

    assert one.instruction == one.instruction.strip()
    assert len(one.instruction.split()) > 3
    assert "_" not in one.instruction
    one.close()


def test_the_tasks_are_those_of_the_installed_benchmark(libero_assets):
    names = libero_package.task_names(pathlib.Path(libero_package.import_libero().__file__).parent)
    assert {f"libero_{part}": count for part, count in libero.PARTS.items()} == {
        folder: len(tasks) for folder, tasks in names.items() if folder != "libero_100"
    }


@pytest.mark.parametrize(
    "task", ["spatial/4", "object/3", "object-swapped/3", "goal/0", "10/8", "10/9"]
)
def test_an_episode_is_a_function_of_its_seed(task, libero_assets):
    """Whatever came before, drawn or not, and wherever NumPy's global generator stands."""
    one = envs.make(f"libero/{task}", quality="fast", size=8)
    first = episode(one, seed=3)
    assert not same(first, episode(one, seed=4))
    one.reset(seed=5, options={"init_state": 7} if envs.recorded_starts(f"libero/{task}") else {})
    for _ in range(5):
        one.step(np.ones(7, np.float32))  # the gripper closed: it integrates what it is told
    assert same(first, episode(one, seed=3))
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    fresh = envs.make(f"libero/{task}", quality="fast", size=8)
    fresh.observing = False
    assert same(first, episode(fresh, seed=3))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    one.close(), fresh.close()


@pytest.mark.parametrize("suite", ["object-shuffled", "object-swapped"])
def test_rearranged_things_change_places_and_nothing_else(suite, basket, libero_assets):
    """Each at the place of another, with its own height and turn; the basket stays."""
    rearranged = envs.make(f"libero/{suite}/0", quality="fast", size=8)
    assert rearranged.instruction == basket.instruction
    movable = [name for name in basket._simulation.objects_dict if name != "basket_1"]
    assert movable[0] == basket.objects_of_interest[0]
    orders = set()
    for seed in range(6):
        poses = []
        for one in (basket, rearranged):
            one.reset(seed=seed)
            data = one._simulation.sim.data
            things = one._simulation.objects_dict
            poses.append({name: data.get_joint_qpos(things[name].joints[0]) for name in things})
        plain, changed = poses
        np.testing.assert_allclose(changed["basket_1"], plain["basket_1"], atol=1e-6)
        places = [plain[name][:2] for name in movable]
        taken = []
        for name in movable:
            distance = np.linalg.norm(places - changed[name][:2], axis=1)
            taken.append(int(distance.argmin()))
            assert distance.min() < 0.02  # settling moves a little
        assert sorted(taken) == list(range(len(movable)))
        orders.add(tuple(taken))
    if suite == "object-swapped":
        assert orders == {(0, 1, 2, 3, 4, 5), (1, 0, 2, 3, 4, 5)}
    else:
        assert len(orders) > 4
        assert len({taken[0] for taken in orders}) > 1  # the thing to pick is now here, now there
    with pytest.raises(UserError, match="has no recorded states; leave init_state out"):
        rearranged.reset(seed=0, options={"init_state": 3})
    rearranged.close()


def test_only_the_benchmarks_own_suites_have_recorded_starts():
    assert envs.recorded_starts("libero/10/3") == libero.RECORDED_STARTS == 50
    assert all(envs.recorded_starts(f"libero/{part}/3") == 0 for part in libero.REARRANGED)
    assert envs.recorded_starts("metaworld/reach") == 0


@pytest.mark.parametrize("task", ["spatial/7", "goal/1"])
def test_every_reset_places_things_as_liberos_own_does(task, libero_assets):
    """What lies on a fixture too, also after other resets; LIBERO compiles its model each time."""
    from libero.libero.envs.env_wrapper import ControlEnv

    one = envs.make(f"libero/{task}", size=8, quality="fast")
    official = ControlEnv(
        bddl_file_name=str(one.bddl_file), use_camera_obs=False, has_offscreen_renderer=False
    )
    for seed in (3, 4):
        one.reset(seed=seed)
        drawn = int(np.random.default_rng(seed).integers(2**32, dtype=np.uint32))
        with global_generator(drawn):
            libero._until_placed(official.reset)
        for _ in range(libero.SETTLING_STEPS):
            official.step(np.array(libero.STAND_STILL))
        theirs = official.env.sim
        np.testing.assert_allclose(one.model.body_pos, theirs.model.body_pos, atol=1e-9)
        np.testing.assert_allclose(one.data.qpos, theirs.data.qpos, atol=1e-4)
    official.close()
    one.close()


def test_unseeded_resets_go_on_from_the_seed_of_make(libero_assets):
    starts = []
    for _ in range(2):
        one = envs.make("libero/object/0", quality="fast", size=8, seed=7)
        one.observing = False
        states = []
        for _ in range(3):
            one.reset()
            states.append(one.data.qpos.copy())
        starts.append(np.array(states))
        one.close()
    np.testing.assert_array_equal(*starts)
    assert len(np.unique(starts[0], axis=0)) == 3


def test_a_recorded_start_is_that_state_and_then_settles_with_the_gripper_open(basket, monkeypatch):
    monkeypatch.setattr(basket, "observing", False)
    basket.reset(seed=0, options={"init_state": 3})
    settled = basket.data.qpos.copy()
    assert basket.data.time == pytest.approx(basket.init_states[3][0] + 0.5)  # ten steps at 20 Hz
    monkeypatch.setattr(libero, "SETTLING_STEPS", 0)
    for seed, asked, number in ((0, 3, 3), (0, 49, 49), (107, "seed", 7)):
        basket.reset(seed=seed, options={"init_state": asked})
        state = np.concatenate([[basket.data.time], basket.data.qpos, basket.data.qvel])
        np.testing.assert_array_equal(state, basket.init_states[number])
    basket.reset(seed=1, options={"init_state": 3})
    for _ in range(10):
        basket.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
    np.testing.assert_array_equal(basket.data.qpos, settled)
    left, right = basket.robot_state()["gripper_states"]
    assert left > 0.03 > -0.03 > right


@pytest.mark.parametrize("number", [-1, 50])
def test_a_recorded_start_that_does_not_exist_is_refused(basket, number):
    with pytest.raises(UserError, match=f"init_state {number} is not one of the 50"):
        basket.reset(seed=0, options={"init_state": number})


def test_an_episode_without_success_is_truncated_at_the_suites_limit(libero_assets):
    one = envs.make("libero/spatial/0", quality="fast", size=8, action_repeat=8)
    one.observing = False
    one.reset(seed=0)
    steps, truncated = 0, False
    while not truncated:
        _, reward, terminated, truncated, info = one.step(STILL)
        assert (reward, terminated, info["success"]) == (0.0, False, False)
        steps += info["env_steps"]
    assert steps == 220
    assert info["env_steps"] == 220 % 8
    one.close()


def test_success_ends_the_episode(basket):
    """The soup is dropped into the basket; the last step counts, too."""
    basket.reset(seed=0)
    place = basket.data.body("basket_1_main").xpos
    soup = basket.data.joint("alphabet_soup_1_joint0")
    soup.qpos[:3] = place + (0, 0, 0.4)
    soup.qvel[:] = 0
    basket._steps = basket.max_env_steps - 20
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = basket.step(STILL)
        rewards.append(reward)
    assert (terminated, truncated) == (True, False)
    assert info == {"success": True, "env_steps": 1}
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert len(rewards) > 1


@pytest.mark.parametrize(
    ("camera", "orientation", "turned"),
    [
        ("agentview", "upright", lambda picture: picture),
        ("agentview", "opengl", lambda picture: picture[::-1]),
        ("robot0_eye_in_hand", "mirrored", lambda picture: picture[:, ::-1]),
    ],
)
def test_one_camera_in_any_orientation_shows_what_it_shows_among_two(
    camera, orientation, turned, basket
):
    both, _ = basket.reset(seed=2)
    assert basket.cameras == ("agentview", "robot0_eye_in_hand")
    assert both["image"].shape == (2, 64, 64, 3)
    assert both["mask"].shape == (2, 64, 64)
    assert basket.render().shape == (64, 128, 3)
    assert not np.array_equal(both["image"][0], both["image"][1])
    alone = envs.make(
        "libero/object/0", camera=camera, orientation=orientation, quality="fast", masks=True
    )
    seen, _ = alone.reset(seed=2)
    assert alone.observation_space.contains(seen)
    for name in ("image", "mask"):
        expected = turned(both[name][basket.cameras.index(camera)])
        np.testing.assert_array_equal(seen[name], expected)
    alone.close()


def test_full_quality_is_mujocos_own_picture_without_the_collision_shapes(basket):
    """And upright: MuJoCo's row 0 is on top."""
    full = Renderer(basket.model, 64, 64, "full", hidden_groups=basket.hidden_groups)
    reference = mujoco.Renderer(basket.model, 64, 64)
    option = mujoco.MjvOption()
    option.geomgroup[0] = 0
    first, _ = basket.reset(seed=0)
    for index, camera in enumerate(basket.cameras):
        full.update(basket.data, basket.camera_numbers[index])
        reference.update_scene(basket.data, camera, option)
        image = full.image()
        np.testing.assert_array_equal(image, reference.render())
        assert np.abs(image.astype(int) - first["image"][index]).mean() < 25
    rows = [np.nonzero(first["mask"][0] == part)[0].mean() for part in (ROBOT, OBJECT)]
    assert rows[0] < rows[1]  # the arm stands behind what lies before it
    full.close(), reference.close()


def test_what_is_invisible_hides_nothing_from_the_mask():
    """LIBERO marks the regions of its rules with boxes that no picture shows."""
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody>
        <light pos="0 0 3"/><camera name="above" pos="0 0 2"/>
        <geom type="box" size=".3 .3 .1"/>
        <site type="box" size="1 1 .5" rgba="0 1 0 0"/>
        <geom type="box" size=".9 .9 .3" rgba="1 0 0 0"/>
        </worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, 32, 32, "fast")
    renderer.update(data, 0)
    classes = {GEOM: np.array([3, 4], np.uint8), SITE: np.array([5], np.uint8)}
    assert set(np.unique(renderer.mask(classes))) == {0, 3}
    model.site_rgba[0, 3] = 1
    renderer.update(data, 0)
    assert set(np.unique(renderer.mask(classes))) == {5}
    renderer.close()


def test_the_burner_glows_while_the_knob_is_turned_and_that_is_success(stove):
    cold, _ = stove.reset(seed=0)
    knob = next(
        stove.data.joint(number)
        for number in range(stove.model.njnt)
        if stove.model.joint(number).name.startswith("flat_stove_1_")
    )
    knob.qpos[:] = 1.0
    stove._refresh_what_is_drawn()
    hot = stove._observe()
    red, green, _ = np.moveaxis(hot["image"].astype(int) - cold["image"], -1, 0)
    glowing = red - green > 60
    assert glowing[0].sum() > 5
    assert (hot["mask"][glowing] == OBJECT).all()
    assert [*stove.step(STILL)[2:4]] == [True, False]
    again, _ = stove.reset(seed=0)
    np.testing.assert_array_equal(again["image"], cold["image"])


def test_the_instruction_is_the_tasks_own_sentence(basket, stove):
    assert basket.instruction == "pick the alphabet soup and place it in the basket"
    assert basket.objects_of_interest == ["alphabet_soup_1", "basket_1"]
    assert stove.instruction == "turn on the stove"
    assert stove.objects_of_interest == ["flat_stove_1"]
    assert basket.problem()["language_instruction"] == basket.instruction


def test_proprioception_is_the_simulators_own(basket):
    first, _ = basket.reset(seed=0)
    moved = basket.step(np.array([0, 0, -1, 0, 0, 0, 1], np.float32))[0]["proprio"]
    robot = basket.robot_state()
    np.testing.assert_array_equal(robot["ee_pos"], basket.data.site("gripper0_grip_site").xpos)
    np.testing.assert_array_equal(robot["joint_states"], basket.data.qpos[:7])
    np.testing.assert_array_equal(robot["ee_states"][:3], robot["ee_pos"])
    # pointing down: turned by half a circle
    assert np.linalg.norm(robot["ee_ori"]) == pytest.approx(np.pi, abs=0.1)
    expected = [robot["joint_states"], robot["gripper_states"], robot["ee_pos"]]
    np.testing.assert_array_equal(moved, np.concatenate(expected).astype(np.float32))
    assert moved[11] < first["proprio"][11] - 0.005  # down, by less than 5 cm


def test_a_recorded_model_and_state_draw_the_same_picture_in_another_episode(basket, stove):
    """Fixtures stand where that episode had them, which its states do not say."""
    for one in (stove, basket):
        for seed in (3, 4):
            one.reset(seed=seed)
        expected, *_ = one.step(np.full(7, 0.5, np.float32))
        model, state = one.recorded_model(), one.recorded_state()
        other, _ = one.reset(seed=5)
        one.restore(model)
        drawn = one.show(state)
        for name in expected:
            np.testing.assert_array_equal(drawn[name], expected[name])
        assert not np.array_equal(other["image"], expected["image"])
        # a model that was restored is reset like any other
        assert same(episode(one, seed=6), episode(one, seed=6))


def test_the_step_an_official_file_ends_with_is_what_its_last_action_led_to(basket):
    """Also when the last actions do not turn the hand: it holds the orientation last asked for."""
    actions = np.zeros((8, 7))
    actions[:, :2], actions[:, 6] = 0.4, [-1, -1, 1, 1, 1, 1, -1, -1]
    actions[1:4, 3:6] = [0.5, -0.3, 0.6]
    basket.reset(seed=8)
    model, states = basket.recorded_model(), []
    for action in actions:
        states.append(basket.recorded_state()["states"])
        truth, *_ = basket.step(action.astype(np.float32))
    robot, velocities = basket.robot_state(), basket.data.qvel.copy()
    basket.reset(seed=9)
    basket.step(np.ones(7, np.float32))
    basket.restore(model)
    shown = basket.show_after(np.stack(states), actions, robot)
    for name in ("image", "mask"):
        np.testing.assert_array_equal(shown[name], truth[name])
    np.testing.assert_allclose(shown["proprio"], truth["proprio"], atol=1e-6)
    np.testing.assert_allclose(basket.data.qvel, velocities, atol=1e-4)  # these are not given


def test_another_tasks_model_is_refused(basket, stove):
    stove.reset(seed=0)
    model = stove.recorded_model()
    one = envs.make("libero/object/1", quality="fast", size=8)
    with pytest.raises(UserError, match="another task's"):
        one.restore(model)
    with pytest.raises(UserError, match="no XML of a model"):
        one.restore({"model_file": "<mujoco>"})
    one.close()


@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
def test_gymnasium_accepts_the_environment(libero_assets):
    one = envs.make("libero/10/2", quality="fast", masks=True, proprio=True, size=16)
    check_env(one, skip_close_check=True)
    one.close()
    one.close()


def test_an_unknown_camera_is_a_sentence_with_the_cameras(libero_assets):
    with pytest.raises(UserError, match="unknown camera 'front'; .*agentview"):
        envs.make("libero/object/0", camera="agentview,front")
    with pytest.raises(UserError, match="named twice"):
        envs.make("libero/object/0", camera="agentview,agentview")


def mistake(tmp_path, before="", **variables):
    """What making a task prints in a process that has no standard input and an empty home."""
    code = (
        f"import sys\n{before}\nimport envs, errors\n"
        "try: envs.make('libero/object/0')\n"
        "except errors.UserError as error: print(error)"
    )
    home = {"HOME": str(tmp_path / "home"), "LIBERO_CONFIG_PATH": str(tmp_path / "config")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | home | variables,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return done.stdout


@pytest.mark.parametrize("configured", [False, True])
def test_a_missing_package_is_a_sentence_that_names_it(configured, tmp_path):
    if configured:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "config.yaml").write_text("{}")
    blocked = (
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'libero':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())"
    )
    assert "pip install hf-libero==0.1.4 robosuite==1.4.0" in mistake(tmp_path, blocked)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "meshes and textures are not here"),
        ("assets: /nowhere\n", "meshes and textures are not here"),
        ("", "does not say where LIBERO's assets are"),
        ("assets: [", "does not say where LIBERO's assets are"),
    ],
)
def test_missing_assets_are_a_sentence_and_no_question(config, sentence, tmp_path):
    if config is not None:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "config.yaml").write_text(config)
    # An installation of the assets into the package itself must not count here.
    before = "import envs.libero_package as suite; suite.ASSETS = ('nothing of that name',)"
    assert sentence in mistake(tmp_path, before)
    assert not (tmp_path / "home").exists()
