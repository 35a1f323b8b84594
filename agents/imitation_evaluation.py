"""Success of an imitator in the simulator: plain, under visual shifts, with pruned tokens, with
other instructions.

Every row is written to the run folder's evaluation.json as soon as it is measured, beside the rows
that were measured before under the same conditions.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gymnasium import spaces

import envs
from agents.agent import Actor, Imitator
from agents.evaluation import pruning_area, retained, summarise
from agents.imitation_config import View
from agents.imitation_loading import load_agent, load_predictor
from agents.mask_world_model_config import DataSpec
from agents.replay import entries_for
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed, run_episodes
from envs.vector import VectorEnvironment
from errors import UserError
from experiment.provenance import provenance
from experiment.run_folder import RunFolder


@contextlib.contextmanager
def opened(
    view: View, task: str, environments: int, shift: str = "", quality: str | None = None
) -> Iterator[VectorEnvironment]:
    """Environments of one task in processes of their own, closed at the end.

    Args:
        view: how the agent sees the task: RGB and proprioception, never a mask.
        task: id.
        environments: how many.
        shift: visual shifts to act under (`envs.shifts`).
        quality: of the pictures; None is that of the data.
    """
    vector = envs.make_vector(task, environments, **view.options(shift=shift, quality=quality))
    try:
        yield vector
    finally:
        vector.close()


def evaluate(
    agent: Imitator | None,
    vector: VectorEnvironment,
    task: str,
    episodes: int,
    seed: int,
    instruction: str | None = None,
    film: list | None = None,
) -> list[dict]:
    """Closed-loop episodes of one task, on starts that no evaluation during training uses.

    Each ends at its first success. LIBERO by its protocol: episode k starts from the benchmark's
    recorded state `seed` + k.

    Args:
        agent: None acts at random.
        vector: from `opened`.
        task: id.
        episodes: how many.
        seed: of the starts and of the agent's noise.
        instruction: what the agent is told; None is the task's own.
        film: takes frames (H, W, 3) of what is seen and predicted in the first environment.

    Returns:
        As `run_episodes`.

    Raises:
        UserError: the task does not fit the agent; more episodes than LIBERO has recorded states.
    """
    recorded = envs.recorded_starts(task)
    if recorded and episodes > recorded:
        raise UserError(
            f"--episodes is {episodes}; LIBERO has {recorded} recorded starts of a task, and one"
            " met twice is no new episode"
        )
    seeds = [
        seed + index if recorded else episode_seed(seed, FINAL_EVALUATION, index)
        for index in range(episodes)
    ]
    options = {"init_state": "seed"} if recorded else None
    return run_task(agent, vector, seeds, seed, options, instruction, film)


def check_agreement(data_spec: DataSpec, seen: spaces.Space, action: spaces.Space) -> None:
    """Refuse an environment that shows or takes something else than the data.

    Args:
        data_spec: what the data fixes.
        seen: the environment's observation space, with ``image`` and ``proprio``.
        action: its action space.

    Raises:
        UserError: says what differs.
    """
    entries = entries_for(seen, action)
    *several, size, _, _ = entries["image"].shape
    pairs = {
        "cameras": (several[0] if several else 1, data_spec.cameras),
        "pixels a side": (size, data_spec.size),
        "numbers of proprioception": (entries["proprio"].shape[0], data_spec.proprio_size),
        "numbers an action": (entries["action"].shape[0], data_spec.action_size),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise UserError(f"the task has {here} {name}, the data the agent learned from {there}")


def run_task(
    agent: Imitator | None,
    vector: VectorEnvironment,
    seeds: Sequence[int],
    seed: int,
    options: dict | None = None,
    instruction: str | None = None,
    film: list | None = None,
) -> list[dict]:
    """Episodes from `seeds`, each until its first success; `options`: of every reset."""
    space = vector.single_action_space
    actor: Actor = RandomAgent(space, seed)
    filmed: list = []
    if agent is not None:
        check_agreement(agent.data_spec, vector.single_observation_space, space)
        told = vector.get_attr("instruction")[0] if instruction is None else instruction
        actor = filming = agent.actor(told, seed, film is not None)
        filmed = filming.film if filming.film is not None else []
    episodes = run_episodes(actor, vector, list(seeds), options=options, until_success=True)
    if film is not None:
        film += filmed
    return episodes


MOST_PROCESSES = 20
"""Environments kept open at the same time."""


@dataclass(frozen=True)
class Row:
    """One way to act in every task."""

    name: str
    shift: str = ""
    """Visual shifts (`envs.shifts`)."""
    pruning: float = 0.0
    """Share of the video tokens that is dropped."""
    told: Mapping[str, str] = field(default_factory=dict)
    """Instruction by task, where it is not the task's own."""
    random: bool = False
    """Uniformly random actions in place of the agent's."""


