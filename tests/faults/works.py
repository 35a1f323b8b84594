"""Commands that write for a while, and whether two of them came to the same end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from experiment.checkpoint import load_checkpoint
from experiment.evaluation_record import read_evaluation
from tests.agents import online_runs
from tests.faults import originals as made

Difference = Callable[[Path, Path], str | None]
"""What two files or folders have that is not the same."""


class Work(NamedTuple):
    """A command that runs in a folder and may be started there again."""

    command: list[str]
    """Of `run.py`; paths are those in the folder."""
    needs: str | None
    """The original that it reads there."""
    result: str
    """Where its result is there."""
    difference: Difference


def _online(one: Path, two: Path) -> str | None:
    if _scores(one) != _scores(two):
        return "scores in metrics.jsonl"
    if online_runs.records(one) != online_runs.records(two):
        return "replay/episodes.jsonl"
    left, right = (_without_rates(online_runs.checkpoint(path)) for path in (one, two))
    return (
        ", ".join(part for part in left if not online_runs.equal(left[part], right[part])) or None
    )


def _without_rates(state: Any) -> Any:
    """A checkpoint without its optimizers' learning rates, which are set before every update."""
    if isinstance(state, dict):
        return {key: _without_rates(value) for key, value in state.items() if key != "lr"}
    return [_without_rates(each) for each in state] if isinstance(state, list) else state


def _scores(run: Path) -> list[dict]:
    """What metrics.jsonl says of episodes. Losses are averages since the line before, and how many
    lines there are during pretraining depends on checkpoints, which depend on the clock."""
    lines = [
        {name: value for name, value in line.items() if name.startswith(("eval/", "train/"))}
        | {"step": line["step"]}
        for line in online_runs.lines(run)
    ]
    return [line for line in lines if len(line) > 1]


def _imitation(one: Path, two: Path) -> str | None:
    left, right = (_without_rates(load_checkpoint(path / "checkpoint.pt")) for path in (one, two))
    parts = ("agent", "optimizer", "random", "updates")
    return ", ".join(p for p in parts if not online_runs.equal(left[p], right[p])) or None


def _recording(one: Path, two: Path) -> str | None:
    with h5py.File(one) as left, h5py.File(two) as right:
        names = _names(left)
        if names != _names(right):
            return "names of groups and datasets"
        for name in names:
            dataset = isinstance(left[name], h5py.Dataset)
            if dataset and not np.array_equal(left[name][()], right[name][()]):
                return name
            for key, value in left[name].attrs.items():
                if not np.array_equal(value, right[name].attrs[key]):
                    return f"attribute {key} of {name}"
    return None


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def _evaluation(one: Path, two: Path) -> str | None:
    """What is drawn at random in an episode depends on the episodes before it in the same process:
    of every row, the starts of the episodes are compared."""
    left, right = (read_evaluation(path / "evaluation.json") for path in (one, two))
    assert left is not None
    assert right is not None
    for row in ("agent", "random"):
        seeds = [[each["seed"] for each in found[row]["episodes"]] for found in (left, right)]
        if seeds[0] != seeds[1]:
            return f"starts of the episodes of {row}"
    return None


def _files(one: Path, two: Path) -> str | None:
    """Numbers and text. Pictures are drawn from the same."""
    left, right = (
        {p.relative_to(path): p.read_bytes() for p in path.rglob("*.[jm][sd]*")}
        for path in (one, two)
    )
    return None if left == right else "what was written"


OFTEN = "--checkpoint-seconds=0.2"
KILLED = {
    "train": Work([*made.train(Path("run")), OFTEN], None, "run", _online),
    "imitate": Work(
        [*made.imitate(Path("run"), Path("demos"), updates=6), OFTEN], "demos", "run", _imitation
    ),
    "collect": Work(made.collect(Path("out.hdf5"), 4), None, "out.hdf5", _recording),
    "annotate": Work(
        ["annotate", "--data", "plain.hdf5"], "plain.hdf5", "plain-annotated.hdf5", _recording
    ),
    "evaluate": Work(
        [*made.evaluate(Path("online")), "--episodes", "3", "--random", "--seed", "5"],
        "online",
        "online",
        _evaluation,
    ),
}
"""What is killed, and run on disks that are too small."""
SMALL = {
    "compare": Work(
        ["compare", "online", "--out", "out", "--repetitions", "100"], "online", "out", _files
    ),
    "record": Work(["record", "online", "--out", "out"], "online", "out", _files),
}
"""What is run on disks that are too small as well."""
WORKS = KILLED | SMALL
