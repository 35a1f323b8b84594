"""What an imitation run holds, and its bookkeeping: batches, logs, evaluations, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import envs
from agents.device import choose_device, keep_freed_memory
from agents.evaluation import summarise
from agents.imitation_config import ImitationConfig, View
from agents.imitation_evaluation import opened, run_task
from agents.imitation_loading import DYNAMICS, load_checked, load_world_model
from agents.mask_world_model import ImitationAgent, check_agreement
from agents.mask_world_model_config import Interface
from agents.rollout import EVALUATION, episode_seed
from agents.training import LOG_SECONDS, MetricMean, random_state, set_random_state
from envs.demonstrations import Recording
from envs.windows import open_windows, statistics
from errors import UserError
from experiment.checkpoint import save_checkpoint
from experiment.run_folder import RunFolder
from world_models.layers import Optimizer
from world_models.video_targets import to_unit

REPORTED_WINDOWS = 4
REPORTED_FRAMES = 4


class ImitationRun:
    """One imitation run in one folder.

    Batch k is a function of the seed and k, the generators' states are in the checkpoint: a run
    that was killed goes on bit for bit.
    """

    def __init__(self, config: ImitationConfig, folder: RunFolder):
        self.config, self.folder = config, folder
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.tasks = envs.expand(config.task)
        self.windows = open_windows(config.data, config.agent.windows(), config.target)
        recordings = self.windows.recordings
        self.view = View.of(recordings[0])
        torch.manual_seed(config.seed)
        interface = interface_of(recordings[0])
        self.agent = ImitationAgent(
            config.agent, interface, statistics(recordings), choose_device(config.device)
        )
        self._check_tasks(interface)
        instructions = {r.task: r.instruction for r in recordings}
        self.captions = self.agent.caption([instructions[task] for task in self.windows.tasks])
        self.updates, self.stage = 0, "dynamics"
        self.optimizer = self._make_optimizer()
        self.metrics = MetricMean()
        self.evaluated, self.reported = 0, 0
        self.latest: dict[str, str] = {}
        self.checkpointed = self.logged = time.monotonic()
        self.updates_logged = 0
        self.bar: tqdm | None = None
        self._batches: Iterator[dict[str, Tensor]] | None = None

    def _check_tasks(self, interface: Interface) -> None:
        """Refuse tasks that the data does not fit now, not at the first evaluation."""
        seen = set()
        for task in self.tasks:
            suite = envs.suite(task)
            kind = task if suite == "dmc" else suite  # all tasks of the others are alike
            if kind not in seen:
                seen.add(kind)
                environment = envs.make(task, **self.view.options(quality=self.config.quality))
                try:
                    check_agreement(
                        interface, environment.observation_space, environment.action_space
                    )
                finally:
                    environment.close()

    # The parts of the loop, in order

    def resume(self) -> None:
        """Continue from the checkpoint, if any."""
        state = self.folder.load_checkpoint("cpu")
        if state is None:
            state = {"metrics_position": 0, "updates": 0, "seconds": 0.0}
        else:
            load_checked(self.agent, state, self.config, self.folder.checkpoint_path)
            if state["windows"] != len(self.windows):
                raise UserError(
                    f"the data has {len(self.windows)} windows, {state['windows']} when the run in"
                    f" {self.folder.path} began; put it back, or choose another --logdir"
                )
            if state["agent"]["statistics"] != self.agent.state_dict()["statistics"]:
                raise UserError(
                    f"the data's actions or proprioception have other ranges than when the run in"
                    f" {self.folder.path} began; put the data back, or choose another --logdir"
                )
            self.updates, self.stage = state["updates"], state["stage"]
            if self.stage == "policy":
                self.agent.freeze()
            self.optimizer = self._make_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])
            self.evaluated, self.reported = state["evaluated"], state["reported"]
            set_random_state(state["random"])
        self.folder.cut_metrics(state["metrics_position"], state["updates"])
        self.folder.start_clock(state["seconds"])
        self.updates_logged = self.updates
        parts = {
            "world model": self.agent.networks.world_model,
            "policy": self.agent.networks.policy,
        }
        counts = {n: sum(p.numel() for p in part.parameters()) for n, part in parts.items()}
        episodes = sum(len(recording.episodes) for recording in self.windows.recordings)
        print(
            f"{len(self.windows):,} windows of {episodes} demonstrations of"
            f" {len(self.windows.tasks)} tasks; parameters: "
            + ", ".join(f"{name} {count:,}" for name, count in counts.items()),
            flush=True,
        )
        self.bar = tqdm(
            total=self.config.first_stage_steps + self.config.policy_steps,
            initial=self.updates,
            unit="update",
            desc=self.stage,
            mininterval=0.5,
            dynamic_ncols=True,
            disable=None,
        )

    def next_batches(self) -> list[dict[str, Tensor]]:
        """The micro-batches of one update, on the device."""
        if self._batches is None:
            self._batches = self._load()
        parts = self.config.batch // (self.config.micro_batch or self.config.batch)
        return [next(self._batches) for _ in range(parts)]

    def learn(self, stage: str, batches: list[dict[str, Tensor]]) -> None:
        """One update of a stage from its micro-batches."""
        if stage == "dynamics":
            loss_of = self.agent.dynamics_loss
        else:
            loss_of = self.agent.policy_loss
        for batch in batches:
            loss, metrics = loss_of(batch)
            self.optimizer.accumulate(loss / len(batches))
            metrics["loss"] = loss.detach()
            self.metrics.add({f"{stage}/{name}": value for name, value in metrics.items()})
        self.metrics.add({f"{stage}/gradient": self.optimizer.apply()})
        self.updates += 1
        self.agent.average(self.updates - self._stage_start)
        self.bar.update()
        if time.monotonic() - self.logged > LOG_SECONDS:
            self.log({})
        if time.monotonic() - self.checkpointed > self.config.checkpoint_seconds:
            self.checkpoint()

    def begin_policy(self) -> None:
        """From stage 1 to stage 2, once."""
        if self.stage == "policy":
            return
        if self.config.first_stage_steps:
            self.report()
        if self.config.dynamics_from:
            self._take_over(Path(self.config.dynamics_from))
        self.stage = "policy"
        self.agent.begin_policy()
        self.optimizer = self._make_optimizer()
        if self.config.agent.world_model == "video":
            save_checkpoint(
                self.folder.path / DYNAMICS, self.agent.networks.world_model.state_dict()
            )
        self.bar.set_description(self.stage)
        self.checkpoint()

    def conclude(self) -> None:
        """The end: the last evaluation and checkpoint."""
        self.log({})
        if self.evaluated < self.updates:
            self.evaluate()
            self.checkpoint()

    @property
    def _stage_start(self) -> int:
        return self.config.first_stage_steps if self.stage == "policy" else 0

    def _make_optimizer(self) -> Optimizer:
        config = self.config.agent
        of_stage = {"dynamics": config.dynamics_optimizer, "policy": config.policy_optimizer}
        return Optimizer(self.agent.learned_by(self.stage), of_stage[self.stage])

    def _load(self) -> Iterator[dict[str, Tensor]]:
        """Micro-batches on the device, from the one that comes next."""
        config = self.config
        size = config.micro_batch or config.batch
        start = self.updates * (config.batch // size)
        loader = DataLoader(
            self.windows,
            batch_sampler=self.windows.batches(size, config.seed, start),
            num_workers=config.workers,
            pin_memory=self.agent.device.type == "cuda",
            # A worker that inherits a pool of threads waits for threads that were not inherited.
            multiprocessing_context="forkserver" if config.workers else None,
            generator=torch.Generator(),  # seeding workers must not move the global one
        )
        for batch in _readable(loader):
            moved = {n: part.to(self.agent.device, non_blocking=True) for n, part in batch.items()}
            task = moved.pop("task")
            yield moved | {name: part[task] for name, part in self.captions.items()}

    def _take_over(self, logdir: Path) -> None:
        """Stage 1 of another run in place of one's own."""
        theirs = RunFolder.read_config(logdir, ImitationConfig)
        for name in ("world_model", "dynamics", "history", "stride", "language"):
            if getattr(theirs.agent, name) != getattr(self.config.agent, name):
                raise UserError(
                    f"the world model of {logdir} was made with another --agent.{name};"
                    " give the same"
                )
        load_world_model(self.agent.averaged.world_model, logdir)

    # Log, evaluation, checkpoint

    def log(self, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl: `metrics` and the mean losses since the last line.

        Raises:
            UserError: a loss is not finite.
        """
        losses = self.metrics.take()
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise UserError(
                f"{', '.join(wrong)} is not finite at update {self.updates}; start another --logdir"
                " with smaller learning rates"
            )
        if not (metrics or losses):
            return
        now = time.monotonic()
        rate = (self.updates - self.updates_logged) / max(1e-9, now - self.logged)
        self.logged, self.updates_logged = now, self.updates
        if losses:
            losses["updates_per_second"] = rate
        self.folder.log(self.updates, {**metrics, **losses})
        shown = {**losses, **metrics}
        for name in ("dynamics/flow", "policy/action_flow", "eval/success"):
            if name in shown:
                self.latest[name] = f"{shown[name]:.3g}"
        self.bar.set_postfix(self.latest, refresh=False)
        if self.bar.disable:
            values = "  ".join(f"{name} {value}" for name, value in self.latest.items())
            print(f"{self.stage} {self.updates} of {self.bar.total}  {values}  {rate:.2f} updates/s"
                  f"  ({self.folder.elapsed:.0f} s)", flush=True)  # fmt: skip

    def report_if_due(self) -> None:
        """Draw predictions when `report_every` updates have passed."""
        if self.updates - self.reported >= self.config.report_every:
            self.report()

    def report(self) -> None:
        """True and predicted futures of some windows, every camera, as pictures."""
        self.reported = self.updates
        kept = random_state()
        count = len(self.windows)
        indices = np.linspace(0, count - 1, REPORTED_WINDOWS + 2).astype(int)[1:-1]
        windows = [self.windows[int(index)] for index in indices]
        device = self.agent.device
        image = torch.from_numpy(np.stack([w["image"] for w in windows])).to(device)
        future = torch.from_numpy(np.stack([w["future"] for w in windows])).to(device)
        task = torch.tensor([int(w["task"]) for w in windows])
        caption = {name: part[task.to(device)] for name, part in self.captions.items()}
        generator = torch.Generator(device).manual_seed(self.config.seed)
        predicted = self.agent.predict(image, caption, generator)
        target = self.agent.averaged.world_model.target
        true = target.to_image(target.encode({"future": future}))
        chosen = np.unique(np.linspace(0, future.shape[2] - 1, REPORTED_FRAMES).astype(int))
        self.folder.write_picture(
            f"prediction-{self.updates:07}",
            prediction_sheet(image.cpu(), true.cpu()[:, :, chosen], predicted.cpu()[:, :, chosen]),
            self.updates,
        )
        error = (to_unit(predicted) - to_unit(true)).abs().mean()
        self.log({"report/difference": float(error)})
        set_random_state(kept)

    def evaluate_if_due(self) -> None:
        """Evaluate when a multiple of `evaluate_every` updates of stage 2 has been made."""
        done = self.updates - self.config.first_stage_steps
        if done and done % self.config.evaluate_every == 0 and self.evaluated < self.updates:
            self.evaluate()
            self.checkpoint()

    def evaluate(self) -> None:
        """Episodes of every task in the simulator, on starts of their own."""
        config, kept = self.config, random_state()
        metrics = {}
        for task in self.tasks:
            seeds = [
                episode_seed(config.seed, EVALUATION, self.updates, index)
                for index in range(config.evaluate_episodes)
            ]
            count = min(config.evaluate_envs, config.evaluate_episodes)
            with opened(self.view, task, count, quality=config.quality) as vector:
                episodes = run_task(self.agent, vector, seeds, config.seed)
            found = summarise(episodes)
            # Where the suite knows no success, the return is what there is.
            kind = "return" if found["success"] is None else "success"
            metrics[f"eval/{kind}/{task}"] = found[kind]["mean"]
        for kind in ("success", "return"):
            means = [v for name, v in metrics.items() if name.startswith(f"eval/{kind}/")]
            if means:
                metrics[f"eval/{kind}"] = float(np.mean(means))
        self.evaluated = self.updates
        self.log(metrics)
        self.folder.update_curve()
        set_random_state(kept)

    def checkpoint(self) -> None:
        """Write a checkpoint, unless a loss since the last one was not finite."""
        self.log({})
        self.folder.save_checkpoint(
            {
                "agent": self.agent.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "task": self.config.task,
                "stage": self.stage,
                "view": vars(self.view),
                "windows": len(self.windows),
                "random": random_state(),
                "evaluated": self.evaluated,
                "reported": self.reported,
                "updates": self.updates,
                "seconds": self.folder.elapsed,
                "metrics_position": self.folder.metrics_position(),
            }
        )
        self.checkpointed = time.monotonic()

    def close(self) -> None:
        """Give back the readers' processes and the terminal."""
        self._batches = None
        if self.bar is not None:
            self.bar.close()


def interface_of(recording: Recording) -> Interface:
    """What a demonstration file fixes of the agent."""
    return Interface(
        len(recording.cameras), recording.size, recording.action_size, recording.proprio_size
    )


def _readable(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """A loader's batches; what goes wrong in its processes is one sentence here too."""
    try:
        yield from loader
    except UserError as error:  # the sentence is the end of the worker's traceback
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that reads the demonstrations has died, perhaps for want of memory; the same"
            " command goes on, with --workers 0 without such processes"
        ) from error


def prediction_sheet(image: Tensor, true: Tensor, predicted: Tensor) -> np.ndarray:
    """The present picture, the true and the predicted future, a camera a row.

    Args:
        image: (B, V, H, S, S, 3) uint8, the present frame last.
        true, predicted: (B, V, F, S, S, 3) uint8.

    Returns:
        (2·B·V·S, (1 + F)·S, 3) uint8: of every camera a row of truth above one of prediction.
    """
    rows = []
    for window in range(len(image)):
        for camera in range(image.shape[1]):
            for future in (true, predicted):
                frames = [image[window, camera, -1], *future[window, camera]]
                rows.append(np.concatenate([frame.numpy() for frame in frames], 1))
    return np.concatenate(rows)
