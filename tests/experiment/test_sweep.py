"""Sweeps: which runs there are, what is kept of them, and jobs that are killed and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agents.presets import preset
from analysis.score_files import read
from commands.sweep import Sweep, planned
from commands.sweep_table import SweepTable, progress
from errors import UserError
from experiment.jobs import MOST_KILLS, Job, Processes, Working
from experiment.locks import FolderLock
from experiment.run_folder import RunFolder
from experiment.sweep import Run, SweepFolder, read_sweep, seeds, variants


def a_run(name, seed=0, arguments=("train", "--task", "dmc/walker-walk")):
    return Run(name, "preset", "dmc/walker-walk", seed, tuple(arguments), 1000)


def test_seeds_are_numbers_and_ranges():
    assert seeds("0-2,7") == [0, 1, 2, 7]
    for wrong in ("", "a", "3-1", "0-", "-1", "1,,2", "0-999999999"):
        with pytest.raises(UserError, match="--seeds is"):
            seeds(wrong)
    with pytest.raises(UserError, match="twice"):
        seeds("0-2,1")


def test_variants_are_names_and_options():
    assert variants(["a=--x 1", "b=--y 'two words'"]) == {"a": ["--x", "1"],
                                                          "b": ["--y", "two words"]}  # fmt: skip
    for wrong in ("a", "a=", "=--x", "a b=--x", "a=--x 'y"):
        with pytest.raises(UserError, match="variant"):
            variants([wrong])
    for twice in (["a=--x", "a=--y"], ["preset=--x"]):
        with pytest.raises(UserError, match="two variants"):
            variants(twice)


def test_every_task_runs_with_every_seed_and_variant(tmp_path):
    variant = "no-reward=--agent.autoencoder.reward-weight 0"
    options = Sweep("metaworld/very-hard", tmp_path, seeds="0-1", variants=(variant,))
    runs = planned(options, ["--steps", "5000"])
    assert len(runs) == 5 * 2 * 2
    assert len({run.name for run in runs}) == len(runs)
    assert {run.method for run in runs} == {"ours", "no-reward"}
    assert {run.steps for run in runs} == {5000}
    assert [run.seed for run in runs] == [0] * 10 + [1] * 10
    changed = [run for run in runs if run.method == "no-reward"]
    assert all(
        run.arguments[-4:-2] == ("--agent.autoencoder.reward-weight", "0") for run in changed
    )
    for own in ("--task", "--seed=1", "--logdir"):
        with pytest.raises(UserError, match="chosen by the sweep"):
            planned(options, [own, "x"])
        with pytest.raises(UserError, match="chosen by the sweep"):
            planned(replace(options, variants=(f"other={own} 1",)), [])
    with pytest.raises(UserError, match=r"Unrecognized options: --agent\.foo"):
        planned(options, ["--agent.foo", "1"])


def test_what_is_done_stays_done_and_another_sweep_is_refused(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin([a_run("one"), a_run("two", 1)], "python run.py sweep")
    with pytest.raises(UserError, match=r"another process .* name another --out"):
        SweepFolder(tmp_path / "sweep").begin([a_run("one")], "")
    folder.ended("one")
    folder.ended("two", "no such thing")
    folder.close()
    assert [(r.name, r.status, r.error) for r in read_sweep(folder.record)] == [
        ("one", "done", ""), ("two", "failed", "no such thing"),
    ]  # fmt: skip
    again = SweepFolder(tmp_path / "sweep")
    again.begin([a_run("one"), a_run("two", 1), a_run("three", 2)], "")
    assert [run.status for run in again.runs.values()] == ["done", "queued", "queued"]
    again.close()
    other = SweepFolder(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"has a run one of another sweep, `train --task .*`"):
        other.begin([a_run("one", arguments=("train", "--steps", "6"))], "")
    other.close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="holds other files"):
        SweepFolder(tmp_path / "full").begin([a_run("one")], "")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"sweep": 1}', '{"sweep": 2, "runs": []}', '{"sweep": 1, "runs": [{}]}',
     '{"sweep": 1, "runs": [{"name": "../x", "method": "", "task": "", "seed": 0,'
     ' "arguments": []}]}',
     '{"sweep": 1, "runs": [{"name": "x", "method": 1, "task": "", "seed": 0, "arguments": []}]}'],
)  # fmt: skip
def test_a_damaged_record_is_one_line(content, tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json|no name of a run"):
        read_sweep(path)


# ------------------------------------------------------------------ jobs


def job(folder, *codes):
    """Commands that run Python code in the folder of a run."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    commands = tuple((sys.executable, "-c", code) for code in codes)
    return Job("run", commands, str(run), str(folder), {"SAID": "hello"})


def until_ended(engine, seconds=30):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if over := engine.ended():
            return over
        time.sleep(0.02)
    raise AssertionError("it did not end")


