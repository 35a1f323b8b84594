"""Suites that other packages bring, by entry points: known, seen as all are, and no danger."""

import os
import subprocess
import sys

import numpy as np
import pytest

import envs
from envs import suites
from errors import UserError

DOTS = """
import gymnasium
import numpy as np
from envs.suites import Suite

class Dot(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, name):
        self.name = name

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 2.0, False, False, {}

def make(name, config, seed):
    return Dot(name)

suite = Suite("dots", ["near", "far/away"], make, action_repeat=4, groups={"all": ["far/away"]},
              budget=lambda name: 1234, highest_return=lambda name: 80.0)
"""
BROKEN = "raise ImportError('no simulator here')"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Three installed packages: a suite, one that cannot be imported, and one that takes a name."""
    points = {
        "dots_package": ("dots", "dots_package:suite", DOTS),
        "broken_package": ("broken", "broken_package:suite", BROKEN),
        "thief_package": ("metaworld", "dots_package:suite", ""),
    }
    for package, (name, value, code) in points.items():
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{suites.GROUP}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for kept in ("_suites", "_broken", "_tried", "_said"):
        monkeypatch.setattr(suites, kept, getattr(suites, kept).copy())
    return tmp_path


def test_a_packages_suite_is_like_the_built_in_ones(packages):
    assert envs.tasks("dots") == ["dots/near", "dots/far/away"]
    assert envs.suite("dots/near") == "dots"
    assert envs.expand("dots/all,dots") == ["dots/far/away", "dots/near"]
    assert envs.action_repeat("dots/near") == 4
    assert envs.published_budget("dots/near") == 1234
    assert envs.highest_return("dots/near") == 80.0
    with pytest.raises(UserError, match="did you mean dots/near"):
        envs.suite("dots/nearer")
    one = envs.make("dots/far/away", size=16)
    assert (one.inner.name, one.task, one.name) == ("far/away", "dots/far/away", "away")
    observation, _ = one.reset(seed=0)
    assert observation["image"].shape == (16, 16, 3)
    assert one.step(np.zeros(2, np.float32))[1] == 8.0
    assert one.observation_space.contains(observation)


def test_its_tasks_are_made_in_worker_processes_too(packages):
    vector = envs.make_vector("dots/near", 2, size=8)
    vector.reset(seed=[0, 1])
    assert vector.step(np.zeros((2, 2), np.float32))[1].tolist() == [8.0, 8.0]
    vector.close()


def test_what_cannot_be_loaded_is_one_line_and_harms_no_other(packages, capsys):
    listed = envs.tasks()
    assert {"metaworld/reach", "dots/near"} <= set(listed)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert any("suite broken of broken_package cannot be loaded: ImportError: no sim" in line
               for line in said)  # fmt: skip
    assert any("suite metaworld of thief_package cannot be loaded" in line for line in said)
    with pytest.raises(UserError, match="suite broken of broken_package cannot be loaded"):
        envs.suite("broken/one")
    assert envs.suite("metaworld/reach") == "metaworld"
    envs.tasks()
    assert capsys.readouterr().err == ""  # it was said


def test_no_package_is_loaded_before_its_suite_is_asked_for(packages):
    code = (
        "import sys, envs; envs.suite('metaworld/reach'); envs.published_budget('dots/near');"
        "print([m for m in ('dots_package', 'broken_package') if m in sys.modules])"
    )
    variables = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{os.getcwd()}"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables
    )
    assert run.stdout.strip() == "['dots_package']", run.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "Dots!"}, "is no name of a suite"),
        ({"name": "gym"}, "there is a suite gym already"),
        ({"name": "metaworld"}, "there is a suite metaworld already"),
        ({"tasks": []}, "at least one"),
        ({"tasks": ["a", "a"]}, "different names"),
        ({"tasks": ["a,b"]}, "without commas"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(changes, sentence):
    fields = {"name": "mine", "tasks": ["one"], "make": lambda name, config, seed: None}
    with pytest.raises(UserError, match=sentence):
        envs.register_suite(envs.Suite(**{**fields, **changes}))
    with pytest.raises(UserError, match="is no envs"):
        envs.register_suite("mine")


@pytest.mark.simulator
def test_a_time_limit_is_for_own_environments():
    with pytest.raises(UserError, match="time_limit is for environments of your own"):
        envs.make("metaworld/reach", time_limit=5)
