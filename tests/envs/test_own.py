"""Environments of the user's own: seen and stepped as tasks are, and refused in one line."""

import gc

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from commands.ending import one_line
from envs.environment import OneHot
from errors import UserError

HERE = "tests.envs.own_environments:"


def made(name, **options):
    return envs.make(f"{HERE}{name}", **{"size": 12, **options})


def take_steps(environment, action, count=30):
    for _ in range(count):
        environment.step(action)


def test_it_is_seen_and_stepped_as_every_task():
    one = made("Slider", action_repeat=3)
    observation, info = one.reset(seed=3)
    assert observation["image"].shape == (12, 12, 3)
    assert info["instruction"] == one.instruction == "move the dot to the right"
    assert (one.task, one.max_env_steps, one.cameras) == (f"{HERE}Slider", 1000, ("image",))
    place = one.inner.place
    _, reward, terminated, truncated, info = one.step(np.full(1, -0.25, np.float32))  # 0 of [-3, 5]
    assert (reward, terminated, truncated) == (3 * place, False, False)
    assert info == {"success": False, "env_steps": 3}
    one.inner.place = 20
    _, reward, terminated, _, info = one.step(np.ones(1, np.float32))
    assert (reward, terminated, info) == (23, True, {"success": True, "env_steps": 1})


@pytest.mark.parametrize(("action", "told"), [(-1, -3), (1, 5), (0, 1), (7, 5)])
def test_box_actions_are_rescaled_from_minus_one_to_one(action, told):
    one = made("Slider")
    one.reset(seed=0)
    one.step(np.full(1, action, np.float32))
    assert one.inner.taken[-1].shape == (1, 1)
    assert one.inner.taken[-1].dtype == np.float32
    assert one.inner.taken[-1].item() == told
    with pytest.raises(ValueError, match="shape"):
        one.step(np.zeros(2, np.float32))


def test_discrete_actions_are_one_hot_and_may_start_anywhere():
    one = made("Switch")
    assert one.action_space == OneHot(3)
    samples = {tuple(one.action_space.sample()) for _ in range(50)}
    assert samples == {tuple(row) for row in np.eye(3)}
    one.reset(seed=0)
    one.inner.place = 5
    one.step(np.array([0.1, 0.2, 0.7], np.float32))
    assert one.inner.place == 6
    one.step(np.array([1, 0, 0], np.float32))
    assert one.inner.place == 5


def test_masks_state_and_cameras_are_read_where_they_are():
    one = made("Rich", masks=True, proprio=True, size=24)
    observation, _ = one.reset(seed=0)
    assert one.observation_space.contains(observation)
    assert np.array_equal(observation["mask"] == 3, observation["image"].any(-1))
    assert observation["proprio"].tolist() == [one.inner.place, 0.5]
    both = made("Rich", masks=True, camera="wrist.picture,image")
    observation, _ = both.reset(seed=0)
    assert observation["image"].shape == (2, 12, 12, 3)
    assert observation["mask"].shape == (2, 12, 12)
    assert (observation["image"][0] == both.inner.place).all()


def test_a_picture_may_be_drawn_and_the_state_is_then_what_is_observed():
    one = made("Drawn", proprio=True)
    observation, _ = one.reset(seed=0)
    assert observation["image"].max() > 0
    assert observation["proprio"].tolist() == [one.inner.place, 1.0, 2.0]


def test_pictures_are_averaged_to_the_size_and_turned():
    one, turned = made("Slider", size=6), made("Slider", size=12, orientation="mirrored")
    observation, _ = one.reset(seed=5)
    assert observation["image"].sum() == pytest.approx(255 * 6 / 4, abs=6)
    observation, _ = turned.reset(seed=5)
    place = turned.inner.place // 2
    assert observation["image"][0, 11 - place, 0] > 0


