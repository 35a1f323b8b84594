"""The benchmark says what it should of a small task; how fast that is, is no test's business."""

import json
from dataclasses import replace

import pytest
import torch

from agents.presets import preset
from envs.environment_config import EnvironmentConfig
from errors import UserError
from experiment.hardware import has_bfloat16
from results.benchmarks import benchmark
from results.benchmarks.benchmark import Benchmark
from results.benchmarks.pictures import measure_pictures

TASK = "dmc/point_mass-easy"
PARTS = {
    "autoencoder update", "encode a batch of windows", "dynamics update", "behaviour update",
    "whole update", "policy step",
}  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return benchmark.measure(
        Benchmark(
            TASK, rounds=1, repeats=2, loop_steps=60, replay_frames=(1500, 3000),
            environments=(TASK,), demonstrations=1,
        )
    )  # fmt: skip


@pytest.mark.simulator
def test_every_part_is_measured_in_every_mode(result):
    times = result["parts"]["milliseconds"]
    assert set(times) == {"eager", "preset"}
    for by_part in times.values():
        assert set(by_part) == PARTS
        for spread in by_part.values():
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert set(result["environments"][TASK]) == {"control step", "picture", "mask"}


@pytest.mark.simulator
def test_updates_are_measured_by_where_their_frames_come_from(result):
    assert tuple(result["sources"]) == benchmark.SOURCES
    assert f"| disk | {result['sources']['disk']['median']:.1f} | 1.00 |" in benchmark.markdown(
        result
    )


@pytest.mark.simulator
def test_operations_of_an_update_are_those_of_its_parts(result):
    """At least what the largest layer alone takes, forward and twice backward."""
    config = preset("cpu", TASK).agent
    frames = config.batch * config.window
    spread = 2 * frames * config.dynamics.decoder.hidden * 65 * config.dynamics.decoder.width
    assert result["arithmetic"]["operations_per_update"] > 3 * spread
    rates = {"float32", "bfloat16"} if has_bfloat16(torch.device("cpu")) else {"float32"}
    assert set(result["arithmetic"]["matrix_product_per_second"]) == rates


@pytest.mark.simulator
def test_shares_of_the_loop_add_up(result):
    assert set(result["loops"]) == {"eager", "preset"}
    text = benchmark.markdown(result)
    for loop in result["loops"].values():
        assert 0.8 < sum(loop["share"].values()) <= 1.0
        assert loop["environment_steps_per_second"] > 0
        # One update for three agent steps of two environment steps each.
        ratio = loop["environment_steps_per_second"] / loop["updates_per_second"]
        assert ratio == pytest.approx(6, rel=0.3)
        hours = 500_000 / loop["environment_steps_per_second"] / 3600
        assert f"| {1e3 / loop['updates_per_second']:.1f} | {hours:.2f} |" in text


@pytest.mark.simulator
def test_windows_of_demonstrations_are_read_in_every_way(result):
    rates = result["loading"]["windows_per_second"]
    assert set(rates) >= {"plain h5py", "Windows", "DataLoader, 1 worker"}
    assert all(rate > 0 for rate in rates.values())
    assert "| plain h5py |" in benchmark.markdown(result)


@pytest.mark.simulator
def test_pictures_are_measured_in_parts(result):
    found = result["pictures"][TASK]
    assert list(found) == [
        "full", "full, no shadows", "fast", "poses", "empty", "geoms", "reading", "faces",
        "faces, fast",
    ]  # fmt: skip
    assert all(found[part] > 0 for part in ("full", "fast", "poses", "empty", "reading"))
    assert f"| {found['full']:.2f} |" in benchmark.markdown(result)


@pytest.mark.simulator
def test_faces_of_meshes_are_those_of_the_scene():
    """Meta-World's arm is made of meshes, which fast thins."""
    found = measure_pictures("metaworld/window-close", EnvironmentConfig(), 1)
    assert found["faces"] > 2 * found["faces, fast"] > 10_000


@pytest.mark.simulator
def test_replay_is_on_disk(result):
    small, large = result["replay"]
    assert small["frames"] < large["frames"] <= 3000
    assert large["disk_bytes"] > large["frames"] * 64 * 64 * 3


@pytest.mark.simulator
def test_tables_hold_the_numbers(result):
    text = benchmark.markdown(json.loads(json.dumps(result)))
    rows = [line for line in text.splitlines() if line.startswith("| whole update")]
    times = result["parts"]["milliseconds"]
    ratio = times["eager"]["whole update"]["mean"] / times["preset"]["whole update"]["mean"]
    assert rows[0].endswith(f"| {ratio:.2f} |")
    assert result["commit"] in text


def test_eager_is_the_same_agent_without_what_makes_it_fast():
    config = preset("cpu", TASK)
    eager = benchmark.in_mode(config, "eager").agent
    assert (eager.precision, eager.autoencoder_precision) == ("float32", "float32")
    assert eager.dynamics == config.agent.dynamics
    half = benchmark.in_mode(config, "bfloat16").agent
    assert half == replace(eager, precision="bfloat16")
    assert benchmark.in_mode(config, "preset") == config
    compiled = benchmark.in_mode(config, "compiled").agent
    assert compiled == replace(config.agent, compile=True)


@pytest.mark.parametrize("wrong", [{"compare": ()}, {"rounds": 0}, {"repeats": 1}])
def test_options_that_measure_nothing(wrong):
    with pytest.raises(UserError, match="at least"):
        benchmark.measure(Benchmark(TASK, **wrong))


@pytest.mark.simulator
def test_a_task_that_does_not_exist_is_named_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda options: pytest.fail("measured"))
    for wrong in ({"task": "dmc/walk"}, {"environments": ("dmc/walk",)}):
        with pytest.raises(UserError, match="unknown task 'dmc/walk'"):
            benchmark.main(Benchmark(**wrong))
