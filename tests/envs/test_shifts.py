"""Visual shifts: what is drawn changes, what happens does not."""

import numpy as np
import pytest

import envs
from envs.shifts import SHIFTS, listed, parse
from errors import UserError
from mask_classes import OTHER

TASKS = (
    "metaworld/window-close",
    "metaworld/reach-wall",
    "dmc/walker-walk",
    "dmc/reach_duplo",
    "panda/pick-and-lift",
)
STEPS = 3


def play(environment, seed=5):
    """Pictures, masks, and the numbers of the physics along some random actions."""
    observation, _ = environment.reset(seed=seed)
    rng = np.random.default_rng(seed)
    images, masks, physics = [observation["image"]], [observation["mask"]], []
    for _ in range(STEPS):
        action = rng.uniform(-1, 1, environment.action_space.shape).astype(np.float32)
        observation, reward, *_ = environment.step(action)
        images.append(observation["image"])
        masks.append(observation["mask"])
        data = environment.data
        physics += [reward, *data.qpos, *data.qvel, *data.site_xpos.ravel(), *data.qacc_warmstart]
    return np.stack(images), np.stack(masks), np.array(physics)


def played(task, shift="", seed=5):
    environment = envs.make(task, quality="fast", masks=True, shift=shift)
    try:
        return play(environment, seed)
    finally:
        environment.close()


@pytest.fixture(scope="module", params=TASKS)
def plain(request):
    """A task and how it looks without any shift."""
    return request.param, *played(request.param)


@pytest.mark.simulator
@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_the_picture_and_nothing_that_happens(plain, name):
    task, images, masks, physics = plain
    shifted_images, shifted_masks, shifted_physics = played(task, f"{name}:1")
    np.testing.assert_array_equal(shifted_physics, physics)
    changed = (shifted_images != images).any(-1)
    if name == "objects" and task == "dmc/walker-walk":
        assert not changed.any()  # it has none
    else:
        assert (changed.mean((1, 2)) > 0.002).all()
    if name == "camera":
        assert (shifted_masks != masks).any()
    elif name == "distractors":
        seen = shifted_masks != masks
        assert seen.any()
        assert (shifted_masks[seen] == OTHER).all()
        assert changed[seen].mean() > 0.9  # what the mask calls a body is drawn as one
    else:
        np.testing.assert_array_equal(shifted_masks, masks)


@pytest.mark.simulator
def test_strength_nought_is_no_shift(plain):
    task, images, masks, _ = plain
    shifted = played(task, "+".join(f"{name}:0" for name in SHIFTS))
    np.testing.assert_array_equal(shifted[0], images)
    np.testing.assert_array_equal(shifted[1], masks)


@pytest.mark.simulator
@pytest.mark.parametrize("name", ["background", "lighting", "noise", "robot"])
def test_a_larger_strength_is_a_larger_change(name):
    task = "metaworld/window-close"
    plain = played(task)[0].astype(float)
    change = [np.abs(played(task, f"{name}:{s}")[0] - plain).mean() for s in (0.2, 0.5, 1.0)]
    assert change[0] > 0
    assert change == sorted(change)


@pytest.mark.simulator
@pytest.mark.parametrize("name", SHIFTS)
def test_what_is_drawn_at_random_is_a_function_of_the_seed(name):
    task, shift = "metaworld/window-close", f"{name}:1"
    environment = envs.make(task, quality="fast", masks=True, shift=shift)
    first = play(environment, seed=1)[0]
    second = play(environment, seed=2)[0]
    again = play(environment, seed=1)[0]
    environment.close()
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(played(task, shift, seed=1)[0], first)
    plain = [played(task, seed=seed)[0].astype(float) for seed in (1, 2)]
    assert np.abs((first - plain[0]) - (second - plain[1])).mean() > 0.05


@pytest.mark.simulator
def test_unseeded_episodes_look_different_and_repeat_with_the_seed_of_make():
    def looks():
        environment = envs.make(
            "dmc/walker-walk", quality="fast", size=16, shift="background:1", seed=3
        )
        images = [environment.reset()[0]["image"] for _ in range(2)]
        environment.close()
        return images

    first, second = looks(), looks()
    np.testing.assert_array_equal(first, second)
    assert np.abs(first[0].astype(float) - first[1]).mean() > 5


@pytest.mark.simulator
def test_shifted_and_plain_environments_share_a_process(plain):
    task, images, *_ = plain
    shifted = envs.make(task, quality="fast", masks=True, shift="background:1+lighting:1")
    shifted.reset(seed=5)
    np.testing.assert_array_equal(played(task)[0], images)
    shifted.close()


@pytest.mark.simulator
def test_distractors_move():
    masks = played("metaworld/window-close", "distractors:1")[1]
    assert (masks[0] != masks[-1])[(masks[0] == OTHER) | (masks[-1] == OTHER)].any()


@pytest.mark.simulator
def test_colours_stay_the_same_within_an_episode():
    images, masks, _ = played("dmc/walker-walk", "background:1")
    assert (masks[:, :6, :6] == 0).all()  # sky, in a corner
    first, *_, last = images[:, :6, :6].mean((1, 2))
    np.testing.assert_allclose(first, last, atol=4)


def test_description_of_shifts():
    assert parse("lighting:0.25+noise") == [("lighting", 0.25), ("noise", 0.5)]


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        ("fog", "background, table, lighting"),
        ("noise:2", "from 0 to 1, not 2"),
        ("noise:-0.1", "from 0 to 1"),
        ("noise:much", "not much"),
        ("noise:nan", "from 0 to 1"),
        ("noise+", "unknown shift ''"),
    ],
)
def test_a_shift_that_does_not_exist_is_the_users_error(shift, word):
    with pytest.raises(UserError, match=word):
        envs.make("metaworld/window-close", shift=shift)


def test_lists_of_shifts():
    assert listed("all") == [f"{name}:0.5" for name in SHIFTS]
    assert listed("all:0.25") == [f"{name}:0.25" for name in SHIFTS]
    assert listed("lighting, noise:0.2+robot:1") == ["lighting:0.5", "noise:0.2+robot:1"]
    for wrong, word in (("noise,noise:0.5", "twice"), ("all:2", "0 to 1"), ("", "unknown shift")):
        with pytest.raises(UserError, match=word):
            listed(wrong)
