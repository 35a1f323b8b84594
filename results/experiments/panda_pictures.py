"""A page of the panda tasks: pictures and masks of both cameras, and how their experts end.

    python -m results.experiments.panda_pictures --out results/panda/tasks.png

Writes OUT.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import envs
from commands.command_line import script
from envs.environment_config import Quality
from envs.experts import expert
from errors import UserError
from mask_classes import colorize
from results.experiments.views import draw_legend, few_colours, grid

COLUMNS = ("front", "", "wrist", "", "at success", "", "another start", "")
TITLE = 0.24  # of a picture's height


@dataclass(frozen=True)
class Pictures:
    """Draw the page."""

    out: Path
    """PNG to write."""
    size: int = 64
    """Pixels a side of each picture."""
    quality: Quality = "fast"
    """Of the pictures."""
    seed: int = 0
    """Of the first start; the other one's is the next."""


def observe(task: str, options: Pictures) -> tuple[str, list[np.ndarray]]:
    """The instruction, and pictures (S, S, 3) in the order of the columns.

    Raises:
        RuntimeError: the expert has not succeeded, and the page would show something else.
    """
    environment = envs.make(
        task, camera="front,wrist", size=options.size, quality=options.quality, masks=True
    )
    try:
        start, _ = environment.reset(seed=options.seed)
        acting = expert(environment)
        acting.begin()
        over = False
        while not over:
            end, _, terminated, truncated, info = environment.step(acting.action())
            over = terminated or truncated
        if not info["success"]:
            raise RuntimeError(f"the expert of {task} has no success from seed {options.seed}")
        other, _ = environment.reset(seed=options.seed + 1)
    finally:
        environment.close()
    views: list[tuple[dict[str, Any], int]] = [(start, 0), (start, 1), (end, 0), (other, 0)]
    pictures = []
    for seen, camera in views:
        pictures += [seen["image"][camera], colorize(seen["mask"][camera])]
    return environment.instruction, pictures


def main(options: Pictures) -> None:
    """Write the page. Raises UserError for a name that is no PNG's."""
    if options.out.suffix != ".png":
        raise UserError(f"--out {options.out} must end in .png")
    tasks = envs.tasks("panda")
    figure, axes = grid(len(tasks), len(COLUMNS), 1.3, TITLE)
    for row, task in zip(axes, tasks, strict=True):
        instruction, pictures = observe(task, options)
        for axis, picture, title in zip(row, pictures, COLUMNS, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=6, pad=2, loc="left")
            axis.set_anchor("S")
        row[0].set_title(f"{task}: {instruction}\nfront", fontsize=6, pad=2, loc="left")
        row[0].title.set_in_layout(False)
    draw_legend(figure)
    figure.tight_layout(pad=0.3, rect=(0, 0.03, 1, 0.99))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130)
    few_colours(Image.open(drawn).convert("RGB")).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    sys.exit(script(main, Pictures, "results.experiments.panda_pictures"))
