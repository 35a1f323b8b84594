"""How long a policy of imitation thinks about one chunk of actions.

    python -m results.benchmarks.latency --presets cpu gpu paper --out results/latency

One observation in, one chunk out, as `MaskWorldModel.act` does it: the backbone's one forward pass,
then the Euler steps of the policy. A robot at 10 Hz has 100 ms for that if it asks anew at every
step, and as many times longer as actions of a chunk are executed in between. Weights are random,
and the words those of the encoder that needs no download: neither changes the time.

Writes OUT.md and OUT.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents import imitation_presets
from agents.data_spec import DataSpec
from agents.device import autocast, choose_device
from agents.mask_world_model import Networks
from agents.mask_world_model_config import MaskWorldModelConfig
from analysis.output import write_report
from commands.command_line import script
from errors import UserError
from experiment.hardware import hardware
from experiment.provenance import provenance
from results.benchmarks.measuring import timed
from world_models.language import make_language

SIZES = {"cpu": 64, "gpu": 128, "paper": 256}
"""Edge of the pictures each preset is meant for, pixels."""
INSTRUCTION = "pick up the alphabet soup and place it in the basket"
DEADLINE_MS = 100.0
"""Of a robot that is told what to do ten times a second."""


@dataclass(frozen=True)
class Latency:
    """Measure how long one chunk of actions takes."""

    presets: tuple[Literal[imitation_presets.PRESETS], ...] = ("cpu",)
    """Sizes of `run.py imitate`."""
    cameras: int = 2
    """Views of every frame."""
    action: int = 7
    """Numbers an action."""
    proprio: int = 12
    """Numbers of proprioception."""
    pruning: tuple[float, ...] = (0.0, 0.9)
    """Shares of the video tokens that are dropped."""
    device: str = "auto"
    """torch device; auto takes CUDA when there is one."""
    repeats: int = 20
    """Chunks, after two that do not count."""
    out: Path | None = None
    """Write OUT.md and OUT.json; without, print only."""


def networks(config: MaskWorldModelConfig, data_spec: DataSpec, device: torch.device) -> Networks:
    """Of a size, with random weights and without those that would be downloaded."""
    dynamics = config.dynamics
    config = replace(
        config,
        dynamics=replace(
            dynamics,
            vae=replace(dynamics.vae, pretrained=""),
            transformer=replace(dynamics.transformer, pretrained=""),
        ),
    )
    # Initialising two billion weights takes minutes, for nothing.
    with torch.device("meta"):
        made = Networks(config, data_spec, make_language("words").width)
    made.to_empty(device=device)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.02)
        for buffer in made.buffers():
            buffer.fill_(1)
    return made.eval()


def measure(options: Latency, name: str) -> dict[str, Any]:
    """One preset: parameters, and milliseconds of its parts by share of dropped tokens."""
    config = imitation_presets.preset(name).agent
    device, size = choose_device(options.device), SIZES[name]
    data_spec = DataSpec(options.cameras, size, options.action, options.proprio)
    made = networks(config, data_spec, device)
    text, text_mask = (part.to(device) for part in make_language("words")([INSTRUCTION]))
    shape = (1, options.cameras, config.n_obs_steps, size, size, 3)
    image = torch.randint(256, shape, dtype=torch.uint8, device=device)
    proprio = torch.zeros(1, options.proprio, device=device)
    half = autocast(config.precision, device)

    @torch.no_grad()
    def look(pruning: float) -> list[torch.Tensor]:
        with half:
            return made.world_model.features(image, text, text_mask, pruning)

    @torch.no_grad()
    def choose(context: list[torch.Tensor]) -> np.ndarray:
        with half:
            return made.policy.sample(proprio, context).float().cpu().numpy()

    shares = {}
    for pruning in options.pruning:
        context = look(pruning)
        calls = {
            "backbone": lambda r=pruning: look(r),
            "policy": lambda c=context: choose(c),
            "chunk": lambda r=pruning: choose(look(r)),
        }
        shares[str(pruning)] = {"tokens": context[0].shape[1]}
        for part, call in calls.items():
            times = timed(call, 2 + options.repeats, device)[2:]
            median, slow = np.percentile(times, (50, 95))
            shares[str(pruning)][part] = {"median": float(median), "95th": float(slow)}
    return {
        "parameters": sum(parameter.numel() for parameter in made.parameters()),
        "picture": size,
        "chunk": config.policy.chunk,
        "n_action_steps": config.policy.n_action_steps,
        "num_inference_steps": config.policy.num_inference_steps,
        "shares": shares,
    }


def markdown(found: dict[str, dict[str, Any]], options: Latency, command: str) -> str:
    """The report."""
    machine = hardware()
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    if choose_device(options.device).type == "cpu":
        where = f"{machine['processor']}, {machine['threads']} threads"
    lines = [
        "# How long one chunk of actions takes",
        "",
        f"Made by `{command}` on {where}. One observation of {options.cameras} cameras, one chunk;"
        f" milliseconds, median (95th percentile) of {options.repeats}. At 10 Hz a chunk has"
        f" {DEADLINE_MS:.0f} ms where every step asks for one, as many times that as actions of it"
        " are executed otherwise: the last two columns say what share of this the 95th percentile"
        " takes.",
        "",
        "| preset | parameters | picture | dropped tokens | tokens | backbone | policy | chunk |"
        " share at 10 Hz, one executed | as many as by default |",
        "|---" * 10 + "|",
    ]
    for name, size in found.items():
        for share, parts in size["shares"].items():
            times = [
                f"{parts[p]['median']:.1f} ({parts[p]['95th']:.1f})"
                for p in ("backbone", "policy", "chunk")
            ]
            once = parts["chunk"]["95th"] / DEADLINE_MS
            lines.append(
                f"| {name} | {size['parameters'] / 1e6:,.1f}M | {size['picture']} | {share} | "
                f"{parts['tokens']} | {' | '.join(times)} | {once:.2f} | "
                f"{once / size['n_action_steps']:.2f} ({size['n_action_steps']}) |"
            )
    return "\n".join(lines) + "\n"


def main(options: Latency) -> None:
    """Measure, print, write. Raises UserError for options that cannot be measured."""
    for name in ("cameras", "action", "proprio", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if not options.presets or not options.pruning:
        raise UserError("--presets and --pruning need at least one value each")
    found = {name: measure(options, name) for name in dict.fromkeys(options.presets)}
    numbers = {"presets": found, "hardware": hardware(), **provenance()}
    report = markdown(found, options, numbers["command"])
    print(report)
    if options.out is not None:
        write_report(options.out, report, numbers)


if __name__ == "__main__":
    sys.exit(script(main, Latency, "results.benchmarks.latency"))
