"""What frozen features know of the simulator's state (Masked World Models, figure 16).

    python -m results.experiments.state_probe RUN RUN --tasks metaworld/push metaworld/pick-place \
        --out results/state_probe

A linear probe and a small MLP regress where the hand and the objects are, in metres, from what an
agent of `run.py train` makes of pictures (its `representation`). The agents learn nothing here.
Every run is probed on the same new episodes of each task: half of them the scripted expert's with
noise, half random actions at the bounds, each held for some steps. A task that a run was not
trained on is unseen.

A probe learns from some episodes and is judged on others: neighbouring frames are nearly the same,
so frames of one episode on both sides would let it look up the answer. R² is 1 − the squared error
over the squared deviation from the mean of the judged frames, over the three axes together; 0 is
as good as always saying that mean.

Writes OUT.md, OUT/measured.json and OUT/r2.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib import pyplot
from torch import Tensor, nn

import envs
from agents.online_loading import load_agent
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed
from analysis import figures
from analysis.output import page_of, run_folders, write_file
from commands.command_line import script
from envs.recording import ScriptedActor
from envs.simulation import MujocoEnvironment
from errors import UserError, refuse_below
from experiment.provenance import provenance
from experiment.run_folder import RunFolder

PROBES = ("linear", "mlp")
NOISE = 0.3
"""Deviation of what is added to the expert's actions."""
HOLD = 8
"""Agent steps for which a random action is held."""
JUDGED = 0.25
"""Share of the episodes that a probe is judged on, and of the others that its strength is chosen
on."""
RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Of the linear probe, as shares of the features' mean squared size; the best is chosen."""
UNITS, EPOCHS, BATCH, RATE = 256, 60, 128, 1e-3
"""Of the MLP: units of two hidden layers, passes at most, frames a step, Adam's learning rate."""


@dataclass(frozen=True)
class StateProbe:
    """Regress where hand and objects are from the frozen features of agents."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders of `run.py train`."""
    out: Path
    """Page (OUT.md) and folder to write."""
    tasks: tuple[str, ...] = ()
    """Tasks whose state is regressed; none: of each run its own."""
    episodes: int = 24
    """New ones of each task."""
    steps: int = 100
    """Agent steps of an episode at most."""
    seed: int = 0
    """Of the episodes, of the split, and of the probes."""
    device: str = "auto"
    """torch device of the agents."""

    def __post_init__(self) -> None:
        refuse_below(4, self, "episodes")
        refuse_below(1, self, "steps")
        refuse_below(0, self, "seed")


class Episode(NamedTuple):
    """What happened in one episode of T frames."""

    image: np.ndarray
    """(T, S, S, 3) uint8."""
    action: np.ndarray
    """(T, A) that led to each frame; zero at the first."""
    places: dict[str, np.ndarray]
    """By name, (T, 3) metres."""


class Rows(NamedTuple):
    """Frames of several episodes: what a probe reads (N, F), what it has to say (N, 3), and the
    number of each frame's episode (N,)."""

    feature: np.ndarray
    place: np.ndarray
    episode: np.ndarray

    def of(self, which: np.ndarray) -> Rows:
        """The frames where `which` (N,) is true."""
        return Rows(*(part[which] for part in self))


# -------------------------------------------------------------------------------- episodes


def play(environment: MujocoEnvironment, seed: int, steps: int, random: bool) -> Episode:
    """One episode, of the noisy expert or of held random actions; a function of its arguments."""
    observation, _ = environment.reset(seed=seed)
    expert = None if random else ScriptedActor(environment, NOISE)
    if expert is not None:
        expert.begin(seed)
    agent = RandomAgent(environment.action_space, seed, extreme=True)
    action = np.zeros(environment.action_space.shape, np.float32)
    images, actions, places = [observation["image"]], [action], [environment.places()]
    for step in range(steps):
        if expert is not None:
            action = expert.action(observation)
        elif step % HOLD == 0:
            action = agent.policy({"is_first": np.zeros(1, bool)}, None, explore=True)[0][0]
        observation, _, terminated, truncated, info = environment.step(action)
        images.append(observation["image"])
        actions.append(action)
        places.append(environment.places())
        if terminated or truncated or (expert is not None and info.get("success")):
            break
    if not places[0]:
        raise UserError(f"{environment.task} does not say where hand and objects are")
    by_name = {name: np.stack([each[name] for each in places]) for name in places[0]}
    return Episode(np.stack(images), np.stack(actions).astype(np.float32), by_name)


def has_expert(environment: MujocoEnvironment) -> bool:
    """Whether the task has a scripted expert."""
    try:
        ScriptedActor(environment)
    except UserError:
        return False
    return True


