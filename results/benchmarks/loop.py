"""What the online loop spends its time on (a part of the benchmark)."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import envs
from agents.device import choose_device
from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from agents.online_run import OnlineRun
from experiment.run_folder import RunFolder
from results.benchmarks.measuring import memory, synchronise


def measure_loop(
    config: OnlineConfig,
    steps: int,
    seconds: float = math.inf,
    agent: MaskedWorldModel | None = None,
) -> dict[str, Any]:
    """The online loop as it runs: environment steps a second, and the share of each part.

    Args:
        config: of the run.
        steps: environment steps that are measured, once exploring and the first updates are over.
        seconds: for which they are measured at most.
        agent: learns in place of the one that `config` makes, of the same sizes: one that has been
            compiled already.
    """
    repeat = envs.action_repeat(config.task, config.environment.action_repeat)
    config = replace(
        config,
        prefill=600,
        steps=10**9,
        evaluate_first=10**9,
        agent=replace(config.agent, autoencoder_pretraining=2, joint_pretraining=2),
    )
    device = choose_device(config.device)
    spent = {"act": 0.0, "update": 0.0, "wait for the environment": 0.0, "remember": 0.0}

    @contextlib.contextmanager
    def counted(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronise(device)
        spent[name] += time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with (
            open(Path(folder) / "log", "w", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            RunFolder.create_or_resume(Path(folder) / "run", config) as run_folder,
            OnlineRun(config, run_folder) as run,
        ):
            if agent is not None:
                agent.updates = agent.pretrained = 0
                run.agent = agent
            run.resume()
            start_up = time.perf_counter() - begun
            while run.exploring:
                run.collector.begin(run.act())
                ended = run.collector.finish()
                run.store(ended)
                if ended:
                    run.collector.restart()
            run.pretrain()
            run.agent.updates = run.updates_due  # the prefill's last episode owes none here
            before, updates = run.steps, run.agent.updates
            start = time.perf_counter()
            end = start + seconds
            # As in agents/online.py.
            while run.steps < before + steps and time.perf_counter() < end:
                with counted("act"):
                    action = run.act()
                run.collector.begin(action)
                with counted("update"):
                    run.learn()
                with counted("wait for the environment"):
                    ended = run.collector.finish()
                with counted("remember"):
                    run.store(ended)
                    if ended:
                        if run.checkpoint_due:
                            run.checkpoint()
                        run.collector.restart()
            taken_seconds = time.perf_counter() - start
            taken, updates = run.steps - before, run.agent.updates - updates
    return {
        "environment_steps_per_second": taken / taken_seconds,
        "updates_per_second": updates / taken_seconds,
        "action_repeat": repeat,
        "share": {name: value / taken_seconds for name, value in spent.items()},
        "start_up_seconds": start_up,
        "memory": memory(),
    }
