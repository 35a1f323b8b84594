"""Success of an imitator in the simulator: plain, under visual shifts, with pruned tokens, with
other instructions.

Every episode is written to the run folder's evaluation.json as soon as it has ended, beside what
was measured before under the same conditions and is not measured again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

import envs
from agents.agent import Actor, Imitator, TaskDescription
from agents.data_spec import DataSpec
from agents.evaluation import Keep, measure_tasks, noise_seed, pruning_area, retained
from agents.imitation_config import View
from agents.imitation_loading import load_agent, load_predictor
from agents.mask2act import Mask2Act
from agents.mask_world_model import MaskWorldModel
from agents.replay import entries_for
from agents.rollout import FINAL_EVALUATION, RandomAgent, episode_seed, run_episodes
from envs.demonstrations import read_headers
from envs.environment import OneHot
from envs.episode_choice import last_pictures
from envs.vector import VectorEnvironment
from errors import UserError
from experiment.checkpoint import fingerprint
from experiment.evaluation_record import EvaluationRecord, Start
from experiment.run_folder import RunFolder

Goals = Mapping[str, np.ndarray]
"""By task, pictures (K, S, S, 3) uint8 of it done."""


@contextlib.contextmanager
def opened(
    view: View,
    task: str,
    environments: int,
    shift: str = "",
    quality: str | None = None,
    masks: bool = False,
) -> Iterator[VectorEnvironment]:
    """Environments of one task in processes of their own, closed at the end.

    Args:
        view: how the agent sees the task: RGB and proprioception.
        task: id.
        environments: how many.
        shift: visual shifts to act under (`envs.shifts`).
        quality: of the pictures; None is that of the data.
        masks: whether masks are shown too, to lay what is foretold over them in a video.
    """
    options = view.options(shift=shift, quality=quality, masks=masks)
    vector = envs.make_vector(task, environments, **options)
    try:
        yield vector
    finally:
        vector.close()


def final_seeds(task: str, seed: int, episodes: int) -> list[int]:
    """Seeds of `episodes` starts that no evaluation during training uses. LIBERO by its protocol:
    episode k starts from the benchmark's recorded state `seed` + k.

    Raises:
        UserError: more episodes than LIBERO has recorded states.
    """
    recorded = envs.recorded_starts(task)
    if recorded and episodes > recorded:
        raise UserError(
            f"--episodes is {episodes}; LIBERO has {recorded} recorded starts of a task, and one"
            " met twice is no new episode"
        )
    if recorded:
        return list(range(seed, seed + episodes))
    return [episode_seed(seed, FINAL_EVALUATION, index) for index in range(episodes)]


def evaluate(
    agent: Imitator | None,
    vector: VectorEnvironment,
    task: str,
    seeds: Sequence[int],
    seed: int,
    instruction: str | None = None,
    film: list | None = None,
    ended: Keep | None = None,
    goals: Goals | None = None,
) -> list[dict]:
    """Closed-loop episodes of one task, one from each of `seeds`, until its first success.

    Args:
        agent: None acts at random.
        vector: from `opened`.
        task: id.
        seeds: of the starts, from `final_seeds`.
        seed: of the evaluation; the agent's noise comes of it.
        instruction: what the agent is told; None is the task's own.
        film: takes frames (H, W, 3) of what is seen and predicted in the first environment.
        ended: as of `run_episodes`.
        goals: pictures of the task done, by task; None: those that the agent knows.

    Returns:
        As `run_episodes`.

    Raises:
        UserError: the task does not fit the agent.
    """
    options = {"init_state": "seed"} if envs.recorded_starts(task) else None
    noise = noise_seed(seed, seeds, *final_seeds(task, seed, 1))
    return run_task(agent, vector, task, seeds, noise, options, instruction, film, ended, goals)


def check_agreement(data_spec: DataSpec, seen: spaces.Space, action: spaces.Space) -> None:
    """Refuse an environment that shows or takes something else than the data.

    Args:
        data_spec: what the data fixes.
        seen: the environment's observation space, with ``image``, and ``proprio`` where it is seen.
        action: its action space.

    Raises:
        UserError: says what differs.
    """
    if isinstance(action, OneHot):
        raise UserError(
            "its actions are discrete, which imitation does not learn; train learns them online"
        )
    entries = entries_for(seen, action)
    *several, size, _, _ = entries["image"].shape
    pairs = {
        "cameras": (several[0] if several else 1, data_spec.cameras),
        "pixels a side": (size, data_spec.size),
        "numbers of proprioception": (
            entries["proprio"].shape[0] if "proprio" in entries else 0,
            data_spec.proprio_size,
        ),
        "numbers an action": (entries["action"].shape[0], data_spec.action_size),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise UserError(f"the task has {here} {name}, the data the agent learned from {there}")


def run_task(
    agent: Imitator | None,
    vector: VectorEnvironment,
    task: str,
    seeds: Sequence[int],
    seed: int,
    options: dict | None = None,
    instruction: str | None = None,
    film: list | None = None,
    ended: Keep | None = None,
    goals: Goals | None = None,
) -> list[dict]:
    """Episodes from `seeds`, each until its first success; `seed`: of the noise, `options`: of
    every reset, `ended`: as of `run_episodes`, the others as of `evaluate`."""
    space = vector.single_action_space
    actor: Actor = RandomAgent(space, seed)
    filmed: list = []
    if agent is not None:
        check_agreement(agent.data_spec, vector.single_observation_space, space)
        told = vector.get_attr("instruction")[0] if instruction is None else instruction
        known = {} if goals is None or task not in goals else {"goals": goals[task]}
        described = TaskDescription(task, told, **known)
        actor = filming = agent.actor(described, seed, film is not None)
        filmed = filming.film if filming.film is not None else []
    episodes = run_episodes(
        actor, vector, list(seeds), options=options, until_success=True, ended=ended
    )
    if film is not None:
        film += filmed
    return episodes


GOALS = 8
"""Pictures of each task done that are read from `--goals`."""
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
        trusted: what the run's configuration may load from outside (`load_agent`).
        goals: demonstration files whose last pictures show what is to be done, in place of those
            that the agent knows.

    Raises:
        UserError: the run cannot be evaluated, or not so.

    Attributes:
        record: evaluation.json, once something is measured.
    """

    def __init__(
        self,
        logdir: str,
        tasks: Sequence[str] | None,
        episodes: int,
        seed: int,
        n_action_steps: int | None = None,
        device: str = "auto",
        trusted: Collection[str] = (),
        goals: Sequence[str] = (),
    ):
        self.folder = RunFolder.open(logdir)
        self.agent, self.config, self.view, self.updates = load_agent(logdir, device, trusted)
        self.tasks = list(tasks or envs.expand(self.config.task))
        self.episodes, self.seed = episodes, seed
        if n_action_steps is not None:
            if not isinstance(self.agent, MaskWorldModel):
                raise UserError(
                    f"--n-action-steps is for chunks of actions; {self.config.method} predicts one"
                )
            chunk = self.agent.config.policy.chunk
            if not 1 <= n_action_steps <= chunk:
                raise UserError(
                    f"--n-action-steps is {n_action_steps}; the agent predicts {chunk} actions"
                )
            self.agent.n_action_steps = n_action_steps
        self.goals = self._read_goals(goals)
        self._open: dict[tuple[str, str, int, bool], VectorEnvironment] = {}
        self._stack = contextlib.ExitStack()

    def _read_goals(self, files: Sequence[str]) -> dict[str, np.ndarray] | None:
        if not files:
            return None
        if not isinstance(self.agent, Mask2Act):
            raise UserError(f"--goals is for agents of mask2act; this one is {self.config.method}")
        recordings = read_headers(files)
        for recording in recordings:
            if recording.task not in self.tasks:
                raise UserError(
                    f"{recording.path} shows {recording.task} done, which is not evaluated:"
                    f" {', '.join(self.tasks)}; give demonstrations of these as --goals"
                )
            here, there = recording.size, self.agent.data_spec.size
            if here != there:
                raise UserError(
                    f"{recording.path} has pictures of {here} pixels, the agent sees {there}"
                )
        return {
            task: last_pictures(recordings, task, GOALS)
            for task in {recording.task for recording in recordings}
        }

    def measure(
        self,
        rows: Sequence[Row],
        progress: Callable[[str, dict, int], None] = lambda name, row, known: None,
    ) -> dict[str, Any]:
        """Success of every row: what evaluation.json holds, as far as it was asked for.

        Args:
            rows: the first one plain.
            progress: called with the name of each row, what was found, and how many of its episodes
                were known before.

        Returns:
            ``task``, ``updates``, ``seed``, ``n_action_steps``, and by the name of each row
            ``success``, ``return``, ``tasks`` (success of each), ``episodes``;
            ``shifts`` and ``retained``, ``pruning``, ``instructions`` where rows ask for them.

        Raises:
            UserError: a row the agent or its tasks cannot have; evaluation.json cannot be read, or
                there is no room for it.
        """
        self._check(rows)
        starts = [
            Start(task, seed)
            for task in self.tasks
            for seed in final_seeds(task, self.seed, self.episodes)
        ]
        self.record = self._record(rows)
        found: dict[str, Any] = {}
        for row in rows:
            known = len(self.record.known(row.name).keys() & set(starts))
            found[row.name] = self._measure(row, starts)
            progress(row.name, found[row.name], known)
        computed = self._computed(rows, found)
        if computed:
            self.record.note(**computed)
        return self.record.content | found

    def _record(self, rows: Sequence[Row]) -> EvaluationRecord:
        conditions = {
            "task": ",".join(self.tasks),
            "updates": self.updates,
            "seed": self.seed,
            "n_action_steps": self.agent.n_action_steps,
            "shift": rows[0].shift or None,
            "weights": fingerprint(self._acting()),
        }
        record = EvaluationRecord(self.folder.evaluation_path, conditions)
        record.check_room()
        for row in rows:
            if row.told and record.content.get("instructions", row.told) != row.told:
                record.forget(row.name)
        return record

    def _acting(self) -> Any:
        """What decides how the agent acts: weights, how the task is seen, goals of the user's."""
        seen = self.view.in_simulator, self.config.quality
        goals = {task: torch.from_numpy(each) for task, each in (self.goals or {}).items()}
        return [self.agent.state_dict(), seen, goals]

    def _computed(self, rows: Sequence[Row], found: Mapping[str, Any]) -> dict[str, Any]:
        """What is said of several rows together."""
        computed: dict[str, Any] = {}
        told = next((dict(row.told) for row in rows if row.told), None)
        if told:
            computed["instructions"] = told
        shifts = [row.name for row in rows if row.shift and row.shift != rows[0].shift]
        if shifts:
            under = {name: found[name]["episodes"] for name in shifts}
            computed["shifts"] = shifts
            computed["retained"] = retained(found["agent"]["episodes"], under, self.seed)
        pruned = [row for row in rows if row.pruning]
        if pruned:
            ratios = [row.pruning for row in pruned]
            success = [found[row.name]["success"]["mean"] for row in pruned]
            area, whole = pruning_area(ratios, success), found["agent"]["success"]["mean"]
            computed["pruning"] = {
                "ratios": ratios, "success": success, "area": area,
                "area_over_unpruned": area / whole if whole else None,
            }  # fmt: skip
        return computed

    def film(self, episodes: int, shift: str = "") -> list:
        """Frames of the first episodes of every task, with what the agent foretells."""
        if isinstance(self.agent, MaskWorldModel):
            self.agent.predictor = load_predictor(self.agent, self.folder.path)
        frames: list = []
        for task in self.tasks:
            seeds = final_seeds(task, self.seed, min(episodes, self.episodes))
            self._play(task, seeds, Row("film", shift), frames)
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
        if not isinstance(self.agent, MaskWorldModel) or not self.agent.config.predicts:
            raise UserError(
                f"{self.folder.path} has no video model, so it has no video tokens to prune"
            )
        without = [task for task in self.tasks if envs.suite(task) == "dmc"]
        if without:
            raise UserError(f"nPAUC is an area under success, which {without[0]} does not know")

    def _measure(self, row: Row, starts: Sequence[Start]) -> dict[str, Any]:
        if isinstance(self.agent, MaskWorldModel):
            self.agent.pruning = row.pruning

        def play(task: str, seeds: Sequence[int], keep: Keep) -> None:
            self._play(task, seeds, row, ended=keep)

        return measure_tasks(self.record, row.name, starts, self.tasks, play)

    def _play(
        self,
        task: str,
        seeds: Sequence[int],
        row: Row,
        film: list | None = None,
        ended: Keep | None = None,
    ) -> None:
        drawn = film is not None
        masks = drawn and self.agent.films_masks
        vector = self._vector(task, row.shift, 1 if drawn else len(seeds), masks)
        agent = None if row.random else self.agent
        told = row.told.get(task)
        evaluate(agent, vector, task, seeds, self.seed, told, film, ended, self.goals)

    def _vector(self, task: str, shift: str, count: int, masks: bool = False) -> VectorEnvironment:
        """Environments for one row of one task, those of an earlier row where they are open still.

        Starting a process takes seconds, and most rows want the same environments.
        """
        count = min(count, self.config.evaluate_envs)
        key = task, shift, count, masks
        if key not in self._open:
            if (len(self._open) + 1) * self.config.evaluate_envs > MOST_PROCESSES or any(
                shift != before for _, before, _, _ in self._open
            ):
                self.close()
            self._open[key] = self._stack.enter_context(
                opened(self.view, task, count, shift, self.config.quality, masks)
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
