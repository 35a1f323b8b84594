"""What reaches a policy when only the looks of a task change.

    python -m results.experiments.shifted_features RUN RUN --out results/shifted_features

The scripted expert's episode of each task is played again under every visual shift: the same
physics step for step, other pictures. Where both look at the same states, three numbers a run and
shift:

    features   how far the features that the policy attends to move (of an agent trained online the
               autoencoder's, unmasked), over their deviation from their mean over the episode: root
               mean squares, the mean over blocks
    action     how far the action, or the chunk of actions, moves, as a root mean square in units of
               the action space; chance is the same
    IoU        of the masks that are predicted with the true ones, where masks are predicted: the
               future ones of stage 1, the present ones of an agent trained online

Writes OUT.md, where runs whose names differ in their -seedN alone are one column, and
OUT/measured.json with every run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

import envs
from agents.imitation_loading import load_agent, load_predictor
from agents.mask_world_model import MaskWorldModel
from agents.masked_world_model import MaskedWorldModel
from agents.online_loading import load_agent as load_online_agent
from analysis.output import page_of, run_folders
from commands.command_line import script
from envs.recording import ScriptedActor
from envs.shifts import listed
from errors import UserError
from experiment.provenance import provenance
from experiment.run_folder import RunFolder
from world_models.targets import class_iou, reads
from world_models.targets import measure as target_measure

WITHOUT = "none"
"""The name of no shift at all."""
EVERY = 4
"""Steps between windows."""


@dataclass(frozen=True)
class ShiftedFeatures:
    """Measure what visual shifts do to the features, actions and predictions of agents."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders of `run.py imitate`, and of `run.py train` on tasks that have an expert."""
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
    """One episode: what the cameras saw (T, V, S, S, 3), its masks (T, V, S, S), both uint8,
    proprioception (T, D), and the actions between them (T - 1, A)."""

    image: np.ndarray
    mask: np.ndarray
    proprio: np.ndarray
    actions: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.proprio)


Measured = dict[str, float | None]
"""``features``, ``action`` and ``iou``, see the top of this file."""


def play(environment: Any, seed: int, actions: np.ndarray | None) -> Film:
    """An episode of the scripted expert until it succeeds, or of `actions`."""
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
    return Film(views("image", 5), views("mask", 4), proprio, np.stack(taken))


def measure(agent: MaskWorldModel, instruction: str, plain: Film, shifted: Film) -> Measured:
    """What the shift of one episode does to an agent of `run.py imitate`."""
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
    found = _moved(before, after, chunk, moved)
    if agent.config.world_model == "video" and "mask" in reads(agent.target):
        noise = torch.Generator(agent.device).manual_seed(0)
        future = agent.target.decode(agent.future(image, caption, noise))
        ahead = np.minimum(steps[:, None] + windows.ahead(), shifted.steps - 1)
        truth = torch.from_numpy(shifted.mask[ahead].swapaxes(1, 2)).to(agent.device)
        found["iou"] = class_iou(future.long(), truth).nanmean().item()
    return found


@torch.no_grad()
def measure_online(agent: MaskedWorldModel, plain: Film, shifted: Film) -> Measured:
    """What the shift of one episode does to an agent of `run.py train`, which filters the expert's
    actions and says at every step what it would do."""

    def look(film: Film) -> tuple[Tensor, Tensor]:
        tokens = agent.autoencoder.features(torch.from_numpy(film.image[:, 0]).to(agent.device))
        state, chosen = None, []
        with torch.random.fork_rng([agent.device] if agent.device.type == "cuda" else []):
            torch.manual_seed(0)
            for step in range(film.steps):
                seen = {"image": film.image[step], "is_first": np.array([step == 0])}
                action, state = agent.policy(seen, state, explore=False)
                chosen.append(action[0])
                if step < len(film.actions):
                    state = agent.acted(state, film.actions[step][None])
        return tokens, torch.from_numpy(np.stack(chosen))

    before, chosen = look(plain)
    after, moved = look(shifted)
    found = _moved([before], [after], chosen, moved)
    target = agent.autoencoder.target
    if "mask" in reads(target):
        batch = {
            "image": torch.from_numpy(shifted.image[:, 0]).to(agent.device),
            "mask": torch.from_numpy(shifted.mask[:, 0]).to(agent.device),
        }
        prediction, _ = agent.autoencoder.predict(after)
        target.loss(prediction, batch)  # a weighted sum measures what it last judged
        iou = target_measure(target, prediction, batch).get("iou/mean")
        found["iou"] = None if iou is None else iou.item()
    return found