def episodes_of(task: str, view: Mapping[str, Any], options: StateProbe) -> list[Episode]:
    """New episodes of one task, seen as a run sees it: every second one is random, all are where
    there is no expert."""
    environment = envs.make(task, **{**view, "masks": False, "proprio": False})
    try:
        environment.reset(seed=0)
        experts = has_expert(environment)
        return [
            play(
                environment,
                episode_seed(options.seed, FINAL_EVALUATION, number),
                options.steps,
                random=number % 2 == 1 or not experts,
            )
            for number in range(options.episodes)
        ]
    finally:
        environment.close()


def represent(agent: Any, episode: Episode) -> np.ndarray:
    """What the agent makes of an episode, (T, F) float32.

    Args:
        agent: has `representation`, of a dict of `image` (B, T, S, S, 3), `action` (B, T, A) and
            `is_first` (B, T), which returns (B, T, F).
        episode: T frames.

    Raises:
        UserError: the agent has no such thing.
    """
    if not hasattr(agent, "representation"):
        raise UserError(f"{type(agent).__name__} has no representation that could be probed")
    batch = {
        "image": torch.from_numpy(episode.image)[None],
        "action": torch.from_numpy(episode.action)[None],
        "is_first": torch.from_numpy(np.arange(len(episode.image)) == 0)[None],
    }
    batch = {name: value.to(agent.device) for name, value in batch.items()}
    with torch.no_grad():
        return agent.representation(batch)[0].float().cpu().numpy()


# ---------------------------------------------------------------------------------- probes


def split_by_episode(episode: np.ndarray, seed: int) -> np.ndarray:
    """Which frames a probe is judged on, (N,) bool: all of some episodes and none of the others.

    Args:
        episode: (N,), the number of each frame's episode, at least two different ones.
        seed: of the choice.
    """
    numbers = np.random.default_rng(seed).permutation(np.unique(episode))
    return np.isin(episode, numbers[: max(1, round(JUDGED * len(numbers)))])


