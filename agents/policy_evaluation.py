"""Success of a policy behind a websocket, on the same tasks, starts and shifts as one of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import envs
from agents.agent import Actor
from agents.evaluation import Keep, measure_tasks, retained
from agents.imitation_evaluation import Row, final_seeds
from agents.remote_policy import RemoteActor, RemotePolicy
from agents.rollout import RandomAgent, run_episodes
from envs import EnvironmentConfig
from errors import UserError
from experiment.checkpoint import fingerprint
from experiment.config_values import from_plain
from experiment.evaluation_record import EvaluationRecord, Start
from experiment.run_folder import RunFolder

AT_ONCE = 5
"""Environments stepped together, each with a connection of its own, where the server is ours; one
where it is not: it may remember what it was shown, whoever showed it."""


def folder_name(url: str) -> str:
    """Where what is measured is written by default: ws://127.0.0.1:8000 → 127.0.0.1-8000."""
    return re.sub(r"[^\w.]+", "-", url.partition("://")[2]).strip("-")[:100] or "policy"


def _shown(options: Any, url: str) -> EnvironmentConfig:
    """How a server says that tasks are to be shown."""
    says = f"the policy at {url} says how tasks are to be shown, and not as run.py does"
    if not isinstance(options, Mapping):
        raise UserError(f"{says}: {options!r:.40}; give --environment options")
    try:
        return from_plain(options, EnvironmentConfig)
    except UserError as error:
        raise UserError(f"{says}: {error}; give --environment options") from error


class PolicyEvaluation:
    """What `run.py evaluate --policy` does; a context, which closes its connections.

    Args:
        url: of the server.
        tasks: ids.
        episodes: of each task.
        seed: of the starts.
        folder: takes ``evaluation.json`` and videos; made where there is none.
        environment: how tasks are shown; where it is the default and the server is ours, as the
            server says.
        keys: names of entries in messages, by ours.
        token: of the server.
        n_action_steps: actions of an answer that are executed.

    Raises:
        UserError: no policy answers, or the folder is a run's.
    """

    def __init__(
        self,
        url: str,
        tasks: Sequence[str],
        episodes: int,
        seed: int,
        folder: Path,
        environment: EnvironmentConfig,
        keys: Mapping[str, str],
        token: str | None = None,
        n_action_steps: int | None = None,
    ):
        self.folder = RunFolder(folder)
        if self.folder.config.exists:
            raise UserError(f"{folder} is a run folder; give another --logdir for what is measured")
        if n_action_steps is not None and n_action_steps < 1:
            raise UserError(f"--n-action-steps is {n_action_steps}; it must be at least 1")
        self.url, self.tasks, self.episodes, self.seed = url, list(tasks), episodes, seed
        self.keys, self.token, self.n_action_steps = dict(keys), token, n_action_steps
        self.policies = [RemotePolicy(url, token)]
        described = self.policies[0].description
        self.environment = environment
        if environment == EnvironmentConfig() and "environment" in described:
            self.environment = _shown(described["environment"], url)
        elif environment == EnvironmentConfig():
            self.environment = EnvironmentConfig(proprio=True)
        self.description = described

    def measure(
        self,
        rows: Sequence[Row],
        progress: Callable[[str, dict, int], None] = lambda name, row, known: None,
    ) -> dict[str, Any]:
        """Success of every row, the first one plain; see `imitation_evaluation.Evaluation`."""
        starts = [
            Start(task, seed)
            for task in self.tasks
            for seed in final_seeds(task, self.seed, self.episodes)
        ]
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.record = EvaluationRecord(
            self.folder.evaluation_path,
            {
                "task": ",".join(self.tasks),
                "seed": self.seed,
                "n_action_steps": self.n_action_steps,
                "shift": rows[0].shift or None,
                "weights": fingerprint(
                    [self.url, self.description, asdict(self.environment), self.keys]
                ),
            },
        )
        self.record.check_room()
        self.record.note(policy=self.url)
        found: dict[str, Any] = {}
        for row in rows:
            known = len(self.record.known(row.name).keys() & set(starts))
            found[row.name] = self._measure(row, starts)
            progress(row.name, found[row.name], known)
        shifts = [row.name for row in rows if row.shift and row.shift != rows[0].shift]
        if shifts:
            under = {name: found[name]["episodes"] for name in shifts}
            left = retained(found["agent"]["episodes"], under, self.seed)
            self.record.note(shifts=shifts, retained=left)
        return self.record.content | found

    def film(self, episodes: int, shift: str = "") -> list[np.ndarray]:
        """Frames (H, W, 3) of the first episodes of every task."""
        frames: list[np.ndarray] = []
        for task in self.tasks:
            seeds = final_seeds(task, self.seed, min(episodes, self.episodes))
            for episode in self._play(task, seeds, Row("film", shift), True):
                several = episode["frames"].ndim == 5
                frames += [np.concatenate(list(f), 1) if several else f for f in episode["frames"]]
        return frames

    def _measure(self, row: Row, starts: Sequence[Start]) -> dict[str, Any]:
        def play(task: str, seeds: Sequence[int], keep: Keep) -> None:
            self._play(task, seeds, row, ended=keep)

        return measure_tasks(self.record, row.name, starts, self.tasks, play)

    def _play(
        self,
        task: str,
        seeds: Sequence[int],
        row: Row,
        recorded: bool = False,
        ended: Keep | None = None,
    ) -> list[dict[str, Any]]:
        options = {"init_state": "seed"} if envs.recorded_starts(task) else None
        ours = self.description.get("sessions") is True
        count = min(len(seeds), AT_ONCE if ours or row.random else 1)
        seen = replace(self.environment, shift=row.shift, masks=False)
        vector = envs.make_vector(task, count, **vars(seen))
        try:
            space = vector.single_action_space
            actor: Actor = RandomAgent(space, self.seed)
            if not row.random:
                assert space.shape is not None
                while len(self.policies) < count:
                    self.policies.append(RemotePolicy(self.url, self.token))
                told = vector.get_attr("instruction")[0]
                actor = RemoteActor(
                    self.policies[:count], told, space.shape[0], self.keys, self.n_action_steps
                )
            return run_episodes(
                actor, vector, list(seeds), recorded, options, until_success=True, ended=ended
            )
        finally:
            vector.close()

    def __enter__(self) -> PolicyEvaluation:
        return self

    def __exit__(self, *error: object) -> None:
        for policy in self.policies:
            policy.close()
