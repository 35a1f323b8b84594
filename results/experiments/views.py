"""Pages of pictures: what shifts look like, and the masks of every task.

    python -m results.experiments.views --page shifts --out results/views/shifts.png

`shifts` draws every visual shift at three strengths, `masks` the masks of all Meta-World tasks with
the share of the picture that each class covers, `libero` the same of both cameras of the 40 tasks
of LIBERO's spatial, object, goal and 10, where the benchmark's first recorded state has settled.
"""

from __future__ import annotations

import io
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

import envs
from commands.command_line import script
from envs.environment_config import Quality
from envs.shifts import SHIFTS
from errors import UserError
from mask_classes import NAMES, OBJECT, OTHER, PALETTE, colorize

STRENGTHS = (0.25, 0.5, 1.0)
SHIFT_TASKS = ("metaworld/window-close", "metaworld/plate-slide", "dmc/walker-walk",
               "dmc/reacher-easy")  # fmt: skip
STEPS = 25
"""Random agent steps before a picture is taken, so that arm and object have moved."""
LIBERO_TITLE = 0.33  # of a picture's height: up to three lines of text
LIBERO_TITLE_WIDTH = 108  # characters over four pictures


@dataclass(frozen=True)
class Views:
    """Draw a page."""

    page: Literal["shifts", "masks", "libero"]
    """What to draw."""
    out: Path
    """PNG to write."""
    tasks: tuple[str, ...] = ()
    """Which tasks; by default four for shifts, all of Meta-World for masks, 40 for libero."""
    size: int = 128
    """Pixels a side of each picture."""
    quality: Quality = "fast"
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
        several = len(environment.cameras) > 1
        return {  # cameras side by side
            name: np.concatenate(list(views), axis=1) if several else views
            for name, views in observation.items()
        }
    finally:
        environment.close()


def grid(rows: int, columns: int, width: float, title: float = 0.18):
    """A figure of small pictures without axes, each with room for a title of some share of its
    height, and its axes (rows, columns)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, width * (1 + title) * rows), squeeze=False
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
    draw_legend(figure)
    return figure


def draw_libero(options: Views):
    """Four tasks a row: both cameras' pictures beside their masks, under the instruction."""
    tasks = options.tasks or [
        f"libero/{part}/{number}"
        for number in range(10)
        for part in ("spatial", "object", "goal", "10")
    ]
    across = min(4, len(tasks))
    figure, axes = grid(-(-len(tasks) // across), 4 * across, 1.15, LIBERO_TITLE)
    for index, task in enumerate(tasks):
        environment = envs.make(task, size=options.size, quality=options.quality, masks=True)
        try:
            seen, _ = environment.reset(seed=options.seed, options={"init_state": 0})
            title = textwrap.wrap(f"{task[7:]}  {environment.instruction}", LIBERO_TITLE_WIDTH)
            named = {number: NAMES[number] for number in (1, 2, 7)}
            named |= dict(zip(range(OBJECT, OTHER), environment.objects_of_interest, strict=False))
        finally:
            environment.close()
        block = axes[index // across, 4 * (index % across) :][:4]
        for camera in range(2):
            block[2 * camera].imshow(seen["image"][camera])
            block[2 * camera + 1].imshow(colorize(seen["mask"][camera]), interpolation="nearest")
        share = [
            np.bincount(mask.reshape(-1), minlength=len(NAMES)) / mask.size for mask in seen["mask"]
        ]
        covered = "   ".join(
            # spaces at which a line does not end
            f"{number} {name} {100 * share[0][number]:.1f}|{100 * share[1][number]:.1f}".replace(
                " ", "\u00a0"
            )
            for number, name in named.items()
        )
        text = "\n".join([*title, *textwrap.wrap(covered, LIBERO_TITLE_WIDTH)])
        # Wider than its picture: the layout must not make room for it at the side.
        place = {"transform": block[0].transAxes, "verticalalignment": "bottom"}
        block[0].text(0, 1.02, text, fontsize=6, **place).set_in_layout(False)
        for axis in block:
            axis.set_anchor("S")
    draw_legend(figure)
    return figure


def draw_legend(figure) -> None:
    """The colours of a mask, at the bottom of the page."""
    from matplotlib.patches import Patch

    legend = [Patch(color=PALETTE[c] / 255, label=f"{c} {NAMES[c]}") for c in range(len(NAMES))]
    figure.legend(handles=legend, loc="lower center", ncols=len(NAMES), fontsize=7, frameon=False)


def few_colours(page: Image.Image) -> Image.Image:
    """The page in 256 colours, a quarter of the bytes and enough to look at; the paper's white and
    those of the classes stay as they are."""
    kept = [255, 255, 255, *PALETTE.reshape(-1).tolist()]
    others = page.quantize(256 - len(kept) // 3).getpalette()[: 3 * 256 - len(kept)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(kept + others)
    return page.quantize(palette=palette, dither=Image.Dither.NONE)


def main(options: Views) -> None:
    """Write the page. Raises UserError for a task that does not exist."""
    for task in options.tasks:
        envs.suite(task)
    if options.out.suffix != ".png":
        raise UserError(f"--out {options.out} must end in .png")
    pages = {"shifts": draw_shifts, "masks": draw_masks, "libero": draw_libero}
    figure = pages[options.page](options)
    figure.tight_layout(pad=0.3, rect=(0, 0.02, 1, 1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=160)
    few_colours(Image.open(drawn).convert("RGB")).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    sys.exit(script(main, Views, "results.experiments.views"))
