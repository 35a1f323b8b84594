"""Is it the model or the policy that fails?

    python -m results.experiments.model_error RUN RUN --out results/model_error

An agent that succeeds now and then leaves two questions. How well does its world model know the
reward: with the picture before it, and some steps ahead, where it is told the actions alone? And
how do episodes end that do not succeed: what does the model believe there, and what had it promised
before?

Both are asked on the newest episodes of the run's replay, which it has learned from, and on new
starts, under the evaluation policy. Rewards are those of an agent step. Writes OUT.md and OUT.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from agents.online_loading import load_agent
from agents.online_run import make_envs
from agents.replay import Replay
from agents.rollout import FINAL_EVALUATION, Collector
from analysis.output import run_folders, write_report
from commands.command_line import script
from errors import UserError
from experiment.provenance import provenance
from experiment.run_folder import RunFolder
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
    """OUT.md and OUT.json are written."""
    episodes: int = 12
    """How many of the replay, if it has as many, and new ones."""
    seed: int = 0
    """Of the new starts, which are those of `run.py evaluate`, and of the sampled model states."""
    device: str = "auto"
    """torch device of the agents."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"--episodes is {self.episodes}; it must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; it must be at least 0")


@dataclass(frozen=True)
class Error:
    """Predicted beside real rewards: of every step from the `max(AHEAD)`-th on, each predicted from
    so many steps before."""

    episodes: int
    """That are long enough."""
    deviation: float
    """Of the real ones: the error of predicting their mean."""
    error: dict[int, float]
    """Root mean square, by steps ahead."""
    bias: dict[int, float]
    """Mean of predicted minus real, by steps ahead."""


@dataclass(frozen=True)
class Ending:
    """How an episode without success ended: means of rewards over its last `END` agent steps."""

    before: float
    """Over the `END` steps up to where the dreams begin: as much as `real` where the agent stands
    still."""
    real: float
    seen: float
    """Predicted with the pictures."""
    imagined: tuple[float, float, float]
    """By the model alone, `TAIL` steps on from sampled model states with the actor's modes: the 5 %
    quantile of `DREAMS`, the median and the 95 % quantile."""


@torch.no_grad()
def observe(agent: MaskedWorldModel, episode: Episode, copies: int = 1) -> State:
    """Model states (T, copies, ...) along an episode, each copy sampled for itself."""
    image = torch.as_tensor(episode["image"], device=agent.device)
    embedding = agent.dynamics.embed(agent.features(image[None]).transpose(0, 1))
    action = torch.as_tensor(episode["action"], device=agent.device)[:, None]
    is_first = torch.as_tensor(episode["is_first"], device=agent.device).bool()[:, None]
    along = (part.expand(-1, copies, *part.shape[2:]) for part in (embedding, action, is_first))
    return agent.dynamics.rssm.observe(*along, None)[0]


@torch.no_grad()
def predict(agent: MaskedWorldModel, episode: Episode, ahead: int) -> np.ndarray:
    """Rewards (ahead + 1, T): at (h, t) what is predicted for row t of the episode from the model
    state h rows before and the actions in between; NaN where there is no such row."""
    states = observe(agent, episode)
    steps = len(episode["reward"])
    actions = torch.as_tensor(episode["action"], device=agent.device)

    def taken(_: Tensor, step: int) -> Tensor:
        """A row's action is the one that led to it. Beyond the end, any will do."""
        return actions[torch.arange(step + 1, step + 1 + steps).clamp(max=steps - 1)]

    start = states.map(lambda part: part[:, 0])
    dreamt = agent.dynamics.imagine(taken, start, ahead).reward.cpu().numpy()
    found = np.full_like(dreamt, np.nan)
    for step in range(min(ahead, steps - 1) + 1):
        found[step, step:] = dreamt[step, : steps - step]
    return found


def reward_error(agent: MaskedWorldModel, episodes: Sequence[Episode]) -> Error:
    """How far the rewards that the model predicts are from those that came.

    Raises:
        UserError: no episode is long enough.
    """
    first = max(AHEAD)
    long = [episode for episode in episodes if len(episode["reward"]) > first]
    if not long:
        raise UserError(f"no episode has more than {first} agent steps; train longer")
    real = np.concatenate([episode["reward"][first:] for episode in long])
    predicted = np.concatenate([predict(agent, episode, first)[:, first:] for episode in long], 1)
    difference = predicted - real
    return Error(
        len(long),
        float(real.std()),
        {ahead: float(np.sqrt(np.square(difference[ahead]).mean())) for ahead in AHEAD},
        {ahead: float(difference[ahead].mean()) for ahead in AHEAD},
    )


