"""Our update beside public PyTorch world-model code, measured in turns on the same machine.

The public code is sheeprl's DreamerV2 (PyPI; Dreamer in PyTorch that is kept up). It lives in an
environment of its own, so that neither's requirements touch the other's:

    python3.11 -m venv sheeprl-env && sheeprl-env/bin/pip install torch==2.13.0 sheeprl==0.8.4
    python -m results.benchmarks.benchmark --public sheeprl-env/bin/python

Alike are the recurrent model, the sizes of all heads, the batch, the imagined steps and that they
start from every state of the batch, and the parameters of the world model as nearly as its
channels allow. Not alike is how pictures are seen: DreamerV2's convolutions learn with the rest, on
the whole batch; our autoencoder learns on frames of its own, the dynamics model on its features.
That is why operations are counted, too. sheeprl can compile its losses, which is off by default;
that is measured where ours are compiled too (`--compare eager preset compiled`).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from agents.replay import Replay
from errors import UserError
from results.benchmarks.measuring import timed

PAUSE = 0.5
"""Seconds before a turn, for the threads of whoever was measured last to fall asleep."""
WORKER = Path(__file__).with_name("public_worker.py")


class PublicCode:
    """sheeprl's DreamerV2 in a process of another environment.

    Args:
        python: of that environment.
        sizes: what results/benchmarks/public_worker.py takes; {} only looks whether it could.

    Raises:
        UserError: it cannot be started.

    Attributes:
        built: what the worker says it built.
    """

    def __init__(self, python: Path, sizes: dict[str, Any]):
        self._python = python
        # A pipe that nobody reads would fill up.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        try:
            self._process = subprocess.Popen(
                [str(python), "-W", "ignore", str(WORKER), json.dumps(sizes)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(sizes.get("threads", 1))},
            )  # fmt: skip
        except OSError as error:
            self._said.close()
            raise UserError(f"--public {python} cannot be started: {error.strerror}") from error
        try:
            self.built: dict[str, Any] = self._answer()
        except UserError:
            self.close()
            raise

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        try:
            return json.loads(line)
        except ValueError as error:
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or [f"it said {line!r}"])[-1]
            raise UserError(
                f"--public {self._python} does not run sheeprl ({last}); make an environment for"
                " it: python3.11 -m venv DIR && DIR/bin/pip install torch==2.13.0 sheeprl==0.8.4"
            ) from error

    def updates(self, count: int) -> list[float]:
        """Milliseconds of each of some updates."""
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; why, the answer says
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def check_public(python: Path) -> None:
    """Raises UserError when `python` cannot run sheeprl; in seconds."""
    PublicCode(python, {}).close()


def measure_public(
    python: Path,
    config: OnlineConfig,
    agents: dict[str, MaskedWorldModel],
    replay: Replay,
    action: int,
    rounds: int,
    repeats: int,
) -> dict[str, Any]:
    """Milliseconds and operations of whole updates, ours and sheeprl's in turns.

    Args:
        python: of the environment that has sheeprl.
        config: whose sizes both get.
        agents: ours by name, which imagine from every state (`from_every_state`).
        replay: what ours learn from, sampling included; sheeprl's learn from random numbers of the
            same shapes that lie ready.
        action: size of an action.
        rounds: turns of each.
        repeats: updates in a turn.
    """
    period = config.agent.autoencoder_every
    repeats = -(-repeats // period) * period  # ours over whole periods of the autoencoder
    ours = next(iter(agents.values()))
    seeing = (ours.autoencoder, ours.dynamics)
    parameters = sum(p.numel() for part in seeing for p in part.parameters())
    rssm, behaviour = config.agent.dynamics.rssm, config.agent.behaviour
    sizes = {
        "threads": torch.get_num_threads(), "accelerator": ours.device.type,
        "size": config.environment.size, "action": action, "parameters": parameters,
        "batch": config.agent.batch, "window": config.agent.window,
        "horizon": behaviour.horizon, "layers": behaviour.layers, "units": behaviour.units,
        "deterministic": rssm.deterministic, "hidden": rssm.hidden,
        "variables": rssm.variables, "classes": rssm.classes,
    }  # fmt: skip
    kinds = {
        "sheeprl, float32": {"bfloat16": False, "compiled": False},
        "sheeprl, bfloat16": {"bfloat16": True, "compiled": False},
    }
    if any("compiled" in name for name in agents):
        kinds["sheeprl, bfloat16, compiled"] = {"bfloat16": True, "compiled": True}
    operations: dict[str, float] = {}
    times: dict[str, list[float]] = {}
    public: dict[str, PublicCode] = {}
    try:
        for name, kind in kinds.items():
            public[name] = PublicCode(python, sizes | kind)
            operations[name] = public[name].built["operations"]
        for name, agent in agents.items():
            for _ in range(2):
                agent.update(replay)
            operations[name] = operations_of(agent, replay)
        for _ in range(rounds):
            for name, code in public.items():
                time.sleep(PAUSE)
                times.setdefault(name, []).extend(code.updates(repeats))
            for name, agent in agents.items():
                time.sleep(PAUSE)
                found = timed(lambda a=agent: a.update(replay), repeats, agent.device)
                means = np.reshape(found, (-1, period)).mean(1)
                times.setdefault(name, []).extend(means.tolist())
        built = public["sheeprl, float32"].built
    finally:
        for code in public.values():
            code.close()
    return {
        "built": {key: value for key, value in built.items() if key != "operations"},
        "parameters": parameters,
        "milliseconds": {name: statistics.median(found) for name, found in times.items()},
        "operations": operations,
    }


def operations_of(agent: MaskedWorldModel, replay: Replay) -> float:
    """Floating-point operations of an update, the mean over a period of the autoencoder's."""
    counts, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # what runs beside this thread would not be counted
    try:
        for _ in range(agent.config.autoencoder_every):
            with FlopCounterMode(display=False) as counter:
                agent.update(replay)
            counts.append(counter.get_total_flops())
    finally:
        torch.set_num_threads(threads)
    return statistics.fmean(counts)


def from_every_state(config: OnlineConfig) -> OnlineConfig:
    """The configuration, imagining from every state of a batch as DreamerV2 does."""
    behaviour = replace(config.agent.behaviour, start_states=None)
    return replace(config, agent=replace(config.agent, behaviour=behaviour))


def public_table(found: dict[str, Any]) -> list[str]:
    """The comparison as Markdown."""
    built = found["built"]
    base = found["milliseconds"]["sheeprl, float32"]
    lines = [
        "",
        f"Whole updates beside sheeprl {built['sheeprl']}'s DreamerV2, in turns (see"
        f" results/benchmarks/public_code.py): world model of {found['parameters']:,} parameters,"
        f" theirs of {built['parameters']:,} ({built['channels']} channels); both imagine from"
        " every state.",
        "",
        "| update | ms (median) | sheeprl, float32 / this | G operations | G operations a second |",
        "|---|---|---|---|---|",
    ]
    for name, milliseconds in found["milliseconds"].items():
        operations = found["operations"][name] / 1e9
        lines.append(
            f"| {name} | {milliseconds:.0f} | {base / milliseconds:.2f} | {operations:.1f} |"
            f" {1e3 * operations / milliseconds:.0f} |"
        )
    return lines
