"""Learning curves of run folders as small files, to be kept.

One JSON in the published format per run, with the command, commit, versions, hardware and wall
time that made it, and what `run.py evaluate` measured of the agent it ended with;
`run.py compare` reads it wherever it reads a run folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.curves import read
from errors import UserError


def record(inputs: tuple[str, ...], out: Path) -> list[Path]:
    """Write METHOD-TASK-seedSEED.json for every run; returns the files.

    Raises:
        UserError: nothing there has been evaluated, or an input is not a run folder.
    """
    curves = read(inputs)
    for curve in curves:
        if not curve.source.endswith("metrics.jsonl"):
            raise UserError(f"{curve.source} is not a run folder; there is nothing to record")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for curve in curves:
        scores = "success_rates" if curve.kind == "success" else "returns"
        entry: dict[str, Any] = {
            "task": curve.task,
            "seed": curve.seed,
            "method": curve.method,
            "steps": curve.steps.tolist(),
            scores: curve.scores.tolist(),
            **curve.provenance,
            "wall_seconds": _wall_seconds(Path(curve.source)),
        }
        evaluation = _evaluation(Path(curve.source).parent, int(curve.steps[-1]))
        if evaluation is not None:
            entry["evaluation"] = evaluation
        path = out / f"{curve.method}-{curve.task.replace('/', '-')}-seed{curve.seed}.json"
        path.write_text(json.dumps([entry], indent=1) + "\n")
        written.append(path)
    return written


def _wall_seconds(metrics: Path) -> float:
    """What the run's clock said last; it stands still between a kill and a resume."""
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return json.loads(lines[-1])["time"]


def _evaluation(folder: Path, step: int) -> dict[str, Any] | None:
    """The last evaluation without its single episodes; None if there is none from `step` on.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / "evaluation.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        if found["step"] < step:  # of an agent that went on learning
            return None
        found["episodes"] = len(found["agent"]["episodes"])
        for part in found.values():
            if isinstance(part, dict):
                part.pop("episodes", None)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error!r}; remove it, or evaluate the run again"
        ) from error
    return found
