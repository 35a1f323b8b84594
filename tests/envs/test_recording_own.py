"""Demonstrations of an environment of the user's own: what is recorded of an agent."""

import h5py
import numpy as np
import pytest

from envs.demonstrations import read_header
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from errors import UserError

HERE = "tests.envs.own_environments:"


class ToTheRight:
    def begin(self, seed):
        pass

    def action(self, observation):
        return np.ones(1, np.float32)


@pytest.mark.parametrize(("name", "masks"), [("Rich", ("image",)), ("Drawn", ())])
def test_pictures_state_and_masks_where_there_are_some(tmp_path, name, masks):
    path = tmp_path / "demos.hdf5"
    config = EnvironmentConfig(size=16)
    collect(f"{HERE}{name}", 2, path, lambda environment: ToTheRight(), config, after_success=0)
    found = read_header(path)
    assert (found.task, found.masks, found.size) == (f"{HERE}{name}", masks, 16)
    assert found.instruction == "move the dot to the right"
    assert [episode.success for episode in found.episodes] == [True, True]
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        assert demo["actions"][:].tolist() == [[1.0]] * found.episodes[0].steps
        assert "states" not in demo
        assert demo["obs/proprio"].shape[1] == found.proprio_size


def test_what_cannot_be_recorded_is_one_line(tmp_path):
    def attempt(name, actor):
        collect(f"{HERE}{name}", 1, tmp_path / "a.hdf5", actor, EnvironmentConfig(size=16))

    with pytest.raises(UserError, match="no scripted expert; record an agent by --policy"):
        attempt("Rich", ScriptedActor)
    with pytest.raises(UserError, match="observes no state"):
        attempt("Slider", ScriptedActor)
    with pytest.raises(UserError, match="discrete actions, which demonstrations do not hold"):
        attempt("DrawnSwitch", ScriptedActor)
