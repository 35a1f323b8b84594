"""What is left of success under visual change, by what the world model predicts.

    python -m results.experiments.robustness runs/robustness/* --out results/robustness

Takes run folders that `run.py evaluate --shifts all` has measured, or the runs.json that this
script wrote before. Writes OUT.md, and in the folder OUT robustness.png, runs.json (every number),
the learning curves of run folders (learned/), and the comparison of all that are there, as
`run.py compare` makes it (curves/).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib import pyplot

from analysis import figures
from analysis.aggregates import LEVEL, Estimate
from analysis.comparison import Compare
from analysis.output import page_of
from analysis.record import record as record_curves
from analysis.report import make_report
from analysis.score_files import run_config
from commands.command_line import script
from errors import UserError

MODULE = "results.experiments.robustness"
REPETITIONS = 5000
WITHOUT = "none"
"""The name of no shift at all, in tables."""
PUBLISHED_SHIFTS = ("background", "lighting", "objects")
"""Those of Mask World Model's Retain, on a real robot: background, lighting, object colour."""


@dataclass(frozen=True)
class Robustness:
    """Compare runs under visual shifts."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders with evaluation.json, or a runs.json."""
    out: Path
    """Page (OUT.md) and folder to write."""


@dataclass(frozen=True)
class Measured:
    """One run under every shift."""

    task: str
    target: str
    seed: int
    step: int
    score: str
    """success or return."""
    episodes: dict[str, list[float]]
    """Score of every episode, by shift, `none` first."""
    command: str
    commit: str


def read(inputs: Sequence[str]) -> list[Measured]:
    """The runs of all inputs. Raises UserError naming the file that cannot be used."""
    runs: list[Measured] = []
    for path in map(Path, inputs):
        if path.suffix == ".json":
            try:
                runs += [
                    Measured(**entry)
                    for entry in json.loads(path.read_text(encoding="utf-8"))["runs"]
                ]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is not a runs.json of this script: {error}") from error
        else:
            runs += _read_folder(path)
    if not runs:
        raise UserError("name at least one run folder")
    if len({run.score for run in runs}) > 1:
        raise UserError("some runs were scored by success and some by return; compare them apart")
    tasks = {target: {r.task for r in runs if r.target == target} for target in
             {run.target for run in runs}}  # fmt: skip
    if len({frozenset(names) for names in tasks.values()}) > 1:
        raise UserError(
            f"the targets were trained on different tasks: {tasks}; give the same of each"
        )
    shifts = {tuple(run.episodes) for run in runs}
    if len(shifts) > 1:
        raise UserError("the runs were evaluated under different shifts; evaluate them alike")
    places = [(run.task, run.target, run.seed) for run in runs]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise UserError(f"two runs of {twice[0]}, target {twice[1]}, seed {twice[2]}; give one")
    return runs


def _read_folder(path: Path) -> list[Measured]:
    """One run of each task that was evaluated."""
    task, seed, target = run_config(path)[:3]
    file = path / "evaluation.json"
    hint = f"python run.py evaluate --logdir {path} --shifts all"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        shifts = found["shifts"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} has not been evaluated under shifts yet; {hint}") from error
    score = found["retained"]["score"]
    episodes = {WITHOUT: found["agent"]["episodes"]} | {s: found[s]["episodes"] for s in shifts}
    step = found["step"] if "step" in found else found["updates"]
    runs = []
    # An agent of imitation is evaluated on several tasks, an online one on its own.
    for one in dict.fromkeys(e.get("task", task) for e in episodes[WITHOUT]):
        scores = {
            name: [float(e[score]) for e in many if e.get("task", task) == one]
            for name, many in episodes.items()
        }
        runs.append(
            Measured(one, target, seed, step, score, scores, found["command"], found["commit"])
        )
    return runs


