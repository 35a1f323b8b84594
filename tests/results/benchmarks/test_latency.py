"""What is measured of a chunk's latency, and of what; how fast it is, is no test's business."""

import json

import pytest

from agents import imitation_presets
from agents.data_spec import DataSpec
from agents.mask_world_model import MaskWorldModel
from errors import UserError
from results.benchmarks.latency import Latency, main

QUICK = {"repeats": 2, "device": "cpu"}


def test_a_chunk_is_timed_with_and_without_dropped_tokens(tmp_path, capsys):
    out = tmp_path / "new" / "latency"
    main(Latency(out=out, pruning=(0.0, 0.9), **QUICK))
    found = json.loads(out.with_suffix(".json").read_text())["presets"]["cpu"]
    config = imitation_presets.preset("cpu").agent
    bounds = {"low": -1.0, "high": 1.0, "min": -1.0, "max": 1.0}
    statistics = {f"action_{edge}": [value] * 7 for edge, value in bounds.items()}
    statistics |= {f"proprio_{edge}": [value] * 12 for edge, value in bounds.items()}
    agent = MaskWorldModel(config, DataSpec(2, 64, 7, 12), statistics, "cpu")
    assert found["parameters"] == sum(p.numel() for p in agent.networks.parameters())
    assert (found["chunk"], found["n_action_steps"]) == (config.policy.chunk, agent.n_action_steps)
    whole, pruned = (found["shares"][share] for share in ("0.0", "0.9"))
    assert whole["tokens"] == 2 * 96  # four frames and two latent ones of the future, 4×4 each
    assert pruned["tokens"] == 2 * 10
    for parts in (whole, pruned):
        for part in ("backbone", "policy", "chunk"):
            assert 0 < parts[part]["median"] <= parts[part]["95th"]
    report = out.with_suffix(".md").read_text()
    assert report in capsys.readouterr().out
    once = whole["chunk"]["95th"] / 100
    assert (
        f"| {once:.2f} | {once / found['n_action_steps']:.2f} ({found['n_action_steps']}) |"
        in report
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": 0}, "--repeats is 0"),
        ({"cameras": 0}, "--cameras is 0"),
        ({"presets": ()}, "at least one"),
        ({"pruning": (1.5,)}, "pruning must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(wrong, message):
    with pytest.raises(UserError, match=message):
        main(Latency(**{**QUICK, **wrong}))


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        main(Latency(out=tmp_path / "file" / "latency", pruning=(0.0,), **QUICK))
