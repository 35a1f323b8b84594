"""Where the time of training goes.

    python -m results.benchmarks.benchmark --out benchmark

Measures the parts of an update, the loop around it, the replay as it grows, and what share of the
machine's matrix-product rate is used. What is compared is measured in one run, in turns (A B A B),
and reported as medians and ratios; nothing here is a test.

    eager      the modules as they are, one operation after the other in float32
    bfloat16   the same with dense layers in bfloat16, whatever this machine has arithmetic for
    preset     as the preset trains, one operation after the other
    compiled   the preset with its updates through torch.compile (--agent.compile)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import envs
from agents.device import choose_device, keep_freed_memory
from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from agents.online_loading import make_agent
from agents.presets import PRESETS, preset
from agents.replay import Replay, entries_for
from agents.rollout import RandomAgent
from analysis.output import write_report
from commands.command_line import script
from errors import UserError
from experiment.hardware import hardware, has_bfloat16
from experiment.provenance import provenance
from results.benchmarks.benchmark_tables import markdown
from results.benchmarks.loading import measure_loading
from results.benchmarks.loop import measure_loop
from results.benchmarks.measuring import memory, synchronise, timed
from results.benchmarks.pictures import measure_pictures
from results.benchmarks.public_code import (
    check_public,
    from_every_state,
    measure_public,
    operations_of,
)

Mode = Literal["eager", "bfloat16", "preset", "compiled"]
CHANGES: dict[str, dict[str, Any]] = {
    "eager": {"precision": "float32", "autoencoder_precision": "float32"},
    "bfloat16": {"precision": "bfloat16", "autoencoder_precision": "float32"},
    "preset": {},
    "compiled": {"compile": True},
}
"""What a mode changes of the agent."""
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("disk", "device's memory")
"""Where an update's frames come from (`OnlineConfig.replay_memory`)."""
FILL_EPISODES = 6
"""Random episodes that the parts learn from."""


@dataclass(frozen=True)
class Benchmark:
    """Measure where the time goes."""

    task: str = "metaworld/window-close"
    """What is learned."""
    preset: Literal[PRESETS] = "cpu"
    """Sizes of everything."""
    compare: tuple[Mode, ...] = ("eager", "preset")
    """What is measured in turns; ratios are against the first."""
    device: str = "auto"
    """torch device; auto takes CUDA when there is one."""
    rounds: int = 4
    """Turns of each."""
    repeats: int = 10
    """Calls of each part in a turn."""
    loop_steps: int = 3000
    """Environment steps of the whole loop in each mode, one mode after the other; 0 leaves it
    out."""
    replay_frames: tuple[int, ...] = (10_000, 100_000)
    """Sizes at which sampling is measured, in frames; 2,000,000 take 25 GB of disk."""
    environments: tuple[str, ...] = ("metaworld/window-close", "dmc/walker-walk")
    """Tasks whose steps and pictures are timed."""
    demonstrations: int = 6
    """Demonstrations recorded to measure how fast windows are read; 0 leaves it out."""
    public: Path | None = None
    """Python of an environment that has sheeprl: also its DreamerV2, at the same sizes
    (results/benchmarks/public_code.py says how to make one)."""
    out: Path | None = None
    """Write OUT.md and OUT.json; without, print only."""
    json: bool = False
    """Print JSON instead of tables."""


def in_mode(config: OnlineConfig, mode: Mode) -> OnlineConfig:
    """The configuration of one mode."""
    return replace(config, agent=replace(config.agent, **CHANGES[mode]))


def build(config: OnlineConfig, mode: Mode, action: int, device: str) -> MaskedWorldModel:
    """A fresh agent of one mode."""
    torch.manual_seed(0)
    agent = make_agent(in_mode(config, mode), action, device)
    if mode == "compiled":
        agent.compile_updates()
    return agent


def fill(folder: Path, config: OnlineConfig) -> tuple[Replay, int]:
    """A replay of random episodes of the task, and the size of its action."""
    environment = envs.make(config.task, **vars(config.environment))
    try:
        entries = entries_for(environment.observation_space, environment.action_space)
        replay = Replay(folder, entries, config.replay_capacity)
        random = RandomAgent(environment.action_space)
        for index in range(FILL_EPISODES):
            observation, _ = environment.reset(seed=index)
            action = np.zeros(environment.action_space.shape, np.float32)
            rows, reward, over = [], 0.0, False
            while True:
                rows.append(
                    {**observation, "action": action, "reward": reward, "is_first": not rows,
                     "is_terminal": False}
                )  # fmt: skip
                if over:
                    break
                (action,), _ = random.policy({"is_first": [False]}, None, explore=True)
                observation, reward, terminated, truncated, _ = environment.step(action)
                over = terminated or truncated
            episode = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            replay.add_episode(episode, env_steps=2 * (len(rows) - 1))
        return replay, environment.action_space.shape[0]
    finally:
        environment.close()