@torch.no_grad()
def ending(agent: MaskedWorldModel, episode: Episode) -> Ending:
    """What the model believes at the end of an episode, and what it promised before."""
    reward = np.asarray(episode["reward"])
    begin = max(len(reward) - 1 - TAIL, 0)
    states = observe(agent, episode, DREAMS)

    def act(feature: Tensor, _: int) -> Tensor:
        return agent.behaviour.actor(feature).mode

    start = states.map(lambda part: part[begin])
    dream = agent.dynamics.imagine(act, start, len(reward) - 1 - begin)
    dreamt = dream.reward[-END:].mean(0).cpu().numpy()
    seen = agent.dynamics.reward(states.feature[-END:])
    low, middle, high = (float(quantile) for quantile in np.quantile(dreamt, [0.05, 0.5, 0.95]))
    return Ending(
        float(reward[max(begin + 1 - END, 0) : begin + 1].mean()),
        float(reward[-END:].mean()),
        seen.mean().item(),
        (low, middle, high),
    )


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


@dataclass(frozen=True)
class Subject:
    """A trained agent and the replay it has learned from."""

    agent: MaskedWorldModel
    config: OnlineConfig
    step: int
    replay: Replay


def subject(path: Path, device: str) -> Subject:
    """The agent of a run folder. Raises UserError if it cannot be used."""
    if RunFolder.open(path).of_imitation:
        raise UserError(f"{path} is a run of imitate; name runs of run.py train")
    replay = Replay.at(path / "replay")
    if not replay.records:
        raise UserError(f"{path} has no whole episode yet; train longer with the same command")
    agent, config, step = load_agent(path, device)
    if not isinstance(agent, MaskedWorldModel) or not isinstance(config, OnlineConfig):
        raise UserError(f"{path} is a run of {config.method}; name runs of masked-world-model")
    return Subject(agent, config, step, replay)


def measure(run: Subject, options: ModelError) -> dict[str, Any]:
    """Everything about one run."""
    played = play(run.agent, run.config, options.episodes, options.seed)
    kept = [episode for episode, _ in run.replay.episodes(newest=options.episodes)]
    torch.manual_seed(options.seed)
    endings = {
        number: asdict(ending(run.agent, episode))
        for number, (episode, record) in enumerate(played)
        if not record["success"]
    }
    return {
        "task": run.config.task,
        "seed": run.config.seed,
        "step": run.step,
        "replay": asdict(reward_error(run.agent, kept)),
        "new starts": asdict(reward_error(run.agent, [episode for episode, _ in played])),
        "endings": endings,
    }


def markdown(runs: dict[str, dict[str, Any]], command: str) -> str:
    """The report."""
    lines = [
        "# What world models know of the reward",
        "",
        f"Made by `{command}`. Rewards are those of an agent step, from the {max(AHEAD)}th of an"
        " episode on. Error: root mean square of predicted minus real, bias: its mean; *seen* with"
        " the picture, *n ahead* with the actions of n steps alone; deviation: of the real rewards,"
        " the error of predicting their mean.",
        "",
        "| run | episodes | deviation | " + " | ".join(_name(ahead) for ahead in AHEAD) + " |",
        "|---" * (3 + len(AHEAD)) + "|",
    ]
    for name, run in runs.items():
        for kind, words in (("replay", "newest of the replay"), ("new starts", "new starts")):
            found = run[kind]
            cells = [f"{found['error'][n]:.2f} (bias {found['bias'][n]:+.2f})" for n in AHEAD]
            lines.append(
                f"| {name} | {found['episodes']} {words} | {found['deviation']:.2f} | "
                + " | ".join(cells)
                + " |"
            )
    lines += [
        "",
        "## How episodes without success ended",
        "",
        f"Every new start without success, and every one of a task that knows none: the mean reward"
        f" of the last {END} agent steps; before: of the {END} steps up to {TAIL} before the end;"
        " seen: what the model predicts at the end, with the pictures; imagined: what it expected"
        f" there {TAIL} steps before, in {DREAMS} dreams with the actor's modes, each from a model"
        " state of its own. Where the reward is what it was before, the agent stands still. If"
        " imagined is above real, the model promises what does not come; if level, it knows the"
        " place, and the policy finds no way out.",
        "",
        "| run | start | before | real | seen | imagined: median (5 % to 95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        for number, found in run["endings"].items():
            low, middle, high = found["imagined"]
            lines.append(
                f"| {name} | {number} | {found['before']:.1f} | {found['real']:.1f} |"
                f" {found['seen']:.1f} | {middle:.1f} ({low:.1f} to {high:.1f}) |"
            )
    return "\n".join(lines) + "\n"


def _name(ahead: int) -> str:
    return f"{ahead} ahead" if ahead else "seen"


def main(options: ModelError) -> None:
    """Measure, write. Raises UserError for runs that cannot be used."""
    paths = run_folders(options.inputs)
    subjects = {path.name: subject(path, options.device) for path in paths}
    runs = {name: measure(run, options) for name, run in subjects.items()}
    numbers = {"runs": runs, **provenance()}
    report = markdown(runs, numbers["command"])
    print(report)
    write_report(options.out, report, numbers)


if __name__ == "__main__":
    sys.exit(script(main, ModelError, "results.experiments.model_error"))
