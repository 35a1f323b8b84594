"""What an imitation run holds, and its bookkeeping: batches, stages, reports, evaluations."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import envs
from agents.agent import Imitator, TaskDescription
from agents.data_spec import DataSpec
from agents.evaluation import summarise
from agents.held_out import HeldOut
from agents.imitation_config import NO_TASK, RunConfig, View
from agents.imitation_evaluation import check_agreement, opened, run_task
from agents.imitation_loading import STAGE_1, load_first_stage, make_imitator
from agents.rollout import EVALUATION, episode_seed
from agents.training import TrainingRun, load_checked, random_state, set_random_state
from atomic_file import atomic_file
from envs.demonstrations import read_headers
from envs.episode_choice import choose, hold_out, last_pictures, names
from envs.recording_header import Recording
from envs.windows import Windows, statistics
from envs.workers import WorkerContext
from errors import UserError
from experiment.checkpoint import fitting, save_checkpoint
from experiment.progress import Progress
from experiment.run_folder import RunFolder
from world_models.layers import Optimizer

REPORTED_WINDOWS = 4
"""Windows whose predicted future is drawn."""
GOALS = 8
"""Pictures of each task done."""
HELD_OUT_EPISODES = "held out"
"""What demonstrations.json calls those that nothing is learned from, beside the stages."""
ALIKE = ("metaworld", "libero", "panda", "rlbench")
"""Suites whose tasks are alike in what they show and take."""


class ImitationRun(TrainingRun):
    """One imitation run in one folder: its windows, imitator and stages.

    Batch k is a function of the seed and k, the generators' states are in the checkpoint: a run
    that was killed goes on bit for bit. It reads in processes of its own, with torch's DataLoader;
    the context says in one line that one of them has died, whenever it did.
    """

    unit = "update"
    shown = (
        "dynamics/flow", "policy/action_flow", "planner/loss", "executor/loss", "eval/success",
        "held_out/action_error",
    )  # fmt: skip

    def __init__(self, config: RunConfig, folder: RunFolder, trusted: Collection[str] = ()):
        super().__init__(config, folder)
        self.trusted = trusted
        self.tasks = [] if config.task == NO_TASK else envs.expand(config.task)
        everything = read_headers(config.data, config.filter_key, config.obs_alignment)
        check_sizes(everything, config.picture_size)
        recordings, held = hold_out(everything, config.held_out_share, config.seed)
        acted = choose(recordings, config.demonstrations, config.seed, "demonstrations")
        self.view = View.of(acted[0])
        torch.manual_seed(config.seed)
        data_spec = data_spec_of(acted[0])
        self.agent: Imitator = make_imitator(config, data_spec, statistics(acted), config.device)
        self.stages = self.agent.stages
        self.windows: dict[str, Windows] = {}
        """What each stage learns from; no first one where this run has no such stage."""
        if config.first_stage_steps:
            seen = choose(recordings, config.videos, config.seed, "videos")
            self.windows[self.stages[0]] = Windows(seen, self.agent.reads(self.stages[0]))
        self.windows[self.stages[1]] = Windows(acted, self.agent.reads(self.stages[1]))
        self._check_tasks(data_spec)
        self.described = {stage: self._describe(stage) for stage in self.windows}
        """What batches hold of each task of a stage's data."""
        self.held = held
        self.held_out = self._hold_out(acted) if held else None
        self.updates, self.stage = 0, self.stages[0]
        self.optimizer = self._make_optimizer()
        self.reported = 0  # updates at the last report
        self._batches: Iterator[dict[str, Tensor]] | None = None

    def _hold_out(self, acted: list[Recording]) -> HeldOut:
        """What is measured of the held-out demonstrations."""
        tasks = {recording.task for recording in acted}
        goals = {task: last_pictures(acted, task, GOALS) for task in tasks}
        size = self.config.micro_batch or self.config.batch
        return HeldOut(self.agent, self.held, list(self.windows), size, goals)

    def _describe(self, stage: str) -> dict[str, Tensor]:
        windows = self.windows[stage]
        words = {recording.task: recording.instruction for recording in windows.recordings}
        return self.agent.describe(
            [
                TaskDescription(task, words[task], last_pictures(windows.recordings, task, GOALS))
                for task in windows.tasks
            ]
        )

    @property
    def position(self) -> int:
        """Updates of both stages so far."""
        return self.updates

    updates_made = position

    def _check_tasks(self, data_spec: DataSpec) -> None:
        """Refuse tasks that the data does not fit now, not at the first evaluation."""
        seen = set()
        for task in self.tasks:
            suite = envs.suite(task)
            kind = suite if suite in ALIKE else task
            if kind not in seen:
                seen.add(kind)
                environment = envs.make(task, **self.view.options(quality=self.config.quality))
                try:
                    check_agreement(
                        data_spec, environment.observation_space, environment.action_space
                    )
                finally:
                    environment.close()

    # Starting

    def resume(self) -> None:
        """Continue from the checkpoint, if any."""
        state = self.load_checkpoint(optimizer=dict, windows=int, reported=int, updates=int)
        if state is not None:
            load_checked(self.agent, state, self.config.task, self.folder.checkpoint_path)
            self._check_data(state)
            with fitting(self.folder.checkpoint_path):
                self.updates, self.stage = state["updates"], state["stage"]
                self.stages.index(self.stage)
                self.agent.resume(self.stage)
                self.optimizer = self._make_optimizer()
                self.optimizer.load_state_dict(state["optimizer"])
                set_random_state(state["random"], self.agent.device)
            self.evaluated, self.reported = state["evaluated"], state["reported"]
        elif self.config.post_training_steps:
            self._take_over()
            self.agent.begin(self.stage)
        self.start_log(state, self.updates)
        windows = next(iter(self.windows.values()))
        if windows.note:
            print(windows.note, flush=True)
        chosen = {stage: names(found.recordings) for stage, found in self.windows.items()}
        if self.held:
            chosen[HELD_OUT_EPISODES] = names(self.held)
        with atomic_file(self.folder.demonstrations_path) as file:
            file.write(json.dumps(chosen, indent=1).encode() + b"\n")
        counts = self.agent.parameter_counts()
        for stage, found in self.windows.items():
            episodes = sum(len(recording.episodes) for recording in found.recordings)
            print(
                f"{stage}: {len(found):,} windows of {episodes} demonstrations of"
                f" {len(found.tasks)} tasks",
                flush=True,
            )
        if self.held:
            episodes = sum(len(recording.episodes) for recording in self.held)
            print(f"held out: {episodes} demonstrations", flush=True)
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(f"parameters: {parts}", flush=True)
        self.start_bar(self.end_of(self.stages[-1]), self.stage)

    def _check_data(self, state: dict[str, Any]) -> None:
        """Refuse to go on with other data than the run began with."""
        path = self.folder.path
        found = len(self.windows[self.stages[-1]])
        if state["windows"] != found:
            raise UserError(
                f"the data has {found} windows, {state['windows']} when the run in"
                f" {path} began; put it back, or choose another --logdir"
            )
        if state["agent"]["statistics"] != dict(self.agent.statistics):
            raise UserError(
                f"the data's actions or proprioception have other ranges than when the run in"
                f" {path} began; put the data back, or choose another --logdir"
            )

    # Stages

    def stages_left(self) -> tuple[str, ...]:
        """The stage the run is in, and those after it."""
        return self.stages[self.stages.index(self.stage) :]

    def start_of(self, stage: str) -> int:
        """Updates of the run when a stage begins."""
        return 0 if stage == self.stages[0] else self.config.first_stage_steps

    def end_of(self, stage: str) -> int:
        """Updates of the run when a stage has ended."""
        first = self.config.first_stage_steps
        return first if stage == self.stages[0] else first + self.config.policy_steps

    def begin(self, stage: str) -> None:
        """Go over to a stage, unless the run is in it."""
        if stage == self.stage:
            return
        if self.config.first_stage_steps:
            self.report()
        if self.config.dynamics_from and not self.config.post_training_steps:
            self._take_over()
        self.stage, self._batches = stage, None
        self.agent.begin(stage)
        self.optimizer = self._make_optimizer()
        left = self.agent.first_stage_state_dict()
        if left is not None:
            save_checkpoint(self.folder.path / STAGE_1, left)
        if self.bar is not None:
            self.bar.set_description(stage)
        self.checkpoint()

    def _take_over(self) -> None:
        """Stage 1 of another run, as it ended there."""
        logdir = Path(self.config.dynamics_from)
        load_first_stage(self.agent, self.config, logdir, self.trusted)

    def _make_optimizer(self) -> Optimizer:
        # A stage that this run leaves out may have nothing to train.
        stage = self.agent.stage(self.stage if self.stage in self.windows else self.stages[-1])
        return Optimizer(stage.modules, stage.optimizer)

    # Learning

    def next_batches(self) -> list[dict[str, Tensor]]:
        """The micro-batches of one update, on the device."""
        if self._batches is None:
            self._batches = self._load()
        parts = self.config.batch // (self.config.micro_batch or self.config.batch)
        return [next(self._batches) for _ in range(parts)]

    def learn(self, stage: str, batches: list[dict[str, Tensor]]) -> None:
        """One update of a stage from its micro-batches."""
        for batch in batches:
            loss, metrics = self.agent.loss(stage, batch)
            self.optimizer.accumulate(loss / len(batches))
            metrics["loss"] = loss.detach()
            self.metrics.add({f"{stage}/{name}": value for name, value in metrics.items()})
        norm = self.optimizer.apply()
        self.updates += 1
        self.agent.update_ema(self.updates - self.start_of(stage))
        if self.bar is not None:
            self.bar.update()
        self.learned({f"{stage}/gradient": norm})

    def _load(self) -> Iterator[dict[str, Tensor]]:
        """Micro-batches on the device, from the one that comes next."""
        config = self.config
        size = config.micro_batch or config.batch
        windows, described = self.windows[self.stage], self.described[self.stage]
        start = self.updates * (config.batch // size)
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            windows,  # type: ignore[arg-type]  # a sequence is all that DataLoader needs
            batch_sampler=windows.batches(size, config.seed, start),
            num_workers=config.workers,
            pin_memory=self.agent.device.type == "cuda",
            multiprocessing_context=WorkerContext() if config.workers else None,
            generator=torch.Generator(),  # seeding workers must not move the global one
        )
        for batch in _readable(loader):
            moved = {n: part.to(self.agent.device, non_blocking=True) for n, part in batch.items()}
            task = moved.pop("task")
            yield moved | {name: part[task] for name, part in described.items()}

    # Reports, evaluations, checkpoints

    @property
    def report_due(self) -> bool:
        """Whether `report_every` updates of stage 1 have been made since the last report."""
        since = self.updates - self.reported
        return self.stage == self.stages[0] and since >= self.config.report_every

    def report(self) -> None:
        """Draw what stage 1 predicts of some windows beside what came."""
        self.reported = self.updates
        kept = random_state(self.agent.device)
        found, device = self.windows[self.stages[0]], self.agent.device
        numbers = np.linspace(0, len(found) - 1, REPORTED_WINDOWS + 2).astype(int)[1:-1]
        windows = [found[int(number)] for number in numbers]
        batch = {
            name: torch.from_numpy(np.stack([window[name] for window in windows])).to(device)
            for name in windows[0]
        }
        task = batch.pop("task")
        batch |= {name: part[task] for name, part in self.described[self.stages[0]].items()}
        picture, metrics = self.agent.report(batch, self.config.seed)
        self.folder.write_picture(f"prediction-{self.updates:07}", picture, self.updates)
        logged = {f"report/{name}": value for name, value in metrics.items()}
        if self.held_out is not None:
            picture, metrics = self.held_out.picture(self.config.seed)
            self.folder.write_picture(f"held-out-{self.updates:07}", picture, self.updates)
            metrics |= self.held_out.measure(self.stages[0], self.config.seed)
            logged |= {f"held_out/{name}": value for name, value in metrics.items()}
        self.log(logged)
        set_random_state(kept, self.agent.device)

    @property
    def evaluation_due(self) -> bool:
        """Whether a multiple of `evaluate_every` updates of stage 2 has been made."""
        done = self.updates - self.start_of(self.stages[-1])
        return (
            self.stage == self.stages[-1]
            and done > 0
            and done % self.config.evaluate_every == 0
            and self.evaluated < self.updates
        )

    def evaluate(self) -> None:
        """Episodes of every task in the simulator, on starts of their own, and what is held out,
        with a checkpoint before and after them: an evaluation that is stopped begins anew, and
        loses nothing else."""
        self.checkpoint()
        config, kept = self.config, random_state(self.agent.device)
        metrics = {}
        for task in self.tasks:
            seeds = [
                episode_seed(config.seed, EVALUATION, self.updates, index)
                for index in range(config.evaluate_episodes)
            ]
            count = min(config.evaluate_envs, config.evaluate_episodes)
            with (
                self.stop.at_once(),
                opened(self.view, task, count, quality=config.quality) as vector,
                Progress(f"evaluation of {task}", len(seeds), "episode", leave=False) as bar,
            ):
                episodes = run_task(
                    self.agent,
                    vector,
                    task,
                    seeds,
                    config.seed,
                    ended=bar.count,
                )
                if task == self.tasks[0]:
                    self.note_graphics(vector, first=not self.evaluated)
            found = summarise(episodes)
            # Where the suite knows no success, the return is what there is.
            kind = "return" if found["success"] is None else "success"
            metrics[f"eval/{kind}/{task}"] = found[kind]["mean"]
        for kind in ("success", "return"):
            means = [v for name, v in metrics.items() if name.startswith(f"eval/{kind}/")]
            if means:
                metrics[f"eval/{kind}"] = float(np.mean(means))
        if self.held_out is not None:
            measured = self.held_out.measure(self.stages[-1], config.seed)
            metrics |= {f"held_out/{name}": value for name, value in measured.items()}
        self.evaluated = self.updates
        self.log(metrics)
        self.folder.update_curve()
        set_random_state(kept, self.agent.device)
        self.checkpoint()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of an imitation run."""
        return {
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage,
            "view": self.view.plain(),
            "instructions": {
                recording.task: recording.instruction
                for recording in self.windows[self.stages[-1]].recordings
            },
            "windows": len(self.windows[self.stages[-1]]),
            "reported": self.reported,
            "updates": self.updates,
        }

    def close(self) -> None:
        """Give back the readers' processes and the terminal."""
        self._batches = None
        super().close()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        # torch raises it wherever the run happens to be.
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise UserError(
                "a process that reads the demonstrations has died, perhaps for want of memory"
                f" ({str(error).strip().rstrip('.')}); the same command goes on, with --workers 0"
                " without such processes"
            ) from error


def check_sizes(recordings: Sequence[Recording], size: int) -> None:
    """Refuse pictures of another edge than `size` pixels; 0 takes any. Raises UserError."""
    for recording in recordings:
        if size and recording.size != size:
            raise UserError(
                f"{recording.path} has pictures of {recording.size} pixels, and --picture-size"
                f" (preset paper: 256) is {size}; record them with --environment.size {size}, give"
                f" annotate or convert --size {size}, or --picture-size 0, which takes any"
            )


def data_spec_of(recording: Recording) -> DataSpec:
    """What a demonstration file fixes of the agent."""
    return DataSpec(
        len(recording.cameras), recording.size, recording.action_size, recording.proprio_size
    )


def _readable(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """A loader's batches; a mistake that its processes find is one sentence here too."""
    try:
        yield from loader
    except UserError as error:  # the sentence is the end of the worker's traceback
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from error
