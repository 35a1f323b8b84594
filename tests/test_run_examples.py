"""The small trained policies of examples/ act as their cards say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.evaluation_record import read_evaluation

ROOT = Path(__file__).parents[1]
POLICIES = ROOT / "examples" / "policies"
MOST_BYTES = 8_000_000


def test_they_are_small():
    names = {folder.name for folder in POLICIES.iterdir() if folder.is_dir()}
    assert names == {"window-close", "mt10"}
    for folder in POLICIES.iterdir():
        weights = folder / "model.safetensors"
        assert 1_000_000 < weights.stat().st_size <= MOST_BYTES
        assert "## Figures" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("name", "options"),
    [("window-close", ["--video"]), ("mt10", ["--task", "metaworld/drawer-close"])],
)
def test_they_succeed(tmp_path, name, options):
    folder = shutil.copytree(POLICIES / name, tmp_path / name)
    asked = ["--logdir", str(folder), "--episodes", "2", *options]
    done = subprocess.run(
        [sys.executable, "run.py", "evaluate", *asked],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        read_evaluation(folder / "evaluation.json")["agent"]["success"]["count"] >= 1
    )  # cards: 20 of 20, 20 of 20
    if "--video" in options:
        assert (folder / "videos" / "evaluation.mp4").stat().st_size > 10_000
