"""Learning curves from files: run folders, the published format, TensorBoard events, CSV.

A curve is one run: what scored how much after how many environment steps. Whatever the file, the
same things are refused: no evaluation at all, NaN, steps that go backwards, a success outside
[0, 1]; the error names the file and the row.
"""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

import envs
from errors import UserError

Kind = Literal["success", "return"]
METHOD = "ours"
"""Name of the method of run folders that are given without one."""


@dataclass(frozen=True)
class Curve:
    """One run: `scores` (E,) at environment steps `steps` (E,), strictly increasing."""

    method: str
    task: str
    seed: int
    steps: np.ndarray
    scores: np.ndarray
    kind: Kind
    source: str
    """The file it was read from."""
    modified: float
    """When that file was last written, seconds since the epoch."""
    where: str = ""
    """The file and, of many runs in it, which."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the file says of how it came about: command, commit, versions, hardware."""

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Scores at `steps`, on straight lines between evaluations; NaN outside of them."""
        return np.interp(steps, self.steps, self.scores, left=np.nan, right=np.nan)

    def until(self, step: int) -> Curve | None:
        """The curve up to and including `step`; None when nothing was evaluated by then."""
        keep = self.steps <= step
        if not keep.any():
            return None
        return replace(self, steps=self.steps[keep], scores=self.scores[keep])


def task_id(name: str) -> str:
    """The task id that a name means: metaworld_window_close, metaworld/window-close-v3, …

    Names that are nobody's are kept, so that results on other benchmarks can be compared too.
    """
    plain = re.sub(r"-v\d+$", "", name.strip().lower().replace("_", "-").replace("/", "-"))
    return _KNOWN.get(plain, name.strip())


_KNOWN = {task.lower().replace("_", "-").replace("/", "-"): task for task in envs.tasks()}


def read(inputs: Sequence[str], keep: Literal["latest"] | None = None) -> list[Curve]:
    """The curves of all inputs, sorted by method, task and seed.

    Args:
        inputs: paths or globs of run folders, `metrics.jsonl`, `.json`, `.csv` and TensorBoard
            event files, each as `PATH` or `METHOD=PATH`.
        keep: of several runs with the same method, task and seed, keep the one written last.

    Raises:
        UserError: nothing matches, a file cannot be used, or a run is there twice.
    """
    curves: dict[tuple[str, str, int], Curve] = {}
    for method, path in _expand(inputs):
        for curve in read_file(path, method):
            key = (curve.method, curve.task, curve.seed)
            known = curves.get(key)
            if known is not None and keep is None:
                raise UserError(
                    f"{curve.where} and {known.where} both have {curve.method} on {curve.task} "
                    f"with seed {curve.seed}; name the methods apart (NAME=PATH), or give "
                    "--keep latest"
                )
            if known is None or curve.modified >= known.modified:
                curves[key] = curve
    kinds: dict[str, Curve] = {}
    for curve in curves.values():
        other = kinds.setdefault(curve.task, curve)
        if other.kind != curve.kind:
            raise UserError(
                f"{curve.source} has the {curve.kind} of {curve.task}, {other.source} its "
                f"{other.kind}; compare one or the other"
            )
    if not curves:
        raise UserError("none of the runs given has been evaluated yet; train longer")
    return [curves[key] for key in sorted(curves)]


def _expand(inputs: Sequence[str]) -> list[tuple[str | None, Path]]:
    """(method, path) of every file or run folder that the inputs name, each once."""
    found: dict[tuple[str | None, Path], Path] = {}
    for text in inputs:
        method, equals, pattern = text.partition("=")
        if not equals or "/" in method or Path(text).exists():
            method, pattern = "", text
        matches = [Path(path) for path in sorted(glob.glob(pattern))]
        if not matches and not Path(pattern).exists():
            raise UserError(f"there is nothing at {pattern}; name run folders or score files")
        several = len(matches) > 1
        for path in matches or [Path(pattern)]:
            path = path.parent if path.name == "metrics.jsonl" else path
            members = [path]
            if path.is_dir() and not _is_run_folder(path):
                members = sorted(child for child in path.iterdir() if _is_run_folder(child))
                members = members or sorted(path.glob("*.json"))
                if not members and not several:
                    raise UserError(f"{path} holds neither run folders nor .json files")
            elif path.name.startswith(EVENTS):  # a resumed run has several; they are one
                members = [min(path.parent.glob(f"{EVENTS}*"))]
            elif several and path.is_file() and path.suffix not in _READERS:
                continue  # a log file, say, that a glob like runs/* meets
            for member in members:
                found.setdefault((method or None, Path(os.path.realpath(member))), member)
    if not found:
        raise UserError(f"{' '.join(inputs)} names neither run folders nor score files")
    return [(method, path) for (method, _), path in found.items()]


def _is_run_folder(path: Path) -> bool:
    return (path / "metrics.jsonl").is_file() or (path / "config.yaml").is_file()


def read_file(path: Path, method: str | None = None) -> list[Curve]:
    """The curves of one file or run folder; `method` renames them.

    A run that has not been evaluated yet has none.

    Raises:
        UserError: the file cannot be used.
    """
    try:
        if path.is_dir():
            return _read_run(path, method)
        if path.name.startswith(EVENTS):
            return _read_events(path, method)
        if path.suffix not in _READERS:
            raise UserError(
                f"{path} is no score file; give run folders, .json in the published format, .csv "
                "or TensorBoard event files"
            )
        curves = _READERS[path.suffix](path, method)
    except (OSError, UnicodeError, csv.Error, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not curves:
        raise UserError(f"{path} is empty")
    return curves


class RunConfig(NamedTuple):
    """What a run folder's config.yaml says of the run."""

    task: Any
    seed: Any
    target: str
    """What the world model predicts; ``none`` and ``blind`` where an imitator has none."""
    provenance: dict[str, Any]
    """Command, commit, versions, hardware."""