def r2(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """R² of predictions (N, 3) in metres, over all axes together; None of what does not move."""
    deviation = np.square(true - true.mean(0)).sum()
    if deviation < 1e-8 * len(true):  # a tenth of a millimetre
        return None
    return float(1.0 - np.square(predicted - true).sum() / deviation)


class Scale(NamedTuple):
    """Mean and deviation (D,) of what a probe has learned from."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Of values (N, D); a deviation of 1 where nothing varies."""
        deviation = values.std(0)
        return cls(values.mean(0), np.where(deviation > 1e-6, deviation, 1.0))

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Values (N, D) with mean 0 and deviation 1."""
        return (values - self.mean) / self.deviation


def linear(learned: Rows, asked: np.ndarray, seed: int) -> np.ndarray:
    """Ridge regression, its strength chosen on episodes of their own: predictions (M, 3) for
    features `asked` (M, F)."""
    chosen = split_by_episode(learned.episode, seed)
    fitted, judged = learned.of(~chosen), learned.of(chosen)
    errors = [
        np.square(ridge(fitted, judged.feature, strength) - judged.place).sum()
        for strength in RIDGES
    ]
    return ridge(learned, asked, RIDGES[int(np.argmin(errors))])


def ridge(learned: Rows, asked: np.ndarray, strength: float) -> np.ndarray:
    """Ridge regression with an intercept, in as many unknowns as there are frames or features,
    whichever are fewer. Predictions (M, 3)."""
    scale = Scale.of(learned.feature)
    known = scale.standardised(learned.feature).astype(np.float64)
    new = scale.standardised(asked).astype(np.float64)
    middle = learned.place.mean(0)
    centred = learned.place - middle
    penalty = strength * np.square(known).sum() / min(known.shape)
    if known.shape[0] < known.shape[1]:
        solved = np.linalg.solve(known @ known.T + penalty * np.eye(len(known)), centred)
        return new @ (known.T @ solved) + middle
    square = known.T @ known + penalty * np.eye(known.shape[1])
    return new @ np.linalg.solve(square, known.T @ centred) + middle


def mlp(learned: Rows, asked: np.ndarray, seed: int) -> np.ndarray:
    """Two hidden layers, the weights of the pass that is best on episodes of their own:
    predictions (M, 3)."""
    chosen = split_by_episode(learned.episode, seed)
    fitted, judged = learned.of(~chosen), learned.of(chosen)
    scale, place = Scale.of(fitted.feature), Scale.of(fitted.place)

    def tensor(values: np.ndarray, by: Scale) -> Tensor:
        return torch.from_numpy(by.standardised(values).astype(np.float32))

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(learned.feature.shape[1], UNITS), nn.GELU(),
            nn.Linear(UNITS, UNITS), nn.GELU(), nn.Linear(UNITS, 3),
        )  # fmt: skip
        adam = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.1)
        inputs, targets = tensor(fitted.feature, scale), tensor(fitted.place, place)
        others, wanted = tensor(judged.feature, scale), tensor(judged.place, place)
        best, answer = np.inf, torch.zeros(len(asked), 3)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(inputs)).split(BATCH):
                loss = (network(inputs[rows]) - targets[rows]).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
            with torch.no_grad():
                error = (network(others) - wanted).square().mean().item()
                if error < best:
                    best, answer = error, network(tensor(asked, scale))
    return answer.numpy() * place.deviation + place.mean


def probe(features: Sequence[np.ndarray], places: Sequence[np.ndarray], seed: int) -> dict:
    """R² of both probes on episodes that they have not learned from.

    Args:
        features: of each episode, (T, F).
        places: of each, (T, 3) metres.
        seed: of the split and of the MLP.
    """
    number = np.repeat(np.arange(len(features)), [len(each) for each in features])
    rows = Rows(np.concatenate(features), np.concatenate(places), number)
    judged = split_by_episode(rows.episode, seed)
    learned, held_out = rows.of(~judged), rows.of(judged)
    return {
        name: r2(regress(learned, held_out.feature, seed), held_out.place)
        for name, regress in (("linear", linear), ("mlp", mlp))
    }


# ---------------------------------------------------------------------------------- report


def measure(path: Path, options: StateProbe) -> dict[str, Any]:
    """By task, what one run's features know. Raises UserError if it cannot be probed."""
    if RunFolder.open(path).of_imitation:
        raise UserError(f"{path} is a run of imitate; name runs of run.py train")
    agent, config, step = load_agent(path, options.device)
    found: dict[str, Any] = {}
    for task in options.tasks or (config.task,):
        episodes = episodes_of(task, asdict(config.environment), options)
        features = [represent(agent, episode) for episode in episodes]
        found[task] = {
            "seen": task == config.task,
            "episodes": len(episodes),
            "frames": sum(len(feature) for feature in features),
            "features": features[0].shape[1],
            "r2": {
                name: probe(features, [each.places[name] for each in episodes], options.seed)
                for name in episodes[0].places
            },
        }
    return {"trained on": config.task, "step": step, "tasks": found}


def markdown(runs: Mapping[str, Any], command: str) -> str:
    """The report."""
    lines = [
        "# What frozen features know of the state",
        "",
        f"Made by `{command}`. R² of where hand and objects are, on episodes that the probe has not"
        " learned from; 1 is exact, 0 as good as their mean, empty: it does not move. The same"
        " episodes for every run; unseen: the run was trained on another task.",
        "",
        "| run | task | | what | linear | MLP | episodes | frames | features |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        for task, found in run["tasks"].items():
            seen = "seen" if found["seen"] else "unseen"
            for what, scores in found["r2"].items():
                cells = " | ".join(_written(scores[each]) for each in PROBES)
                lines.append(
                    f"| {name} | {task} | {seen} | {what} | {cells} | {found['episodes']} |"
                    f" {found['frames']} | {found['features']} |"
                )
    return "\n".join(lines) + "\n"


def _written(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def draw(runs: Mapping[str, Any], path: Path) -> None:
    """A figure: bars of R² by task and place, a colour a run, linear pale beside MLP."""
    groups = list(
        dict.fromkeys(
            (task, what)
            for run in runs.values()
            for task, found in run["tasks"].items()
            for what in found["r2"]
        )
    )
    look = figures.looks(list(runs))
    width = 0.8 / (2 * len(runs))
    with pyplot.rc_context(figures.STYLE):
        size = (2.0 + 0.5 * len(groups) * len(runs), 3.4)
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        for number, (name, run) in enumerate(runs.items()):
            for side, kind in enumerate(PROBES):
                scores = [
                    run["tasks"].get(task, {"r2": {}})["r2"].get(what, {}).get(kind)
                    for task, what in groups
                ]
                place = np.arange(len(groups)) + (2 * number + side + 0.5) * width - 0.4
                heights = [max(score or 0.0, -0.2) for score in scores]
                axes.bar(
                    place, heights, width, color=look[name][0], alpha=(0.5, 1.0)[side],
                    label=f"{name}, {kind}",
                )  # fmt: skip
        axes.set_xticks(range(len(groups)), [f"{task}\n{what}" for task, what in groups])
        axes.set_ylim(-0.2, 1.0)
        axes.set_ylabel("R² on held-out episodes")
        axes.legend(fontsize=7, loc="lower right")
        figures.save(figure, path)


def main(options: StateProbe) -> None:
    """Measure, write. Raises UserError for runs that cannot be used."""
    paths, page = run_folders(options.inputs), page_of(options.out)
    runs = {path.name: measure(path, options) for path in paths}
    written = {"runs": runs, **provenance()}
    report = markdown(runs, written["command"])
    write_file(page, report)
    write_file(options.out / "measured.json", json.dumps(written, indent=1) + "\n")
    draw(runs, options.out / "r2")
    print(report)


if __name__ == "__main__":
    sys.exit(script(main, StateProbe, "results.experiments.state_probe"))
