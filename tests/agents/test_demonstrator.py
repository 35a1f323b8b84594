"""Trained agents record demonstrations: those of train and those of imitate."""

from pathlib import Path

import numpy as np
import pytest

import envs
from agents.agent import TaskDescription
from agents.data_spec import DataSpec
from agents.demonstrator import Demonstrator
from agents.imitation_config import View
from agents.imitation_loading import load_agent as load_imitator
from envs.demonstrations import read_header
from errors import UserError
from run import main
from tests.agents.received_runs import (
    TASK,
    received_dreamer,
    received_imitation,
    received_online,
    with_weights,
)

pytestmark = pytest.mark.simulator

MASS = "dmc/point_mass-easy"
"""Two numbers an action, and nobody says what is a success: every episode is kept."""
SHOWN = {"quality": "fast", "masks": True, "proprio": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    mass = View("0", 32, "fast", 50), DataSpec(1, 32, 2, 4)
    return {
        "online": with_weights(received_online(folder / "online")),
        "dreamer": with_weights(received_dreamer(folder / "dreamer")),
        "imitation": with_weights(received_imitation(folder / "imitation")),
        "mass": with_weights(received_imitation(folder / "mass"), *mass),
    }


@pytest.fixture
def make():
    """Environments, closed afterwards."""
    made = []

    def made_one(task=TASK, **options):
        made.append(envs.make(task, **(SHOWN | options)))
        return made[-1]

    yield made_one
    for environment in made:
        environment.close()


def episode(actor, environment, seed, steps=6):
    """The first actions of an episode, (steps, A)."""
    observation, _ = environment.reset(seed=seed)
    actor.begin(seed)
    actions = []
    for _ in range(steps):
        actions.append(actor.action(observation))
        observation, *_ = environment.step(actions[-1])
    return np.stack(actions)


@pytest.mark.parametrize(("kind", "size"), [("online", 16), ("dreamer", 16), ("imitation", 32)])
def test_an_episode_is_a_function_of_its_seed(runs, make, kind, size):
    environment = make(size=size)
    actor = Demonstrator(runs[kind], environment)
    first = episode(actor, environment, 1)
    assert first.shape == (6, 4)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert not np.array_equal(episode(actor, environment, 2), first)
    np.testing.assert_array_equal(episode(actor, environment, 1), first)
    noisy = episode(Demonstrator(runs[kind], environment, 0.1), environment, 1)
    assert not np.array_equal(noisy[0, :-1], first[0, :-1])
    assert noisy[0, -1] == first[0, -1]  # the gripper's


def test_an_imitator_acts_as_it_does_when_it_is_evaluated(runs, make):
    environment = make(size=32)
    recorded = episode(Demonstrator(runs["imitation"], environment), environment, 3)
    agent, *_ = load_imitator(runs["imitation"], "cpu")
    evaluated = agent.actor(TaskDescription(environment.task, environment.instruction), 3)
    observation, _ = environment.reset(seed=3)
    for step, action in enumerate(recorded):
        one = {name: observation[name][None] for name in ("image", "proprio")}
        chosen, _ = evaluated.policy({**one, "is_first": np.array([step == 0])}, None, False)
        np.testing.assert_array_equal(chosen[0], action)
        observation, *_ = environment.step(action)


@pytest.mark.parametrize(
    ("kind", "task", "options", "words"),
    [
        ("imitation", TASK, {"size": 64}, "with size 32, not 64; give --environment.size 32"),
        ("online", TASK, {"size": 64}, "with size 16, not 64; give --environment.size 16"),
        ("imitation", TASK, {"size": 32, "camera": "gripperPOV"},
         "camera corner2, not gripperPOV; give --environment.camera corner2"),
        ("imitation", TASK, {"size": 32, "camera": "corner2,gripperPOV"},
         "camera corner2, not corner2,gripperPOV"),
        ("online", TASK, {"size": 16, "camera": "gripperPOV"}, "give --environment.camera corner2"),
        ("imitation", TASK, {"size": 32, "action_repeat": 4}, "give --environment.action-repeat 2"),
        ("imitation", MASS, {"size": 32, "camera": "0"}, "give --environment.camera corner2"),
        ("mass", MASS, {"size": 32, "action_repeat": 2}, "give --environment.action-repeat 50"),
        ("mass", "dmc/walker-walk", {"size": 32, "action_repeat": 50},
         "trained with 2 numbers of an action, unlike walker-walk"),
    ],
)  # fmt: skip
def test_an_environment_that_differs_is_refused_with_the_option_that_makes_it_alike(
    runs, make, kind, task, options, words
):
    with pytest.raises(UserError) as refused:
        Demonstrator(runs[kind], make(task, **options))
    assert words in str(refused.value)
    assert str(runs[kind]) in str(refused.value)


def test_collect_records_an_imitator_and_goes_on_with_a_finished_file(runs, tmp_path, capsys):
    out = tmp_path / "mass.hdf5"
    seen = ["--environment.size", "32", "--environment.action-repeat", "50"]
    command = ["collect", "--task", MASS, "--policy", str(runs["mass"]), "--out", str(out), *seen]
    assert main([*command, "--episodes", "1"]) == 0
    first = read_header(out)
    assert (len(first.episodes), first.task) == (1, MASS)
    assert main([*command, "--episodes", "1"]) == 0
    assert "is there already" in capsys.readouterr().out

    assert main([*command, "--episodes", "2"]) == 2
    said = capsys.readouterr().err
    assert f"{out} is finished and has 1 of the 2 episodes asked for" in said
    assert main([*command, "--episodes", "1", "--task", "dmc/walker-walk"]) == 2
    assert f"{out} holds {MASS}, not dmc/walker-walk" in capsys.readouterr().err

    (partial,) = (word for word in said.split() if word.endswith(".part"))
    out.rename(Path(out.parent, partial))  # as the error says
    assert main([*command, "--episodes", "2"]) == 0
    assert len(read_header(out).episodes) == 2


def test_collect_tells_with_which_options_an_agent_can_record(runs, tmp_path, capsys):
    command = ["collect", "--task", TASK, "--episodes", "1", "--out", str(tmp_path / "a.hdf5")]
    assert main([*command, "--policy", str(runs["imitation"])]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "give --environment.size 32" in said
    assert list(tmp_path.iterdir()) == []
