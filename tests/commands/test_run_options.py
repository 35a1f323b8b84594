"""The names of run folders."""

import os
import re

import pytest

from commands.run_options import LONGEST_NAME, default_logdir
from run import main


def test_a_run_folder_is_named_by_what_tells_runs_apart():
    assert default_logdir(["metaworld/reach", "cpu", "seed0"]) == "runs/metaworld-reach-cpu-seed0"
    parts = ["libero/object", "imitate", "cpu", "my.module:Class", "seed3"]
    assert default_logdir(parts) == "runs/libero-object-imitate-cpu-my.module-Class-seed3"


@pytest.mark.parametrize("task", ["metaworld/reach", "ünïcode/äöü"])
def test_a_name_that_no_file_system_takes_is_cut_and_stays_its_own(tmp_path, task):
    tasks = ",".join(f"{task}-{number}" for number in range(30))
    names = [default_logdir([tasks, "imitate", preset, "seed0"]) for preset in ("cpu", "gpu")]
    assert names == [
        default_logdir([tasks, "imitate", preset, "seed0"]) for preset in ("cpu", "gpu")
    ]
    assert names[0] != names[1]
    for name in names:
        assert len(os.path.basename(name).encode()) <= LONGEST_NAME
        os.makedirs(tmp_path / name)
        assert re.search("-[0-9a-f]{16}$", name)


@pytest.mark.parametrize("seed", ["-1", str(2**63), "9" * 5000])
@pytest.mark.parametrize(
    "command",
    [
        "train --task metaworld/reach",
        "imitate --data nowhere --task metaworld/reach",
        "collect --task metaworld/reach --episodes 1 --out nowhere",
        "evaluate --logdir nowhere",
    ],
)
def test_a_seed_that_no_generator_takes_is_one_line(command, seed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), f"--seed={seed}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "seed" in said
    assert os.listdir(tmp_path) == []


def test_what_is_trusted_can_be_named_several_times(tmp_path, monkeypatch):
    passed = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.online.train", lambda *run: passed.update(train=run[-1]))
    monkeypatch.setattr("agents.imitation.imitate", lambda *run: passed.update(imitate=run[-1]))
    trust = ["--trust", "my.module:Depth", "--trust=t5:my folder"]
    assert main(["train", "--task", "metaworld/reach", *trust]) == 0
    assert main(["imitate", "--task", "metaworld/reach", "--data", "a.hdf5", *trust]) == 0
    assert passed == dict.fromkeys(("train", "imitate"), ("my.module:Depth", "t5:my folder"))
