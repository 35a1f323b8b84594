"""The paper's other rows: DreamerV2 and the ablations beside Masked World Models, by question.

    python -m results.experiments.baselines results/baselines/curves \
        --published metaworld_scores.json --out results/baselines

Takes curves that `run.py record VARIANT=RUN` has kept (`make baselines` runs and records them), and
the curves that were published with Masked World Models (`scores/score.json` of younggyoseo/MWM on
GitHub). Writes OUT.md, and in the folder OUT one figure a question, drawn by `run.py compare`'s
parts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from analysis import figures
from analysis.comparison import Compare, Comparison, compare
from analysis.curves import Curve
from analysis.output import page_of, write_file
from analysis.score_files import read
from commands.command_line import script
from errors import UserError

MODULE = "results.experiments.baselines"
PUBLISHED = {"mwm": "published mwm", "dreamerv2": "published dreamerv2"}
"""What the paper's methods are called beside ours."""


@dataclass(frozen=True)
class Question:
    """What is asked, where the paper asks it, and which variants answer."""

    title: str
    name: str
    variants: tuple[str, ...]
    found: str
    """What the paper found."""


QUESTIONS = (
    Question(
        "Against DreamerV2, and with other ways to see (appendices I, K)",
        "representation",
        ("mwm", "dreamer", "dreamer-vit", "vae", "dreamer-contrastive", *PUBLISHED.values()),
        "mwm first, then contrast, then DreamerV2; with a VAE most tasks fail",
    ),
    Question(
        "Features or pixels masked (figure 6 a)",
        "masking",
        ("mwm", "pixel-mask"),
        "features above pixels",
    ),
    Question(
        "How much is masked (figure 6 b; mwm: 0.5)",
        "mask_ratio",
        ("mask-25", "mwm", "mask-75", "mask-90"),
        "0.75 above 0.25 and 0.5; 0.9 is worse again",
    ),
    Question(
        "With and without predicting rewards (figure 6 c)",
        "reward",
        ("mwm", "no-reward"),
        "with rewards far above",
    ),
    Question(
        "All tokens or the class token alone (figure 11 a)",
        "tokens",
        ("mwm", "class-token"),
        "all tokens above",
    ),
)


@dataclass(frozen=True)
class Baselines:
    """Compare recorded runs of `make baselines`, one question at a time."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files of `run.py record`, or folders of them."""
    out: Path
    """Page (OUT.md) and folder to write."""
    published: Path | None = None
    """Curves that were published with the paper."""


def named(curves: Sequence[Curve]) -> list[Curve]:
    """Published curves under the names that they have here."""
    return [replace(curve, method=PUBLISHED.get(curve.method, curve.method)) for curve in curves]


def answer(question: Question, curves: Sequence[Curve], out: Path) -> Comparison:
    """The comparison of a question's variants on the tasks of our runs, its figure drawn.

    Raises:
        UserError: the figure cannot be written.
    """
    ours = {curve.task for curve in curves if curve.method not in PUBLISHED.values()}
    asked = [c for c in curves if c.method in question.variants and c.task in ours]
    options = Compare((), out, final="last5", shared=False)
    comparison = compare(asked, options)
    look = figures.looks(comparison.methods)
    figures.save(figures.page(comparison.tasks, look, comparison.kinds), out / question.name)
    return comparison


def table(question: Question, comparison: Comparison, curves: Sequence[Curve]) -> list[str]:
    """Rows of Markdown: each variant on each task."""
    lines = [
        "| variant | task | seeds | last five evaluations | 0.9 from step | episodes at the end |",
        "|---|---|---|---|---|---|",
    ]
    for name in question.variants:
        for task, methods in comparison.finals.items():
            if name not in methods:
                continue
            aligned = comparison.tasks[task][name]
            runs = [c for c in curves if (c.method, c.task) == (name, task)]
            reached = aligned.steps[np.nan_to_num(aligned.mean) >= 0.9]
            first = f"{int(reached[0]):,}" if len(reached) else "never"
            lines.append(
                f"| {name} | {task} | {len(methods[name])} | {methods[name].mean():.2f} | {first} |"
                f" {_episodes(runs)} |"
            )
    return lines


def _episodes(runs: Sequence[Curve]) -> str:
    """Successes of `run.py evaluate` over all runs."""
    ours = [_recorded(run) for run in runs if run.method not in PUBLISHED.values()]
    measured: list[Any] = [entry["evaluation"] for entry in ours if "evaluation" in entry]
    found = [m["agent"]["success"]["count"] for m in measured]
    return f"{sum(found)} of {sum(m['episodes'] for m in measured)}" if found else "–"


def page(options: Baselines, curves: Sequence[Curve]) -> str:
    """The report; draws the figures on the way. Raises UserError."""
    inputs = " ".join(options.inputs)
    lines = [
        "# Masked World Models beside DreamerV2 and every ablation",
        "",
        f"Made by `python -m {MODULE} {inputs} --published metaworld_scores.json --out"
        f" {options.out}` from curves of `make baselines`. Success; on each task all curves of a"
        " question end where its shortest one does. `0.9 from step`: the first step at which the"
        " mean over seeds is there. Published: 10 episodes an evaluation, 5 seeds.",
    ]
    for question in QUESTIONS:
        lines += ["", f"## {question.title}", "", f"Published: {question.found}.", ""]
        there = {curve.method for curve in curves}
        missing = [v for v in question.variants if v not in (there | set(PUBLISHED.values()))]
        if sum(variant in there for variant in question.variants) > 1:
            lines += table(question, answer(question, curves, options.out), curves)
            lines += ["", f"![{question.title}]({options.out.name}/{question.name}.png)"]
        if missing:
            lines += ["", f"Not run yet: {', '.join(missing)}."]
    lines += ["", "Made by:", ""]
    for curve in curves:
        if curve.method not in PUBLISHED.values():
            came = _recorded(curve)
            hours = came["wall_seconds"] / 3600
            lines.append(f"- `{came['command']}` at {came['commit'][:7]}, {hours:.1f} h")
    return "\n".join(lines) + "\n"


def _recorded(curve: Curve) -> dict[str, Any]:
    """What `run.py record` wrote of a run of ours."""
    (entry,) = json.loads(Path(curve.source).read_text(encoding="utf-8"))
    return entry


def measure(options: Baselines) -> None:
    """Read, compare, write. Raises UserError."""
    if not options.inputs:
        raise UserError("name the recorded curves, or a folder of them")
    curves = read(options.inputs)
    if options.published is not None:
        curves += named(read((str(options.published),)))
    write_file(page_of(options.out), page(options, curves))
    print(page_of(options.out))


if __name__ == "__main__":
    sys.exit(script(measure, Baselines, MODULE))
