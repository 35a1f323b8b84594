"""Figures of a comparison: curves per task, all tasks on one page, aggregates.

A method looks the same in every figure: colour (Okabe and Ito, 2008: told apart by colour-blind
people), dashes and marker (told apart in grey). Lines are means over seeds, bands their 95 %
bootstrap intervals, thin lines the runs.
"""

from __future__ import annotations

import io
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from analysis.aggregates import STATISTICS, Estimate, band
from analysis.curves import Aligned, Kind
from analysis.output import write_file
from experiment.learning_curve import FAINT
from experiment.learning_curve import STYLE as CURVE_STYLE

GRID = "#e6e9ee"
# Colour, dashes, marker. The first three are given away by name, the others by the name's hash.
LOOKS = (
    ("#0072B2", (0, ()), "o"),
    ("#D55E00", (0, (6, 1.5)), "s"),
    ("#009E73", (0, (2.5, 1.2)), "^"),
    ("#CC79A7", (0, (7, 1.5, 1.5, 1.5)), "D"),
    ("#E69F00", (0, (4, 1, 1, 1, 1, 1)), "v"),
    ("#56B4E9", (0, (1, 1)), "P"),
    ("#000000", (0, (10, 2)), "X"),
)
MOST_NOTES = 10
"""That are written below a figure."""
NAMED = {"ours": 0, "mwm": 1, "dreamerv2": 2}
STYLE: dict[Any, Any] = CURVE_STYLE | {
    "font.size": 9,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.solid_capstyle": "butt",  # an interval ends where its bar ends
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",
    "svg.hashsalt": "results",  # the same picture is the same file
}

Look = tuple[str, tuple, str]


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Colour, dashes and marker of each method, never the same three twice.

    Known names have a look of their own; others start at the one their hash says and take the
    next that is free.
    """
    taken: dict[str, int] = {name: NAMED[name] for name in methods if name in NAMED}
    for name in sorted(set(methods) - set(NAMED)):
        others = len(LOOKS) - len(NAMED)
        place = zlib.crc32(name.encode()) % others
        order = [len(NAMED) + (place + i) % others for i in range(others)]
        order += range(len(LOOKS), len(LOOKS) ** 2)
        taken[name] = next(index for index in order if index not in taken.values())
    return {name: _look(index) for name, index in taken.items()}


def _look(index: int) -> Look:
    """LOOKS, then their colours with other dashes and markers."""
    row, column = divmod(index, len(LOOKS))
    dashes, marker = (LOOKS[(column + shift * row) % len(LOOKS)] for shift in (1, 2))
    return LOOKS[column][0], dashes[1], marker[2]


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg. Raises UserError where they cannot be written."""
    written = []
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        drawn = io.BytesIO()
        with warnings.catch_warnings():  # a name may be in a script that no font here has
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(drawn, format=kind, **options)
        written.append(path.with_name(f"{path.name}.{kind}"))
        write_file(written[-1], drawn.getvalue())
    pyplot.close(figure)
    return written


