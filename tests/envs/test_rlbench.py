"""RLBench's adapter without its simulator: plain functions, the rules of an episode, what a user
without RLBench is told. Whether the package has what is called: test_rlbench_contract.py."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import rlbench, rlbench_package
from envs.demonstration_writer import DemonstrationWriter
from envs.demonstrations import read_header
from envs.environment_config import EnvironmentConfig
from envs.rlbench_demonstrations import MADE_BY, actions_of, episode_of
from envs.rlbench_package import PACKAGES, InvalidMotion, Shape, missing
from errors import UserError
from mask_classes import BACKGROUND, FIXTURE, GOAL, HAND, OBJECT, OTHER, ROBOT

ROOT = Path(__file__).resolve().parents[2]
THERE = dict.fromkeys(PACKAGES, True)

# ----------------------------------------------------------------------------- what lacks


def test_without_packages_a_sentence_says_what_to_install_and_which_variables_to_set():
    sentence = missing({}, dict.fromkeys(PACKAGES, False))
    assert "pyrep and rlbench are not installed" in sentence
    for part in ("CoppeliaSim 4.1", "https://", "COPPELIASIM_ROOT", "LD_LIBRARY_PATH",
                 "QT_QPA_PLATFORM_PLUGIN_PATH", "pip install git+https://github.com/stepjam/PyRep",
                 "github.com/stepjam/RLBench"):  # fmt: skip
        assert part in sentence
    assert "\n" not in sentence
    assert "rlbench is not installed" in missing({}, THERE | {"rlbench": False})


def test_each_thing_that_lacks_of_the_simulator_is_named(tmp_path):
    root = str(tmp_path)
    assert missing({}, THERE).startswith("COPPELIASIM_ROOT is not set")
    assert f"COPPELIASIM_ROOT is {root}, where" in missing({"COPPELIASIM_ROOT": root}, THERE)
    (tmp_path / rlbench_package.LIBRARY).touch()
    given = {"COPPELIASIM_ROOT": root, "LD_LIBRARY_PATH": f"/usr/lib:{root}"}
    assert missing(given, THERE).startswith(f"QT_QPA_PLATFORM_PLUGIN_PATH lacks {root}")
    assert missing(given | {"QT_QPA_PLATFORM_PLUGIN_PATH": root}, THERE) is None


def test_another_package_of_the_same_name_is_not_taken_for_it(tmp_path, monkeypatch):
    """The registry has an unrelated pyrep."""
    (tmp_path / "pyrep").mkdir()
    (tmp_path / "pyrep" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="pyrep"):
        rlbench_package.require()


@pytest.mark.skipif(
    all(map(rlbench_package.is_installed, PACKAGES)), reason="RLBench is installed here"
)
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--task", "rlbench/reach_target", "--logdir", "run"),
        ("collect", "--task", "rlbench/push_button", "--episodes", "1", "--out", "demos.hdf5"),
    ],
)
def test_the_command_line_says_so_in_one_line(command, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *command],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "not installed" in done.stderr
    assert "COPPELIASIM_ROOT" in done.stderr


def test_tasks_are_listed_without_the_package():
    assert "rlbench/reach_target" in envs.tasks("rlbench")
    assert len(set(envs.tasks("rlbench"))) == 106
    assert envs.expand("rlbench/push_button") == ["rlbench/push_button"]
    with pytest.raises(UserError, match="rlbench/reach_target"):
        envs.suite("rlbench/reach-target")
    assert envs.action_repeat("rlbench/reach_target") == 2


# -------------------------------------------------------------------------------- masks

SCENE = [
    Shape(12, ("Panda_link3_visual", "Panda_link3_respondable", "Panda")),
    Shape(15, ("Panda_leftfinger_visible", "Panda_gripper", "Panda_link7_respondable", "Panda")),
    Shape(20, ("diningTable_visible", "diningTable")),
    Shape(300, ("plate_visual", "target_button_topPlate", "push_button")),
    Shape(301, ("push_button_target", "push_button")),
    Shape(302, ("screw", "push_button")),
    Shape(70_000, ("target_button_wrap", "push_button_target", "push_button")),
]


def test_handles_become_classes_by_names_and_by_what_they_are_part_of():
    parts = rlbench.parts_of("push_button", [])
    classes = rlbench.classes_of(SCENE, parts, "Panda", "Panda_gripper", "push_button")
    assert classes == {
        12: ROBOT, 15: HAND, 20: BACKGROUND, 300: OBJECT, 301: FIXTURE, 302: OTHER, 70_000: OBJECT,
    }  # fmt: skip


def test_an_object_in_the_hand_keeps_its_class():
    """RLBench makes what is grasped part of the gripper."""
    held = Shape(5, ("lid_visual", "lid", "Panda_gripper_attachPoint", "Panda_gripper", "Panda"))
    classes = rlbench.classes_of([held], {"lid": OBJECT}, "Panda", "Panda_gripper", "saucepan")
    assert classes == {5: OBJECT}


def test_the_tasks_own_order_decides_where_nothing_is_known():
    own = ["cup", "spawn_boundary", "saucer", "spoon", "tray", "lamp"]
    assert list(rlbench.parts_of("pour", own).items()) == [
        ("cup", 3), ("saucer", 4), ("spoon", 5), ("tray", 6), ("lamp", 7),
    ]  # fmt: skip
    assert rlbench.parts_of("reach_target", own)["target"] == GOAL


def test_masks_of_colours_become_whole_handles():
    """As rgb_handles_to_mask leaves them: float32 colours between 0 and 1, times 255."""
    handles = np.array([[0, 12, 301], [70_000, 65_535, 15]])
    colours = np.stack([handles % 256, handles // 256 % 256, handles // 65_536], -1) / 255
    colours = colours.astype(np.float32) * 255
    seen = colours @ np.array([1, 256, 65_536], np.float32)
    np.testing.assert_array_equal(rlbench.handles_of(seen), handles)
    mask = rlbench.mask_of(handles, {12: ROBOT, 301: FIXTURE, 70_000: OBJECT, 15: HAND})
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, ROBOT, FIXTURE], [OBJECT, 0, HAND]]


# -------------------------------------------------------------------- actions and rewards


def test_an_action_is_displacements_and_a_gripper_that_is_open_or_closed():
    action = np.array([0.5, -2, 0, 0, 0, 0, 1, 0.6], np.float32)
    assert rlbench.command(action).tolist() == [0.5, -1, 0, 0, 0, 0, 1, 1]
    assert rlbench.command(np.zeros(8))[-1] == 0.0
    assert rlbench.command(np.full(8, -1.0))[-1] == 0.0
    with pytest.raises(ValueError, match="shape"):
        rlbench.command(np.zeros(7))


def test_pushing_the_button_is_worth_its_way_and_distance_costs():
    plate = np.array([0.3, 0.0, 0.8])
    assert rlbench.button_reward(plate, plate, 0.0) == 0.0
    assert rlbench.button_reward(plate + [0.3, 0.4, 0], plate, 0.0) == pytest.approx(-0.5)
    assert rlbench.button_reward(plate, plate, -0.004) == pytest.approx(0.004)


# ----------------------------------------------------------------- the rules of an episode


class Line:
    """A world in the simulator's place: a tip on a line from 0 to 1, done at 1; below 0 it cannot
    go. Its pictures show the place, their masks two handles."""

    variations = 3
    running = 0

    def __init__(self, name, settings):
        self.name, self.settings, self.place, self.drawn = name, settings, 0.0, None

    def reset(self, seed, variation):
        self.place, self.drawn = 0.2, (seed, variation)
        return [f"reach the end, way {variation}", "go"], self.observation()

    def step(self, action):
        if self.place + action[0] < 0:
            raise InvalidMotion("no way")
        self.place += action[0]
        return self.observation(), self.success()

    def success(self):
        return self.place >= 1

    def shaped_reward(self):
        return self.place - 1

    def button(self):
        return np.array([self.place, 0, 0]), np.array([1.0, 0, 0]), 0.01 + self.place

    def demonstration(self, seed, variation, each_step):
        self.reset(seed, variation)
        seen = [self.observation()]
        while not self.success():
            at = self.place
            self.step([0.3])
            seen.append(self.observation())
            seen[-1].misc["joint_position_action"] = np.array([at + 0.3, *np.zeros(6), 1.0])
            each_step(seen[-1])
        return seen

    def observation(self):
        size = self.settings.size
        views = {}
        for number, camera in enumerate(self.settings.cameras):
            views[f"{camera}_rgb"] = np.full((size, size, 3), 100 * self.place + number, np.uint8)
            mask = np.zeros((size, size), np.float32)
            mask[0], mask[1] = 12.0, 301.000_02
            views[f"{camera}_mask"] = mask if self.settings.masks else None
        return SimpleNamespace(
            **views, joint_positions=np.array([self.place, *np.zeros(6)]), gripper_open=1.0,
            gripper_pose=np.arange(7.0), misc={},
        )  # fmt: skip

    def own_names(self):
        return []

    def robot_names(self):
        return "Panda", "Panda_gripper"

    def base_name(self):
        return "push_button"

    def shapes(self):
        return SCENE

    def close(self):
        pass


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(rlbench_package, "require", lambda: None)
    monkeypatch.setattr(rlbench, "Simulation", Line)
    return lambda name="reach_target", **options: envs.make(f"rlbench/{name}", size=8, **options)


def moved(way):
    return np.array([way, *np.zeros(7)], np.float32)


def test_it_is_a_gymnasium_environment(make):
    environment = make(masks=True, proprio=True)
    check_env(environment, skip_render_check=True)
    assert environment.observation_space["proprio"].shape == (15,)
    assert environment.unwrapped.max_env_steps == 200


def test_success_terminates_and_stops_the_repetition(make):
    environment = make()
    environment.reset(seed=0)
    *_, terminated, truncated, info = environment.step(moved(0.3))
    assert (terminated, truncated, info) == (False, False, {"success": False, "env_steps": 2})
    _, reward, terminated, truncated, info = environment.step(moved(0.5))
    assert (terminated, truncated, info) == (True, False, {"success": True, "env_steps": 1})
    assert reward == pytest.approx(0.3)


def test_a_motion_that_cannot_be_made_terminates_without_reward_and_shows_the_last_picture(make):
    environment = make()
    first, _ = environment.reset(seed=0)
    seen, reward, terminated, truncated, info = environment.step(moved(-0.3))
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info == {"success": False, "env_steps": 1}
    assert np.array_equal(seen["image"], first["image"])


def test_a_motion_that_fails_in_the_repetition_keeps_what_came_before(make):
    environment = make()
    environment.reset(seed=0)
    seen, reward, terminated, _, info = environment.step(moved(-0.15))
    assert (terminated, info["env_steps"]) == (True, 2)
    assert reward == pytest.approx(0.05 - 1)
    assert seen["image"].max() in (4, 5)  # the place is 0.05


def test_time_is_up_after_200_control_steps_which_is_no_termination(make):
    environment = make()
    environment.reset(seed=0)
    ends = [environment.step(moved(0.0))[2:4] for _ in range(100)]
    assert ends[:99] == [(False, False)] * 99
    assert ends[99] == (False, True)
    environment.reset(seed=0)
    assert environment.step(moved(0.0))[2:4] == (False, False)


def test_rewards_by_task(make):
    rewards = {}
    for name in ("reach_target", "push_button", "open_drawer"):
        environment = make(name, action_repeat=1)
        environment.reset(seed=0)
        rewards[name] = [environment.step(moved(way))[1] for way in (0.3, 0.5)]
    assert rewards["reach_target"] == pytest.approx([-0.5, 0.0], abs=1e-6)
    assert rewards["push_button"] == pytest.approx([-0.5 + 0.3, 0.8], abs=1e-6)  # from where it was
    assert rewards["open_drawer"] == [0.0, 1.0]


def test_an_episode_is_drawn_from_its_seed(make):
    one, other = make(), make(seed=5)
    infos = [one.reset(seed=seed)[1] for seed in (1, 2, 1)]
    drawn = one.unwrapped.simulation.drawn
    assert infos[0] == infos[2]
    other.reset()
    other.reset(seed=1)
    assert other.unwrapped.simulation.drawn == drawn
    assert {one.reset(seed=seed)[1]["variation"] for seed in range(20)} == {0, 1, 2}
    _, info = one.reset(seed=3, options={"variation": 2})
    assert info == {"instruction": "reach the end, way 2", "variation": 2}
    assert one.unwrapped.instruction == "reach target"
    with pytest.raises(UserError, match="not one of the 3"):
        one.reset(options={"variation": 3})


def test_several_cameras_and_their_masks(make):
    environment = make("push_button", camera="front,wrist", masks=True)
    seen, _ = environment.reset(seed=0)
    assert seen["image"].shape == (2, 8, 8, 3)
    assert (seen["image"][:, 0, 0, 0] == [20, 21]).all()
    assert seen["mask"][:, :3, 0].tolist() == [[ROBOT, FIXTURE, 0]] * 2
    assert environment.render().shape == (8, 16, 3)
    upside_down, _ = make(
        "push_button", masks=True, orientation="opengl"
    ).reset(seed=0)  # fmt: skip
    assert upside_down["mask"][-3:, 0].tolist() == [0, FIXTURE, ROBOT]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"camera": "corner2"}, "front, wrist, left_shoulder"),
        ({"camera": "front,front"}, "named twice"),
        ({"shift": "noise:0.5"}, "visual shifts"),
    ],
)
def test_mistakes_are_sentences(make, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(**options)


def test_a_second_simulator_in_a_process_is_refused(monkeypatch):
    monkeypatch.setattr(rlbench_package, "_user", object())
    settings = rlbench_package.Settings(("front",), 64, False, "full")
    with pytest.raises(UserError, match="once a process"):
        rlbench_package.Simulation("reach_target", settings)


class Running:
    """Counts how often it was shut down."""

    ended = 0

    def shutdown(self):
        self.ended += 1


def test_the_simulator_is_shut_down_once(monkeypatch):
    running = Running()
    monkeypatch.setattr(rlbench_package, "_launched", (None, running))
    rlbench_package.shut_down()
    rlbench_package.shut_down()
    assert running.ended == 1


# ------------------------------------------------------------------------- demonstrations


def test_a_demonstration_is_recorded_as_its_actions_would_make_it(make, tmp_path):
    """What the planner commanded, less where the joints were, leads through the same states."""
    environment = make("push_button", camera="front,wrist", masks=True, proprio=True).unwrapped
    environment.reset(seed=4)
    observations, rewards = environment.demonstrate()
    actions = actions_of(observations)
    assert len(rewards) == len(actions) == len(observations) - 1
    environment.reset(seed=4)
    for action, expected in zip(actions, observations[1:], strict=True):
        reached, _ = environment.simulation.step(rlbench.command(action))
        np.testing.assert_allclose(reached.joint_positions, expected.joint_positions)
    assert environment.simulation.success()

    classes = environment.scene_classes()
    episode = episode_of(observations, rewards, environment.cameras, environment.config, classes)
    assert episode["dones"].tolist() == [0] * (len(actions) - 1) + [1]
    np.testing.assert_allclose(episode["obs/proprio"][:, 0], [0.2, 0.5, 0.8])
    attributes = {
        "task": "rlbench/push_button", "camera": "front,wrist", "size": 8, "action_repeat": 1,
        "made_by": MADE_BY, "quality": "full", "shift": "", "obs_alignment": "before_action",
        "macros_image_convention": "opencv",
        "problem_info": '{"language_instruction": "push button"}',
    }  # fmt: skip
    path = tmp_path / "demos.hdf5"
    with DemonstrationWriter(path, attributes) as writer:
        writer.add(episode, {"success": True, "seed": 4}, 1)
    header = read_header(path)
    assert header.cameras == header.masks == ("front", "wrist")
    assert (header.action_size, header.proprio_size, header.steps) == (8, 15, 3)


def test_a_package_that_does_not_record_what_was_commanded_is_refused():
    line = Line("reach_target", rlbench_package.Settings(("front",), 8, False, "full"))
    line.reset(0, 0)
    with pytest.raises(UserError, match="newer"):
        actions_of([line.observation(), line.observation()])


def test_the_planner_takes_no_repetition(tmp_path):
    from envs.rlbench_demonstrations import collect

    config = EnvironmentConfig(action_repeat=2)
    with pytest.raises(UserError, match="every control step"):
        collect("rlbench/push_button", 1, tmp_path / "demos.hdf5", config)
