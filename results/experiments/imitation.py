"""What agents that imitate achieve, by what their world model predicts.

    python -m results.experiments.imitation runs/imitation/* --out results/imitation

Takes run folders of `run.py imitate` that `run.py evaluate` has measured (with `--shifts all` and
`--token-pruning 0.1,0.4,0.6,0.8,0.9` for these tables), or the measured.json that this script wrote
before. Writes OUT.md, and in the folder OUT measured.json (every episode), measured.png and .svg
(success under pruning and shifts), and one video and one picture of predictions a run.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib import pyplot

from agents.evaluation import retained
from analysis import figures
from analysis.output import page_of
from analysis.score_files import run_config
from commands.command_line import script
from errors import UserError
from experiment.video import shrink_video
from results.experiments.robustness import published_shifts

MODULE = "results.experiments.imitation"
PAPER = (
    "Published (Mask World Model, 1.9 billion parameters, pretrained), on LIBERO, 50 demonstrations"
    " a task: masks .983, best RGB .965; nPAUC .648 (Mask World Model) and .629 (GE-ACT) on a"
    " denser grid that is not published, .642 and .622 from its published table by the rule used"
    " here. On a real robot, four tasks, 50 demonstrations each, three shifts (background,"
    " lighting, object colour): Retain .62 with masks, .53 (GE-ACT) and .49 (π0) without."
)


@dataclass(frozen=True)
class Imitation:
    """Compare runs of imitation."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders with evaluation.json, or a measured.json."""
    out: Path
    """Page (OUT.md) and folder to write."""


