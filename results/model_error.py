"""Is it the model or the policy? python results/model_error.py --help

    python results/model_error.py runs/window-close runs/button-press --out results/model_error

An agent that succeeds now and then leaves two questions. How well does its world model know the
reward: with the picture before it, and some steps ahead, where it is told the actions alone? And
where an episode failed: what does the model believe there, and what does it promise from there on?

Both are asked on the newest episodes of the run's replay, which it has learned from, and on new
starts, under the evaluation policy. Rewards are those of an agent step. Writes OUT.md and OUT.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.masked_world_model import MaskedWorldModel
from agents.online import OnlineConfig, load_agent
from agents.online_run import make_envs
from agents.provenance import provenance
from agents.replay import Replay
from agents.rollout import FINAL_EVALUATION, Collector
from commands.command_line import script
from errors import UserError
from results.output import page_of, run_folders
from world_models.rssm import State

AHEAD = (0, 1, 5, 10)
"""Steps for which actions alone are told; 0: the picture is seen."""
TAIL, END = 50, 10
"""Agent steps before the end from which an episode is imagined on, and those of them that count."""
DREAMS = 64
"""Times that it is."""

Episode = dict[str, np.ndarray]
"""Arrays (T, ...) as the replay keeps them: `image`, `action`, `reward`, `is_first`."""


@dataclass(frozen=True)
class ModelError:
    """Measure how well world models know the reward, and what they promise where agents fail."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders of `run.py train`."""
    out: Path
    """Page (OUT.md) and folder to write."""
    episodes: int = 12
    """How many of the replay, and new ones."""
    seed: int = 0
    """Of the new starts, which are those of `run.py evaluate`, and of the sampled model states."""
    device: str = "auto"
    """torch device of the agents."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"episodes must be at least 1, not {self.episodes}")


@dataclass(frozen=True)
class Error:
    """Predicted beside real rewards of some episodes."""

    deviation: float
    """Of the real ones: the error of predicting their mean."""
    error: dict[int, float]
    """Root mean square, by steps ahead."""
    bias: dict[int, float]
    """Mean of predicted minus real, by steps ahead."""


@dataclass(frozen=True)
class Failure:
    """The last `END` agent steps of an episode that failed: means of rewards."""

    real: float
    seen: float
    """Predicted with the pictures."""
    imagined: tuple[float, float, float]
    """By the model alone, `TAIL` steps on with the actor's modes: the 5 % quantile of `DREAMS`, the
    median and the 95 % quantile."""


@torch.no_grad()
def observe(agent: MaskedWorldModel, episode: Episode) -> State:
    """Model states (T, 1, ...) along an episode, sampled."""
    tensors = {
        name: torch.as_tensor(episode[name], device=agent.device)[None]
        for name in ("image", "action", "is_first")
    }
    tensors["is_first"] = tensors["is_first"].bool()
    tensors["feature"] = agent.features(tensors.pop("image"))
    return agent.dynamics.observe(tensors)[0]


@torch.no_grad()
def predict(agent: MaskedWorldModel, episode: Episode, ahead: int) -> np.ndarray:
    """Rewards (ahead + 1, T): at (h, t) what is predicted for row t + h of the episode from the
    model state of row t and the actions in between; NaN where the episode has ended."""
    states = observe(agent, episode)
    steps = len(episode["reward"])
    actions = torch.as_tensor(episode["action"], device=agent.device)

    def taken(_: Tensor, step: int) -> Tensor:
        """A row's action is the one that led to it. Beyond the end, any will do."""
        return actions[torch.arange(step + 1, step + 1 + steps).clamp(max=steps - 1)]

    start = states.map(lambda part: part[:, 0])
    found = agent.dynamics.imagine(taken, start, ahead).reward.cpu().numpy()
    for step in range(1, ahead + 1):
        found[step, max(steps - step, 0) :] = np.nan
    return found


def reward_error(agent: MaskedWorldModel, episodes: Sequence[Episode]) -> Error:
    """How far the rewards that the model predicts are from those that came."""
    differences: dict[int, list[np.ndarray]] = {ahead: [] for ahead in AHEAD}
    for episode in episodes:
        predicted, real = predict(agent, episode, max(AHEAD)), episode["reward"]
        for ahead in AHEAD:
            count = len(real) - ahead
            if count > 0:
                differences[ahead].append(predicted[ahead, :count] - real[ahead:])
    joined = {ahead: np.concatenate(d) for ahead, d in differences.items() if d}
    return Error(
        float(np.concatenate([episode["reward"] for episode in episodes]).std()),
        {ahead: float(np.sqrt(np.square(d).mean())) for ahead, d in joined.items()},
        {ahead: float(d.mean()) for ahead, d in joined.items()},
    )