def draw_curves(
    axes: Axes,
    methods: Mapping[str, Aligned],
    look: Mapping[str, Look],
    kind: Kind,
    runs: bool = True,
) -> None:
    """The curves of one task; markers where a mean has too few points to look like a line."""
    for name, aligned in methods.items():
        colour, dashes, marker = look[name]
        if runs and len(aligned.scores) > 1:
            axes.plot(aligned.steps, aligned.scores.T, color=colour, alpha=0.3, linewidth=0.6)
        low, high = band(aligned.scores)
        axes.fill_between(aligned.steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            aligned.steps,
            aligned.mean,
            color=colour,
            linestyle=dashes,
            linewidth=1.7,
            marker=marker if len(aligned.steps) < 15 else None,
            markersize=3.5,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if kind == "success":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_yticks([0, 0.5, 1.0])


def task_figure(
    task: str, methods: Mapping[str, Aligned], look: Mapping[str, Look], kind: Kind
) -> Figure:
    """One task, with the number of seeds behind every point below it."""
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(5.2, 3.9), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        draw_curves(upper, methods, look, kind)
        upper.set_title(task, loc="left", fontweight="bold")
        upper.set_ylabel(kind)
        for name, aligned in methods.items():
            colour, dashes, _ = look[name]
            lower.step(
                aligned.steps, aligned.seeds, where="mid", color=colour, linestyle=dashes, lw=1.4
            )
        most = max(int(aligned.seeds.max()) for aligned in methods.values())
        lower.set_ylim(0, most + 0.5)
        lower.set_yticks(sorted({0, most}))
        lower.set_ylabel("seeds")
        lower.set_xlabel("environment steps")
        _legend(figure, methods, look)
    return figure


def page(
    tasks: Mapping[str, Mapping[str, Aligned]],
    look: Mapping[str, Look],
    kinds: Mapping[str, Kind],
) -> Figure:
    """Every task in a small panel, with the number of seeds per method in its corner."""
    # The grid of four to six columns that leaves the fewest panels empty.
    columns = min(len(tasks), min((6, 5, 4), key=lambda c: -len(tasks) % c))
    rows = -(-len(tasks) // columns)
    names = sorted({name for methods in tasks.values() for name in methods})
    width = max(4.6, 1.9 * columns)
    legend = -(-len(names) // _legend_columns(width, names))
    size = (width, 1.45 * rows + 0.7 + 0.18 * legend)
    with matplotlib.rc_context(STYLE | {"font.size": 7}):
        figure = pyplot.figure(figsize=size, layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes, (task, methods) in zip(panels, tasks.items(), strict=False):
            draw_curves(axes, methods, look, kinds[task], runs=False)
            axes.set_title(task.partition("/")[2] or task, fontsize=7.5, loc="left", pad=3)
            _seeds(axes, methods, look)
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("environment steps; small numbers: seeds behind a curve", fontsize=8)
        _legend(figure, names, look)
    return figure


def _seeds(axes: Axes, methods: Mapping[str, Aligned], look: Mapping[str, Look]) -> None:
    """Numbers of seeds, "5" or, where runs end early, "5–2", in the methods' colours."""
    beside: str | Annotation = "axes fraction"
    where, shift = (0.98, 0.04), (0, 0)
    for name, aligned in reversed(list(methods.items())):
        least, most = int(aligned.seeds.min()), int(aligned.seeds.max())
        text = f"{most}" if least == most else f"{most}–{least}"
        beside = axes.annotate(
            text, where, xytext=shift, xycoords=beside, textcoords="offset points",
            color=look[name][0], fontsize=6, ha="right", va="bottom",
        )  # fmt: skip
        where, shift = (0, 0), (-5, 0)  # left of the last, however long that is


def aggregate_figure(
    statistics: Mapping[str, Mapping[str, Estimate]],
    efficiency: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    profiles: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    improvements: Mapping[tuple[str, str], Estimate],
    look: Mapping[str, Look],
    final: str,
    notes: Sequence[str] = (),
) -> Figure:
    """Four panels: aggregate scores, sample efficiency, performance profiles, and probabilities of
    improvement.

    Args:
        statistics: method → statistic → estimate.
        efficiency: method → (fractions of the budget (T,), means (T,), intervals (2, T)).
        profiles: method → (thresholds (T,), shares (T,), intervals (2, T) or None).
        improvements: (better?, than) → estimate.
        look: of every method.
        final: name of the final score.
        notes: what has to be said about the numbers, below them.
    """
    if len(notes) > MOST_NOTES:
        notes = [*notes[:MOST_NOTES], f"… {len(notes) - MOST_NOTES} more notes in scores.md"]
    height = 5.4 + max(1.0, 0.16 * len(improvements)) + 0.16 * len(notes)
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(9.2, height), layout="constrained")
        if notes:
            text = "\n".join(textwrap.shorten(note, 150) for note in notes)
            figure.supxlabel(text, fontsize=7, color=FAINT, x=0.01, ha="left")
        # Two rows laid out apart: the long names below must not narrow the panels above.
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False)
        scores, curves = upper.subplots(1, 2)
        profile, improvement = lower.subplots(1, 2)

        names = list(statistics)
        for column, statistic in enumerate(STATISTICS):
            for row, name in enumerate(names):
                colour, _, marker = look[name]
                place = column + _offset(row, len(names))
                point, interval = statistics[name][statistic]
                if interval is not None:
                    scores.plot([place] * 2, interval, color=colour, linewidth=5, alpha=0.35)
                scores.plot(place, point, color=colour, marker=marker, markersize=5, clip_on=False)
        scores.set_xticks(range(len(STATISTICS)), [s.replace(" ", "\n") for s in STATISTICS])
        reached = [point for estimates in statistics.values() for point, _ in estimates.values()]
        scores.set_ylim(min(0, *reached), max(1, *reached))
        scores.set_ylabel(f"score ({final})")
        scores.set_title("aggregates over tasks (gap: lower is better)", loc="left", fontsize=9)
        scores.grid(axis="x", visible=False)

        for name, (fractions, means, (low, high)) in efficiency.items():
            colour, dashes, _ = look[name]
            curves.fill_between(fractions, low, high, color=colour, alpha=0.18, linewidth=0)
            curves.plot(fractions, means, color=colour, linestyle=dashes, linewidth=1.7)
        furthest = max((fractions[-1] for fractions, _, _ in efficiency.values()), default=1) or 1
        curves.set(xlim=(0, furthest), ylim=(0, 1), xlabel="environment steps / budget of the task")
        curves.xaxis.set_major_locator(MaxNLocator(nbins=5))
        curves.set_ylabel("mean score")
        curves.set_title("sample efficiency, where every run is known", loc="left", fontsize=9)

        for name, (thresholds, share, around) in profiles.items():
            colour, dashes, _ = look[name]
            if around is not None:
                profile.fill_between(thresholds, *around, color=colour, alpha=0.18, linewidth=0)
            profile.plot(thresholds, share, color=colour, linestyle=dashes, linewidth=1.7)
        profile.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"score τ ({final})")
        profile.set_ylabel("share of runs with score > τ")
        profile.set_title("performance profile", loc="left", fontsize=9)

        _draw_improvements(improvement, improvements, look)
        _legend(figure, names, look)
    return figure


def _short(name: str) -> str:
    """A name that leaves room for a picture; what differs is mostly at its end."""
    return name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"


def _offset(row: int, rows: int) -> float:
    """Where the row-th of `rows` methods stands beside a tick."""
    return min(0.16, 0.8 / rows) * (row - (rows - 1) / 2)


def _draw_improvements(
    axes: Axes, improvements: Mapping[tuple[str, str], Estimate], look: Mapping[str, Look]
) -> None:
    axes.set_title("probability of improvement", loc="left", fontsize=9)
    if not improvements:
        axes.text(0.5, 0.5, "one method only", ha="center", color=FAINT, transform=axes.transAxes)
        axes.set_axis_off()
        return
    for row, ((better, _), (point, interval)) in enumerate(improvements.items()):
        colour, _, marker = look[better]
        if interval is not None:
            axes.plot(interval, [row] * 2, color=colour, linewidth=5, alpha=0.35)
        axes.plot(point, row, color=colour, marker=marker, markersize=5, clip_on=False)
    axes.axvline(0.5, color=FAINT, linewidth=1)
    labels = [f"{_short(better)} > {_short(than)}" for better, than in improvements]
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(labels) - 0.4), xlabel="P(a run is better), shared tasks")
    axes.grid(axis="y", visible=False)