def run_config(folder: Path) -> RunConfig:
    """What a run folder's config.yaml says of the run.

    Raises:
        UserError: it cannot be read, or says no task and seed.
    """
    try:
        recorded = yaml.safe_load((folder / "config.yaml").read_text())
        config = recorded["config"]
        task, seed = config["task"], config["seed"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no config.yaml that says task and seed") from error
    agent = config.get("agent") or {}
    # Online the autoencoder predicts, in imitation the video model, where there is one.
    predicts = agent.get("autoencoder") or agent.get("dynamics") or {}
    target = predicts.get("target", "pixels")
    if agent.get("world_model") in ("none", "blind"):
        target = agent["world_model"]
    provenance = {key: value for key, value in recorded.items() if key != "config"}
    return RunConfig(task, seed, target, provenance)


def _read_run(path: Path, method: str | None) -> list[Curve]:
    """A run folder: evaluations from metrics.jsonl, names from config.yaml."""
    config = run_config(path)
    rows: list[tuple[int, dict]] = []
    file = path / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        lines.pop()  # being written right now
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file} line {number} is not JSON") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int | float):
            raise UserError(f"{file} line {number} has no step")
        rows.append((number, row))
    kind: Kind = "success" if any("eval/success" in row for _, row in rows) else "return"
    name = f"eval/{kind}"
    points: dict[int, tuple[str, float]] = {}
    for number, row in rows:
        if name in row:
            # Evaluated again at the same step, for instance after a resume: the last one counts.
            points.pop(row["step"], None)
            points[row["step"]] = (f"line {number}", row[name])
    if not points:
        return []
    default = METHOD if config.target == "pixels" else f"{METHOD}-{config.target}"
    curve = _checked(
        file,
        [(where, step, score) for step, (where, score) in points.items()],
        kind,
        method or default,
        config.task,
        config.seed,
    )
    return [replace(curve, provenance=config.provenance)]


def _read_json(path: Path, method: str | None) -> list[Curve]:
    """The published format: a list of {task, seed, method, steps, success_rates | returns}."""
    try:
        entries = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    entries = [entries] if isinstance(entries, dict) else entries
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a list of runs")
    curves = []
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{path} {where} is not a run")
        given = [name for name in ("success_rates", "returns") if name in entry]
        needed = ("task", "seed", "steps") + (() if method else ("method",))
        missing = [name for name in needed if name not in entry]
        if missing or len(given) != 1:
            raise UserError(
                f"{path} {where} lacks {', '.join(missing) or 'one of success_rates and returns'}; "
                "a run has task, seed, method, steps and either success_rates or returns"
            )
        kind: Kind = "success" if given[0] == "success_rates" else "return"
        scores, steps, name = entry[given[0]], entry["steps"], method or entry["method"]
        task, seed = entry["task"], entry["seed"]
        if not (isinstance(steps, list) and isinstance(scores, list)):
            raise UserError(f"{path} {where}: steps and {given[0]} must be lists")
        if len(steps) != len(scores) or not steps:
            raise UserError(f"{path} {where} has {len(steps)} steps and {len(scores)} scores")
        rows = [
            (f"{where}, evaluation {i}", step, score)
            for i, (step, score) in enumerate(zip(steps, scores, strict=True), start=1)
        ]
        known = ("task", "seed", "method", "steps", "success_rates", "returns")
        rest = {key: value for key, value in entry.items() if key not in known}
        curve = _checked(path, rows, kind, name, task, seed, where)
        curves.append(replace(curve, provenance=rest))
    return curves


