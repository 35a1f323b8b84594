"""Learning curves of run folders as small files, to be kept.

One JSON in the published format per run, with the command, commit, versions, hardware and wall
time that made it, and what `run.py evaluate` measured of the agent it ended with;
`run.py compare` reads it wherever it reads a run folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.curves import Curve, number
from analysis.output import file_names, write_file
from analysis.score_files import ignored, read, read_file
from errors import UserError
from experiment.evaluation_record import read_evaluation
from experiment.metrics_log import MetricsLog


def record(inputs: tuple[str, ...], out: Path, note: Callable[[str], None] = ignored) -> list[Path]:
    """Write METHOD-TASK-seedSEED.json for every run; returns the files.

    Args:
        inputs: run folders, as `read` takes them.
        out: folder to write to; made when missing.
        note: as of `read`.

    Raises:
        UserError: nothing there has been evaluated, an input is not a run folder, or a file cannot
            be written.
    """
    curves = read(inputs, note=note)
    for curve in curves:
        if not curve.source.endswith("metrics.jsonl"):
            raise UserError(f"{curve.source} is not a run folder; there is nothing to record")
    names = file_names(f"{curve.method}-{curve.task}-seed{curve.seed}" for curve in curves)
    files = []
    for curve in curves:
        scores = "success_rates" if curve.kind == "success" else "returns"
        entry: dict[str, Any] = {
            "task": curve.task,
            "seed": curve.seed,
            "method": curve.method,
            "steps": curve.steps.tolist(),
            scores: curve.scores.tolist(),
            **({"score_bounds": list(curve.bounds)} if curve.bounds else {}),
            **curve.provenance,
            "wall_seconds": _wall_seconds(Path(curve.source).parent),
        }
        evaluation = _evaluation(Path(curve.source).parent, int(curve.steps[-1]))
        if evaluation is not None:
            entry["evaluation"] = evaluation
        path = out / f"{names[f'{curve.method}-{curve.task}-seed{curve.seed}']}.json"
        _refuse_another_run(path, curve)
        files.append((path, json.dumps([entry], indent=1) + "\n"))
    for path, text in files:
        write_file(path, text)
    return [path for path, _ in files]


def _refuse_another_run(path: Path, curve: Curve) -> None:
    """Names of files are shorter than those of runs: two may have the same.

    Raises:
        UserError: `path` is the record of another run than `curve`.
    """
    try:
        found = read_file(path) if os.path.isfile(path) else []
    except UserError:
        return  # broken, and to be written anew
    for other in found:
        if (other.method, other.task, other.seed) != (curve.method, curve.task, curve.seed):
            raise UserError(
                f"{path} is the curve of {other.method} on {other.task} with seed {other.seed}; "
                f"name another --out for {curve.method} on {curve.task}"
            )


def _wall_seconds(folder: Path) -> float:
    """What the run's clock said last; it stands still between a kill and a resume.

    Raises:
        UserError: it said nothing.
    """
    log = MetricsLog(folder)
    try:
        return number(log.read()[-1]["time"])
    except (LookupError, ValueError) as error:
        raise UserError(f"{log.path}: its last line has no time") from error


def _evaluation(folder: Path, step: int) -> dict[str, Any] | None:
    """The last evaluation without its single episodes; None if there is none from `step` on.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / "evaluation.json"
    found = read_evaluation(path)
    try:
        # An agent that went on learning is another; of imitation it is its updates that count.
        if found is None or (found["updates"] if "updates" in found else found["step"]) < step:
            return None
        found.pop("others", None)
        found["episodes"] = len(found["agent"]["episodes"])
        for part in found.values():
            if isinstance(part, dict):
                part.pop("episodes", None)
        json.dumps(found, allow_nan=False)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); remove it, or evaluate the run again"
        ) from error
    return found
