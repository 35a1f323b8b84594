"""Demonstrations as an online run learns from them: what led to every frame, beside it."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

import envs
from agents.presets import preset
from agents.recorded import open_source
from envs import EnvironmentConfig
from envs.demonstrations import read_header
from envs.recording import ScriptedActor, collect
from errors import UserError
from results.roundtrip import strip_masks, to_after_action

TASK = "metaworld/drawer-close"
VIEW = EnvironmentConfig(size=64, quality="fast")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5"
    collect(TASK, 2, path, ScriptedActor, VIEW, seed=3)
    return path


def config(**environment):
    view = {"size": 64, "quality": "fast", "proprio": True, **environment}
    return replace(preset("cpu", TASK), environment=EnvironmentConfig(**view))


@pytest.fixture(scope="module")
def episodes(demonstrations):
    return list(open_source(str(demonstrations), config()).episodes())


def test_every_frame_stands_beside_what_led_to_it(demonstrations, episodes):
    """Against the simulator, played again."""
    header = read_header(demonstrations)
    environment = envs.make(TASK, size=64, quality="fast", masks=True, proprio=True)
    for (arrays, record), episode in zip(episodes, header.episodes, strict=True):
        assert record == {"success": True}
        assert len(arrays["reward"]) == episode.steps + 1
        observation, _ = environment.reset(seed=episode.seed)
        assert arrays["is_first"].tolist() == [True] + [False] * episode.steps
        assert not arrays["is_terminal"].any()  # Meta-World goes on after a success
        assert not arrays["action"][0].any()
        assert arrays["reward"][0] == 0
        for t in range(episode.steps + 1):
            if t:
                reached, reward, *_ = environment.step(arrays["action"][t])
                assert arrays["reward"][t] == np.float32(reward)
                if t < episode.steps:  # the last picture is not in the file, the one before is it
                    observation = reached
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
        file["data"].attrs["action_repeat"] = 2
    for (ours, _), (theirs, _) in zip(
        episodes, open_source(str(path), config()).episodes(), strict=True
    ):
        known = len(ours["reward"]) - 2  # of ours the last picture is a stand-in
        for name in ("image", "mask", "proprio"):
            np.testing.assert_array_equal(theirs[name][:known], ours[name][1 : 1 + known])
        for name in ("action", "reward"):
            np.testing.assert_array_equal(theirs[name][1:known], ours[name][2 : 1 + known])
            assert not theirs[name][0].any()
        assert theirs["is_first"][0]


def test_a_source_knows_whether_it_has_masks(demonstrations, tmp_path):
    stripped = tmp_path / "stripped.hdf5"
    shutil.copy(demonstrations, stripped)
    strip_masks(stripped)
    assert open_source(str(demonstrations), config()).has_masks
    without = open_source(str(stripped), config())
    assert not without.has_masks
    arrays, _ = next(without.episodes())
    assert "mask" not in arrays


def test_what_does_not_fit_the_run_is_named(demonstrations, tmp_path):
    name = str(demonstrations)
    with pytest.raises(UserError, match="has task metaworld/drawer-close, this run metaworld/r"):
        open_source(name, replace(config(), task="metaworld/reach"))
    with pytest.raises(UserError, match="has action repeat 2, this run 4"):
        open_source(name, config(action_repeat=4))
    larger = replace(
        config().agent, autoencoder=replace(config().agent.autoencoder, image_size=128)
    )
    with pytest.raises(UserError, match="has picture edge 64, this run 128"):
        open_source(name, replace(config(), environment=replace(VIEW, size=128), agent=larger))
    with pytest.raises(UserError, match="was seen by corner2; name one of them with --env"):
        open_source(name, config(camera="topview"))
    with pytest.raises(UserError, match="there is no replay in"):
        open_source(str(tmp_path), config())
    with pytest.raises(UserError, match=r"nothing\.hdf5"):
        open_source(str(tmp_path / "nothing.hdf5"), config())
    damaged = tmp_path / "damaged.hdf5"
    shutil.copy(demonstrations, damaged)
    with h5py.File(damaged, "r+") as file:
        del file["data/demo_0/rewards"]
    with pytest.raises(UserError, match="demo_0 cannot be read"):
        next(open_source(str(damaged), config()).episodes())
    (tmp_path / "folder").mkdir()
    shutil.copy(demonstrations, tmp_path / "folder")
    assert len(list(open_source(str(tmp_path / "folder"), config()).episodes())) == 2