def _read_csv(path: Path, method: str | None) -> list[Curve]:
    """Columns task, seed, step, one of success and return, and method unless it is given."""
    runs: dict[tuple, list[tuple[str, Any, Any]]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        kind: Kind = "success" if "success" in columns else "return"
        needed = {"task", "seed", "step", kind} | (set() if method else {"method"})
        if missing := sorted(needed - set(columns)):
            raise UserError(
                f"{path} lacks the columns {', '.join(missing)}; it needs method, task, seed, "
                "step and success or return"
            )
        for row in reader:
            key = (method or row["method"], row["task"], row["seed"])
            runs.setdefault(key, []).append((f"line {reader.line_num}", row["step"], row[kind]))
    return [_checked(path, rows, kind, *key) for key, rows in runs.items()]


def _read_events(path: Path, method: str | None) -> list[Curve]:
    """The TensorBoard event files beside `path`, one run: tags eval/success or eval/return, names
    from the nearest config.yaml above."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    folder = next((p for p in path.resolve().parents if (p / "config.yaml").is_file()), None)
    if folder is None:
        raise UserError(f"no folder above {path} has a config.yaml that says task and seed")
    config = run_config(folder)
    points: dict[str, dict[int, tuple[str, float]]] = {"eval/success": {}, "eval/return": {}}
    events = 0
    for file in sorted(path.parent.glob(f"{EVENTS}*")):
        for event in EventFileLoader(str(file)).Load():
            events += 1
            for value in event.summary.value:
                if value.tag in points:
                    # What a resumed run wrote replaces everything from its step on.
                    tag = points[value.tag]
                    for step in [step for step in tag if step >= event.step]:
                        del tag[step]
                    score = float(tensor_util.make_ndarray(value.tensor))
                    tag[event.step] = (f"step {event.step}", score)
    if not events:
        raise UserError(f"{path} is no TensorBoard event file, or a broken one")
    kind: Kind = "success" if points["eval/success"] else "return"
    rows = [(where, step, score) for step, (where, score) in points[f"eval/{kind}"].items()]
    if not rows:
        return []
    curve = _checked(path, rows, kind, method or METHOD, config.task, config.seed)
    return [replace(curve, provenance=config.provenance)]


EVENTS = "events.out.tfevents"
_READERS = {".json": _read_json, ".csv": _read_csv}


def _checked(
    path: Path,
    rows: Iterable[tuple[str, Any, Any]],
    kind: Kind,
    method: Any,
    task: Any,
    seed: Any,
    entry: str = "",
) -> Curve:
    """The curve of `rows` (where, step, score); `entry` says which of a file's runs it is.

    Raises:
        UserError: naming `path` and the row that cannot be right.
    """
    steps: list[int] = []
    scores: list[float] = []
    for where, step, score in rows:
        try:
            number, score_number = float(step), float(score)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{path} {where} has step {step!r} and score {score!r}") from None
        if not (math.isfinite(number) and math.isfinite(score_number)):
            raise UserError(f"{path} {where} is not finite: step {step}, score {score}")
        if number != int(number) or not 0 <= number < 2**53:
            raise UserError(f"{path} {where}: step {step} is no number of environment steps")
        if steps and number <= steps[-1]:
            raise UserError(f"{path} {where}: step {number:g} comes after step {steps[-1]}")
        if kind == "success" and not 0.0 <= score_number <= 1.0:
            raise UserError(f"{path} {where}: a success of {score_number:g} is not between 0 and 1")
        steps.append(int(number))
        scores.append(score_number)
    try:
        if int(seed) != float(seed):
            raise ValueError
        seed = int(seed)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{path} {entry} has seed {seed!r}; it must be a whole number") from None
    for what, name in (("method", method), ("task", task)):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"{path} {entry} has {what} {name!r}; it must be a name")
        if len(name) > 100:
            raise UserError(f"{path} {entry} has a {what} of {len(name)} characters; use up to 100")
    return Curve(
        method,
        task_id(task),
        seed,
        np.array(steps, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        kind,
        str(path),
        path.stat().st_mtime,
        f"{path} {entry}".strip(),
    )


@dataclass(frozen=True)
class Aligned:
    """Runs of one method on one task at common steps: `steps` (T,), `scores` (seeds, T).

    A run is known between its first and its last evaluation, on straight lines between them; NaN
    elsewhere, because nothing is extrapolated.
    """

    steps: np.ndarray
    scores: np.ndarray

    @property
    def seeds(self) -> np.ndarray:
        """How many runs are known at each step, (T,)."""
        return (~np.isnan(self.scores)).sum(axis=0)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the known runs, (T,)."""
        return np.nansum(self.scores, axis=0) / self.seeds


def align(curves: Sequence[Curve]) -> Aligned:
    """`curves` at every step at which any of them was evaluated."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    return Aligned(steps, np.stack([curve.at(steps) for curve in curves]))


FINALS: dict[str, Any] = {
    "last": lambda scores: scores[-1],
    "last5": lambda scores: scores[-5:].mean(),
    "best": lambda scores: scores.max(),
}
"""Final score of a run, by name. last5, the mean of the last five evaluations, reproduces the
paper's numbers; best is flattering, since it picks its evaluation after the fact."""
