"""A slice of the fault suite: some tries of every kind of input, kills and full disks.

`make faults` makes thousands of them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import tries
from tests.faults.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.simulator
def test_whatever_the_fault_it_is_one_line_or_the_right_result(tmp_path):
    """In a process that has made no thread yet: it forks one for each try."""
    options = [
        "--tries",
        str(len(KINDS)),
        "--kills",
        "1",
        "--disks",
        "1",
        "--no-imitation",
        "--jobs",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *options, "--work", str(tmp_path / "work")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_of_input_is_tried_in_every_run():
    plan = tries.planned(20, list(KINDS))
    assert {kind for kind, _ in plan} == set(KINDS)
    assert len(tries.planned(2290, list(KINDS))) == 2290
