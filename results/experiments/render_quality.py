"""How Meta-World's pictures look and what they cost, of all 50 tasks: full, smooth, fast, masks.

    python -m results.experiments.render_quality --out results

Writes render_quality.png (full, smooth, fast and mask of every task) and render_quality.md. Run it
alone: the milliseconds are meant for an otherwise idle machine.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import envs
from commands.command_line import script
from envs.rendering import Renderer
from errors import UserError
from experiment.hardware import hardware
from experiment.provenance import provenance
from mask_classes import colorize

STEPS = 25
"""Random steps before the picture is taken, so that arm and object have moved."""
REPEATS = 30
"""Frames timed; the fastest is reported, since other work only ever adds."""


@dataclass(frozen=True)
class RenderQuality:
    """Measure how pictures look at every quality, and what they cost."""

    out: Path
    """Folder for render_quality.png and render_quality.md."""
    tasks: tuple[str, ...] = tuple(envs.tasks("metaworld"))
    """Meta-World tasks."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("--tasks needs at least one task")


def milliseconds(draw: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Wall time of the fastest of some calls, milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        draw()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def measure(task: str) -> dict[str, Any]:
    """One state of a task at every quality and as a mask, and the milliseconds each takes."""
    environment = envs.make(task, quality="fast", action_repeat=1)
    environment.observing = False
    environment.reset(seed=1)
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (STEPS, *environment.action_space.shape)).astype(np.float32)
    for action in actions:
        for _ in range(environment.default_action_repeat):
            environment.step(action)
    fast = environment.renderer
    others = {
        quality: Renderer(environment.model, 64, 64, quality) for quality in ("full", "smooth")
    }

    def draw(renderer: Renderer) -> np.ndarray:
        environment.pose(renderer, environment.camera_numbers[0])
        return renderer.image()

    result = {"task": task, "fast": draw(fast), "mask": fast.mask(environment.classes)}
    result |= {quality: draw(renderer) for quality, renderer in others.items()}
    result["fast_ms"] = milliseconds(lambda: draw(fast))
    result["smooth_ms"] = milliseconds(lambda: draw(others["smooth"]))
    result["mask_ms"] = milliseconds(lambda: fast.mask(environment.classes))
    result["full_ms"] = milliseconds(lambda: draw(others["full"]), 5)
    steps = iter(actions)
    result["step_ms"] = milliseconds(lambda: environment.step(next(steps)), STEPS)
    for renderer in others.values():
        renderer.close()
    environment.close()
    for quality in ("smooth", "fast"):
        difference = np.abs(result["full"].astype(int) - result[quality])
        result |= {f"{quality}_mean": difference.mean(), f"{quality}_max": difference.max()}
    return result


def contact_sheet(results: list[dict[str, Any]], columns: int = 4, scale: int = 2) -> np.ndarray:
    """All tasks as full | smooth | fast | mask, named, (H, W, 3) uint8."""
    width, height = 4 * 64 * scale + 8, 64 * scale + 16
    rows = -(-len(results) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, result in enumerate(results):
        x, y = index % columns * width, index // columns * height
        pen.text((x + 2, y + 2), result["task"].split("/")[1], fill="black")
        pictures = [result[quality] for quality in ("full", "smooth", "fast")]
        for place, picture in enumerate([*pictures, colorize(result["mask"])]):
            tile = Image.fromarray(picture).resize((64 * scale, 64 * scale), Image.NEAREST)
            sheet.paste(tile, (x + place * 64 * scale, y + 14))
    return np.asarray(sheet)


def markdown(results: list[dict[str, Any]], origin: dict[str, Any]) -> str:
    """The table, with what is needed to repeat it.

    Args:
        results: of `measure`.
        origin: `provenance`.
    """
    machine = hardware()
    versions = ", ".join(
        f"{name} {origin['versions'][name]}"
        for name in ("metaworld", "mujoco", "numpy", "gymnasium")
    )
    columns = (
        "smooth_mean", "fast_mean", "smooth_max", "fast_max",
        "full_ms", "smooth_ms", "fast_ms", "mask_ms", "step_ms",
    )  # fmt: skip
    lines = [
        "# Meta-World pictures at 64×64: full against smooth and fast",
        "",
        "Absolute difference from the full picture of one state (0 to 255), mean and largest,",
        "milliseconds a frame (the fastest of several), and milliseconds a control step of the",
        "simulator. The mask is drawn with the geometry of its picture; timed at fast. Most of the",
        "difference is shadows and the light of the shadow pass, which brightens what it reaches;",
        "fast also has jagged edges, from one sample a pixel.",
        "",
        f"- command: `{origin['command']}`",
        f"- commit: {origin['commit']}",
        f"- hardware: {machine['processor']}, {machine['cores']} cores,"
        f" MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')};"
        f" load average when done {os.getloadavg()[0]:.1f}",
        f"- versions: {versions}",
        "",
        "| task | smooth: mean | fast: mean | smooth: max | fast: max"
        " | full ms | smooth ms | fast ms | mask ms | control step ms |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for result in results:
        numbers = " | ".join(
            f"{result[c]:.0f}" if c.endswith("max") else f"{result[c]:.2f}" for c in columns
        )
        lines.append(f"| {result['task']} | {numbers} |")
    means = " | ".join(f"{np.mean([r[c] for r in results]):.2f}" for c in columns)
    lines.append(f"| **mean** | {means} |")
    return "\n".join(lines) + "\n"


def main(options: RenderQuality) -> None:
    """Measure, then write the picture and the table. Raises UserError for other tasks."""
    for task in options.tasks:
        if envs.suite(task) != "metaworld":
            raise UserError(f"{task} is no task of Meta-World")
    origin = provenance()
    results = []
    for task in options.tasks:
        results.append(measure(task))
        print(f"{task}: mean {results[-1]['fast_mean']:.2f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(results)).save(options.out / "render_quality.png")
    (options.out / "render_quality.md").write_text(markdown(results, origin), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(script(main, RenderQuality, "results.experiments.render_quality"))