@torch.no_grad()
def failure(agent: MaskedWorldModel, episode: Episode) -> Failure:
    """What the model believes at the end of an episode, and what it promises from before."""
    states = observe(agent, episode)
    steps = len(episode["reward"])
    begin = max(steps - 1 - TAIL, 0)
    start = states.map(lambda part: part[begin].expand(DREAMS, *part.shape[2:]))

    def act(feature: Tensor, _: int) -> Tensor:
        return agent.behaviour.actor(feature).mode

    dreamt = agent.dynamics.imagine(act, start, steps - 1 - begin).reward[-END:].mean(0)
    seen = agent.dynamics.reward(states.feature)[-END:].mean()
    low, middle, high = (dreamt.quantile(q).item() for q in (0.05, 0.5, 0.95))
    return Failure(float(episode["reward"][-END:].mean()), seen.item(), (low, middle, high))


def play(
    agent: MaskedWorldModel, config: OnlineConfig, count: int, seed: int
) -> list[tuple[Episode, dict]]:
    """`count` episodes from new starts under the evaluation policy, and their index records."""
    envs = make_envs(config, 1)
    torch.manual_seed(seed)  # of the model states that are sampled on the way
    try:
        collector, state = Collector(envs, seed, stream=FINAL_EVALUATION), None
        played: list[tuple[Episode, dict]] = []
        while True:
            action, state = agent.policy(collector.observation, state, explore=False)
            collector.begin(action)
            played += collector.finish()
            if len(played) == count:
                return played
            collector.restart()
    finally:
        envs.close()


def measure(path: Path, options: ModelError) -> dict[str, Any]:
    """Everything about one run. Raises UserError if it cannot be used."""
    agent, config, step = load_agent(path, options.device)
    kept = [episode for episode, _ in Replay.at(path / "replay").episodes()]
    if not kept:
        raise UserError(f"{path} has no whole episode yet; train longer with the same command")
    played = play(agent, config, options.episodes, options.seed)
    torch.manual_seed(options.seed)
    # Where a task knows no success, no episode has any.
    failures = {
        number: failure(agent, episode)
        for number, (episode, record) in enumerate(played)
        if not record["success"]
    }
    return {
        "task": config.task,
        "seed": config.seed,
        "step": step,
        "episodes": options.episodes,
        "replay": asdict(reward_error(agent, kept[-options.episodes :])),
        "new starts": asdict(reward_error(agent, [episode for episode, _ in played])),
        "failures": {number: asdict(found) for number, found in failures.items()},
    }


def markdown(runs: dict[str, dict[str, Any]], command: str) -> str:
    """The report."""
    lines = [
        "# What world models know of the reward",
        "",
        f"Made by `{command}`. Rewards are those of an agent step. Error: root mean square of"
        " predicted minus real, bias: its mean; *seen* with the picture, *n ahead* with the actions"
        " of n steps alone; deviation: of the real rewards, the error of predicting their mean.",
        "",
        "| run | episodes | deviation | " + " | ".join(_name(ahead) for ahead in AHEAD) + " |",
        "|---" * (3 + len(AHEAD)) + "|",
    ]
    for name, run in runs.items():
        for kind in ("replay", "new starts"):
            found = run[kind]
            cells = [
                f"{found['error'][ahead]:.2f} (bias {found['bias'][ahead]:+.2f})"
                if ahead in found["error"]
                else ""
                for ahead in AHEAD
            ]
            episodes = f"{run['episodes']} {'newest of the replay' if kind == 'replay' else kind}"
            lines.append(
                f"| {name} | {episodes} | {found['deviation']:.2f} | " + " | ".join(cells) + " |"
            )
    lines += [
        "",
        "## Where episodes failed",
        "",
        f"The last {END} agent steps of every new start without success, in the mean: the reward"
        " that comes, what the model predicts with the picture, and what it had imagined"
        f" {TAIL} steps before the end, {DREAMS} times with the actor's modes. Imagined well above"
        " real: the model promises what does not come. The same: the model knows the place, and the"
        " policy finds no way out.",
        "",
        "| run | start | real | seen | imagined: median (5 % to 95 %) |",
        "|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        for number, found in run["failures"].items():
            low, middle, high = found["imagined"]
            lines.append(
                f"| {name} | {number} | {found['real']:.1f} | {found['seen']:.1f} |"
                f" {middle:.1f} ({low:.1f} to {high:.1f}) |"
            )
    return "\n".join(lines) + "\n"


def _name(ahead: int) -> str:
    return f"{ahead} ahead" if ahead else "seen"


def main(options: ModelError) -> None:
    """Measure, write. Raises UserError for runs that cannot be used."""
    paths, page = run_folders(options.inputs), page_of(options.out)
    report = {"runs": {path.name: measure(path, options) for path in paths}, **provenance()}
    page.write_text(markdown(report["runs"], report["command"]))
    (options.out / "measured.json").write_text(json.dumps(report, indent=1) + "\n")
    print(page.read_text())


if __name__ == "__main__":
    sys.exit(script(main, ModelError, "results/model_error.py"))
