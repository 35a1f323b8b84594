"""Task names, options, and the one-sentence errors of ``envs.make``."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from errors import UserError

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(envs.__file__)))


def run_python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | variables,
    )


def test_importing_envs_loads_neither_a_simulator_nor_torch():
    code = (
        "import sys, envs; envs.tasks();"
        "suites = ('metaworld', 'dm_control', 'libero', 'robosuite', 'rlbench', 'pyrep');"
        "print([m for m in ('torch', 'mujoco', *suites) if m in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


@pytest.mark.simulator
def test_the_task_lists_are_those_of_the_installed_suites():
    from dm_control import manipulation, suite
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    expected = {f"metaworld/{name.removesuffix('-v3')}" for name in ALL_V3_ENVIRONMENTS}
    assert set(envs.tasks("metaworld")) == expected
    assert len(expected) == 50
    expected = {f"dmc/{domain}-{task}" for domain, task in suite.ALL_TASKS}
    vision = [name for name in manipulation.ALL if name.endswith("_vision")]
    expected |= {f"dmc/{name.removesuffix('_vision')}" for name in vision}
    assert set(envs.tasks("dmc")) == expected
    assert len(envs.tasks("libero")) == 130 + 2 * 10  # tests/envs/test_libero.py compares the names
    assert envs.tasks() == [task for name in ("metaworld", "dmc", "libero", "panda", "rlbench")
                            for task in envs.tasks(name)]  # fmt: skip
    assert envs.suite("dmc/walker-walk") == "dmc"
    assert envs.suite("libero/10/9") == "libero"


def test_a_name_may_stand_for_several_tasks():
    assert envs.expand("dmc/walker-walk") == ["dmc/walker-walk"]
    assert envs.expand("libero/object") == [f"libero/object/{number}" for number in range(10)]
    assert envs.expand("libero") == envs.tasks("libero")
    ten = envs.expand("metaworld/mt10")
    assert len(ten) == 10
    assert set(ten) < set(envs.tasks("metaworld"))
    # each once, in the order of naming
    several = envs.expand("metaworld/window-close, metaworld/mt10,dmc/walker-walk")
    assert several[0] == "metaworld/window-close"
    assert sorted(several[:-1]) == sorted(ten)
    assert several[-1] == "dmc/walker-walk"


@pytest.mark.parametrize("names", ["metaworld/mt11", "metaworld/reach,libero/objects", ""])
def test_a_name_that_stands_for_nothing_is_a_mistake(names):
    with pytest.raises(UserError, match="unknown task"):
        envs.expand(names)


@pytest.mark.simulator
def test_the_action_repeat_is_what_is_asked_for_or_the_suites_own(environment):
    assert envs.action_repeat("metaworld/reach") == envs.action_repeat("dmc/walker-walk") == 2
    assert envs.action_repeat("libero/object/0") == 1
    assert envs.action_repeat("libero/object/0", 3) == 3
    assert environment("metaworld/reach", quality="fast").action_repeat == 2


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("task", "options", "sentence"),
    [
        ("metaworld/window-closed", {}, "metaworld/window-close"),
        ("dmc/walker_walk", {}, "dmc/walker-walk"),
        ("window-close", {}, "metaworld/window-close"),
        ("metaworld/reach", {"camera": "corner9"}, r"corner2 \(2\)"),
        ("metaworld/reach", {"camera": 99}, "unknown camera"),
        ("metaworld/reach", {"camera": "corner2,corner9"}, r"unknown camera 'corner9'"),
        ("metaworld/reach", {"camera": "corner2, corner2"}, "named twice"),
        ("metaworld/reach", {"orientation": "flipped"}, "upright, opengl, mirrored"),
        ("libero/object/10", {}, "libero/object/1"),
        ("libero/objects/1", {}, "libero/object/1"),
        ("metaworld/reach", {"size": 0}, "size must be"),
        ("metaworld/reach", {"size": 64.5}, "size must be"),
        ("metaworld/reach", {"quality": "best"}, "full, smooth, fast"),
        ("metaworld/reach", {"action_repeat": 0}, "action_repeat must be"),
    ],
)
def test_a_mistake_is_a_sentence_that_says_what_to_do(task, options, sentence):
    with pytest.raises(UserError, match=sentence):
        envs.make(task, **options)


def test_an_unknown_suite_and_no_environments_are_mistakes_too():
    with pytest.raises(UserError, match="metaworld, dmc"):
        envs.tasks("atari")
    with pytest.raises(UserError, match="at least 1"):
        envs.make_vector("metaworld/reach", 0)


@pytest.mark.simulator
def test_a_missing_suite_names_what_to_install():
    code = (
        "import sys; sys.modules['metaworld'] = None\n"
        "import envs, errors\n"
        "try: envs.make('metaworld/reach')\n"
        "except errors.UserError as error: print(error)"
    )
    assert "pip install metaworld" in run_python(code).stdout


@pytest.mark.simulator
@pytest.mark.parametrize("task", ["metaworld/reach", "dmc/cartpole-swingup"])
def test_a_machine_that_cannot_draw_names_the_libraries(task):
    code = (
        "import envs, errors\n"
        f"try: envs.make({task!r}).reset()\n"
        "except errors.UserError as error: print(error)"
    )
    # An EGL device that does not exist stands for a machine without EGL.
    output = run_python(code, MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99")
    assert "apt-get install libegl1" in output.stdout, output.stderr
    assert "Traceback" not in output.stderr


def test_the_users_own_choice_of_opengl_stands():
    assert run_python(
        "import os, envs; print(os.environ['MUJOCO_GL'])", MUJOCO_GL="glfw"
    ).stdout == ("glfw\n")


@pytest.mark.simulator
def test_nothing_is_printed_at_exit_when_renderers_are_left_open():
    code = (
        "import envs\n"
        "kept = [envs.make(t, quality='fast') for t in ('metaworld/reach', 'dmc/reach_duplo')]\n"
        "for one in kept: one.reset(seed=0)"
    )
    output = run_python(code)
    # dm_control says so of a start without a solution, and draws another.
    said = [line for line in output.stderr.splitlines() if "absl:Failed to converge" not in line]
    assert (output.returncode, said) == (0, [])


@pytest.mark.simulator
@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
@pytest.mark.parametrize(
    "task",
    [
        "metaworld/window-close",
        "metaworld/assembly",
        "metaworld/hammer",
        "dmc/cartpole-swingup",
        "dmc/quadruped-fetch",
        "dmc/reach_duplo",
    ],
)
def test_gymnasium_accepts_the_environment(task):
    one = envs.make(task, quality="fast", masks=True, proprio=True, size=32)
    check_env(one, skip_close_check=True)
    assert one.metadata["render_modes"] == ["rgb_array"]
    one.close()


@pytest.mark.simulator
def test_observations_are_what_the_space_says_and_are_new_arrays(environment):
    one = environment("metaworld/reach", quality="fast", masks=True, proprio=True)
    first, _ = one.reset(seed=0)
    kept = {name: value.copy() for name, value in first.items()}
    second = one.step(np.ones(4, np.float32))[0]
    assert one.observation_space.contains(second)
    assert {k: (v.shape, v.dtype.name) for k, v in second.items()} == {
        "image": ((64, 64, 3), "uint8"),
        "mask": ((64, 64), "uint8"),
        "proprio": ((4,), "float32"),
    }
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)
    assert not np.array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(one.render(), second["image"])


@pytest.mark.simulator
def test_rendering_before_a_reset_is_refused():
    one = envs.make("dmc/pendulum-swingup")
    with pytest.raises(gymnasium.error.ResetNeeded):
        one.render()
    one.close()
