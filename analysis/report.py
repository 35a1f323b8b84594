"""What a comparison looks like: figures in files, Markdown, one HTML page, a few lines of text."""

from __future__ import annotations

import html as escape
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import figures
from analysis.aggregates import STATISTICS, Estimate
from analysis.comparison import Compare, Comparison, compare
from analysis.output import file_names, write_file
from analysis.score_files import read
from errors import UserError

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #30343b; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #e6e9ee; }
svg { max-width: 100%; height: auto; } code { font-size: 12px; } .tasks svg { width: 32%; }
"""


def draw(comparison: Comparison, out: Path, final: str) -> list[Path]:
    """Write all figures into `out`; returns the PNG and SVG files, the most telling first."""
    look = figures.looks(comparison.methods)
    names = file_names(comparison.tasks)
    written = []
    if comparison.statistics:
        figure = figures.aggregate_figure(
            comparison.statistics,
            comparison.efficiency,
            comparison.profiles,
            comparison.improvements,
            look,
            final,
            comparison.notes,
        )
        written += figures.save(figure, out / "aggregate")
    if comparison.groups:
        written += figures.save(
            figures.groups_figure(comparison.groups, look, final), out / "groups"
        )
    written += figures.save(figures.page(comparison.tasks, look, comparison.kinds), out / "curves")
    for task, methods in comparison.tasks.items():
        figure = figures.task_figure(task, methods, look, comparison.kinds[task])
        written += figures.save(figure, out / "tasks" / names[task])
    return written


def _shown(estimate: Estimate, scale: float = 100.0, digits: int = 1) -> str:
    point, interval = estimate
    text = f"{scale * point:.{digits}f}"
    if interval is None:
        return f"{text} (one seed)"
    low, high = (scale * value for value in interval)
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


MOST_REPETITIONS = 100_000
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def _aggregates(comparison: Comparison) -> Table:
    """Header and rows."""
    rows = []
    for method, statistics in comparison.statistics.items():
        tasks = [methods[method] for methods in comparison.finals.values() if method in methods]
        seeds = sorted({len(finals) for finals in tasks})
        span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        rows.append([method, str(len(tasks)), span, *(_shown(statistics[s]) for s in STATISTICS)])
    return ["method", "tasks", "seeds", *(f"{s} %" for s in STATISTICS)], rows


def _groups(comparison: Comparison) -> Table:
    methods = comparison.methods
    rows = []
    for group, members in comparison.groups.items():
        sizes = sorted(set(comparison.group_sizes[group].values()))
        row = [group, " to ".join(map(str, sizes))]
        rows.append(row + [_shown(members[m]) if m in members else "–" for m in methods])
    return ["difficulty", "tasks", *(f"{m} %" for m in methods)], rows


def _improvements(comparison: Comparison) -> Table:
    rows = [[f"{a} > {b}", _shown(e)] for (a, b), e in comparison.improvements.items()]
    return ["runs", "probability %"], rows


def _tasks(comparison: Comparison) -> Table:
    rows = []
    for task, methods in comparison.finals.items():
        success = comparison.kinds[task] == "success"
        row = [task, "success %" if success else "return"]
        for method in comparison.methods:
            if method not in methods:
                row.append("–")
                continue
            finals = methods[method] * (100.0 if success else 1.0)
            deviation = f" ± {finals.std(ddof=1):.1f}" if len(finals) > 1 else ""
            last = int(comparison.tasks[task][method].steps[-1])
            row.append(f"{finals.mean():.1f}{deviation} (n {len(finals)}, {_steps(last)})")
        rows.append(row)
    return ["task", "score", *comparison.methods], rows


def _steps(count: int) -> str:
    return f"{count / 1e6:g}M" if count >= 1_000_000 else f"{count / 1e3:g}k"


def _sources(comparison: Comparison) -> Table:
    rows = []
    for source in sorted({curve.source for curve in comparison.curves}):
        curves = [curve for curve in comparison.curves if curve.source == source]
        methods = ", ".join(sorted({curve.method for curve in curves}))
        provenance = curves[0].provenance
        rows.append(
            [source, methods, str(len(curves))]
            + [_recorded(provenance.get(name)) for name in ("command", "commit")]
        )
    return ["file", "methods", "runs", "command", "commit"], rows


def _recorded(value: Any) -> str:
    return value if isinstance(value, str) and value else "not recorded"


def _sections(comparison: Comparison, final: str) -> Iterable[tuple[str, str, Table]]:
    """(heading, explanation, table) in the order they are read."""
    yield (
        "Aggregates",
        f"Final score of a run: {final}. 95 % intervals in brackets: stratified bootstrap, seeds "
        "drawn within tasks. Returns are divided by the most a task can pay.",
        _aggregates(comparison),
    )
    if comparison.groups:
        yield "Mean by difficulty", "Groups of the paper's appendix F.", _groups(comparison)
    if comparison.improvements:
        yield (
            "Probability of improvement",
            "Of two random runs on a shared task, the first scores more; a tie is half a win.",
            _improvements(comparison),
        )
    yield (
        "Tasks",
        "Mean ± standard deviation over seeds (n seeds, last evaluated step).",
        _tasks(comparison),
    )
    yield "Sources", "Where each number came from.", _sources(comparison)


def markdown(comparison: Comparison, final: str) -> str:
    """scores.md."""
    parts = ["# Comparison of learning curves\n"]
    parts += [f"> {note}\n" for note in comparison.notes]
    for heading, explanation, (header, rows) in _sections(comparison, final):
        lines = [
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"
            for row in [header, *rows]
        ]
        lines.insert(1, "|" + " --- |" * len(header))
        parts.append(f"## {heading}\n\n{explanation}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def html(comparison: Comparison, final: str, pictures: Sequence[Path]) -> str:
    """One page with everything in it; it loads nothing."""
    drawings = {
        str(path.with_suffix("")): _inline(path.read_text(encoding="utf-8"), index)
        for index, path in enumerate(pictures)
        if path.suffix == ".svg"
    }
    parts = ["<h1>Comparison of learning curves</h1>"]
    parts += [f"<p><em>{escape.escape(note)}</em></p>" for note in comparison.notes]
    out = pictures[0].parent
    main = [str(out / name) for name in ("aggregate", "groups", "curves")]
    *scores, curves = [drawings.pop(name) for name in main if name in drawings]
    parts += scores
    for heading, explanation, (header, rows) in _sections(comparison, final):
        cells = "".join(f"<th>{escape.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        parts.append(
            f"<h2>{heading}</h2><p>{escape.escape(explanation)}</p>"
            f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
        )
    parts += ["<h2>Learning curves</h2>", curves]
    parts.append('<h2>Each task</h2><div class="tasks">' + "".join(drawings.values()) + "</div>")
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Comparison of learning '
        f"curves</title><style>{CSS}</style><body>{''.join(parts)}</body></html>\n"
    )


def _inline(svg: str, index: int) -> str:
    """The <svg> element alone, its ids made unique among all drawings of the page."""
    svg = svg[svg.index("<svg") :]
    for before, after in (('id="', 'id="f%d-'), ("url(#", "url(#f%d-"), ('href="#', 'href="#f%d-')):
        svg = svg.replace(before, after % index)
    return svg


def summary(comparison: Comparison, final: str) -> str:
    """What the terminal shows."""
    lines = [f"note: {note}" for note in comparison.notes]
    header, rows = _aggregates(comparison)
    widths = np.max([[len(cell) for cell in row] for row in [header, *rows]], axis=0)
    for row in [header, *rows]:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    lines.append(f"final score {final}; 95 % intervals by stratified bootstrap over seeds\n")
    return "\n".join(lines)


def make_report(options: Compare) -> tuple[str, list[Path]]:
    """Read, compare and write.

    Returns:
        A few lines that sum it up, and the files that were written, the pages first.

    Raises:
        UserError: inputs that cannot be used, or a folder that cannot be written.
    """
    if not options.inputs:
        raise UserError("name at least one run folder or score file")
    if not 100 <= options.repetitions <= MOST_REPETITIONS:
        raise UserError(f"--repetitions is {options.repetitions}; give 100 to {MOST_REPETITIONS:,}")
    notes: list[str] = []
    curves = read(options.inputs, options.keep, notes.append)
    comparison = compare(curves, options, notes)
    written = write(comparison, options)
    return summary(comparison, options.final), written


def write(comparison: Comparison, options: Compare) -> list[Path]:
    """Write figures, scores.md, scores.json and report.html into `options.out`.

    Returns:
        What was written, the pages first.

    Raises:
        UserError: something cannot be written.
    """
    out, final = options.out, options.final
    pictures = draw(comparison, out, final)
    pages = {
        "scores.md": markdown(comparison, final),
        "scores.json": json.dumps(as_json(comparison, options), indent=1) + "\n",
        "report.html": html(comparison, final, pictures),
    }
    for name, text in pages.items():
        write_file(out / name, text)
    return [*(out / name for name in pages), *pictures]


def as_json(comparison: Comparison, options: Compare) -> dict[str, Any]:
    """The comparison as plain values for scores.json."""

    def plain(estimate: Estimate) -> dict[str, Any]:
        point, interval = estimate
        return {"point": point, "interval": None if interval is None else list(interval)}

    return {
        "final": options.final,
        "until": options.until,
        "interval": "95 % stratified bootstrap over seeds within tasks",
        "aggregates": {
            m: {name: plain(e) for name, e in s.items()} for m, s in comparison.statistics.items()
        },
        "groups": {
            g: {m: plain(e) | {"tasks": comparison.group_sizes[g][m]} for m, e in members.items()}
            for g, members in comparison.groups.items()
        },
        "probability_of_improvement": [
            {"better": left, "than": right, **plain(e)}
            for (left, right), e in comparison.improvements.items()
        ],
        "tasks": {
            task: {
                method: {
                    "kind": comparison.kinds[task],
                    "seeds": len(finals),
                    "mean": float(finals.mean()),
                    "finals": finals.tolist(),
                    "last_step": int(comparison.tasks[task][method].steps[-1]),
                }
                for method, finals in methods.items()
            }
            for task, methods in comparison.finals.items()
        },
        "notes": comparison.notes,
        "sources": sorted({curve.source for curve in comparison.curves}),
    }
