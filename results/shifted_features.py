"""What reaches a policy when only the looks of a task change: python results/shifted_features.py -h

    python results/shifted_features.py runs/imitation/mw3-* --out results/shifted_features

The scripted expert's episode of each task is played again under every visual shift: the same
physics step for step, other pictures. On the same windows of both, three numbers a run and shift:

    features   how far the features that the policy attends to move, over their deviation from
               their mean over the episode: root mean squares, the mean over blocks
    action     how far the chunk of actions moves, as a root mean square in units of the action
               space; the noise is the same
    IoU        of the masks that stage 1 predicts with the true ones, where it predicts masks

Writes OUT.md, and OUT/measured.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import envs
from agents.imitation import load_agent
from agents.imitation_agent import ImitationAgent
from agents.imitation_loading import load_predictor
from agents.imitation_run import View
from agents.provenance import provenance
from commands.command_line import script
from envs.recording import ScriptedActor
from envs.shifts import listed
from errors import UserError
from results.output import page_of
from world_models.targets import class_iou, reads

WITHOUT = "none"
"""The name of no shift at all."""
EVERY = 4
"""Steps between windows."""


@dataclass(frozen=True)
class ShiftedFeatures:
    """Measure what visual shifts do to the features, actions and predictions of agents."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders of `run.py imitate`."""
    out: Path
    """Page (OUT.md) and folder to write."""
    shifts: str = "all"
    """As for `run.py evaluate --shifts`."""
    episodes: int = 3
    """Of each task."""
    seed: int = 0
    """Of the first episode's start; the others follow."""
    device: str = "auto"
    """torch device of the agents."""


@dataclass(frozen=True)
class Film:
    """One episode: what the cameras saw (T, V, S, S, 3), its masks (T, V, S, S), both uint8, and
    proprioception (T, D)."""

    image: np.ndarray
    mask: np.ndarray
    proprio: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.proprio)


def play(
    environment: Any, seed: int, actions: Sequence[np.ndarray] | None
) -> tuple[Film, list[np.ndarray]]:
    """An episode of the scripted expert until it succeeds, or of `actions`; and its actions."""
    observation, _ = environment.reset(seed=seed)
    expert = None
    if actions is None:
        expert = ScriptedActor(environment)
        expert.begin(seed)
    taken: list[np.ndarray] = []
    seen = [observation]
    while True:
        if expert is None and len(taken) == len(actions):
            break
        action = expert.action(observation) if expert else actions[len(taken)]
        observation, _, terminated, truncated, info = environment.step(action)
        taken.append(action)
        seen.append(observation)
        if expert and (info["success"] or terminated or truncated):
            break

    def views(name: str, dimensions: int) -> np.ndarray:
        frames = np.stack([each[name] for each in seen])
        return frames if frames.ndim == dimensions else frames[:, None]

    proprio = np.stack([each["proprio"] for each in seen])
    return Film(views("image", 5), views("mask", 4), proprio), taken


def measure(
    agent: ImitationAgent, instruction: str, plain: Film, shifted: Film
) -> dict[str, float | None]:
    """``features``, ``action`` and ``iou`` of one episode, see the top of this file."""
    windows = agent.config.windows()
    steps = np.arange(0, plain.steps, EVERY)
    if len(steps) < 2:
        raise UserError(f"an episode of {plain.steps - 1} steps is too short to measure on")
    past = np.maximum(steps[:, None] + windows.past(), 0)
    caption = agent.caption([instruction] * len(steps))
    proprio = torch.from_numpy(plain.proprio[steps]).to(agent.device)

    def look(film: Film) -> tuple[Tensor, list[Tensor], Tensor]:
        pictures = np.ascontiguousarray(film.image[past].swapaxes(1, 2))  # (n, V, H, S, S, 3)
        image = torch.from_numpy(pictures).to(agent.device)
        noise = torch.Generator(agent.device).manual_seed(0)
        features = agent.features(image, caption, noise)
        noise = torch.Generator(agent.device).manual_seed(0)
        return image, features, agent.act(image, proprio, caption, noise)

    _, before, chunk = look(plain)
    image, after, moved = look(shifted)
    shares = []
    for one, other in zip(before, after, strict=True):
        one, other = one.float(), other.float()
        own = (one - one.mean(0)).square().mean().sqrt()
        shares.append(((other - one).square().mean().sqrt() / own).item())
    found: dict[str, float | None] = {
        "features": float(np.mean(shares)),
        "action": (moved - chunk).square().mean().sqrt().item(),
        "iou": None,
    }
    if agent.config.world_model == "video" and "mask" in reads(agent.target):
        noise = torch.Generator(agent.device).manual_seed(0)
        future = agent.target.decode(agent.future(image, caption, noise))
        ahead = np.minimum(steps[:, None] + windows.ahead(), shifted.steps - 1)
        truth = torch.from_numpy(shifted.mask[ahead].swapaxes(1, 2)).to(agent.device)
        found["iou"] = class_iou(future.long(), truth).nanmean().item()
    return found