def groups_figure(
    groups: Mapping[str, Mapping[str, Estimate]], look: Mapping[str, Look], final: str
) -> Figure:
    """Mean score per group of tasks, `groups`: group → method → estimate."""
    methods = sorted({name for group in groups.values() for name in group})
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(
            figsize=(max(4.6, 1.3 + 1.2 * len(groups)), 3.0), layout="constrained"
        )
        axes = figure.subplots()
        for place, group in enumerate(groups.values()):
            for row, (name, (point, interval)) in enumerate(sorted(group.items())):
                colour, _, marker = look[name]
                x = place + _offset(row, len(group))
                if interval is not None:
                    axes.plot([x] * 2, interval, color=colour, linewidth=5, alpha=0.35)
                axes.plot(x, point, color=colour, marker=marker, markersize=5, clip_on=False)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_ylabel(f"mean score ({final})")
        axes.grid(axis="x", visible=False)
        _legend(figure, methods, look)
    return figure


def _legend(figure: Figure, names: Sequence[str] | Mapping, look: Mapping[str, Look]) -> None:
    handles = [
        Line2D([], [], color=look[n][0], linestyle=look[n][1], marker=look[n][2], ms=4, lw=1.7)
        for n in names
    ]
    columns = _legend_columns(figure.get_figwidth(), names)
    figure.legend(handles, list(names), loc="outside upper center", ncols=columns)


def _legend_columns(width: float, names: Sequence[str] | Mapping) -> int:
    """How many names fit beside each other in `width` inches, at about 11 characters an inch."""
    longest = max(len(name) for name in names)
    return max(1, min(len(names), int(width * 11 / (longest + 8))))
