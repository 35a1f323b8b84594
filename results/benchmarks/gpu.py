"""What a GPU has to show in a quarter of an hour, but for the training at its end.

    bash results/benchmarks/gpu.sh results/gpu

calls this, as

    python -m results.benchmarks.gpu --out results/gpu

then trains with the time that is left, then calls this for a table of that. Every stage
has a limit of time, and every table is written as soon as one of its rows or columns is known: what
is ended early leaves what it has measured.

    checks.md      what computes and draws; that an update waits for nothing; that numbers agree
    parts.md       an update and its parts, in float32, as the preset computes, and compiled
    loop.md        the whole loop with some numbers of environments, and the projection from it
    training.md    how far training came

Sizes are the paper's, or tiny ones with which a CPU can rehearse it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import envs
from agents.device import choose_device
from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from agents.presets import preset
from agents.replay import Replay, free_memory
from agents.training import random_state, set_random_state
from analysis.output import write_report
from commands.command_line import script
from errors import UserError
from experiment.hardware import draws_in_software, hardware, has_bfloat16
from experiment.provenance import provenance
from experiment.run_folder import RunFolder
from results.benchmarks.benchmark import Mode, build, fill, parts_of, spread
from results.benchmarks.benchmark_tables import PROJECTED
from results.benchmarks.loop import measure_loop
from results.benchmarks.measuring import synchronise, timed
from world_models.rssm import RSSMConfig

NAMES: dict[Mode, str] = {"eager": "float32", "preset": "the preset", "compiled": "compiled"}
"""Modes of results/benchmarks/benchmark.py that are measured, in this order, and their names."""
GOAL_MINUTES = 20.0
"""For the projected steps."""
WARM_UP = 2
"""Calls of each part that do not count."""


@dataclass(frozen=True)
class GPU:
    """Measure what a GPU has to show."""

    out: Path
    """Folder of the tables."""
    stage: Literal["measure", "training"] = "measure"
    """measure: checks, parts, loop; training: the table of the run in OUT/training."""
    task: str = "metaworld/window-close"
    """What is learned."""
    sizes: Literal["paper", "tiny"] = "paper"
    """Of everything; tiny are for a rehearsal."""
    device: str = "auto"
    """torch device; auto takes CUDA when there is one."""
    checks_seconds: float = 120.0
    """Limit of the checks."""
    parts_seconds: float = 240.0
    """Limit of the parts, compiling included."""
    loop_seconds: float = 180.0
    """Limit of the loops, all together."""
    environments: tuple[int, ...] = (1, 5, 10)
    """Numbers of environments."""
    loop_steps: int = PROJECTED
    """Environment steps of each loop at most."""
    repeats: int = 20
    """Calls of each part."""


class OutOfTime(BaseException):
    """A stage has reached its limit. No Exception: compilers take those for bugs of theirs."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """A context that is left after some seconds, whatever it is doing, with `OutOfTime`."""

    reached = False

    def over(*_: object) -> None:
        nonlocal reached
        reached = True
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    except BaseException as error:
        if reached:  # whatever has become of it on the way
            raise OutOfTime from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def configuration(options: GPU) -> OnlineConfig:
    """What is measured: the preset `paper`, with hardly any pretraining, for a replay of frames
    that are soon there; with tiny sizes if they are asked for."""
    config = preset("paper", options.task)
    agent = replace(config.agent, autoencoder_pretraining=2, joint_pretraining=2)
    if options.sizes == "tiny":
        dynamics = replace(
            agent.dynamics,
            encoder=replace(agent.dynamics.encoder, width=16, depth=1),
            rssm=RSSMConfig(32, 32, 4, 4, gate_bias=True, zero_first_action=True),
            decoder=replace(agent.dynamics.decoder, width=16, depth=1),
            head_layers=1,
            head_units=16,
        )
        agent = replace(
            agent,
            autoencoder=replace(agent.autoencoder, width=32, encoder_depth=1, decoder_depth=1),
            dynamics=dynamics,
            behaviour=replace(agent.behaviour, horizon=3, layers=1, units=16),
            autoencoder_batch=8,
            batch=2,
            window=4,
        )
        view = replace(config.environment, quality="fast")
        config = replace(config, environment=view, episode_steps=100, replay_capacity=20_000)
    return replace(config, device=options.device, agent=agent)


# ------------------------------------------------------------------------------------- checks


def measure_checks(
    config: OnlineConfig, replay: Replay, action: int, found: Callable[[str, str], None]
) -> None:
    """What computes and draws, and whether it does so as it should; calls `found` with the name and
    the outcome of each check."""
    device = choose_device(config.device)
    machine = hardware(config.device)
    found(
        "device", f"{machine['gpu'] or 'no GPU'}; {machine['processor']}, {machine['cores']} cores"
    )
    found("arithmetic for bfloat16", "yes" if has_bfloat16(device) else "no")
    room = free_memory(device)
    whole = config.replay_capacity * sum(entry.bytes for entry in replay.entries.values())
    kept = device.type == "cuda" and 2 * whole < room
    where = "in the device's memory" if kept else "on disk"
    found("replay when full", f"{whole / 2**30:.1f} GiB of {room / 2**30:.1f} free: {where}")
    environment = envs.make(config.task, **vars(config.environment))
    try:
        environment.reset(seed=0)
        renderer = environment.graphics or "unknown"
        number = environment.camera_numbers[0]

        def picture() -> None:
            environment.pose(environment.renderer, number)
            environment.renderer.image()

        times = timed(picture, 20, torch.device("cpu"))
    finally:
        environment.close()
    kind = "software" if draws_in_software(renderer) else "not software"
    found("renderer", f"{renderer}: {kind}")
    found(f"a {config.environment.quality} picture", f"{spread(times)['median']:.2f} ms")
    found("random numbers come again", _said(_same_randomness(device)))

    agent = build(config, "eager", action, config.device)
    for _ in range(WARM_UP):
        agent.update(replay)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            agent.update(replay)
            waits = "no"
        except RuntimeError as error:
            waits = f"YES: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found("an update waits for the GPU", waits)
    else:
        found("an update waits for the GPU", "not asked: no GPU")
    batch = agent.sample(replay)
    exact = float(_dynamics_loss(agent, batch, "float32"))
    half = float(_dynamics_loss(agent, batch, "bfloat16"))
    found("loss of the dynamics in bfloat16 over float32, minus 1", f"{half / exact - 1:.1e}")
    on_cpu = build(config, "eager", action, "cpu")
    on_cpu.load_state_dict(agent.state_dict())
    few = {name: part[:2].cpu() for name, part in batch.items()}
    there = {name: part.to(device) for name, part in few.items()}
    ratio = float(_dynamics_loss(agent, there, "float32")) / float(
        _dynamics_loss(on_cpu, few, "float32")
    )
    found("loss of the dynamics there over on the CPU, minus 1", f"{ratio - 1:.1e}")


@torch.no_grad()
def _dynamics_loss(
    agent: MaskedWorldModel,
    batch: dict[str, torch.Tensor],
    precision: Literal["float32", "bfloat16"],
) -> torch.Tensor:
    """With the same noise on every device, whose sampled states agree then."""
    rows, length = batch["reward"].shape
    torch.manual_seed(0)
    noise = agent.dynamics.exponential_noise(rows, length, torch.device("cpu")).to(agent.device)
    with agent.computing_in(precision):
        return agent.dynamics.loss(batch, noise)[0]


def _same_randomness(device: torch.device) -> bool:
    kept = random_state(device)
    first = torch.rand(8, device=device)
    set_random_state(kept, device)
    return torch.equal(first, torch.rand(8, device=device))


def _said(holds: bool) -> str:
    return "yes" if holds else "NO"


# -------------------------------------------------------------------------------------- parts


def measure_mode(agent: MaskedWorldModel, replay: Replay, repeats: int) -> dict[str, Any]:
    """Seconds until every part has run, compiling included, and milliseconds of each."""
    start = time.perf_counter()
    calls = parts_of(agent, replay)
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    synchronise(agent.device)
    first = time.perf_counter() - start
    times = {name: spread(timed(call, repeats, agent.device)) for name, call in calls.items()}
    return {"first_seconds": first, "milliseconds": times}


def parts_table(found: dict[str, Any]) -> list[str]:
    """Modes are columns; one that was not finished says so."""
    modes = list(found)
    lines = ["| ms (median) | " + " | ".join(modes) + " |", "|---" * (1 + len(modes)) + "|"]
    done = next((value for value in found.values() if isinstance(value, dict)), None)
    for name in [] if done is None else done["milliseconds"]:
        cells = [
            f"{f['milliseconds'][name]['median']:.2f}" if isinstance(f, dict) else f
            for f in found.values()
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    cells = [f"{f['first_seconds']:.0f}" if isinstance(f, dict) else f for f in found.values()]
    lines.append("| " + " | ".join(["seconds until all have run twice", *cells]) + " |")
    return lines


# --------------------------------------------------------------------------------------- loop


def loop_table(found: dict[str, Any], mode: str, pretraining_seconds: float) -> list[str]:
    """Numbers of environments are rows; the projection is beside them."""
    lines = [
        f"The agent is of the mode *{mode}*. The projection of {PROJECTED:,} environment steps has"
        f" {pretraining_seconds / 60:.1f} minutes of pretraining in it, and no evaluations. The"
        f" goal is {GOAL_MINUTES:.0f} minutes.",
        "",
        "| environments | environment steps a second | updates a second | acting | updating |"
        f" waiting for the simulator | {PROJECTED:,} steps, minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, loop in found.items():
        if not isinstance(loop, dict):
            lines.append(f"| {count} | {loop} | | | | | |")
            continue
        rate, share = loop["environment_steps_per_second"], loop["share"]
        parts = (share["act"], share["update"], share["wait for the environment"])
        cells = [
            f"{rate:.0f}", f"{loop['updates_per_second']:.1f}",
            *(f"{100 * part:.0f} %" for part in parts),
            f"{(pretraining_seconds + PROJECTED / rate) / 60:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join([count, *cells]) + " |")
    return lines


# -------------------------------------------------------------------------------------- stages


def measure(options: GPU) -> None:
    """Checks, parts, loop; writes their tables as they grow."""
    config = configuration(options)
    origin = {**provenance(), "hardware": hardware(options.device), "options": plain(options)}

    def write(name: str, title: str, lines: list[str], numbers: Any) -> None:
        head = [f"# {title}", "", f"`{origin['command']}` at {origin['commit']}, sizes"
                f" {options.sizes}. Hardware: {origin['hardware']}.", ""]  # fmt: skip
        report = "\n".join([*head, *lines]) + "\n"
        write_report(options.out / name, report, {**origin, "found": numbers})
        print(report, flush=True)

    agents: dict[Mode, MaskedWorldModel] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = replace(config, replay_capacity=20_000)
        replay, action = fill(Path(folder) / "replay", small)
        replay.keep_on(choose_device(options.device))

        checks: dict[str, str] = {}

        def found(check: str, outcome: str) -> None:
            checks[check] = outcome
            rows = [f"| {name} | {value} |" for name, value in checks.items()]
            write("checks", "Checks", ["| | |", "|---|---|", *rows], checks)

        try:
            with limit(options.checks_seconds):
                measure_checks(config, replay, action, found)
        except OutOfTime:
            found("the others", "not finished")

        parts: dict[str, Any] = {}
        end = time.monotonic() + options.parts_seconds
        for mode, name in NAMES.items():
            try:
                with limit(end - time.monotonic()):
                    agent = build(config, mode, action, options.device)
                    parts[name] = measure_mode(agent, replay, options.repeats)
                    agents[mode] = agent
            except OutOfTime:
                parts[name] = "not finished"
            write("parts", "An update and its parts", parts_table(parts), parts)

    if not agents:
        raise UserError("no mode was measured in time; give a larger --parts-seconds")
    fastest = list(agents)[-1]
    single = parts[NAMES[fastest]]["milliseconds"]["autoencoder update"]["median"] / 1e3
    pretraining = single * preset("paper", options.task).agent.autoencoder_pretraining
    loops: dict[str, Any] = {}
    end = time.monotonic() + options.loop_seconds
    for index, count in enumerate(options.environments):
        left = (end - time.monotonic()) / (len(options.environments) - index)
        try:
            with limit(end - time.monotonic()):
                several = replace(config, num_envs=count)
                loops[str(count)] = measure_loop(
                    several, options.loop_steps, seconds=left / 2, agent=agents[fastest]
                )
        except OutOfTime:
            loops[str(count)] = "not finished"
        lines = loop_table(loops, NAMES[fastest], pretraining)
        write("loop", "The loop, and 500,000 steps projected from it", lines, loops)


def training(options: GPU) -> None:
    """How far the run in OUT/training came."""
    folder = RunFolder.open(options.out / "training")
    lines = folder.metrics.read()
    last: dict[str, float] = {}
    for line in lines:
        last |= line
    rows = [f"| {name} | {value:,.4g} |" for name, value in last.items()]
    evaluations = [
        f"| {line['step']:,.0f} | {line['time']:,.0f} | {line['eval/return']:.1f} |"
        f" {line.get('eval/success', float('nan')):.2f} |"
        for line in lines
        if "eval/return" in line
    ]
    record = folder.config.read()
    report = [
        "# Training with the time that was left", "",
        f"`{record['command']}` at {record['commit']}. Hardware: {record['hardware']}.", "",
        "| step | seconds | return | success |", "|---|---|---|---|", *evaluations, "",
        "The latest value of everything that was logged:", "", "| | |", "|---|---|", *rows,
    ]  # fmt: skip
    write_report(options.out / "training-table", "\n".join(report) + "\n", lines)
    print("\n".join(report), flush=True)


def plain(options: GPU) -> dict[str, Any]:
    """Options as JSON has them."""
    return {n: str(v) if isinstance(v, Path) else v for n, v in asdict(options).items()}


def main(options: GPU) -> None:
    """One stage. Raises UserError for what cannot be measured."""
    envs.make(options.task).close()  # what is missing is said before minutes have passed
    options.out.mkdir(parents=True, exist_ok=True)
    {"measure": measure, "training": training}[options.stage](options)


if __name__ == "__main__":
    sys.exit(script(main, GPU, "results.benchmarks.gpu"))
