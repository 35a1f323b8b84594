"""What came of all tries, as a page and as numbers.

The numbers of some kinds of input can be made again alone: each row of the page is of the latest
run that tried that kind, and every run is named with the rows that are left of it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment.hardware import hardware
from experiment.provenance import provenance
from tests.faults.judge import BAD, GOOD, Verdict

INTRODUCTION = """# Faults

What the toolkit does with inputs that are not as they should be, with processes that are killed,
and with disks that are full. Every try runs a real command of `run.py` in a process of its own. It
survives when the command gives the right result, or refuses with exit status 2 in one line that
names what is wrong, and nothing is lost. Killed commands, and those that had no room, are started
again and have to come to the end that they come to undisturbed.
"""
ALL = "all"
"""The last row of a run's table."""


def line(verdict: Verdict) -> str:
    """One try that went wrong, with what is needed to make it again."""
    return (
        f"{verdict.verdict}: {verdict.name}:{verdict.number} ({verdict.what}): "
        f"`{verdict.command[:300]}`: {' '.join(verdict.said.split())[-700:]}"
    )


def run(verdicts: Sequence[Verdict], seed: int, jobs: int, seconds: float) -> dict[str, Any]:
    """The numbers of one run, and where they come from."""
    kinds = sorted({verdict.kind for verdict in verdicts})
    counts = {kind: Counter(v.verdict for v in verdicts if v.kind == kind) for kind in kinds}
    counts[ALL] = Counter(verdict.verdict for verdict in verdicts)
    origin = {**provenance(), "hardware": hardware()}
    origin["command"] = origin["command"].replace(".__main__", "")
    return {
        "seed": seed,
        "seconds": round(seconds),
        "jobs": jobs,
        "counts": {kind: dict(each) for kind, each in counts.items()},
        # A chain of kills that goes wrong has a verdict for each of them.
        "wrong": list(dict.fromkeys(line(v) for v in verdicts if v.verdict not in GOOD)),
        **origin,
    }


def kept(path: Path, now: dict[str, Any], tried: Sequence[str]) -> list[dict[str, Any]]:
    """What is left of the runs that a report's numbers come from, without what was tried now.

    Args:
        path: OUT.json of that report.
        now: the numbers of this run.
        tried: names of the kinds in it, as --only takes them.
    """
    report = json.loads(path.read_text())
    left = []
    for each in (report, *report.pop("earlier", [])):
        counts = {k: n for k, n in each["counts"].items() if k not in now["counts"] and k != ALL}
        wrong = [one for one in each["wrong"] if one.split(": ")[1].split(":")[0] not in tried]
        if counts:
            left.append({**each, "counts": counts, "wrong": wrong})
    return left


def report(now: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The page, and the numbers in it.

    Args:
        now: the numbers of this run.
        earlier: of runs before, whose rows are kept (`kept`).
    """
    runs = [now, *earlier]
    counts = {k: Counter(n) for each in runs for k, n in each["counts"].items() if k != ALL}
    columns = [*GOOD, *BAD]
    rows = [["input", "tries", *columns]]
    for kind, found in [*sorted(counts.items()), (ALL, sum(counts.values(), Counter()))]:
        rows.append([kind, str(found.total()), *(str(found[name]) for name in columns)])
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    wrong = [one for each in runs for one in each["wrong"]]
    parts = [
        INTRODUCTION,
        "\n".join(table),
        "\nWhat went wrong:\n\n" + "\n".join(f"- {each}" for each in wrong)
        if wrong
        else "\nNothing went wrong.",
        *(f"\n{_rows(each, runs)}{_origin(each)}" for each in runs),
    ]
    return "\n".join(parts) + "\n", now | ({"earlier": list(earlier)} if earlier else {})


def _rows(each: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """Which rows are of a run, where there are several."""
    if len(runs) == 1:
        return ""
    kinds = "; ".join(kind for kind in each["counts"] if kind != ALL)
    return "All other rows: " if each is runs[-1] else f"{kinds}: "


def _origin(each: dict[str, Any]) -> str:
    found = each["hardware"]
    at_once = f" with {each['jobs']} tries at once" if "jobs" in each else ""
    return (
        f"`{each['command']}`, seed {each['seed']}, commit {each['commit']},"
        f" {each['seconds'] / 60:.0f} minutes{at_once} on {found['cores']} cores of"
        f" {found['processor']}."
    )