class Table:
    """The runs of one target as numbers, and their bootstrap: runs within tasks, then episodes
    within runs (each with its starts under all shifts), are drawn with replacement."""

    def __init__(self, runs: Sequence[Measured], repetitions: int = REPETITIONS, seed: int = 0):
        self.shifts = list(runs[0].episodes)
        self.tasks = sorted({run.task for run in runs})
        by_task = {
            task: [
                np.array([run.episodes[shift] for shift in self.shifts])
                for run in runs
                if run.task == task
            ]
            for task in self.tasks
        }
        self.counts = {task: len(many) for task, many in by_task.items()}
        # (tasks, shifts)
        self.points = np.stack(
            [np.mean([one.mean(1) for one in by_task[task]], axis=0) for task in self.tasks]
        )
        rng = np.random.default_rng(seed)
        drawn = np.empty((repetitions, *self.points.shape))
        for row, task in enumerate(self.tasks):
            many = by_task[task]
            for repetition in range(repetitions):
                chosen = [many[index] for index in rng.integers(len(many), size=len(many))]
                drawn[repetition, row] = np.mean(
                    [
                        one[:, rng.integers(one.shape[1], size=one.shape[1])].mean(1)
                        for one in chosen
                    ],
                    axis=0,
                )
        self.drawn = drawn

    def _estimate(self, point: float, drawn: np.ndarray) -> Estimate:
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(point) or not len(drawn):
            return (float("nan"), None)
        low, high = np.percentile(drawn, LEVEL)
        return float(point), (float(low), float(high))

    def mean(self, shift: str) -> Estimate:
        """Mean score over tasks under one shift."""
        column = self.shifts.index(shift)
        return self._estimate(self.points[:, column].mean(), self.drawn[..., column].mean(1))

    def ood(self) -> Estimate:
        """Mean score over tasks and shifts."""
        return self._estimate(self.points[:, 1:].mean(), self.drawn[..., 1:].mean((1, 2)))

    def retain(self, task: str | None = None, shifts: Sequence[str] = ()) -> Estimate:
        """OOD / ID of one task, or the mean of these over tasks; OOD of all shifts, or of some."""
        rows = slice(None) if task is None else [self.tasks.index(task)]
        columns = [self.shifts.index(shift) for shift in shifts] or slice(1, None)
        points, resampled = self.points[rows], self.drawn[:, rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            point = points[:, columns].mean(1) / _above_nought(points[:, 0])
            drawn = resampled[..., columns].mean(2) / _above_nought(resampled[..., 0])
        return self._estimate(point.mean(), drawn.mean(1))


def _above_nought(scores: np.ndarray) -> np.ndarray:
    """Scores of which a share can be retained; NaN for the others."""
    return np.where(scores > 0, scores, np.nan)


def published_shifts(shifts: Iterable[str]) -> list[str]:
    """Of some shifts those that `PUBLISHED_SHIFTS` names; none unless all three are there, beside
    others."""
    shifts = list(shifts)
    found = {s: s.partition(":")[0] for s in shifts if "+" not in s}
    chosen = [shift for shift, name in found.items() if name in PUBLISHED_SHIFTS]
    every = {found[shift] for shift in chosen} == set(PUBLISHED_SHIFTS)
    return chosen if every and len(chosen) < len(shifts) else []


def shown(estimate: Estimate) -> str:
    """`.83 (.70 to .91)`."""
    point, interval = estimate
    if not np.isfinite(point):
        return "undefined"
    text = f"{point:.2f}"
    return text if interval is None else f"{text} ({interval[0]:.2f} to {interval[1]:.2f})"


def tables(runs: Sequence[Measured]) -> dict[str, Table]:
    """By target, in the order of the runs."""
    targets = list(dict.fromkeys(run.target for run in runs))
    return {target: Table([run for run in runs if run.target == target]) for target in targets}


def markdown(runs: Sequence[Measured], by_target: Mapping[str, Table], command: str) -> str:
    """The report."""
    shifts = list(runs[0].episodes)
    targets = list(by_target)
    episodes = sorted({len(many) for run in runs for many in run.episodes.values()})
    steps = sorted({run.step for run in runs})
    lines = [
        "# Under visual change, by what the world model predicts",
        "",
        f"Made by `{command}`. Score: {runs[0].score}. Means over tasks with 95 % intervals; the "
        "bootstrap draws runs within tasks and episodes within runs. Retain is the mean over tasks "
        "of OOD / ID, OOD the mean over shifts; undefined where a task's ID is not above 0. The "
        "starts are the same under every shift. Where all episodes went alike the bootstrap has no "
        "width: 20 of 20 episodes of one run are 0.84 to 1.00 by Wilson's interval.",
        "",
        f"Environment steps, or updates: {', '.join(f'{s:,}' for s in steps)}; "
        f"{', '.join(map(str, episodes))} episodes per run and shift.",
        "",
        "| " + " | ".join(["shift", *targets]) + " |",
        "|---" * (len(targets) + 1) + "|",
    ]
    for shift in shifts:
        cells = [shown(by_target[target].mean(shift)) for target in targets]
        name = "none (ID)" if shift == WITHOUT else shift
        lines.append("| " + " | ".join([name, *cells]) + " |")
    cells = [shown(by_target[target].ood()) for target in targets]
    lines.append("| " + " | ".join(["**OOD mean**", *cells]) + " |")
    rows: dict[str, Sequence[str]] = {"**Retain**": ()}
    if few := published_shifts(shifts[1:]):
        rows[f"**Retain** of {', '.join(few)}"] = few
    for name, some in rows.items():
        cells = [shown(by_target[target].retain(shifts=some)) for target in targets]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += ["", "| task | target | seeds | ID | OOD | Retain |", "|---|---|---|---|---|---|"]
    for task in sorted({run.task for run in runs}):
        for target, table in by_target.items():
            if task not in table.tasks:
                continue
            row = table.tasks.index(task)
            lines.append(
                f"| {task} | {target} | {table.counts[task]} | {table.points[row, 0]:.2f} | "
                f"{table.points[row, 1:].mean():.2f} | {shown(table.retain(task))} |"
            )
    lines += ["", "Runs:", ""]
    lines += [
        f"- {run.task}, {run.target}, seed {run.seed}: {run.step:,} steps, `{run.command}`, "
        f"commit {run.commit[:12]}"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def draw(by_target: Mapping[str, Table], path: Path, score: str) -> list[Path]:
    """Score under each shift, a mark per target with its interval."""
    look = figures.looks(by_target)
    shifts = next(iter(by_target.values())).shifts
    with pyplot.rc_context(figures.STYLE):
        figure, axes = pyplot.subplots(figsize=(1.0 + 0.9 * len(shifts), 3.2))
        for index, (target, table) in enumerate(by_target.items()):
            colour, _, marker = look[target]
            offset = (index - (len(by_target) - 1) / 2) * 0.2
            for place, shift in enumerate(shifts):
                point, interval = table.mean(shift)
                if interval is not None:
                    axes.plot([place + offset] * 2, interval, color=colour, linewidth=3, alpha=0.4)
                axes.plot(
                    place + offset, point, marker, color=colour,
                    label=target if place == 0 else None,
                )  # fmt: skip
        axes.set_xticks(range(len(shifts)), [s.replace(":", "\n") for s in shifts])
        axes.set_ylabel(score)
        if score == "success":
            axes.set_ylim(-0.02, 1.02)
        axes.legend(ncols=len(by_target), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        figure.tight_layout()
        return figures.save(figure, path)


def main(options: Robustness) -> None:
    """Read, compute, write. Raises UserError for inputs that cannot be used."""
    runs = read(options.inputs)
    by_target = tables(runs)
    page = page_of(options.out)
    inputs = options.inputs if len(options.inputs) <= 4 else (f"{options.out}/runs.json",)
    command = shlex.join(["python", "-m", MODULE, *inputs, "--out", str(options.out)])
    numbers: dict[str, Any] = {"runs": [asdict(run) for run in runs]}
    (options.out / "runs.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    page.write_text(markdown(runs, by_target, command), encoding="utf-8")
    draw(by_target, options.out / "robustness", runs[0].score)
    print(page.read_text(encoding="utf-8"))
    folders = [Path(path) for path in options.inputs if Path(path).is_dir()]
    methods = tuple(f"{run_config(folder).target}={folder}" for folder in folders)
    if methods:
        record_curves(methods, options.out / "learned")
    kept = [
        options.out / "learned" / f"{run.target}-{run.task.replace('/', '-')}-seed{run.seed}.json"
        for run in runs
    ]
    if curves := tuple(str(path) for path in kept if path.exists()):
        make_report(Compare(inputs=curves, out=options.out / "curves"))


if __name__ == "__main__":
    sys.exit(script(main, Robustness, MODULE))
