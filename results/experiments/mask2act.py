"""What plans are worth: Mask2Act beside the other plan targets, by how many demonstrations.

    python -m results.experiments.mask2act runs/mask2act/* --out results/mask2act

Takes run folders of `run.py imitate --method mask2act` that `run.py evaluate` has measured, or the
measured.json that this script wrote before. Writes OUT.md, and in the folder OUT measured.json
(every episode) and measured.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib import pyplot

import envs
from agents.imitation_config import Mask2ActRunConfig
from agents.imitation_loading import read_config
from analysis import figures
from analysis.output import page_of, write_file
from commands.command_line import script
from errors import UserError
from experiment.config_record import names_loaded
from experiment.evaluation_record import read_evaluation
from experiment.metrics_log import MetricsLog
from experiment.run_folder import RunFolder

MODULE = "results.experiments.mask2act"
PLANS = ("masks", "points", "video", "features", "trajectory", "none")
"""In the order that the paper finds them in."""
PUBLISHED = {
    "masks": 0.782, "points": 0.718, "video": 0.701, "features": 0.679, "trajectory": 0.671,
    "none": 0.634,
}  # fmt: skip
"""Success on Meta-World MT10 with 50 videos and 10 demonstrations a task (Mask2Act, Table 1)."""
REPETITIONS = 5000


@dataclass(frozen=True)
class Mask2Act:
    """Compare runs of Mask2Act."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders with evaluation.json, or a measured.json."""
    out: Path
    """Page (OUT.md) and folder to write."""


