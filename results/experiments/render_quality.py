"""How Meta-World's pictures look and what they cost, of all 50 tasks: full, smooth, fast, masks.

    python results/render_quality.py --out results/

writes ``render_quality.png`` (full | smooth | fast | mask of every task) and ``render_quality.md``.
Run it alone: the milliseconds are meant for an otherwise idle machine.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time

import numpy as np

# The repository need not be installed for its scripts to run.
import envs
from envs.rendering import Renderer
from mask_classes import colorize

STEPS = 25  # random steps before the picture is taken, so that arm and object have moved
REPEATS = 30  # frames timed; the fastest is reported, since other work only ever adds


def milliseconds(draw, repeats: int = REPEATS) -> float:
    """Wall time of the fastest of some calls, milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        draw()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def measure(task: str) -> dict:
    """One state of a task at every quality and as a mask, and the milliseconds each takes."""
    environment = envs.make(task, quality="fast", masks=True)
    environment.reset(seed=1)
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (STEPS, *environment.action_space.shape)).astype(np.float32)
    for action in actions:
        observation = environment.step(action)[0]
    fast = environment._renderer
    others = {
        quality: Renderer(environment.model, 64, 64, quality, fast.upside_down)
        for quality in ("full", "smooth")
    }

    def draw(renderer):
        with environment._as_drawn():
            renderer.update(environment.data, environment._camera_numbers[0])
        return renderer.image()

    result = {"task": task, "mask": observation["mask"], "fast": draw(fast)}
    result |= {quality: draw(renderer) for quality, renderer in others.items()}
    result["fast_ms"] = milliseconds(lambda: draw(fast))
    result["smooth_ms"] = milliseconds(lambda: draw(others["smooth"]))
    result["mask_ms"] = milliseconds(lambda: fast.mask(environment._class_table))
    result["full_ms"] = milliseconds(lambda: draw(others["full"]), 5)
    steps = iter(actions)
    result["step_ms"] = milliseconds(lambda: environment._step_simulation(next(steps)), STEPS)
    for renderer in others.values():
        renderer.close()
    environment.close()
    for quality in ("smooth", "fast"):
        difference = np.abs(result["full"].astype(int) - result[quality])
        result |= {f"{quality}_mean": difference.mean(), f"{quality}_max": difference.max()}
    return result


def contact_sheet(results: list[dict], columns: int = 4, scale: int = 2) -> np.ndarray:
    """All tasks as full | smooth | fast | mask, named, (H, W, 3) uint8."""
    from PIL import Image, ImageDraw

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


def report(results: list[dict]) -> str:
    """The table in Markdown, with what is needed to repeat it."""
    processor = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent,
    ).stdout.strip()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
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
        "- command: `python results/render_quality.py --out results/`",
        f"- commit: {commit or 'before the first'}",
        f"- hardware: {processor}, {os.cpu_count()} cores, MUJOCO_GL={os.environ['MUJOCO_GL']};"
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


def main() -> None:
    """Measure, then write the picture and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--tasks", nargs="*", default=envs.tasks("metaworld"))
    arguments = parser.parse_args()
    results = []
    for task in arguments.tasks:
        results.append(measure(task))
        print(f"{task}: mean {results[-1]['fast_mean']:.2f}", flush=True)
    import imageio.v3 as imageio

    arguments.out.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(arguments.out / "render_quality.png", contact_sheet(results))
    (arguments.out / "render_quality.md").write_text(report(results))


if __name__ == "__main__":
    main()
