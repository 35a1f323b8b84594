"""A quarter of an hour with a GPU: limits hold, tables grow, what is projected adds up."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from results.benchmarks import gpu
from results.benchmarks.gpu import GPU, OutOfTime, limit, loop_table, parts_table

SCRIPT = Path(gpu.__file__).with_suffix(".sh")


def mode(milliseconds):
    return {
        "first_seconds": 3.0,
        "milliseconds": {name: {"median": ms} for name, ms in milliseconds.items()},
    }


def test_a_stage_ends_at_its_limit_and_the_next_one_has_its_own():
    start = time.perf_counter()
    with pytest.raises(OutOfTime), limit(0.05):
        time.sleep(30)
    assert time.perf_counter() - start < 10
    with limit(60):
        time.sleep(0.06)  # the first one's alarm is gone


def test_a_limit_that_another_library_takes_for_its_own_error_is_one():
    def compiling():
        try:
            time.sleep(30)
        except BaseException as error:
            raise RuntimeError("a bug of the compiler") from error

    with pytest.raises(OutOfTime), limit(0.05):
        compiling()
    with pytest.raises(RuntimeError, match="before"), limit(60):
        raise RuntimeError("before the limit")


def test_a_mode_that_was_not_finished_leaves_the_others():
    lines = parts_table({"float32": "not finished", "the preset": mode({"whole update": 8.0})})
    assert lines[0] == "| ms (median) | float32 | the preset |"
    assert "| whole update | not finished | 8.00 |" in lines
    assert lines[-1] == "| seconds until all have run twice | not finished | 3 |"
    assert len(parts_table({"float32": "not finished"})) == 3


def test_the_projection_is_pretraining_and_steps_at_the_loops_rate():
    loop = {
        "environment_steps_per_second": 500.0,
        "updates_per_second": 50.0,
        "share": {"act": 0.1, "update": 0.8, "wait for the environment": 0.05, "remember": 0.05},
    }
    lines = loop_table({"5": loop, "10": "not finished"}, "compiled", 120.0)
    # 120 s and 500,000 / 500 s, in minutes
    assert "| 5 | 500 | 50.0 | 10 % | 80 % | 5 % | 18.7 |" in lines
    assert lines[-1].startswith("| 10 | not finished |")


def test_paper_is_measured_as_the_preset_has_it_and_tiny_is_small():
    paper = gpu.configuration(GPU(Path("out")))
    assert (paper.agent.batch, paper.agent.dynamics.rssm.deterministic) == (50, 1024)
    assert (paper.update_every, paper.environment.quality) == (5, "full")
    assert gpu.configuration(GPU(Path("out"), sizes="tiny")).agent.dynamics.rssm.deterministic < 100


@pytest.mark.parametrize(("arguments", "said"), [([], "name a folder"), (["out", "half"], "half")])
def test_the_script_says_what_it_takes(arguments, said, tmp_path):
    found = subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode != 0
    assert said in found.stderr


@pytest.mark.simulator
def test_tables_are_there_after_a_rehearsal(tmp_path, monkeypatch):
    names = {"eager": "float32", "preset": "the preset"}  # compiling takes minutes
    monkeypatch.setattr(gpu, "NAMES", names)
    task = "dmc/point_mass-easy"
    gpu.measure(
        GPU(tmp_path, task=task, sizes="tiny", environments=(2,), repeats=2, loop_steps=400)
    )
    found = {name: json.loads((tmp_path / f"{name}.json").read_text())["found"]
             for name in ("checks", "parts", "loop")}  # fmt: skip
    assert found["checks"]["random numbers come again"] == "yes"
    assert abs(float(found["checks"]["loss of the dynamics there over on the CPU, minus 1"])) < 1e-3
    assert set(found["parts"]) == set(names.values())
    rate = found["loop"]["2"]["environment_steps_per_second"]
    # One update for five agent steps of two environment steps each.
    assert rate / found["loop"]["2"]["updates_per_second"] == pytest.approx(10, rel=0.1)
    assert "whole update" in (tmp_path / "parts.md").read_text()
