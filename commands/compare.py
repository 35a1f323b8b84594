"""Compare learning curves with each other and with published ones, with proper statistics.

python run.py compare runs/a runs/b published.json --out results/comparison

Inputs are run folders (or folders of them, or globs), files in the published format, CSV with the
columns method, task, seed, step and success or return, and TensorBoard event files; METHOD=PATH
renames the method of an input. Written to --out: one figure per task, all tasks on one page, the
aggregates, scores.md, scores.json and report.html, which needs no other file.
"""

from collections.abc import Sequence

from commands.command_line import parse


def compare(arguments: Sequence[str]) -> None:
    """`run.py compare`: learning curves beside each other. Raises UserError."""
    from analysis.comparison import Compare
    from analysis.report import make_report

    summary, written = make_report(parse(Compare, arguments, "run.py compare", description=__doc__))
    print(summary)
    for path in written:
        print(path)
