"""How often the scripted experts succeed.

    python -m results.experiments.experts --out results/experts

Nothing is drawn, so an episode costs its physics. The starts are those that `collect` records from.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import envs
from agents.evaluation import summarise
from analysis.output import write_report
from commands.command_line import script
from envs.recording import ScriptedActor, demonstration_seed
from experiment.hardware import hardware
from experiment.provenance import provenance


@dataclass(frozen=True)
class Experts:
    """Measure the scripted experts."""

    out: Path
    """Writes OUT.md and OUT.json."""
    tasks: str = "libero/object,libero/spatial,metaworld"
    """Task ids separated by commas, or suites."""
    episodes: int = 20
    """Of each task."""
    seed: int = 0
    """As `collect --seed`."""
    noise: float = 0.0
    """As `collect --noise`."""
    jobs: int = 2
    """Tasks at once, each in a process."""


def measure(task: str, episodes: int, seed: int, noise: float) -> dict[str, Any]:
    """Successes of one task, with the steps of those episodes until they succeeded."""
    environment = envs.make(task, size=8, quality="fast")
    environment.observing = False
    actor = ScriptedActor(environment, noise)
    results, steps = [], []
    for attempt in range(episodes):
        start = demonstration_seed(seed, attempt)
        environment.reset(seed=start)
        actor.begin(start)
        taken, success, over = 0, False, False
        while not (success or over):
            _, _, terminated, truncated, info = environment.step(actor.action({}))
            taken, success, over = taken + 1, bool(info["success"]), terminated or truncated
        results.append({"success": success, "return": 0.0})
        steps += [taken] if success else []
    environment.close()
    found = {"task": task, "instruction": environment.instruction, "steps": steps}
    return found | summarise(results)["success"]


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    options = result["options"]
    lines = [
        "# Scripted experts",
        "",
        f"`{result['command']}` at {result['commit'][:12]}: {options['episodes']} episodes a task,"
        f" noise {options['noise']:g}; 95 % Wilson intervals; steps until success, of the agent.",
        "",
        "| task | instruction | success | steps: median, longest |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["interval"]
        steps = row["steps"]
        shown = f"{np.median(steps):.0f}, {max(steps)}" if steps else "none"
        lines.append(
            f"| {row['task']} | {row['instruction']} | {row['count']}/{options['episodes']} ="
            f" {row['mean']:.2f} ({low:.2f} to {high:.2f}) | {shown} |"
        )
    return "\n".join(lines) + "\n"


def main(options: Experts) -> None:
    """Measure, print, write."""
    tasks = envs.expand(options.tasks)
    call = partial(measure, episodes=options.episodes, seed=options.seed, noise=options.noise)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        rows = list(tqdm(pool.map(call, tasks), total=len(tasks), unit="task", disable=None))
    settings = json.loads(json.dumps(asdict(options), default=str))
    result = {**provenance(), "hardware": hardware(), "options": settings, "rows": rows}
    write_report(options.out, markdown(result), result)
    print(markdown(result))


if __name__ == "__main__":
    sys.exit(script(main, Experts, "results.experiments.experts"))
