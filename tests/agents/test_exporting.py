"""Exported policies: what acts, alone."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from agents.exported import WEIGHTS, acting_weights, load_policy
from agents.exporting import actions, export
from agents.policy import load_trained
from errors import UserError
from experiment.run_folder import RunFolder
from tests.agents import received_runs
from tests.agents.received_runs import with_weights
from tests.agents.test_policy import INSTRUCTION, told

KINDS = ("online", "dreamer", "imitation")


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    make = getattr(received_runs, f"received_{request.param}")
    folder = with_weights(make(tmp_path_factory.mktemp(request.param) / "run"))
    if request.param == "imitation":
        told(folder, **{received_runs.TASK: INSTRUCTION})
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """For what is the same of every kind."""
    return with_weights(received_runs.received_online(tmp_path_factory.mktemp("one") / "run"))


def test_an_exported_policy_acts_like_its_run(run, tmp_path):
    report = export(run, tmp_path / "out", half=False)
    assert report.difference == 0.0
    once, again = (load_trained(tmp_path / "out") for _ in range(2))
    np.testing.assert_array_equal(actions(once), actions(load_trained(run)))
    state, same = once.agent.state_dict(), again.agent.state_dict()
    torch.testing.assert_close(state, same, rtol=0, atol=0)  # what does not act is not random
    assert once.environment == load_trained(run).environment
    assert once.position == load_trained(run).position


def test_no_action_depends_on_what_is_left_out(run):
    trained = load_trained(run)
    expected = actions(trained)
    kept = acting_weights(trained.agent)
    left_out = {n: p for n, p in trained.agent.acting.state_dict().items() if n not in kept}
    assert left_out
    for part in left_out.values():
        part.fill_(torch.nan if part.is_floating_point() else 0)
    np.testing.assert_array_equal(actions(trained), expected)


def test_half_precision_halves_the_file_and_says_what_it_changes(one, tmp_path):
    whole = export(one, tmp_path / "whole", half=False)
    half = export(one, tmp_path / "half")
    assert half.size < 0.7 * whole.size
    assert 0 < half.difference < 0.05
    assert f"at most {half.difference:.2g}" in (tmp_path / "half" / "README.md").read_text()


def test_the_card_says_what_the_hub_and_a_reader_look_for(one, tmp_path):
    row = {"success": {"count": 1, "mean": 0.5, "interval": [0.1, 0.9]}, "return": {"mean": 3.0},
           "episodes": [{"seed": 1, "length": 5, "return": 3.0, "success": True}] * 2}  # fmt: skip
    record = {
        "task": received_runs.TASK,
        "seed": 0,
        "agent": row,
        "command": "c",
        "commit": "f" * 40,
    }
    path = RunFolder.open(one).evaluation_path
    path.write_text(json.dumps(record))
    export(one, tmp_path / "out", licence="cc-by-4.0")
    path.unlink()
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    described = yaml.safe_load(front)
    assert described["license"] == "cc-by-4.0"
    assert described["pipeline_tag"] == "robotics"
    assert "| agent | 2 | 0.50 (0.10 to 0.90) | 3.0 |" in body
    assert received_runs.TASK in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    compile(code, "card", "exec")


def test_a_damaged_file_is_one_sentence(one, tmp_path):
    export(one, tmp_path / "out")
    path = tmp_path / "out" / WEIGHTS
    content = path.read_bytes()
    weights = safetensors.torch.load(content)
    header = {"policy": json.dumps({"format": "another", "version": 1, "state": {}})}
    size = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + size])["__metadata__"]
    name = max(weights, key=lambda each: weights[each].numel())
    infinite = {**weights, name: torch.full_like(weights[name], torch.inf)}
    others = [
        b"", content[:100], content[:-5], b"\xff" * 64,
        safetensors.torch.save(weights), safetensors.torch.save(weights, header),
        safetensors.torch.save({n: p for n, p in weights.items() if n != name}, described),
        safetensors.torch.save(infinite, described),
    ]  # fmt: skip
    for other in others:
        path.write_bytes(other)
        with pytest.raises(UserError) as error:
            load_trained(tmp_path / "out")
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_lost_bit_is_not_taken_for_a_weight(one, tmp_path):
    """And what was written before files had a checksum is read as it was."""
    export(one, tmp_path / "out")
    path = tmp_path / "out" / WEIGHTS
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    for place in (size + 100, content.index(b"step") + 9):  # of the weights, of what goes with them
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{WEIGHTS} is no .* damaged"):
            load_trained(tmp_path / "out")
        content[place] ^= 1
    weights = safetensors.torch.load(bytes(content))
    header = json.loads(content[8 : 8 + size])["__metadata__"]
    del header["sha256"]
    path.write_bytes(safetensors.torch.save(weights, header))
    load_trained(tmp_path / "out")


def test_a_configuration_cannot_ask_for_a_larger_agent(run, tmp_path):
    export(run, tmp_path / "out")
    path = tmp_path / "out" / "config.yaml"
    record = yaml.safe_load(path.read_text())
    part = record["config"]["agent"]
    part = part.get("behaviour") or part["policy"]
    part["units" if "units" in part else "width"] = 2**15
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(UserError, match="larger than the one in the checkpoint"):
        load_trained(tmp_path / "out")


def test_a_class_from_outside_is_loaded_only_when_it_is_named(one, tmp_path):
    export(one, tmp_path / "out")
    path = tmp_path / "out" / "config.yaml"
    record = yaml.safe_load(path.read_text())
    agent = record["config"]["agent"]
    agent["autoencoder"]["target"] = "nowhere.that_is:Target"
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(UserError, match="add --trust nowhere.that_is:Target"):
        load_trained(tmp_path / "out")


def test_other_files_are_not_written_over(one, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        export(one, tmp_path)
    with pytest.raises(UserError, match="the run folder itself"):
        export(one, one)
    export(one, tmp_path / "out")
    export(one, tmp_path / "out")  # its own may be


def test_nothing_is_trained_in_an_exported_policy(one, tmp_path):
    export(one, tmp_path / "out")
    with pytest.raises(UserError, match="is an exported policy"):
        RunFolder.create_or_resume(tmp_path / "out", received_runs.online())


def test_the_header_holds_plain_values(one, tmp_path):
    export(one, tmp_path / "out")
    state = load_policy(tmp_path / "out" / WEIGHTS)
    assert state["task"] == received_runs.TASK
    assert set(state["agent"]["weights"]) == set(acting_weights(load_trained(one).agent))