def rows_of(path: Path, options: ShiftedFeatures) -> dict[str, dict[str, float | None]]:
    """By shift, `none` first: the means over tasks and episodes of one run's three numbers."""
    agent, config, view, _ = load_agent(path, options.device)
    agent.predictor = load_predictor(agent, path)
    collected: dict[str, list[dict[str, float | None]]] = {}
    for task in envs.expand(config.task):
        plain, actions, instruction = films(view, task, "", options)
        for shift in [WITHOUT, *listed(options.shifts)]:
            shifted = plain
            if shift != WITHOUT:
                shifted, _, _ = films(view, task, shift, options, actions)
            for one, other in zip(plain, shifted, strict=True):
                if not np.array_equal(one.proprio, other.proprio):
                    raise RuntimeError(f"{shift} changed the physics of {task}")
                collected.setdefault(shift, []).append(measure(agent, instruction, one, other))
    return {
        shift: {
            name: None if found[0][name] is None else float(np.mean([f[name] for f in found]))
            for name in found[0]
        }
        for shift, found in collected.items()
    }


def films(
    view: View,
    task: str,
    shift: str,
    options: ShiftedFeatures,
    actions: Sequence[Sequence[np.ndarray]] | None = None,
) -> tuple[list[Film], list[list[np.ndarray]], str]:
    """The episodes of one task under one shift, their actions, and the task's instruction.

    Args:
        actions: of each episode; None: the scripted expert's.
    """
    environment = envs.make(task, **{**view.options(shift=shift), "masks": True})
    try:
        played = [
            play(environment, options.seed + k, actions[k] if actions else None)
            for k in range(options.episodes)
        ]
        return [film for film, _ in played], [taken for _, taken in played], environment.instruction
    finally:
        environment.close()


def markdown(runs: dict[str, dict[str, dict[str, float | None]]], command: str) -> str:
    """The report."""
    shifts = list(next(iter(runs.values())))
    lines = [
        "# What visual shifts do to features, actions and predictions",
        "",
        f"Made by `{command}`. Features: how far they move under the shift, in the same states,"
        " over their deviation from their mean over an episode; action: root mean square change of"
        " a chunk; IoU: of the masks that stage 1 predicts with the true ones, mean of classes.",
        "",
        "| shift | " + " | ".join(f"{name}: features | action | IoU" for name in runs) + " |",
        "|---" * (1 + 3 * len(runs)) + "|",
    ]
    for shift in shifts:
        cells = [
            "" if value is None else f"{value:.2f}"
            for found in runs.values()
            for value in found[shift].values()
        ]
        lines.append(f"| {shift} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: ShiftedFeatures) -> None:
    """Measure, write. Raises UserError for runs that cannot be used."""
    if not options.inputs:
        raise UserError("name at least one run folder")
    page, paths = page_of(options.out), [Path(path) for path in options.inputs]
    if len({path.name for path in paths}) < len(paths):
        raise UserError("two of the run folders have the same name, by which the report tells them")
    runs = {path.name: rows_of(path, options) for path in paths}
    command = " ".join(["python results/shifted_features.py", *sys.argv[1:]])
    page.write_text(markdown(runs, command))
    written = {"runs": runs, **provenance()}
    (options.out / "measured.json").write_text(json.dumps(written, indent=1) + "\n")
    print(markdown(runs, command))


if __name__ == "__main__":
    sys.exit(script(main, ShiftedFeatures, "results/shifted_features.py"))
