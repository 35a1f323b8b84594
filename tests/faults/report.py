"""What came of all tries, as a page and as numbers."""

from collections import Counter
from collections.abc import Sequence
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


def line(verdict: Verdict) -> str:
    """One try that went wrong, with what is needed to make it again."""
    return (
        f"{verdict.verdict}: {verdict.name}:{verdict.number} ({verdict.what}): "
        f"`{verdict.command[:300]}`: {' '.join(verdict.said.split())[-700:]}"
    )


def report(
    verdicts: Sequence[Verdict], seed: int, jobs: int, seconds: float
) -> tuple[str, dict[str, Any]]:
    """The page, and the numbers in it."""
    kinds = sorted({verdict.kind for verdict in verdicts})
    counts = {kind: Counter(v.verdict for v in verdicts if v.kind == kind) for kind in kinds}
    counts["all"] = Counter(verdict.verdict for verdict in verdicts)
    columns = [*GOOD, *BAD]
    rows = [["input", "tries", *columns]]
    for kind, found in counts.items():
        rows.append([kind, str(found.total()), *(str(found[name]) for name in columns)])
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    # A chain of kills that goes wrong has a verdict for each of them.
    wrong = list(dict.fromkeys(line(v) for v in verdicts if v.verdict not in GOOD))
    origin = {**provenance(), "hardware": hardware()}
    origin["command"] = origin["command"].replace(".__main__", "")
    found = origin["hardware"]
    parts = [
        INTRODUCTION,
        "\n".join(table),
        "\nWhat went wrong:\n\n" + "\n".join(f"- {each}" for each in wrong)
        if wrong
        else "\nNothing went wrong.",
        f"\n`{origin['command']}`, seed {seed}, commit {origin['commit']}, {seconds / 60:.0f}"
        f" minutes with {jobs} tries at once on {found['cores']} cores of {found['processor']}.\n",
    ]
    numbers = {
        "seed": seed,
        "seconds": round(seconds),
        "counts": {kind: dict(each) for kind, each in counts.items()},
        "wrong": wrong,
        **origin,
    }
    return "\n".join(parts), numbers