# ------------------------------------------------------------------------------ the parts


def parts_of(agent: MaskedWorldModel, replay: Replay) -> dict[str, Callable[[], Any]]:
    """What is timed of one agent, by name."""
    batch = {name: value.clone() for name, value in agent.sample(replay).items()}
    posterior = agent.update_dynamics(batch)[1]
    start, goes_on = agent.start_states(posterior, batch["is_terminal"])
    start = start.map(torch.clone)
    observation = {
        "image": replay.sample_frames(1)["image"].numpy(), "is_first": np.zeros(1, bool),
    }  # fmt: skip
    _, state = agent.policy(observation | {"is_first": np.ones(1, bool)}, None, explore=True)
    parts = {
        "autoencoder update": lambda: agent.update_autoencoder(replay),
        "encode a batch of windows": lambda: agent.sample(replay),
        "dynamics update": lambda: agent.update_dynamics(batch),
        "behaviour update": lambda: agent.update_behaviour(start, goes_on),
        "whole update": lambda: agent.update(replay),
        "policy step": lambda: agent.policy(observation, state, explore=True),
    }

    def begun(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (agent.begin(), call())

    return {name: begun(call) for name, call in parts.items()}


def measure_parts(options: Benchmark, config: OnlineConfig, replay: Replay, action: int) -> dict:
    """Milliseconds of every part in every mode; `first` is the first call, compiling included."""
    device = choose_device(options.device)
    first: dict[str, float] = {}
    measured: dict[str, dict[str, list[float]]] = {}
    calls = {}
    for mode in options.compare:
        agent = build(config, mode, action, options.device)
        start = time.perf_counter()
        calls[mode] = parts_of(agent, replay)
        for call in calls[mode].values():
            call()
            call()
        synchronise(device)
        first[mode] = time.perf_counter() - start
        measured[mode] = {name: [] for name in calls[mode]}
    for _ in range(options.rounds):
        for mode in options.compare:
            for name, call in calls[mode].items():
                # An update that is due every other time is measured over whole periods.
                repeats = options.repeats
                if name == "whole update":
                    repeats = -(-repeats // config.agent.autoencoder_every)
                    repeats *= config.agent.autoencoder_every
                measured[mode][name] += timed(call, repeats, device)
    return {
        "first_calls_seconds": first,
        "milliseconds": {
            mode: {name: spread(times) for name, times in by_part.items()}
            for mode, by_part in measured.items()
        },
    }


def spread(times: list[float]) -> dict[str, float]:
    """Median, quartiles and mean of some times."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "mean": statistics.fmean(times)}


def measure_sources(
    options: Benchmark, config: OnlineConfig, replay: Replay, action: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Milliseconds of a whole update by where its frames come from, in turns."""
    device = choose_device(options.device)
    agents = {name: build(config, "preset", action, options.device) for name in SOURCES}
    replays = {}
    for name, agent in agents.items():
        # As large as what it holds: a copy has to fit.
        replays[name] = Replay(folder / name.replace(" ", "-"), replay.entries, replay.frames)
        for episode, record in replay.episodes():
            replays[name].add_episode(episode, env_steps=record["env_steps"])
        if name == "device's memory":
            replays[name].keep_on(device)
        for _ in range(2):
            agent.update(replays[name])
    period = config.agent.autoencoder_every
    repeats = period * max(2, -(-options.repeats // period))
    times: dict[str, list[float]] = {name: [] for name in SOURCES}
    for _ in range(options.rounds):
        for name, agent in agents.items():
            found = timed(lambda a=agent, r=replays[name]: a.update(r), repeats, device)
            times[name] += np.reshape(found, (-1, period)).mean(1).tolist()
    return {name: spread(found) for name, found in times.items()}


def measure_environments(options: Benchmark, config: OnlineConfig) -> dict[str, dict[str, float]]:
    """Milliseconds of a control step, of the pictures of all cameras, and of one mask."""
    device = torch.device("cpu")
    result = {}
    for task in options.environments:
        view = vars(config.environment) | {"masks": True, "action_repeat": 1}
        environment = envs.make(task, **view)
        try:
            environment.reset(seed=0)
            action = np.zeros(environment.action_space.shape, np.float32)
            environment.observing = False  # a step is its physics alone
            renderer, classes = environment.renderer, environment.classes

            def picture(environment=environment, renderer=renderer):
                for camera in environment.camera_numbers:
                    environment.pose(renderer, camera)
                    renderer.image()

            calls = {
                "control step": lambda e=environment, a=action: e.step(a),
                "picture": picture,
                "mask": lambda r=renderer, c=classes: r.mask(c),
            }
            repeats = 5 * options.repeats
            result[task] = {
                name: statistics.median(timed(call, repeats, device))
                for name, call in calls.items()
            }
        finally:
            environment.close()
    return result


def measure_arithmetic(
    options: Benchmark, config: OnlineConfig, replay: Replay, action: int
) -> dict[str, Any]:
    """Floating-point operations of an update, and the rate of a large matrix product here."""
    agent = build(config, "eager", action, options.device)
    agent.update(replay)  # what follows is an update as it is in the loop
    operations = operations_of(agent, replay)
    device, size = choose_device(options.device), 2048
    if device.type == "cuda":
        size = 8192
    rates, dtypes = {}, [torch.float32]
    if has_bfloat16(device):  # otherwise eight such products take minutes
        dtypes.append(torch.bfloat16)
    for dtype in dtypes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        left @ right
        seconds = statistics.median(timed(lambda a=left, b=right: a @ b, 7, device)) / 1e3
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    return {"operations_per_update": operations, "matrix_product_per_second": rates}


def measure_replay(options: Benchmark, config: OnlineConfig, source: Replay) -> list[dict]:
    """Sampling and memory as the replay grows: frames of the task, over and over."""
    episodes = list(source.episodes())
    batch, window = config.agent.batch, config.agent.window
    cpu, rows = torch.device("cpu"), []
    for frames in options.replay_frames:
        with tempfile.TemporaryDirectory(dir=source.folder.parent) as folder:
            replay = Replay(Path(folder), source.entries, frames)
            while replay.frames < frames - 600:
                episode, record = episodes[len(replay.records) % len(episodes)]
                replay.add_episode(episode, env_steps=record["env_steps"])
            before = memory()
            windows = timed(lambda r=replay: r.sample_windows(batch, window), 30, cpu)
            singles = timed(
                lambda r=replay: r.sample_frames(config.agent.autoencoder_batch), 30, cpu
            )
            after = memory()
            rows.append(
                {
                    "frames": replay.frames,
                    "disk_bytes": sum(f.stat().st_blocks * 512 for f in Path(folder).iterdir()),
                    "windows_milliseconds": statistics.median(windows),
                    "frames_milliseconds": statistics.median(singles),
                    "own_memory": after.get("RssAnon"),
                    "own_memory_growth": after.get("RssAnon", 0) - before.get("RssAnon", 0),
                }
            )
            del replay
    return rows


def measure_help() -> float:
    """Seconds of `python run.py --help`, the fastest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "run.py"), "--help"], check=True,
                       capture_output=True)  # fmt: skip
        times.append(time.perf_counter() - start)
    return min(times)


# ----------------------------------------------------------------------------- the report


def measure(options: Benchmark) -> dict[str, Any]:
    """Everything, as plain values."""
    config = preset(options.preset, options.task)
    if not options.compare:
        raise UserError(f"--compare needs at least one of {', '.join(CHANGES)}")
    if options.rounds < 1 or options.repeats < 2:
        raise UserError("--rounds must be at least 1 and --repeats at least 2")
    keep_freed_memory()
    device = choose_device(options.device)
    result: dict[str, Any] = {
        **provenance(),
        "hardware": hardware(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "options": json.loads(json.dumps(asdict(options), default=str)),
        "help_seconds": measure_help(),
    }
    with tempfile.TemporaryDirectory() as folder:
        replay, action = fill(Path(folder) / "replay", config)
        result["arithmetic"] = measure_arithmetic(options, config, replay, action)
        result["parts"] = measure_parts(options, config, replay, action)
        if options.loop_steps:  # before the replays, whose files the system goes on writing
            looped = replace(config, device=options.device)
            result["loops"] = {
                mode: measure_loop(in_mode(looped, mode), options.loop_steps)
                for mode in options.compare
            }
        result["sources"] = measure_sources(options, config, replay, action, Path(folder))
        if options.public is not None:
            every = from_every_state(config)
            agents = {
                f"ours, {mode}": build(every, mode, action, options.device)
                for mode in options.compare
            }
            result["public"] = measure_public(
                options.public, config, agents, replay, action, options.rounds, options.repeats
            )
        result["environments"] = measure_environments(options, config)
        result["pictures"] = {
            task: measure_pictures(task, config.environment, 5 * options.repeats)
            for task in options.environments
        }
        result["replay"] = measure_replay(options, config, replay)
        if options.demonstrations:
            result["loading"] = measure_loading(
                Path(folder), options.demonstrations, options.rounds
            )
    return result


def main(options: Benchmark) -> None:
    """Measure, print, write. Raises UserError for a task that does not exist."""
    for task in (options.task, *options.environments):
        envs.make(task).close()  # what is missing is said before minutes have passed
    if options.public is not None:
        check_public(options.public)
    result = measure(options)
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    if options.out is not None:
        write_report(options.out, markdown(result), result)


if __name__ == "__main__":
    sys.exit(script(main, Benchmark, "results.benchmarks.benchmark"))
