"""The picture of a run: success or return against environment steps, or updates."""

from collections.abc import Sequence
from typing import Any, BinaryIO

INK, FAINT, COLOUR = "#30343b", "#9aa3b0", "#1565a8"
STYLE: dict[Any, Any] = {  # of the names of settings that matplotlib's type lists
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
}


def draw_curve(
    file: BinaryIO,
    lines: Sequence[dict[str, Any]],
    title: str,
    unit: str = "environment steps",
) -> bool:
    """Draw the lines of a ``metrics.jsonl`` as PNG; False, and nothing drawn, if none can be.

    Evaluations (``eval/success``, or ``eval/return`` where no success is known) are the marked
    line, the returns of training episodes (``train/return``) the faint one behind it.
    """
    has_success = bool(_series(lines, "eval/success"))
    evaluations = _series(lines, "eval/success" if has_success else "eval/return")
    episodes = _series(lines, "train/return")
    if not evaluations and not episodes:
        return False

    # Half a second to import, and only a training run draws.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=10)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        # A return is drawn on the scale of returns, which success does not share.
        returns = axes.twinx() if has_success else axes
        drawn = []
        if evaluations:
            drawn += axes.plot(
                *zip(*evaluations, strict=True),
                color=COLOUR,
                linewidth=2.0,
                marker="o",
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.8,
                clip_on=False,
                zorder=4,
                label="success in evaluation" if has_success else "return in evaluation",
            )
        if episodes:
            drawn += returns.plot(
                *zip(*episodes, strict=True),
                color=FAINT,
                alpha=0.55,
                linewidth=1.0,
                zorder=2,
                label="return of training episodes",
            )
        if has_success:
            axes.set_ylim(0, 1)
            axes.set_ylabel("success", color=COLOUR)
            returns.set_ylabel("episode return", color=FAINT)
            returns.tick_params(axis="y", colors=FAINT)
            # The evaluations belong in front of the other axis' line.
            axes.set_zorder(returns.get_zorder() + 1)
            axes.patch.set_visible(False)
        else:
            axes.spines["right"].set_visible(False)
            axes.set_ylabel("episode return")
        axes.set_xlim(left=0)
        figure.legend(handles=drawn, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        figure.savefig(file, format="png")
    return True


def _series(lines: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]
