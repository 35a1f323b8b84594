"""`run.py sweep` on a local Ray cluster whose worker and machine are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

import run
from tests.agents.online_runs import differences
from tests.refusals import refusal

ROOT = Path(__file__).parents[1]
TASKS = ("dmc/cartpole-balance", "dmc/pendulum-swingup", "dmc/point_mass-easy")
TINY = """
    --environment.size 16 --agent.autoencoder.image-size 16 --environment.quality fast
    --environment.action-repeat 20 --steps 3000 --prefill 50 --update-every 4 --agent.batch 2
    --agent.window 8 --agent.autoencoder-batch 8 --agent.autoencoder-pretraining 3
    --agent.joint-pretraining 2 --evaluate-first 2000 --evaluate-every 2000
    --evaluate-episodes 1 --evaluate-envs 1 --checkpoint-seconds 0 --threads 1
"""


@pytest.fixture
def cluster(monkeypatch):
    """Two machines with one processor each, as far as Ray is concerned."""
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def workers_of(folder):
    """Processes of Ray whose children train in the folder, by the name of the run."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_text().split("\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        names = [Path(part).name for part in command if part.startswith(f"{folder}/")]
        if "train" in command and names:
            found[names[0]] = parent
    return found


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit
        time.sleep(0.1)
    return found


@pytest.mark.simulator
def test_a_killed_worker_and_a_killed_machine_cost_nothing(cluster, tmp_path):
    out = tmp_path / "sweep"
    command = [
        sys.executable, "run.py", "sweep", "--tasks", ",".join(TASKS), "--seeds", "0-1",
        "--out", str(out), "--address", cluster.address, "--evaluate=", "--", *TINY.split(),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env=environment) as sweep:  # fmt: skip
        checkpoints = lambda: list(out.glob("*/checkpoint.pt"))  # noqa: E731
        wait_for(lambda: checkpoints() and len(workers_of(out)) == 2)
        os.kill(next(iter(workers_of(out).values())), signal.SIGKILL)
        wait_for(lambda: len(checkpoints()) > 2 and len(workers_of(out)) == 2)
        cluster.remove_node(cluster.second, allow_graceful=False)
        said, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, said
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [entry["status"] for entry in runs] == ["done"] * 6
    begun = {
        entry["name"]: len(re.findall(r"^\$ .* train ", (out / f"{entry['name']}.log").read_text(),
                                      re.MULTILINE))
        for entry in runs
    }  # fmt: skip
    assert sum(begun.values()) >= 8  # two of them more than once
    assert (out / "comparison" / "scores.md").exists()
    again = [entry for entry in runs if begun[entry["name"]] > 1]
    for entry in [*again, next(entry for entry in runs if entry not in again)]:
        alone = tmp_path / "alone" / entry["name"]
        assert run.main([*entry["arguments"], "--logdir", str(alone)]) == 0
        assert differences(alone, out / entry["name"]) == []


def test_what_cannot_be_is_said_before_anything_runs(tmp_path, capsys):
    def said(*options):
        return refusal(capsys, "sweep", "--out", str(tmp_path / "out"), *options)

    walker = ("--tasks", "dmc/walker-walk")
    assert "did you mean metaworld/easy" in said("--tasks", "metaworld/easyy")
    assert "--jobs is 0" in said(*walker, "--jobs", "0")
    assert "are Ray's" in said(*walker, "--engine", "processes", "--gpus", "1")
    assert "no NAME=OPTIONS" in said(*walker, "--variants", "fast")
    assert "unknown command" not in said(*walker, "--", "--stepss", "5")
    assert not (tmp_path / "out").exists()