class Evaluation:
    """What `run.py evaluate` does for an agent of `imitate`; a context, which ends its processes.

    Args:
        logdir: run folder.
        tasks: ids; None: those of the run.
        episodes: of each task.
        seed: of starts and noise.
        n_action_steps: actions of a chunk that are taken before the next one; None: the run's.
        device: torch device.

    Raises:
        UserError: the run cannot be evaluated, or not so.
    """

    def __init__(
        self,
        logdir: str,
        tasks: Sequence[str] | None,
        episodes: int,
        seed: int,
        n_action_steps: int | None = None,
        device: str = "auto",
    ):
        self.folder = RunFolder.open(logdir)
        self.agent, self.config, self.view, self.updates = load_agent(logdir, device)
        self.tasks = list(tasks or envs.expand(self.config.task))
        self.episodes, self.seed = episodes, seed
        if n_action_steps is not None:
            chunk = self.config.agent.policy.chunk
            if not 1 <= n_action_steps <= chunk:
                raise UserError(
                    f"--n-action-steps is {n_action_steps}; the agent predicts {chunk} actions"
                )
            self.agent.n_action_steps = n_action_steps
        self._open: dict[tuple[str, str, int], VectorEnvironment] = {}
        self._stack = contextlib.ExitStack()

    def measure(
        self, rows: Sequence[Row], progress: Callable[[str, dict], None] = lambda name, row: None
    ) -> dict[str, Any]:
        """Success of every row: what evaluation.json holds.

        Args:
            rows: the first one plain.
            progress: called with the name of each row and what was found.

        Returns:
            ``task``, ``updates``, ``seed``, ``n_action_steps``, and by the name of each row
            ``success``, ``return``, ``tasks`` (success of each), ``episodes``, ``commit``;
            ``shifts`` and ``retained``, ``pruning``, ``instructions`` where rows ask for them.

        Raises:
            UserError: a row the agent or its tasks cannot have.
        """
        self._check(rows)
        found = self._measured_before(rows)
        for row in rows:
            if row.name not in found:
                found[row.name] = self._measure(row)
                self.folder.write_evaluation(found)
            progress(row.name, found[row.name])
        shifts = [row.name for row in rows if row.shift and row.shift != rows[0].shift]
        if shifts:
            under = {name: found[name]["episodes"] for name in shifts}
            found["shifts"] = shifts
            found["retained"] = retained(found["agent"]["episodes"], under, self.seed)
        pruned = [row for row in rows if row.pruning]
        if pruned:
            ratios = [row.pruning for row in pruned]
            success = [found[row.name]["success"]["mean"] for row in pruned]
            area, whole = pruning_area(ratios, success), found["agent"]["success"]["mean"]
            found["pruning"] = {
                "ratios": ratios, "success": success, "area": area,
                "area_over_unpruned": area / whole if whole else None,
            }  # fmt: skip
        self.folder.write_evaluation(found)
        return found

    def film(self, episodes: int, shift: str = "") -> list:
        """Frames of the first episodes of every task, what stage 1 predicts laid over them."""
        self.agent.predictor = load_predictor(self.agent, self.folder.path)
        frames: list = []
        for task in self.tasks:
            self._episodes(task, min(episodes, self.episodes), Row("film", shift), frames)
        return frames

    def swapped_instructions(self) -> dict[str, str]:
        """What each task is told when it gets the next one's instruction, the last the first's.

        Raises:
            UserError: there is no other instruction.
        """
        told = []
        for task in self.tasks:
            environment = envs.make(task, size=8, quality="fast")
            told.append(environment.get_wrapper_attr("instruction"))
            environment.close()
        if len(set(told)) < len(told) or len(told) < 2:
            raise UserError(
                "--swap-instructions needs tasks with different instructions, not"
                f" {', '.join(map(repr, told))}"
            )
        return dict(zip(self.tasks, [*told[1:], told[0]], strict=True))

    def _check(self, rows: Sequence[Row]) -> None:
        if not any(row.pruning for row in rows):
            return
        if self.config.agent.world_model != "video":
            raise UserError(
                f"{self.folder.path} has no world model, so it has no video tokens to prune"
            )
        without = [task for task in self.tasks if envs.suite(task) == "dmc"]
        if without:
            raise UserError(f"nPAUC is an area under success, which {without[0]} does not know")

    def _conditions(self) -> dict[str, Any]:
        return {
            "task": ",".join(self.tasks),
            "updates": self.updates,
            "seed": self.seed,
            "n_action_steps": self.agent.n_action_steps,
        }

    def _measured_before(self, rows: Sequence[Row]) -> dict[str, Any]:
        """evaluation.json, where its rows were measured under these conditions."""
        conditions = self._conditions()
        told = next((dict(row.told) for row in rows if row.told), None)
        if rows[0].shift:
            conditions["shift"] = rows[0].shift
        fresh = conditions | ({"instructions": told} if told else {})
        try:
            before = json.loads((self.folder.path / "evaluation.json").read_text())
            if "execute" in before:  # the name of n_action_steps in older files
                before["n_action_steps"] = before.pop("execute")
            same = all(before[name] == value for name, value in conditions.items())
            same &= before.get("shift") == conditions.get("shift")
            same &= len(before["agent"]["episodes"]) == self.episodes * len(self.tasks)
        except (OSError, ValueError, KeyError, TypeError):
            return fresh
        if not same:
            return fresh
        if told and before.get("instructions") != told:
            before.pop("swapped", None)
        for row in before.values():
            if isinstance(row, dict) and "episodes" in row:
                row.setdefault("commit", before["commit"])
        return before | fresh

    def _measure(self, row: Row) -> dict[str, Any]:
        self.agent.pruning = row.pruning
        episodes = [
            {"task": task, **episode}
            for task in self.tasks
            for episode in self._episodes(task, self.episodes, row)
        ]
        self.agent.pruning = 0.0
        by_task = {
            task: summarise([e for e in episodes if e["task"] == task])["success"]
            for task in self.tasks
        }
        commit = provenance()["commit"]
        return summarise(episodes) | {"tasks": by_task, "episodes": episodes, "commit": commit}

    def _episodes(self, task: str, count: int, row: Row, film: list | None = None) -> list[dict]:
        vector = self._vector(task, row.shift, 1 if film is not None else count)
        agent = None if row.random else self.agent
        return evaluate(agent, vector, task, count, self.seed, row.told.get(task), film)

    def _vector(self, task: str, shift: str, count: int) -> VectorEnvironment:
        """Environments for one row of one task, those of an earlier row where they are open still.

        Starting a process takes seconds, and most rows want the same environments.
        """
        count = min(count, self.config.evaluate_envs)
        key = task, shift, count
        if key not in self._open:
            if (len(self._open) + 1) * self.config.evaluate_envs > MOST_PROCESSES or any(
                shift != before for _, before, _ in self._open
            ):
                self.close()
            self._open[key] = self._stack.enter_context(
                opened(self.view, task, count, shift, self.config.quality)
            )
        return self._open[key]

    def close(self) -> None:
        """End the environments' processes."""
        self._stack.close()
        self._open.clear()

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
