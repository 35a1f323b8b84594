"""A robot at 10 Hz that asks a served policy at every step, in real time: does it ever wait?

    python -m results.experiments.robot_loop --seconds 600 --out results/robot_loop

Serves a policy with `run.py serve` in a process of its own. The simulated robot looks every tenth
of a second (random pictures of the size that the policy reads), sends what it sees to `/stream`,
and needs the action before its next look. The latency is the time from the tick to the answer; a
deadline is missed when it is longer than the time between two ticks. A chunk that is due is
computed by the server meanwhile.

Without --logdir the policies are those of the `cpu` presets, untrained: what weights say does not
change the time. Writes OUT.md and OUT.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import imitation_presets, presets
from agents.data_spec import DataSpec
from agents.imitation_config import View
from agents.imitation_loading import make_imitator
from agents.online_loading import make_agent
from agents.remote_policy import RemotePolicy
from analysis.output import write_report
from commands.command_line import script
from errors import UserError
from experiment.checkpoint import save_checkpoint
from experiment.hardware import hardware
from experiment.provenance import provenance
from experiment.run_folder import RunFolder

MODULE = "results.experiments.robot_loop"
TASK = "metaworld/drawer-close"
SPEC, VIEW = DataSpec(2, 64, 4, 4), View("corner2,gripperPOV", 64, "fast", 2)


@dataclass(frozen=True)
class RobotLoop:
    """Time a robot loop."""

    logdir: tuple[str, ...] = ()
    """Run folders of policies; without any, untrained ones of the cpu presets."""
    seconds: float = 600.0
    """How long each of them is asked."""
    hertz: float = 10.0
    """Looks a second."""
    out: Path = Path("results/robot_loop")
    """Files to write, without their suffixes."""


def untrained(folder: Path) -> dict[str, Path]:
    """Run folders of the cpu presets' agents, untrained, by method."""
    online = presets.preset("cpu", TASK)
    made = {online.method: folder / "online"}
    RunFolder.create_or_resume(made[online.method], online).close()
    agent: Any = make_agent(online, SPEC.action_size, "cpu")
    state: dict[str, Any] = {"agent": agent.state_dict(), "task": TASK, "step": 0}
    save_checkpoint(made[online.method] / "checkpoint.pt", {**state, "action": agent.action})
    edges = {"low": -0.5, "high": 0.5, "min": -1.0, "max": 1.0}
    for method in ("mask-world-model", "mask2act"):
        config = replace(imitation_presets.preset("cpu", method), data=("none",), task=TASK)
        made[method] = folder / method
        RunFolder.create_or_resume(made[method], config).close()
        ranges = {f"{n}_{e}": [v] * 4 for n in ("action", "proprio") for e, v in edges.items()}
        agent = make_imitator(config, SPEC, ranges, "cpu")
        if hasattr(agent, "goals"):
            agent.goals = {TASK: torch.zeros(1, SPEC.size, SPEC.size, 3, dtype=torch.uint8)}
        state = {
            "agent": agent.state_dict(), "task": TASK, "stage": agent.stages[-1], "updates": 0,
            "view": VIEW.plain(), "instructions": {TASK: "drawer close"},
        }  # fmt: skip
        save_checkpoint(made[method] / "checkpoint.pt", state)
    return made


@contextmanager
def served(logdir: Path | str) -> Iterator[str]:
    """The address of a policy, served in a process of its own."""
    command = [sys.executable, "run.py", "serve", "--logdir", str(logdir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("serving at "):
                    yield line.split()[2].rstrip(",")
                    return
            raise UserError(f"the server of {logdir} ended before it served")
        finally:
            process.terminate()


def loop(url: str, seconds: float, hertz: float) -> dict[str, Any]:
    """Ask at every tick; milliseconds from the tick to the answer."""
    rng = np.random.default_rng(0)
    with RemotePolicy(f"{url}/stream") as policy:
        reads = policy.description["observation"]
        latencies, waited = [], []
        tasks = policy.description["tasks"]
        start = time.perf_counter() + 0.5
        for step in range(round(seconds * hertz)):
            shown: dict[str, Any] = {"step": step}
            for name, entry in reads.items():
                uniform = rng.integers(0, 256, entry["shape"], np.uint8)
                shown[name] = uniform if entry["dtype"] == "uint8" else uniform / np.float32(256)
            if len(tasks) > 1:
                shown["prompt"] = tasks[0].partition("/")[2].replace("-", " ")
            tick = start + step / hertz
            time.sleep(max(0.0, tick - time.perf_counter()))
            policy.send(shown)
            answer = policy.receive()
            latencies.append(1000 * (time.perf_counter() - tick))
            waited.append(answer["server_timing"].get("waited_ms", 0.0))
    first, rest = latencies[0], np.array(latencies[1:])
    return {
        "method": policy.description["method"],
        "chunk": policy.description["chunk_size"],
        "first_ms": round(first, 2),
        "steps": len(rest),
        "missed": int((rest > 1000 / hertz).sum()),
        "p50_ms": round(float(np.percentile(rest, 50)), 2),
        "p99_ms": round(float(np.percentile(rest, 99)), 2),
        "max_ms": round(float(rest.max()), 2),
        "waited": int((np.array(waited[1:]) > 1.0).sum()),
    }


def measure(options: RobotLoop) -> None:
    """Time every policy and write the tables. Raises UserError."""
    if options.seconds * options.hertz < 2:
        raise UserError("seconds times hertz must be at least 2")
    came, before = provenance(), os.getloadavg()
    with ExitStack() as stack:
        if options.logdir:
            folders = {logdir: Path(logdir) for logdir in options.logdir}
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            folders = untrained(Path(folder))
        rows = {}
        for name, logdir in folders.items():
            with served(logdir) as url:
                rows[name] = loop(url, options.seconds, options.hertz)
            print(name, rows[name], flush=True)
    numbers = {
        "seconds": options.seconds, "hertz": options.hertz, "rows": rows,
        "load_average": [before[0], os.getloadavg()[0]], **came, "hardware": hardware(),
    }  # fmt: skip
    write_report(options.out, page(numbers), numbers)
    print(options.out.with_suffix(".md"))


def page(numbers: dict[str, Any]) -> str:
    """The table."""
    rows = [
        f"| {name} | {row['chunk']} | {row['steps']:,} | {row['missed']} | {row['p50_ms']:.1f} |"
        f" {row['p99_ms']:.1f} | {row['max_ms']:.1f} | {row['first_ms']:.0f} | {row['waited']} |"
        for name, row in numbers["rows"].items()
    ]
    before, after = numbers["load_average"]
    return (
        f"# A robot loop at {numbers['hertz']:g} Hz\n\n"
        f"Made by `python -m {MODULE} --seconds {numbers['seconds']:g}` at"
        f" {numbers['commit'][:7]}, {numbers['hardware']['processor']},"
        f" {numbers['hardware']['threads']} threads; load average of the machine {before:.1f}"
        f" before and {after:.1f} after. Robot and server are two processes; `/stream` of `run.py"
        " serve` (docs/acting.md). Milliseconds from the tick of the robot's clock to the action. A"
        f" deadline is missed after {1000 / numbers['hertz']:g} ms. The first answer of an episode"
        " is not counted: its chunk is waited for.\n\n"
        "| policy | actions a chunk | steps | missed | p50, ms | p99, ms | longest, ms |"
        " first, ms | waited for a chunk |\n|---|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(script(measure, RobotLoop, MODULE))
