"""Demonstrations as an online run learns from them: what led to every frame, beside it."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

import envs
from agents.presets import preset
from agents.recorded_episodes import open_source
from envs import EnvironmentConfig
from envs.demonstrations import read_header
from envs.recording import ScriptedActor, collect
from errors import UserError
from results.experiments.roundtrip import strip_masks, to_after_action
from tests.agents.received_runs import online, received_online

pytestmark = pytest.mark.simulator

TASK = "metaworld/drawer-close"
VIEW = EnvironmentConfig(size=64, quality="fast")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5"
    collect(TASK, 2, path, ScriptedActor, VIEW, seed=3)
    return path


def config(task=TASK, **environment):
    view = {"size": 64, "quality": "fast", "proprio": True, **environment}
    return replace(preset("cpu", task), environment=EnvironmentConfig(**view))


def opened(path, config=None, camera="corner2"):
    return open_source(str(path), config or globals()["config"](), camera.split(","))


@pytest.fixture(scope="module")
def episodes(demonstrations):
    return list(opened(demonstrations).episodes())


def test_every_frame_stands_beside_what_led_to_it(demonstrations, episodes):
    """Against the simulator, played again; what the last action led to is not in a file."""
    header = read_header(demonstrations)
    environment = envs.make(TASK, size=64, quality="fast", masks=True, proprio=True)
    for (arrays, record), episode in zip(episodes, header.episodes, strict=True):
        assert record == {"success": True}
        assert len(arrays["reward"]) == episode.steps
        observation, _ = environment.reset(seed=episode.seed)
        assert arrays["is_first"].tolist() == [True] + [False] * (episode.steps - 1)
        assert not arrays["is_terminal"].any()  # Meta-World goes on after a success
        assert not arrays["action"][0].any()
        assert arrays["reward"][0] == 0
        for t in range(episode.steps):
            if t:
                observation, reward, *_ = environment.step(arrays["action"][t])
                assert arrays["reward"][t] == np.float32(reward)
            for name in ("image", "mask", "proprio"):
                np.testing.assert_array_equal(arrays[name][t], observation[name])
    environment.close()


def test_files_in_liberos_alignment_tell_the_same(demonstrations, episodes, tmp_path):
    """They lack the first picture and are upside down."""
    path = tmp_path / "after.hdf5"
    shutil.copy(demonstrations, path)
    to_after_action(path)
    with h5py.File(path, "r+") as file:  # LIBERO's say what they are of in their own way
        file["data"].attrs["task"] = TASK
        file["data"].attrs["obs_alignment"] = "after_action"  # a state of LIBERO's would tell it
        file["data"].attrs["action_repeat"] = 2
    for (ours, _), (theirs, _) in zip(episodes, opened(path).episodes(), strict=True):
        for name in ("image", "mask", "proprio"):
            np.testing.assert_array_equal(theirs[name], ours[name][1:])
        for name in ("action", "reward"):
            np.testing.assert_array_equal(theirs[name][1:], ours[name][2:])
            assert not theirs[name][0].any()
        assert theirs["is_first"].tolist() == [True] + [False] * (len(theirs["reward"]) - 1)


@pytest.mark.parametrize("alignment", ["before_action", "after_action"])
def test_the_success_that_ends_an_episode_of_libero_is_kept(tmp_path, alignment):
    """By hand: two cameras, rewards of bytes, one success and one failure of five steps."""
    path, steps = tmp_path / "libero.hdf5", 5
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        attributes = {
            "task": "libero/object/0", "problem_info": '{"language_instruction": "pick it"}',
            "camera": "agentview,robot0_eye_in_hand", "quality": "fast",
            "obs_alignment": alignment, "macros_image_convention": "opencv",
        }  # fmt: skip
        data.attrs.update(attributes)
        for number, success in enumerate((True, False)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["success"] = success
            demo["actions"] = np.arange(1.0, 6.0)[:, None] * np.ones(7) / 10
            demo["rewards"] = np.array([0, 0, 0, 0, success], np.uint8)
            for camera, shade in (("agentview", 10), ("eye_in_hand", 100)):
                pictures = np.full((steps, 64, 64, 3), shade, np.uint8)
                demo[f"obs/{camera}_rgb"] = (
                    pictures + np.arange(steps, dtype=np.uint8)[:, None, None, None]
                )
            for part, width in (("joint_states", 7), ("gripper_states", 2), ("ee_pos", 3)):
                demo[f"obs/{part}"] = np.zeros((steps, width))
    source = opened(path, config("libero/object/0", action_repeat=1), "robot0_eye_in_hand")
    assert not source.has_masks
    (won, _), (lost, _) = source.episodes()
    pictures, actions = won["image"][:, 0, 0, 0].tolist(), won["action"][:, 0]
    if alignment == "before_action":  # the last picture stands for what the success looked like
        assert pictures == [100, 101, 102, 103, 104, 104]
        np.testing.assert_allclose(actions, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
        assert len(lost["reward"]) == 5
    else:
        assert pictures == [100, 101, 102, 103, 104]
        np.testing.assert_allclose(actions, [0, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    assert won["reward"].tolist() == [0] * (len(pictures) - 1) + [1]
    assert won["is_terminal"].tolist() == [False] * (len(pictures) - 1) + [True]
    assert won["proprio"].shape == (len(pictures), 12)
    assert not lost["is_terminal"].any()
    assert not lost["reward"].any()


def test_pictures_are_turned_as_the_run_sees_them(demonstrations, episodes):
    turned = opened(demonstrations, config(orientation="mirrored")).episodes()
    for (ours, _), (theirs, _) in zip(episodes, turned, strict=True):
        np.testing.assert_array_equal(theirs["image"], ours["image"][:, :, ::-1])
        np.testing.assert_array_equal(theirs["mask"], ours["mask"][:, :, ::-1])


def test_a_source_knows_whether_it_has_masks(demonstrations, tmp_path):
    stripped = tmp_path / "stripped.hdf5"
    shutil.copy(demonstrations, stripped)
    strip_masks(stripped)
    assert opened(demonstrations).has_masks
    without = opened(stripped)
    assert not without.has_masks
    arrays, _ = next(without.episodes())
    assert "mask" not in arrays


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"action_repeat": 4}, "has action repeat 2, this run 4; give the same --environment.act"),
        (
            {"quality": "full"},
            r"has quality fast, this run full; .* annotate --data .* --quality f",
        ),
        ({"shift": "noise:0.2"}, "has shift none, this run noise:0.2; give the same --environment"),
    ],
)
def test_what_was_seen_otherwise_is_refused(demonstrations, environment, words):
    with pytest.raises(UserError, match=words):
        opened(demonstrations, config(**environment))


def test_what_does_not_fit_the_run_is_named(demonstrations, tmp_path):
    with pytest.raises(UserError, match="has task metaworld/drawer-close, this run metaworld/r"):
        opened(demonstrations, replace(config(), task="metaworld/reach"))
    larger = replace(
        config().agent, autoencoder=replace(config().agent.autoencoder, image_size=128)
    )
    with pytest.raises(UserError, match=r"has picture edge 64, this run 128; .* --size 128"):
        opened(demonstrations, replace(config(), environment=replace(VIEW, size=128), agent=larger))
    with pytest.raises(UserError, match="has camera corner2, this run topview; give the same"):
        opened(demonstrations, camera="topview")
    with pytest.raises(UserError, match=r"is not a run folder \(no config.yaml\)"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*nothing\.hdf5; --recorded takes"):
        opened(tmp_path / "nothing.hdf5")
    with pytest.raises(UserError, match=r"there is no x{300}; --recorded takes"):
        opened("x" * 300)
    run = received_online(tmp_path / "run")
    felt = replace(online(), environment=replace(online().environment, proprio=True))
    with pytest.raises(UserError, match="run holds no proprioception; leave --environment.pro"):
        opened(run, felt)
    for number, change in enumerate((None, np.zeros(3, np.float32))):
        damaged = tmp_path / f"damaged{number}.hdf5"
        shutil.copy(demonstrations, damaged)
        with h5py.File(damaged, "r+") as file:
            del file["data/demo_0/rewards"]
            if change is not None:
                file["data/demo_0/rewards"] = change
        with pytest.raises(UserError, match="demo_0 cannot be read"):
            next(opened(damaged).episodes())
    (tmp_path / "folder").mkdir()
    shutil.copy(demonstrations, tmp_path / "folder")
    assert len(list(opened(tmp_path / "folder").episodes())) == 2
