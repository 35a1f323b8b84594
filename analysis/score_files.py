"""Learning curves from files: run folders, the published format, TensorBoard events, CSV."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from analysis.curves import (
    Curve,
    Kind,
    make_curve,
    score_bounds,
    shown,
    task_id,
    whole_number,
)
from analysis.event_files import EVENTS, event_files, read_events
from errors import UserError
from experiment.config_record import ConfigRecord
from experiment.metrics_log import MetricsLog
from experiment.sweep import OURS, RECORD, read_sweep
from regular_file import read_bytes

METHOD = OURS
"""Name of the method of run folders that are given without one."""
ORIGIN = ("command", "commit", "versions", "hardware")
"""What a run folder, and a file in the published format, may say of how a curve came about."""


def ignored(note: str) -> None:
    """What `read` is told where nobody reads its notes."""


def read(
    inputs: Sequence[str],
    keep: Literal["latest"] | None = None,
    note: Callable[[str], None] = ignored,
) -> list[Curve]:
    """The curves of all inputs, sorted by method, task and seed.

    Args:
        inputs: paths or globs of run folders, `metrics.jsonl`, `.json`, `.csv` and TensorBoard
            event files, each as `PATH` or `METHOD=PATH`; of a sweep's folder or `sweep.json` the
            runs that are done, by the names of its variants.
        keep: of several runs with the same method, task and seed, keep the one written last.
        note: called with a sentence about each input that was left out, whole or in part.

    Raises:
        UserError: nothing matches, a file cannot be used, or a run is there twice.
    """
    curves: dict[tuple[str, str, int], Curve] = {}
    left_out: list[str] = []

    def leave_out(reason: str) -> None:
        left_out.append(reason)
        note(reason)

    for method, path in _expand(inputs):
        for curve in read_file(path, method, leave_out):
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
        raise UserError(f"none of the runs given has been evaluated yet: {left_out[-1]}")
    return [curves[key] for key in sorted(curves)]


def _expand(inputs: Sequence[str]) -> list[tuple[str | None, Path]]:
    """(method, path) of every file or run folder that the inputs name, each once."""
    found: dict[tuple[str | None, str], Path] = {}
    for text in inputs:
        method, matches = _named(text)
        several = len(matches) > 1
        for path in matches:
            path = path.parent if path.name == "metrics.jsonl" else path
            if (sweep := _sweep_of(path)) is not None:
                for run in read_sweep(sweep):
                    if run.status == "done":
                        member = sweep.parent / run.name
                        plain = run.method == OURS
                        renamed = method if plain else f"{method}-{run.method}"
                        name = run.method if method is None else renamed
                        found[name, os.path.realpath(member)] = member
                continue
            members = [path]
            if os.path.isdir(path) and not _is_run_folder(path):
                members = _members(path)
                if not members and not several:
                    raise UserError(f"{path} holds neither run folders nor .json or event files")
            elif path.name.startswith(EVENTS):  # a resumed run has several; they are one
                members = event_files(path.parent)[:1]
            elif several and os.path.isfile(path) and path.suffix not in _READERS:
                continue  # a log file, say, that a glob like runs/* meets
            for member in members:
                found.setdefault((method, os.path.realpath(member)), member)
    if not found:
        raise UserError(f"{' '.join(inputs)} names neither run folders nor score files")
    return [(method, path) for (method, _), path in found.items()]


def _named(text: str) -> tuple[str | None, list[Path]]:
    """The method and the paths of one input; it is a PATH or a glob where there is such a file,
    else METHOD=PATH.

    Raises:
        UserError: there is nothing.
    """
    before = ""
    for part in text.split("="):
        method, pattern = before[:-1], text[len(before) :]
        before += f"{part}="
        if "/" in method:
            break
        there = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern))
        if there:
            return method or None, [Path(path) for path in there]
    raise UserError(f"there is nothing at {text}; name run folders or score files")


def _sweep_of(path: Path) -> Path | None:
    """The ``sweep.json`` that a path is, or whose folder it is."""
    record = path if path.name == RECORD else path / RECORD
    return record if os.path.isfile(record) else None


def _is_run_folder(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in ("metrics.jsonl", "config.yaml"))


def _members(folder: Path) -> list[Path]:
    """The run folders in a folder; where there is none its .json files, else its first event
    file."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    members = [child for child in children if os.path.isdir(child) and _is_run_folder(child)]
    members = members or [child for child in children if child.suffix == ".json"]
    return members or event_files(folder)[:1]


