"""A slice of the fault suite: some tries of every kind of input, kills and full disks.

`make faults` makes thousands of them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import report, tries
from tests.faults.judge import Verdict
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


def test_kinds_that_are_tried_again_replace_their_own_rows_alone(tmp_path):
    def verdicts(kind, name, *found):
        return [
            Verdict(kind, name, n, "cut", "inspect x", f, "s", 1.0) for n, f in enumerate(found)
        ]

    first = verdicts("apples", "apple", "refused", "hang") + verdicts("pears", "pear", "unclear")
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(report.report(report.run(first, 0, 2, 60.0), [])[1]))
    again = verdicts("apples", "apple", "refused", "refused") + verdicts("nuts", "nut", "refused")
    now = report.run(again, 1, 1, 120.0)
    page, numbers = report.report(now, report.kept(path, now, {"apple", "nut"}))
    assert "| apples | 2 | 0 | 2 | 0 |" in page
    assert "| pears | 1 | 0 | 0 |" in page
    assert "| all | 4 | 0 | 3 |" in page
    assert "hang: apple" not in page
    assert "unclear: pear:0" in page
    assert "apples; nuts: `" in page
    assert "All other rows: `" in page
    path.write_text(json.dumps(numbers))
    assert report.kept(path, now, {"apple", "nut"}) == numbers["earlier"]