def read(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """One dict a run: ``target``, ``seed``, ``evaluation``, ``wall_seconds``, ``hardware``,
    ``trained_by``, ``name``.

    Raises:
        UserError: naming the file that cannot be used.
    """
    runs: list[dict[str, Any]] = []
    for path in map(Path, inputs):
        try:
            if path.suffix == ".json":
                runs += json.loads(path.read_text(encoding="utf-8"))["runs"]
                continue
            config = run_config(path)
            lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
            seconds = json.loads(lines[-1])["time"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            hint = f"python run.py evaluate --logdir {path} --episodes 20"
            raise UserError(f"{path} has not been evaluated yet; {hint}") from error
        if "updates" not in evaluation:
            raise UserError(
                f"{path} is no run of imitate; python -m results.experiments.robustness compares "
                "others"
            )
        runs.append(
            {
                "name": path.name,
                "target": config.target,
                "seed": config.seed,
                "evaluation": evaluation,
                "wall_seconds": seconds,
                "hardware": config.provenance["hardware"],
                "trained_by": config.provenance["command"],
                "trained_at": config.provenance["commit"],
            }
        )
    if not runs:
        raise UserError("name at least one run folder")
    return runs


def markdown(runs: Sequence[dict[str, Any]], command: str, folder: str) -> str:
    """The report, whose pictures are in `folder`."""
    lines = [
        "# Imitation, by what the world model predicts",
        "",
        f"Made by `{command}`. Success rates with 95 % Wilson intervals; `none` is the same policy "
        "head on an image encoder without a world model, `blind` the same on black pictures.",
        "",
        "| run | predicts | seed | updates | hours | success | random policy |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        found = run["evaluation"]
        lines.append(
            f"| {run['name']} | {run['target']} | {run['seed']} | {found['updates']:,} |"
            f" {run['wall_seconds'] / 3600:.1f} | {_rate(found['agent']['success'])} |"
            f" {_rate(found.get('random', {}).get('success'))} |"
        )
    lines += ["", "| task | run | success |", "|---|---|---|"]
    for task in dict.fromkeys(t for run in runs for t in run["evaluation"]["agent"]["tasks"]):
        for run in runs:
            success = run["evaluation"]["agent"]["tasks"].get(task)
            if success is not None:
                lines.append(f"| {task} | {run['name']} | {_rate(success)} |")
    lines += _instructions(runs) + _pruning(runs) + _shifts(runs)
    if any("pruning" in run["evaluation"] or "shifts" in run["evaluation"] for run in runs):
        lines += ["", f"![Success under pruning and under shifts]({folder}/measured.png)"]
    lines += ["", PAPER, "", "Trained and measured by:", ""]
    for run in runs:
        cores = run["hardware"].get("cores")
        machine = run["hardware"].get("gpu") or f"{run['hardware']['processor']}, {cores} cores"
        lines.append(
            f"- {run['name']}: `{run['trained_by']}` at {_short(run['trained_at'])},"
            f" `{run['evaluation']['command']}` at {', '.join(_commits(run['evaluation']))};"
            f" {machine}"
        )
    return "\n".join(lines) + "\n"


def _instructions(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Success with every task's instruction replaced by another's, where that was measured."""
    lines = ["", "| told another task's instruction | run | told | success |", "|---|---|---|---|"]
    head = len(lines)
    for run in runs:
        found = run["evaluation"]
        for task, told in found.get("instructions", {}).items():
            success = _rate(found["swapped"]["tasks"][task])
            lines.append(f"| {task} | {run['name']} | {told} | {success} |")
    return lines if len(lines) > head else []


def _pruning(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Success under token pruning and the area under it, a table for each grid."""
    lines = []
    grids = [tuple(r["evaluation"].get("pruning", {}).get("ratios", ())) for r in runs]
    for grid in dict.fromkeys(grid for grid in grids if grid):
        heads = " | ".join(f"r = {ratio:g}" for ratio in grid)
        lines += ["", f"| run | r = 0 | {heads} | nPAUC | over success at r = 0 |"]
        lines.append("|---" * (len(grid) + 4) + "|")
        for run in (run for run, its in zip(runs, grids, strict=True) if its == grid):
            found = run["evaluation"]
            cells = [found["agent"]["success"]["mean"], *found["pruning"]["success"]]
            relative = found["pruning"]["area_over_unpruned"]
            lines.append(
                f"| {run['name']} | "
                + " | ".join(f"{cell:.2f}" for cell in cells)
                + f" | {found['pruning']['area']:.3f} | "
                + ("undefined |" if relative is None else f"{relative:.3f} |")
            )
    return lines


def _shifts(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Success under every visual shift, and Retain, a table for each list of shifts."""
    lines = []
    lists = [tuple(run["evaluation"].get("shifts", ())) for run in runs]
    for shifts in dict.fromkeys(shifts for shifts in lists if shifts):
        measured = [run for run, its in zip(runs, lists, strict=True) if its == shifts]
        lines += ["", "| shift | " + " | ".join(run["name"] for run in measured) + " |"]
        lines.append("|---" * (len(measured) + 1) + "|")
        for shift in shifts:
            cells = [_rate(run["evaluation"][shift]["success"]) for run in measured]
            lines.append(f"| {shift} | " + " | ".join(cells) + " |")
        cells = [_retain(run["evaluation"]["retained"]) for run in measured]
        lines.append("| **Retain** | " + " | ".join(cells) + " |")
        if few := published_shifts(shifts):
            cells = [_retain(_retained(run["evaluation"], few)) for run in measured]
            lines.append(f"| **Retain** of {', '.join(few)} | " + " | ".join(cells) + " |")
    return lines


def _retained(evaluation: dict[str, Any], shifts: Sequence[str]) -> dict[str, Any]:
    """What is retained under some of the shifts, from the same episodes by the same rule."""
    episodes = {shift: evaluation[shift]["episodes"] for shift in shifts}
    return retained(evaluation["agent"]["episodes"], episodes)


def _retain(found: dict[str, Any]) -> str:
    if found["retain"] is None:
        return "undefined"
    low, high = found["interval"]
    return f"{found['retain']:.2f} ({low:.2f} to {high:.2f})"


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Success with its interval by the share of pruned tokens, and under each shift."""
    pruned = [run for run in runs if "pruning" in run["evaluation"]]
    shifted = [run for run in runs if "shifts" in run["evaluation"]]
    if not (pruned or shifted):
        return
    look = figures.looks([run["name"] for run in runs])
    shifts = list(dict.fromkeys(s for run in shifted for s in run["evaluation"]["shifts"]))
    with pyplot.rc_context(figures.STYLE):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(6.0 + 0.8 * len(shifts), 3.2), sharey=True,
            width_ratios=(4, max(4, len(shifts))),
        )  # fmt: skip
        for run in pruned:
            found = run["evaluation"]
            colour, style, marker = look[run["name"]]
            ratios = [0.0, *found["pruning"]["ratios"]]
            rows = [found["agent"], *(found[f"pruned {ratio:g}"] for ratio in ratios[1:])]
            left.plot(
                ratios, [row["success"]["mean"] for row in rows], linestyle=style, marker=marker,
                color=colour, label=run["name"],
            )  # fmt: skip
            bounds = [row["success"]["interval"] for row in rows]
            left.fill_between(
                ratios, *zip(*bounds, strict=True), color=colour, alpha=0.15, linewidth=0
            )
        for index, run in enumerate(shifted):
            colour, _, marker = look[run["name"]]
            offset = (index - (len(shifted) - 1) / 2) * 0.2
            for place, shift in enumerate(["agent", *shifts]):
                success = run["evaluation"].get(shift, {}).get("success")
                if success is not None:
                    right.plot(
                        [place + offset] * 2, success["interval"], color=colour, linewidth=3,
                        alpha=0.4,
                    )  # fmt: skip
                    right.plot(
                        place + offset, success["mean"], marker, color=colour,
                        label=run["name"] if place == 0 else None,
                    )  # fmt: skip
        names = ["none", *(shift.replace(":", "\n") for shift in shifts)]
        right.set_xticks(range(len(names)), names)
        left.set(xlabel="share of video tokens dropped", ylabel="success", ylim=(-0.02, 1.02))
        for axes in (left, right):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        figure.tight_layout()
        figures.save(figure, path)


def _commits(evaluation: dict[str, Any]) -> list[str]:
    """The commits its rows were measured at."""
    rows = [part for part in evaluation.values() if isinstance(part, dict) and "episodes" in part]
    found = (row.get("commit", evaluation["commit"]) for row in rows)
    return list(dict.fromkeys(map(_short, found)))


def _short(commit: str) -> str:
    name, dirty, _ = commit.partition("-dirty")
    return name[:12] + dirty


def _rate(success: dict[str, Any] | None) -> str:
    if success is None:
        return ""
    low, high = success["interval"]
    return f"{success['mean']:.2f} ({low:.2f} to {high:.2f})"


def keep_shown(run: Path, out: Path) -> None:
    """The last picture and the video of a run folder, the video made small, as `run`.* in `out`.

    Raises:
        UserError: the video cannot be read, or its copy cannot be written.
    """
    for picture in sorted(run.glob("pictures/prediction-*.png"))[-1:]:
        shutil.copy(picture, out / f"{run.name}.png")
    video = run / "videos" / "evaluation.mp4"
    if video.exists():
        try:
            shrink_video(video, out / f"{run.name}.mp4")
        except OSError as error:
            raise UserError(f"{error}; evaluate the run again with --video") from error


def main(options: Imitation) -> None:
    """Read, write. Raises UserError for inputs that cannot be used."""
    runs = read(options.inputs)
    page = page_of(options.out)
    command = f"python -m {MODULE} {options.out}/measured.json --out {options.out}"
    (options.out / "measured.json").write_text(
        json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8"
    )
    page.write_text(markdown(runs, command, options.out.name), encoding="utf-8")
    draw(runs, options.out / "measured")
    for path in map(Path, options.inputs):
        keep_shown(path, options.out)
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(script(main, Imitation, MODULE))
