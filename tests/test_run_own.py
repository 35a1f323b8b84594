"""Environments of the user's own through the commands: the example of docs/environments.md, and one
that is registered with Gymnasium, trained, killed, resumed and evaluated."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import run
from agents.online import train
from agents.online_loading import load_agent
from agents.online_run import OnlineRun
from agents.presets import preset
from agents.replay import Replay
from envs import EnvironmentConfig
from errors import UserError
from experiment.run_folder import RunFolder
from experiment.stopping import Interrupts, Stopped
from tests.agents.online_runs import differences, never_backwards
from tests.agents.tiny_agent import SIZE, TINY, TINY_DREAMER

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"
DOT = "dot_of_the_page:Dot"
STEPS = 90


@pytest.fixture
def dot(tmp_path, monkeypatch):
    """The page's example, as a module of the user's."""
    (code,) = re.findall(r"```python\n(import gymnasium\n.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / f"{DOT.partition(':')[0]}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop(DOT.partition(":")[0], None)


def tiny(task, method="masked-world-model", limit=15, **changes):
    config = preset("cpu", task, method)
    agent = replace(TINY, batch=2, window=8) if method == "masked-world-model" else TINY_DREAMER
    agent = replace(agent, dynamics=replace(agent.dynamics, predict_discount=True))
    config = replace(
        config,
        steps=STEPS,
        threads=1,
        environment=EnvironmentConfig(size=SIZE, time_limit=limit, quality="fast"),
        agent=agent,
        prefill=40,
        update_every=6,
        replay_capacity=500,
        evaluate_first=STEPS,
        evaluate_every=STEPS,
        evaluate_episodes=2,
        evaluate_envs=2,
        checkpoint_seconds=0.0,
    )
    return replace(config, **changes)


def learn(folder, config, killed_at=None):
    """Train; with SIGTERM when a step is about to be taken."""

    class Watched(OnlineRun):
        def act(self):
            if self.steps == killed_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().act()

    with pytest.MonkeyPatch.context() as patch, RunFolder.create_or_resume(folder, config) as run:
        patch.setattr("agents.online.OnlineRun", Watched)
        train(config, run)
    return folder


def test_the_example_of_the_page_is_short(dot):
    assert len((dot / "dot_of_the_page.py").read_text().splitlines()) <= 28


def test_it_trains_is_killed_goes_on_bit_for_bit_and_is_evaluated(dot, capsys):
    whole = learn(dot / "whole", tiny(DOT))
    halves = dot / "halves"
    with Interrupts(), pytest.raises(Stopped):
        learn(halves, tiny(DOT), killed_at=70)
    learn(halves, tiny(DOT))
    assert differences(whole, halves) == []
    assert never_backwards(halves)
    for episode, _ in Replay.at(whole / "replay").episodes():
        assert set(episode["action"][1:].sum(-1).tolist()) == {1.0}
        assert episode["is_terminal"][-1] == (episode["reward"].sum() > 0)
    # Read from its folder, its environment is not imported unless it is named.
    with pytest.raises(UserError, match=rf"asks to load {DOT} \(task\).* trusted=\['{DOT}'\]"):
        load_agent(whole)
    command = ["evaluate", "--logdir", str(whole), "--episodes", "2", "--random", "--video"]
    assert run.main(command) == 2
    assert f"--trust {DOT}" in capsys.readouterr().err
    assert run.main([*command, "--trust", DOT]) == 0
    found = json.loads((whole / "evaluation.json").read_text())
    assert {name: len(found[name]["episodes"]) for name in ("agent", "random")} == {
        "agent": 2,
        "random": 2,
    }
    assert found["agent"]["success"] is not None
    assert (whole / "videos" / "evaluation.mp4").stat().st_size
    command = ["evaluate", "--logdir", str(whole), "--trust", DOT, "--shifts", "all"]
    assert run.main(command) == 2
    assert "MuJoCo" in capsys.readouterr().err


def test_several_environments_of_gymnasium_teach_a_dreamer(tmp_path):
    config = tiny("gym:CartPole-v1", "dreamer", num_envs=2, limit=12)
    folder = learn(tmp_path / "run", config)
    agent, _, steps = load_agent(folder)  # registered already: nobody's code is named
    assert steps >= STEPS
    assert agent.behaviour.actor.discrete
    records = Replay.at(folder / "replay").records
    assert {record["success"] for record in records} == {None}
    assert max(record["env_steps"] for record in records) <= 12


def test_its_run_folder_and_its_options_have_names(dot, monkeypatch, capsys):
    monkeypatch.chdir(dot)
    asked = {}
    monkeypatch.setattr("agents.online.train", lambda config, *_: asked.update(config=config))
    options = "--environment.name dot --environment.score-bounds 0 1 --environment.time-limit 9"
    assert run.main(["train", "--task", DOT, *options.split()]) == 0
    assert "runs/dot_of_the_page-Dot-cpu-seed0" in capsys.readouterr().out
    seen = asked["config"].environment
    assert (seen.name, seen.score_bounds, seen.time_limit) == ("dot", (0.0, 1.0), 9)
    assert asked["config"].agent.dynamics.predict_discount
    again = RunFolder.read_config(
        "runs/dot_of_the_page-Dot-cpu-seed0", type(asked["config"]), [DOT]
    )
    assert again == asked["config"]


def test_discrete_actions_are_not_recorded(dot, capsys):
    command = f"collect --task {DOT} --episodes 1 --out {dot}/demos --environment.size 16"
    assert run.main(command.split()) == 2
    assert "no state" in capsys.readouterr().err


def test_masks_that_it_does_not_show_are_one_line(dot):
    config = tiny(DOT)
    config = replace(config, agent=config.agent.predicting("masks"))
    with pytest.raises(UserError, match=f"{DOT} observes no masks"):
        learn(dot / "run", config)
    assert not (dot / "run" / "config.yaml").exists()


def test_what_is_chosen_at_random_in_prefill_is_held(dot):
    learn(dot / "run", tiny(DOT, random_hold=5))
    episode, _ = next(Replay.at(dot / "run" / "replay").episodes())
    first = episode["action"][1:6]
    np.testing.assert_array_equal(first, np.broadcast_to(first[0], first.shape))