def _moved(before: list[Tensor], after: list[Tensor], action: Tensor, moved: Tensor) -> Measured:
    """From blocks of features (n, ...) and actions before and under a shift."""
    shares = []
    for one, other in zip(before, after, strict=True):
        one, other = one.float(), other.float()
        own = (one - one.mean(0)).square().mean().sqrt()
        shares.append(((other - one).square().mean().sqrt() / own).item())
    change = (moved - action).square().mean().sqrt().item()
    return {"features": float(np.mean(shares)), "action": change, "iou": None}


@dataclass(frozen=True)
class Subject:
    """A trained agent: its tasks, their environments (by task and shift), and `measure` of it (by
    instruction, plain and shifted film)."""

    tasks: Sequence[str]
    make: Callable[[str, str], Any]
    measure: Callable[[str, Film, Film], Measured]


def subject(path: Path, device: str) -> Subject:
    """The agent of a run folder. Raises UserError if there is none."""
    if not RunFolder.open(path).of_imitation:
        agent, config, _ = load_online_agent(path, device)
        if not isinstance(agent, MaskedWorldModel):
            raise UserError(f"{path} is a run of {config.method}, which has no frozen features")
        seen = {**asdict(config.environment), "masks": True, "proprio": True}
        return Subject(
            [config.task],
            lambda task, shift: envs.make(task, **{**seen, "shift": shift}),
            lambda _, plain, shifted: measure_online(agent, plain, shifted),
        )
    agent, config, view, _ = load_agent(path, device)
    agent.predictor = load_predictor(agent, path)
    return Subject(
        envs.expand(config.task),
        lambda task, shift: envs.make(task, **{**view.options(shift=shift), "masks": True}),
        lambda words, plain, shifted: measure(agent, words, plain, shifted),
    )


def rows_of(path: Path, options: ShiftedFeatures) -> dict[str, Measured]:
    """By shift, `none` first: the means over tasks and episodes of one run's three numbers."""
    run = subject(path, options.device)
    collected: dict[str, list[Measured]] = {}
    for task in run.tasks:
        plain, instruction = films(run, task, "", options)
        for shift in [WITHOUT, *listed(options.shifts)]:
            shifted = plain
            if shift != WITHOUT:
                shifted, _ = films(run, task, shift, options, [film.actions for film in plain])
            for one, other in zip(plain, shifted, strict=True):
                if not np.array_equal(one.proprio, other.proprio):
                    raise RuntimeError(f"{shift} changed the physics of {task}")
                collected.setdefault(shift, []).append(run.measure(instruction, one, other))
    return {shift: _mean(found) for shift, found in collected.items()}


def _mean(found: Sequence[Measured]) -> Measured:
    return {
        name: None if found[0][name] is None else float(np.mean([f[name] for f in found]))
        for name in found[0]
    }


def films(
    run: Subject,
    task: str,
    shift: str,
    options: ShiftedFeatures,
    actions: Sequence[np.ndarray] | None = None,
) -> tuple[list[Film], str]:
    """The episodes of one task under one shift, and the task's instruction.

    Args:
        actions: of each episode; None: the scripted expert's.
    """
    environment = run.make(task, shift)
    try:
        played = [
            play(environment, options.seed + k, actions[k] if actions else None)
            for k in range(options.episodes)
        ]
        return played, environment.instruction
    finally:
        environment.close()


def by_seed(runs: dict[str, dict[str, Measured]]) -> dict[str, dict[str, Measured]]:
    """The means of runs whose names differ in their -seedN alone, under the name without it where
    there are several."""
    groups: dict[str, list[str]] = {}
    for name in runs:
        groups.setdefault(re.sub(r"-seed\d+$", "", name), []).append(name)
    return {
        name if len(members) > 1 else members[0]: {
            shift: _mean([runs[member][shift] for member in members]) for shift in runs[members[0]]
        }
        for name, members in groups.items()
    }


def markdown(runs: dict[str, dict[str, Measured]], command: str) -> str:
    """The report."""
    runs = by_seed(runs)
    shifts = list(next(iter(runs.values())))
    lines = [
        "# What visual shifts do to features, actions and predictions",
        "",
        f"Made by `{command}`. Features: how far they move under the shift, in the same states,"
        " over their deviation from their mean over an episode; action: root mean square change;"
        " IoU: of predicted masks with the true ones, mean of classes.",
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
    paths, page = run_folders(options.inputs), page_of(options.out)
    runs = {path.name: rows_of(path, options) for path in paths}
    written = {"runs": runs, **provenance()}
    report = markdown(runs, written["command"])
    page.write_text(report, encoding="utf-8")
    (options.out / "measured.json").write_text(
        json.dumps(written, indent=1) + "\n", encoding="utf-8"
    )
    print(report)


if __name__ == "__main__":
    sys.exit(script(main, ShiftedFeatures, "results.experiments.shifted_features"))
