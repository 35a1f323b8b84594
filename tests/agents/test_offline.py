"""Whole runs that learn from recorded data alone."""

import json

import pytest

from agents.online import train_offline
from agents.online_evaluation import evaluate, final_seeds
from agents.online_loading import load_agent
from errors import UserError
from experiment.run_folder import RunFolder
from tests.agents.online_runs import (
    EPISODE,
    Photographed,
    album_of,
    differences,
    equal,
    lines,
    records,
    run,
    tiny,
)

pytestmark = pytest.mark.simulator
UPDATES = 6


def offline(recorded, **changes):
    options = {"steps": UPDATES, "evaluate_first": 3, "evaluate_every": 3, **changes}
    return tiny(offline=True, recorded=(str(recorded),), **options)


def learn(path, config, kind=RunFolder):
    with kind.create_or_resume(path, config) as folder:
        train_offline(config, folder)
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two episodes."""
    return run(tmp_path_factory.mktemp("recorded") / "run", tiny(steps=2 * EPISODE))


@pytest.fixture(scope="module")
def straight(recorded, tmp_path_factory):
    """An offline run that nothing disturbed."""
    return learn(tmp_path_factory.mktemp("offline") / "run", offline(recorded), Photographed)


def test_nothing_is_learned_from_but_what_was_recorded(straight, recorded):
    assert [r["recorded"] for r in records(straight)] == [str(recorded)] * len(records(recorded))
    assert sum(record["env_steps"] for record in records(straight)) == 0


def test_steps_are_updates(straight, recorded):
    assert [line["step"] for line in lines(straight) if "eval/return" in line] == [3, 6]
    agent, config, step = load_agent(straight)
    assert step == agent.updates == UPDATES
    assert agent.pretrained == agent.pretraining_updates
    assert len(evaluate(agent, config, final_seeds(1, 1), 1)) == 1
    assert (straight / "curve.png").stat().st_size > 1000


def test_an_interrupted_run_goes_on_bit_for_bit(straight, recorded, tmp_path):
    step, photograph = album_of(straight)[-3]
    assert 0 < step < UPDATES
    again = learn(photograph, offline(recorded))
    assert differences(again, straight) == []
    assert equal(lines(again), lines(straight))


def test_more_updates_go_on_from_a_finished_run(recorded, straight, tmp_path):
    path = learn(tmp_path / "run", offline(recorded, steps=3))
    learn(path, offline(recorded))
    assert differences(path, straight) == []


def test_offline_needs_recorded_data():
    with pytest.raises(UserError, match="name it with --recorded"):
        tiny(offline=True)


def test_less_than_a_window_is_refused(recorded, tmp_path):
    frames = sum(json.loads(line)["frames"] for line in
                 (recorded / "replay" / "episodes.jsonl").read_text().splitlines())  # fmt: skip
    config = offline(recorded)
    config = tiny(
        offline=True, recorded=config.recorded,
        agent=type(config.agent)(**{**vars(config.agent), "window": frames + 1}),
    )  # fmt: skip
    with pytest.raises(UserError, match=f"{frames} recorded frames are fewer than a window"):
        learn(tmp_path / "run", config)