def read_file(
    path: Path, method: str | None = None, note: Callable[[str], None] = ignored
) -> list[Curve]:
    """The curves of one file or folder; `method` renames them.

    A run that has not been evaluated yet has none, which `note` is told.

    Raises:
        UserError: the file cannot be used.
    """
    try:
        if os.path.isdir(path):
            return _read_run(path, method, note)
        if path.name.startswith(EVENTS):
            return _read_events(path.parent, method, note)
        if path.suffix not in _READERS:
            raise UserError(
                f"{path} is no score file; give run folders, .json in the published format, .csv "
                "or TensorBoard event files"
            )
        return _READERS[path.suffix](path, method)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


class RunConfig(NamedTuple):
    """What a run folder's config.yaml says of the run."""

    task: Any
    seed: Any
    target: str
    """What the world model predicts; ``none`` and ``blind`` where an imitator has none."""
    provenance: dict[str, Any]
    """Command, commit, versions, hardware."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest return of an episode, where it says them."""


def run_config(folder: Path) -> RunConfig:
    """What a run folder's config.yaml says of the run.

    Raises:
        UserError: it cannot be read, or says no task and seed.
    """
    file = folder / "config.yaml"
    if not os.path.lexists(file):
        raise UserError(f"{folder} has no config.yaml that says task and seed")
    recorded = ConfigRecord(file).read()
    config = recorded["config"]
    if missing := [name for name in ("task", "seed") if name not in config]:
        raise UserError(f"{file} says no {' and no '.join(missing)}")
    agent = _mapping(config, "agent")
    # Online the autoencoder predicts, in imitation the video model, where there is one.
    predicts = _mapping(agent, "autoencoder") or _mapping(agent, "dynamics")
    target = predicts.get("target", "pixels")
    if agent.get("world_model") in ("none", "blind"):
        target = agent["world_model"]
    if not isinstance(target, str):
        raise UserError(f"{file} has target {shown(target)}; it must be a name")
    seen = _mapping(config, "environment")
    bounds = score_bounds(seen.get("score_bounds"), str(file))
    task = seen.get("name") or config["task"]
    return RunConfig(task, config["seed"], target, _origin(file, recorded), bounds)


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The mapping of that name; an empty one where there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _origin(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The part of `values` that says how a curve came about.

    Raises:
        UserError: it is nothing that JSON could keep.
    """
    found = {name: values[name] for name in ORIGIN if name in values}
    try:
        json.dumps(found, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: {' or '.join(found)} is no plain value ({error})") from error
    return found


def _read_run(path: Path, method: str | None, note: Callable[[str], None]) -> list[Curve]:
    """A run folder: evaluations from metrics.jsonl, names from config.yaml."""
    config = run_config(path)
    log = MetricsLog(path)
    rows = log.read()
    kind: Kind = "success" if any("eval/success" in row for row in rows) else "return"
    name = f"eval/{kind}"
    points: dict[Any, tuple[str, Any]] = {}
    for line, row in enumerate(rows, start=1):
        if name in row:
            # Evaluated again at the same step, for instance after a resume: the last one counts.
            points.pop(row["step"], None)
            points[row["step"]] = (f"line {line}", row[name])
    if not points:
        names = {name for row in rows for name in row} - {"step", "time"}
        note(nothing_scored(str(log.path), names))
        return []
    default = METHOD if config.target == "pixels" else f"{METHOD}-{config.target}"
    scored = [(where, step, score) for step, (where, score) in points.items()]
    curve = make_curve(log.path, scored, kind, method or default, config.task, config.seed)
    return [replace(curve, provenance=config.provenance, bounds=config.bounds)]


def _read_events(path: Path, method: str | None, note: Callable[[str], None]) -> list[Curve]:
    """The TensorBoard event files in the folder `path`, one run: names from the nearest config.yaml
    above."""
    events = read_events(path, note)
    if not events.rows:
        note(nothing_scored(str(events.file), events.tags))
        return []
    above = (path.resolve(), *path.resolve().parents)
    folder = next((p for p in above if os.path.lexists(p / "config.yaml")), None)
    if folder is None:
        raise UserError(f"no folder above {events.file} has a config.yaml that says task and seed")
    config = run_config(folder)
    name = method or METHOD
    curve = make_curve(events.file, events.rows, events.kind, name, config.task, config.seed)
    return [replace(curve, provenance=config.provenance, bounds=config.bounds)]


def nothing_scored(source: str, names: set[str]) -> str:
    """The sentence about a run without evaluations, which says what was looked for and found."""
    listed = [shown(name)[1:-1] for name in sorted(names)]
    if len(listed) > 8:
        listed[8:] = [f"{len(listed) - 8} more"]
    return (
        f"{source} has no evaluation and is left out (looked for eval/success and eval/return, "
        f"found {', '.join(listed) or 'nothing'})"
    )


def _text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 where it begins with a byte order mark, as spreadsheets
    and PowerShell write it.

    Raises:
        UserError: it is neither.
    """
    content = read_bytes(path)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if wide else "UTF-8"
        raise UserError(f"{path} is not {name} text (byte {error.start + 1:,})") from error


def _read_json(path: Path, method: str | None) -> list[Curve]:
    """The published format: a list of {task, seed, method, steps, success_rates | returns}."""
    try:
        entries = json.loads(_text(path))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a list of runs") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    entries = [entries] if isinstance(entries, dict) else entries
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a list of runs")
    if not entries:
        raise UserError(f"{path} is empty; it has no runs")
    curves = []
    for position, entry in enumerate(entries, start=1):
        where = f"entry {position}"
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
        if not (isinstance(steps, list) and isinstance(scores, list)):
            raise UserError(f"{path} {where}: steps and {given[0]} must be lists")
        if len(steps) != len(scores) or not steps:
            raise UserError(f"{path} {where} has {len(steps)} steps and {len(scores)} scores")
        rows = [
            (f"{where}, evaluation {i}", step, score)
            for i, (step, score) in enumerate(zip(steps, scores, strict=True), start=1)
        ]
        curve = make_curve(path, rows, kind, name, entry["task"], entry["seed"], where)
        bounds = score_bounds(entry.get("score_bounds"), f"{path} {where}")
        curves.append(replace(curve, provenance=_origin(path, entry), bounds=bounds))
    return curves


def _read_csv(path: Path, method: str | None) -> list[Curve]:
    """Columns task, seed, step, one of success and return, and method unless it is given.

    Between values stands a comma, a semicolon or a tab.
    """
    runs: dict[tuple, list[tuple[str, Any, Any]]] = {}
    for where, kind, row in _csv_rows(path, method):
        try:
            seed: Any = whole_number(row["seed"])
        except ValueError:
            seed = row["seed"]
        # Runs are told apart by what is meant, not by how it is written: a seed of 0 and of 0.0.
        key = (kind, method or row["method"], task_id(row["task"]), seed)
        runs.setdefault(key, []).append((where, row["step"], row[kind]))
    if not runs:
        raise UserError(f"{path} is empty; it has no rows below its header")
    return [make_curve(path, rows, *key) for key, rows in runs.items()]


def _csv_rows(path: Path, method: str | None) -> Iterator[tuple[str, Kind, dict[str, str]]]:
    """("line 2", kind of score, values by column) of every row that is not blank.

    Raises:
        UserError: columns are missing or twice there, or a row has more or fewer values.
    """
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path} is empty")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(
        io.StringIO(text, newline=None), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        kind: Kind = "success" if "success" in columns else "return"
        needed = {"task", "seed", "step", kind} | (set() if method else {"method"})
        if missing := sorted(needed - set(columns)):
            raise UserError(
                f"{path} lacks the columns {', '.join(missing)}; it needs method, task, seed, "
                f"step and success or return, and has {shown(header)}"
            )
        if twice := sorted(name for name in needed if columns.count(name) > 1):
            raise UserError(f"{path} has more than one column {', '.join(twice)}")
        marks: set[str] = set()
        for values in reader:
            where, values = f"line {reader.line_num}", [value.strip() for value in values]
            if not any(values):
                continue
            if len(values) != len(columns):
                raise UserError(
                    f"{path} {where} has {len(values)} values, its header {len(columns)} columns"
                )
            row = dict(zip(columns, values, strict=True))
            if delimiter == ";":  # there a number may have a decimal comma
                marks |= set(",.") & set(row["step"] + row[kind])
                if len(marks) > 1:
                    raise UserError(
                        f"{path} has numbers with a comma and numbers with a point, {where} for "
                        "example; write all of them with a point"
                    )
                row |= {name: row[name].replace(",", ".") for name in ("step", kind)}
            yield where, kind, row
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} cannot be read: {error}") from error


_READERS = {".json": _read_json, ".csv": _read_csv}
