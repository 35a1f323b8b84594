"""Environments in worker processes: the same numbers, partial resets, readable errors, no noise."""

import os
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import envs
from envs.vector import VectorEnvironment
from errors import UserError

pytestmark = pytest.mark.simulator

OPTIONS = {"quality": "fast", "masks": True, "proprio": True, "size": 32}


@pytest.fixture(scope="module")
def pair():
    vector = envs.make_vector("metaworld/window-close", 2, **OPTIONS)
    yield vector
    vector.close()


def test_workers_step_the_same_numbers_as_one_environment(pair):
    single = envs.make("metaworld/window-close", **OPTIONS)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, 4)).astype(np.float32)
    observation, _ = pair.reset(seed=[11, 12])
    steps = [(observation, None)]
    for action in actions:
        pair.step_async(action)
        observation, reward, terminated, truncated, info = pair.step_wait()
        assert info["env_steps"].tolist() == [2, 2]
        steps.append((observation, reward))
    for index, seed in enumerate((11, 12)):
        expected, _ = single.reset(seed=seed)
        for name, value in expected.items():
            np.testing.assert_array_equal(steps[0][0][name][index], value)
        for step, action in enumerate(actions[:, index], 1):
            expected, reward, *_ = single.step(action)
            assert steps[step][1][index] == reward
            for name, value in expected.items():
                np.testing.assert_array_equal(steps[step][0][name][index], value)
    single.close()


def test_a_masked_reset_touches_only_its_environments(pair):
    pair.reset(seed=[1, 2])
    before = pair.step(np.ones((2, 4), np.float32))[0]
    mask = np.array([False, True])
    after, _ = pair.reset(seed=[None, 5], options={"reset_mask": mask})
    fresh, _ = pair.reset(seed=[5, 5])
    np.testing.assert_array_equal(after["image"][0], before["image"][0])
    np.testing.assert_array_equal(after["image"][1], fresh["image"][1])


def test_nothing_resets_by_itself(pair):
    """Workers do not reset at an episode's end: the caller, who knows the seed, does."""
    assert pair.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert pair.get_attr("max_env_steps") == (500, 500)


class Mistaken:
    """Picklable; makes an environment that fails at its first reset in a worker."""

    def __init__(self, error):
        self.error = error

    def __call__(self):
        one = envs.make("dmc/pendulum-swingup", quality="fast", size=8)
        one._reset_simulation = self.fail
        return one

    def fail(self, options):
        raise self.error


@pytest.mark.parametrize("kind", [UserError, ZeroDivisionError])
def test_a_workers_mistake_arrives_as_its_sentence(kind, capfd):
    vector = VectorEnvironment(Mistaken(kind("no EGL here")), 2)
    if kind is UserError:
        with pytest.raises(UserError, match="^no EGL here$"):
            vector.reset(seed=[0, 1])
    else:
        with pytest.raises(RuntimeError, match="ZeroDivisionError: no EGL here"):
            vector.reset(seed=[0, 1])
    vector.close()
    assert capfd.readouterr().err == ""


def test_a_mistake_of_the_user_is_found_before_any_worker_starts():
    with pytest.raises(UserError, match="did you mean"):
        envs.make_vector("metaworld/windowclose", 2)


def test_workers_load_no_torch_have_one_thread_and_leave_silently(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, envs\n"
        "if __name__ != '__main__': raise SystemExit('a worker imported the main script')\n"
        "vector = envs.make_vector('dmc/cartpole-swingup', 1, quality='fast', size=16)\n"
        "vector.reset(seed=[0])\n"
        "import os\n"
        "pid = vector.workers[0].process.pid\n"
        "maps = open(f'/proc/{pid}/maps').read()\n"
        "variables = open(f'/proc/{pid}/environ').read()\n"
        "one_thread = 'OMP_NUM_THREADS=1' in variables\n"
        "print('libtorch' in maps, one_thread, 'OMP_NUM_THREADS' in os.environ)\n"
        "vector.close()\n"
    )
    variables = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    root = os.path.dirname(os.path.dirname(os.path.abspath(envs.__file__)))
    output = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=variables | {"PYTHONPATH": root},
    )
    assert (output.stdout, output.stderr) == ("False True False\n", "")