def test_commands_follow_each_other(tmp_path):
    engine = Processes(1)
    engine.submit(job(tmp_path, "import os; print(os.environ['SAID'])", "print('world')"))
    assert until_ended(engine) == [("run", "")]
    said = (tmp_path / "run.log").read_text()
    assert said.index("hello\n") < said.index("world\n")
    assert not (tmp_path / "run.running").exists()


def test_an_error_of_its_own_is_said_and_nothing_follows(tmp_path):
    engine = Processes(1)
    failing = "import sys; print('error: no such task; see --help', file=sys.stderr); sys.exit(2)"
    engine.submit(job(tmp_path, failing, "open('second', 'w')"))
    ((_, error),) = until_ended(engine)
    assert error == f"no such task; see --help ({tmp_path / 'run.log'})"
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_killed_is_started_again(tmp_path, number):
    dies = f"""
import os, pathlib
tries = pathlib.Path("tries"); tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) < 4:
    os.kill(os.getpid(), {int(number)})
"""
    engine = Processes(1)
    engine.submit(job(tmp_path, dies))
    assert until_ended(engine) == [("run", "")]
    assert (tmp_path / "tries").read_text() == "xxxx"


def test_what_never_gets_on_is_given_up(tmp_path):
    engine = Processes(1)
    engine.submit(job(tmp_path, "import os; os.abort()"))
    ((_, error),) = until_ended(engine)
    assert error.startswith(f"killed {MOST_KILLS} times without getting on (last by SIGABRT)")


def test_a_folder_that_is_still_being_written_is_waited_for(tmp_path):
    waiting = job(tmp_path, "print('mine')")
    lock = FolderLock(Path(waiting.folder))
    working = Working(waiting)
    assert working.poll() is None
    assert not waiting.log.exists()
    lock.close()
    while working.poll() is None:
        time.sleep(0.02)
    assert waiting.log.exists()


def test_a_run_is_told_to_stop_when_its_worker_is_killed(tmp_path):
    """What a killed worker of Ray leaves behind."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from experiment.jobs import Job, Working
lives = "import signal, sys, time; signal.signal(15, lambda *_: (open('told', 'w'), sys.exit(0)))"
lives += "; open('lives', 'w'); time.sleep(60)"
working = Working(Job("run", ((sys.executable, "-c", lives),), "run", "."))
while True:
    working.poll(); time.sleep(0.02)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as worker:
        _wait_for(tmp_path / "lives")
        worker.send_signal(signal.SIGKILL)
    _wait_for(tmp_path / "told")


def _wait_for(path, seconds=30):
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit, f"no {path}"
        time.sleep(0.02)


# ------------------------------------------------------------------ what is shown


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path):
    rows = [{"step": 10 * n, "time": float(n), "x": "y" * 100} for n in range(2000)]
    rows[1990]["eval/success"] = 0.75
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30']))
    how = progress(tmp_path)
    assert (how.step, how.score, how.per_second) == (19_990, 0.75, 10.0)
    assert progress(tmp_path / "none").step == 0


def test_the_table_says_what_is_at_work_and_what_failed(tmp_path, capsys):
    folder = SweepFolder(tmp_path / "sweep")
    runs = [a_run(f"run{n}", n) for n in range(4)]
    folder.begin(runs, "")
    folder.ended("run0")
    folder.ended("run1", "no camera")
    (folder.path / "run2.running").write_text("machine-7")
    (folder.path / "run2").mkdir()
    metrics = [{"step": n, "time": float(n), "eval/return": 5.0} for n in (100, 500)]
    (folder.path / "run2" / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n")
    table = SweepTable(folder, [run.name for run in runs])
    line = table.line()
    assert line.startswith("sweep: 1 done, 1 at work, 1 queued, 1 failed, 0.4 h left  (run2 500)")
    assert "failed: run1: no camera" in line
    console = Console(width=120, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(table.table())
    text = console.export_text()
    for part in ("run2", "machine-7", "500 of 1,000", "5", "failed: run1: no camera"):
        assert part in text
    folder.close()


def test_curves_of_a_sweep_are_those_of_its_runs_that_are_done(tmp_path):
    names = {"ours": "plain", "no-reward": "changed", "other": "queued"}
    runs = [
        Run(name, method, "dmc/walker-walk", 0, ("train",), 1000) for method, name in names.items()
    ]
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(runs, "")
    for run in runs:
        with RunFolder.create_or_resume(folder.path / run.name, preset("cpu", run.task)) as made:
            made.start_clock()
            made.log(500, {"eval/return": 7.0})
    folder.ended("plain")
    folder.ended("changed")
    folder.close()
    for named in (folder.path, folder.record):
        assert [curve.method for curve in read([str(named)])] == ["no-reward", "ours"]
    renamed = read([f"new={folder.path}"])
    assert [curve.method for curve in renamed] == ["new", "new-no-reward"]
    assert Path(renamed[0].source).parent.name == "plain"