def test_an_episode_is_a_function_of_its_seed_and_has_a_limit():
    one, other = made("Endless", time_limit=7), made("Endless", time_limit=7, seed=9)
    first, _ = one.reset(seed=9)
    np.testing.assert_array_equal(first["image"], other.reset()[0]["image"])
    ends = [one.step(np.zeros(1, np.float32))[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]


def test_noise_is_the_one_shift_of_pictures_alone():
    plain, noisy = made("Slider"), made("Slider", shift="noise:0.5")
    assert not np.array_equal(plain.reset(seed=0)[0]["image"], noisy.reset(seed=0)[0]["image"])
    again = noisy.reset(seed=1)[0]["image"]
    np.testing.assert_array_equal(again, noisy.reset(seed=1)[0]["image"])
    with pytest.raises(
        UserError, match=r"shift lighting .*MuJoCo.* which tests\.\S+:Slider is not"
    ):
        made("Slider", shift="noise:0.5+lighting:0.1")
    with pytest.raises(UserError, match="MuJoCo"):
        envs.check_shift(f"{HERE}Slider", "camera:1")
    envs.check_shift("metaworld/reach", "camera:1")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("NoPicture", {}, r"no picture.*render_mode is None; make it with render_mode="),
        ("DrawsNothing", {}, r"render\(\) returned NoneType, not a picture uint8"),
        ("ChannelsFirst", {}, r"image of its observation is uint8 \(3, 12, 12\), not uint8 \(hei"),
        ("FloatPicture", {}, r"is float32 \(12, 24, 3\), its space says uint8 \(12, 24, 3\)"),
        ("OtherShape", {}, r"is uint8 \(11, 24, 3\), its space says uint8 \(12, 24, 3\)"),
        ("OldReset", {}, r"reset returned an array \(12, 24, 3\); Gymnasium's returns obs"),
        ("OldStep", {}, r"step returned 4 values; Gymnasium's returns observation, reward, term"),
        ("NoSeed", {}, r"reset\(seed=...\) raised TypeError: .*'seed'"),
        ("NanReward", {}, r"reward of step is nan, not a finite number"),
        ("VectorReward", {}, r"reward of step is an array \(3,\), no number"),
        ("NumberEnd", {}, r"terminated of step is 0, not True or False"),
        ("NoInfo", {}, r"info of step is None, no dict"),
        ("OutsideState", {}, r"the observation holds 2000.0 at \(2,\), outside its space"),
        ("MissingEntry", {}, r"the observation has no wrist, which its space has"),
        ("Unbounded", {}, r"action space is not bounded on all sides"),
        ("Many", {}, r"action space is MultiDiscrete\(\[2 3\]\); Box and Discrete are supported"),
        ("NoActions", {}, r"has no action_space, a space of Gymnasium"),
        ("Crashes", {}, r"step\(action\) raised ZeroDivisionError: a wheel is stuck \(.*own_env.*"
                        r"\.py, line \d+\)"),
        ("CrashesWhenMade", {}, r"cannot be made: OSError: no such robot"),
        ("StrangeMask", {"masks": True}, r"mask of its observation holds what is no class of mas"),
        ("Slider", {"masks": True}, r"observes no masks"),
        ("Slider", {"proprio": True}, r"observes no state"),
        ("Slider", {"camera": "front"}, r"unknown camera 'front'; .* has image"),
        ("Rich", {"camera": "other"}, r"unknown camera 'other'; .* has image, wrist.picture"),
        ("BeyondFloat", {}, r"action space is not bounded on all sides"),
        ("TooMany", {}, r"action space has 1000000000 actions, more than 4096"),
        ("Ragged", {}, r"the observation is a list, no array"),
        ("NothingDrawn", {}, r"render\(\) returned uint8 \(0, 5, 3\), not a picture"),
        ("InfiniteState", {"proprio": True}, r"a number that is not finite as float32"),
        ("TextReward", {}, r"reward of step is an array \(\), no number"),
        ("HugeReward", {}, r"reward of step is 10+, not a finite number"),
        ("TextSuccess", {}, r"success in the info of step is 'no', not True or False"),
        ("TwoSuccesses", {}, r"success in the info of step is an array \(2,\), not True or False"),
        ("Leaves", {}, r"step\(action\) raised SystemExit"),
        ("NoRoomForMasks", {"masks": True}, r"mask of its observation is int64 \(0, 12\), not"),
        ("Broken", {}, r"spec raised RuntimeError: not"),
        ("no_environment", {}, r"is a dict, no gymnasium.Env"),
        ("missing", {}, r"cannot be made: AttributeError"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_one_line(name, options, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        take_steps(made(name, **options), np.zeros(1, np.float32), 1)
    assert one_line(str(refusal.value)).count("\n") == 0
    assert f"{HERE}{name}" in str(refusal.value)


def test_what_breaks_it_later_is_found_at_that_step():
    one = made("CrashesLater")
    one.reset(seed=0)
    with pytest.raises(UserError, match="CrashesLater: the reward of step is inf"):
        take_steps(one, np.zeros(1, np.float32))


def test_a_picture_does_not_change_its_size():
    one = made("GrowingPicture")
    with pytest.raises(UserError, match=r"a picture \(14, 12, 3\), before it was \(13, 12, 3\)"):
        one.reset(seed=0)


def test_what_nothing_depends_on_may_be_odd():
    one = made("Odd")
    assert one.cameras == ("robot.image",)
    assert one.reset(seed=0)[0]["image"].any()
    assert one.max_env_steps == 1000
    one.close()


def test_a_fault_in_a_worker_is_one_line_too():
    vector = envs.make_vector(f"{HERE}CrashesLater", 2, size=12)
    vector.reset(seed=[1, 2])
    with pytest.raises(UserError, match="reward of step is inf"):
        take_steps(vector, np.zeros((2, 1), np.float32))
    vector.close()


@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
@pytest.mark.parametrize("name", ["Slider", "Switch", "Rich", "Drawn"])
def test_gymnasium_accepts_the_task(name):
    check_env(made(name, proprio=name in ("Rich", "Drawn")), skip_close_check=True)


def test_an_environment_that_is_registered_with_gymnasium():
    one = envs.make("gym:CartPole-v1", size=32, proprio=True)
    observation, _ = one.reset(seed=0)
    assert observation["image"].shape == (32, 32, 3)
    assert observation["proprio"].shape == (4,)
    assert (one.max_env_steps, one.action_space) == (500, OneHot(2))
    assert envs.make("gym:CartPole-v1", time_limit=20).max_env_steps == 20
    one.close()


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("gym:Nowhere-v1", r"gym:Nowhere-v1 cannot be made: NameNotFound: .* gym:PACKAGE:Nowhere"),
        ("gym:no_such_package:Reach-v1", "cannot be made: .*no_such_package"),
        ("no_such_module:make", "cannot be made: ModuleNotFoundError"),
        ("gym:", "gym:ENV_ID or package.module:callable"),
        ("my-module:make", "gym:ENV_ID or package.module:callable"),
        ("module:a.b", "gym:ENV_ID or package.module:callable"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(task, sentence):
    with pytest.raises(UserError, match=sentence):
        envs.make(task)


def test_ids_are_told_apart_without_importing_anything(monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
    assert envs.suite("gym:anything:Reach-v1") == "gym"
    assert envs.suite("a.b:c") == "own"
    assert envs.expand("a.b:c, gym:X-v0") == ["a.b:c", "gym:X-v0"]
    assert envs.action_repeat("a.b:c") == 1
    assert envs.action_repeat("a.b:c", 4) == 4
    assert envs.episodic("a.b:c")
    assert not envs.episodic("metaworld/reach")
    assert envs.recorded_starts("a.b:c") == 0
    assert envs.published_budget("a.b:c") == 500_000


def test_what_is_registered_is_listed():
    assert "gym:CartPole-v1" in envs.tasks("gym")
    assert not [task for task in envs.tasks() if task.startswith("gym:")]


def test_what_a_package_registers_is_listed():
    listed = envs.tasks("gym:gymnasium.envs.classic_control")
    assert "gym:gymnasium.envs.classic_control:CartPole-v1" in listed
    assert not [task for task in listed if "Taxi" in task]


@pytest.mark.parametrize(
    ("package", "sentence"),
    [("no_such_package", "cannot be imported: ModuleNotFound"), ("colorsys", "registers no")],
)
def test_a_package_without_environments_is_one_line(package, sentence):
    with pytest.raises(UserError, match=sentence):
        envs.tasks(f"gym:{package}")


@pytest.mark.simulator
@pytest.mark.parametrize("closed", [True, False])
def test_another_environment_of_the_process_changes_no_picture(closed):
    def seen(environment):
        return environment.reset(seed=0)[0]["image"]

    one = envs.make("gym:Reacher-v5", size=16, quality="fast")
    alone = seen(one)
    if closed:
        one.close()
    other = envs.make("gym:InvertedPendulum-v5", size=16, quality="fast")
    others = seen(other)
    assert others.std() > 1
    if not closed:
        assert (seen(one) == alone).all()
        assert (seen(other) == others).all()
    del one
    gc.collect()
    assert (seen(other) == others).all()
    other.close()


@pytest.mark.parametrize(
    "options",
    [{"time_limit": 0}, {"score_bounds": (3.0, 1.0)}, {"score_bounds": (0.0, float("inf"))}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        made("Slider", **options)
