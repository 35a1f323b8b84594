"""Pages to look at: python results/views.py --help

`shifts` draws every visual shift at three strengths, `masks` the masks of all Meta-World tasks with
the share of the picture that each class covers.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import envs
from envs.shifts import SHIFTS
from errors import UserError
from mask_classes import NAMES, PALETTE, colorize

STRENGTHS = (0.25, 0.5, 1.0)
SHIFT_TASKS = ("metaworld/window-close", "metaworld/plate-slide", "dmc/walker-walk",
               "dmc/reacher-easy")  # fmt: skip
STEPS = 25
"""Random agent steps before a picture is taken, so that arm and object have moved."""


@dataclass(frozen=True)
class Views:
    """Draw a page."""

    page: Literal["shifts", "masks"]
    """What to draw."""
    out: Path
    """PNG to write."""
    tasks: tuple[str, ...] = ()
    """Which tasks; by default four for shifts, all of Meta-World for masks."""
    size: int = 128
    """Pixels a side of each picture."""
    quality: Literal["full", "fast"] = "fast"
    """Of the pictures."""
    seed: int = 0
    """Of the episode that is drawn."""


def observe(task: str, options: Views, shift: str = "") -> dict[str, np.ndarray]:
    """What is seen after some random actions."""
    environment = envs.make(
        task, size=options.size, quality=options.quality, masks=True, shift=shift
    )
    try:
        observation, _ = environment.reset(seed=options.seed)
        rng = np.random.default_rng(options.seed)
        for _ in range(STEPS):
            action = rng.uniform(-1, 1, environment.action_space.shape)
            observation = environment.step(action.astype(np.float32))[0]
        return observation
    finally:
        environment.close()


def grid(rows: int, columns: int, width: float):
    """A figure of small pictures without axes, and its axes (rows, columns)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, width * 1.18 * rows), squeeze=False
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.axis("off")
    return figure, axes


def draw_shifts(options: Views):
    """Rows are shifts, columns strengths, for each task beside each other."""
    tasks = options.tasks or SHIFT_TASKS
    columns = 1 + len(STRENGTHS)
    figure, axes = grid(len(SHIFTS), columns * len(tasks), 1.15)
    for block, task in enumerate(tasks):
        plain = observe(task, options)["image"]
        for row, name in enumerate(SHIFTS):
            pictures = [plain] + [
                observe(task, options, f"{name}:{strength}")["image"] for strength in STRENGTHS
            ]
            for column, picture in enumerate(pictures):
                axis = axes[row, block * columns + column]
                axis.imshow(picture)
                title = f"{name} {STRENGTHS[column - 1]}" if column else task.partition("/")[2]
                axis.set_title(title, fontsize=6, pad=2)
    return figure


def draw_masks(options: Views):
    """Picture and mask of every task, and what share of the picture each class covers."""
    tasks = options.tasks or envs.tasks("metaworld")
    across = 5
    figure, axes = grid(-(-len(tasks) // across), 2 * across, 1.15)
    for index, task in enumerate(tasks):
        seen = observe(task, options)
        left, right = axes[index // across, 2 * (index % across) :][:2]
        left.imshow(seen["image"])
        right.imshow(colorize(seen["mask"]), interpolation="nearest")
        share = np.bincount(seen["mask"].reshape(-1), minlength=len(NAMES)) / seen["mask"].size
        left.set_title(task.partition("/")[2], fontsize=6, pad=2)
        covered = "  ".join(f"{c} {100 * share[c]:.1f}" for c in range(1, 8) if share[c])
        right.set_title(covered, fontsize=4, pad=2)
    from matplotlib.patches import Patch

    legend = [Patch(color=PALETTE[c] / 255, label=f"{c} {NAMES[c]}") for c in range(len(NAMES))]
    figure.legend(handles=legend, loc="lower center", ncols=len(NAMES), fontsize=7, frameon=False)
    return figure


def main(options: Views) -> None:
    """Write the page. Raises UserError for a task that does not exist."""
    for task in options.tasks:
        envs.suite(task)
    if options.out.suffix != ".png":
        raise UserError(f"--out {options.out} must end in .png")
    figure = {"shifts": draw_shifts, "masks": draw_masks}[options.page](options)
    figure.tight_layout(pad=0.3, rect=(0, 0.02, 1, 1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=160)
    # 256 colours are a quarter of the bytes, and enough to look at.
    Image.open(drawn).convert("RGB").quantize(256).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    import run

    sys.exit(run.script(main, Views, "results/views.py"))
