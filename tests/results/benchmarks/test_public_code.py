"""Public code beside ours: what can be wrong with its environment, and what ours is given."""

import sys
from pathlib import Path

import pytest

from agents.presets import preset
from errors import UserError
from results.benchmarks.public_code import PublicCode, check_public, from_every_state, public_table

SIZES = {"threads": 1}


def test_an_environment_that_cannot_be_used_is_one_sentence():
    with pytest.raises(UserError, match="nowhere/python cannot be started: No such file"):
        PublicCode(Path("nowhere/python"), SIZES)
    for python, words in ((sys.executable, "No module named 'sheeprl'"), ("/bin/echo", "it said")):
        with pytest.raises(UserError, match=rf"does not run sheeprl \(.*{words}.*\); make an env"):
            check_public(Path(python))  # the project's own has none


def test_ours_imagines_from_every_state_and_is_otherwise_the_preset():
    config = preset("cpu", "metaworld/window-close")
    every = from_every_state(config)
    assert config.agent.behaviour.start_states is not None
    assert every.agent.behaviour.start_states is None
    assert every.agent.dynamics == config.agent.dynamics
    assert every.agent.behaviour.horizon == config.agent.behaviour.horizon


def test_the_table_compares_with_float32_and_shows_operations():
    found = {
        "built": {"sheeprl": "0.8.4", "parameters": 1_000, "channels": 24},
        "parameters": 1_100,
        "milliseconds": {"sheeprl, float32": 400.0, "ours, preset": 100.0},
        "operations": {"sheeprl, float32": 8e9, "ours, preset": 4e9},
    }
    rows = [line for line in public_table(found) if line.startswith("| ours")]
    assert rows == ["| ours, preset | 100 | 4.00 | 4.0 | 40 |"]