def read(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """One dict a run.

    Raises:
        UserError: naming the file that cannot be used.
    """
    runs: list[dict[str, Any]] = []
    for path in map(Path, inputs):
        if path.suffix == ".json":
            try:
                runs += json.loads(path.read_text(encoding="utf-8"))["runs"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path} is no measured.json of this script: {error}") from error
            continue
        config = read_config(path)
        found = read_evaluation(path / "evaluation.json")
        if not isinstance(config, Mask2ActRunConfig):
            raise UserError(f"{path} is no run of mask2act, but of {config.method}")
        if found is None or "agent" not in found:
            raise UserError(
                f"{path} has not been evaluated yet; python run.py evaluate --logdir {path}"
            )
        record = RunFolder.open(path).config.read()
        runs.append(
            {
                "name": path.name,
                "plan": config.agent.plan,
                "videos": config.videos,
                "demonstrations": config.demonstrations,
                "seed": config.seed,
                "planner_of_others": _planner_of_others(config),
                "updates": found["updates"],
                "rows": {n: r["episodes"] for n, r in found.items() if _is_row(r)},
                "hours": MetricsLog(path).read()[-1]["time"] / 3600,
                "hardware": record["hardware"],
                "commands": [record["command"], found["command"]],
                "commit": record["commit"],
                "outside": sorted(names_loaded(config)),
            }
        )
    if not runs:
        raise UserError("name at least one run folder")
    return runs


def _planner_of_others(config: Mask2ActRunConfig) -> bool:
    """Whether its planner has learned other tasks than its executor."""
    if not config.dynamics_from:
        return False
    other = read_config(config.dynamics_from)
    return set(envs.expand(other.task)) != set(envs.expand(config.task))


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and "episodes" in value


def success(runs: Sequence[dict[str, Any]], row: str = "agent") -> tuple[float, float, float]:
    """Mean success over tasks, seeds and episodes, with a 95 % interval: episodes are drawn anew
    within each task and run, so it is about these tasks and seeds."""
    cells: dict[tuple[str, str], list[bool]] = {}
    for run in runs:
        for episode in run["rows"][row]:
            cells.setdefault((run["name"], episode["task"]), []).append(episode["success"])
    rng = np.random.default_rng(0)
    drawn = [
        rng.choice(np.array(cell, float), (REPETITIONS, len(cell))).mean(1)
        for cell in cells.values()
    ]
    low, high = np.percentile(np.mean(drawn, 0), [2.5, 97.5])
    return float(np.mean([np.mean(cell) for cell in cells.values()])), float(low), float(high)


def tasks_of(run: dict[str, Any]) -> tuple[str, ...]:
    """What a run was measured on, in order."""
    return tuple(dict.fromkeys(episode["task"] for episode in run["rows"]["agent"]))


def markdown(runs: Sequence[dict[str, Any]], command: str, folder: str) -> str:
    """The report, whose pictures are in `folder`."""
    lines = [
        "# Mask2Act: what a plan is worth",
        "",
        f"Made by `{command}`. Success over tasks, seeds and episodes; intervals (95 %) are of "
        "episodes drawn anew within each task and run. Published: Meta-World MT10, ten "
        "demonstrations, ResNet-18 (Mask2Act, Table 1).",
    ]
    for tasks in dict.fromkeys(map(tasks_of, runs)):
        lines += ["", f"## {', '.join(tasks)}", ""]
        lines += _table([run for run in runs if tasks_of(run) == tasks])
    lines += ["", f"![Success by plan and by demonstrations]({folder}/measured.png)", ""]
    lines += ["Trained and measured by:", ""]
    for run in runs:
        machine = f"{run['hardware']['processor']}, {run['hardware'].get('cores')} cores"
        lines.append(
            f"- {run['name']}: `{run['commands'][0]}` at {str(run['commit'])[:7]},"
            f" `{run['commands'][1]}`; {run['hours']:.1f} h, {machine}"
        )
    return "\n".join(lines) + "\n"


def _table(runs: Sequence[dict[str, Any]]) -> list[str]:
    shifts = sorted({row for run in runs for row in run["rows"]} - {"agent", "random"})
    head = ["plan", "demonstrations", "seeds", "success", *shifts, "published"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    kinds = dict.fromkeys(
        (run["plan"], run["demonstrations"], run["planner_of_others"]) for run in runs
    )
    for plan, demonstrations, others in sorted(kinds, key=_order):
        same = [
            run
            for run in runs
            if (run["plan"], run["demonstrations"], run["planner_of_others"])
            == (plan, demonstrations, others)
        ]
        cells = [f"{plan}{', planner of other tasks' if others else ''}", str(demonstrations)]
        cells.append(str(len({run["seed"] for run in same})))
        for row in ("agent", *shifts):
            there = [run for run in same if row in run["rows"]]
            cells.append("{:.2f} ({:.2f} to {:.2f})".format(*success(there, row)) if there else "")
        published = PUBLISHED.get(plan) if demonstrations == 10 and not others else None
        cells.append("" if published is None else f"{published:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _order(kind: tuple[str, int, bool]) -> tuple:
    plan, demonstrations, others = kind
    return others, demonstrations, PLANS.index(plan) if plan in PLANS else len(PLANS)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Success by plan with ten demonstrations beside published, and by demonstrations."""
    first = tasks_of(runs[0])
    ours = [run for run in runs if tasks_of(run) == first and not run["planner_of_others"]]
    curves = {
        plan: sorted({r["demonstrations"] for r in ours if r["plan"] == plan}) for plan in PLANS
    }
    curves = {plan: counts for plan, counts in curves.items() if len(counts) > 1}
    panels = 2 if curves else 1
    figure, all_axes = pyplot.subplots(
        1, panels, figsize=(4.5 * panels, 3.6), layout="constrained", squeeze=False
    )
    left, right = all_axes[0, 0], all_axes[0, -1]
    for number, plan in enumerate(PLANS):
        same = [run for run in ours if (run["plan"], run["demonstrations"]) == (plan, 10)]
        if same:
            mean, low, high = success(same)
            left.errorbar(number, mean, [[mean - low], [high - mean]], fmt="o", color="#1565a8")
        left.plot(number, PUBLISHED[plan], "_", color="#9aa3b0", markersize=18)
    left.set_xticks(range(len(PLANS)), PLANS, rotation=30, ha="right")
    left.set_title("ten demonstrations; grey: published", fontsize=9)
    for plan, counts in curves.items():
        found = [
            success([r for r in ours if (r["plan"], r["demonstrations"]) == (plan, count)])
            for count in counts
        ]
        means = [mean for mean, _, _ in found]
        (line,) = right.plot(counts, means, "o-", label=plan)
        lows, highs = [low for _, low, _ in found], [high for _, _, high in found]
        right.fill_between(counts, lows, highs, alpha=0.15, color=line.get_color())
    if curves:
        right.set_xlabel("demonstrations a task")
        right.legend(frameon=False)
    for axes in all_axes.flat:
        axes.set_ylim(0, 1)
        axes.set_ylabel("success")
    figures.save(figure, path)


def report(options: Mask2Act) -> None:
    """Read, write page, numbers and figure."""
    runs = read(options.inputs)
    page = page_of(options.out)
    command = f"python -m {MODULE} {' '.join(options.inputs)} --out {options.out}"
    write_file(page, markdown(runs, command, options.out.name))
    write_file(options.out / "measured.json", json.dumps({"runs": runs}, indent=1) + "\n")
    draw(runs, options.out / "measured")
    print(page)


if __name__ == "__main__":
    sys.exit(script(report, Mask2Act, MODULE))
