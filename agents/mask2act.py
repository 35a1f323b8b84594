"""Mask2Act: a planner that foretells object masks from video, an executor that acts on its plans.

Shape legend: B windows, V cameras (the third-person one first), H steps, S picture edge, A action,
D proprioception, W plan width, n environments, K goal pictures of a task.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from agents.action_chunks import Normaliser
from agents.agent import Stage, TaskDescription
from agents.data_spec import DataSpec
from agents.device import autocast
from agents.mask2act_config import Mask2ActConfig
from agents.mask2act_networks import Networks
from envs.windows import Kind, Read, Reads
from errors import UserError
from world_models.language import make_language
from world_models.layers import move_average
from world_models.mask_dynamics import MaskDynamics
from world_models.plan_targets import PlanTarget
from world_models.planner import Planner

ACTION_RANGE = (-1.0, 1.0)
VIDEO_FRAMES, VIDEO_STRIDE = 4, 4
"""Frames that the video model sees, and steps between those of history and future (Mask World
Model)."""
VIDEO_HISTORY = Read(
    "rgb", [-VIDEO_STRIDE * n for n in range(VIDEO_FRAMES - 1, -1, -1)], (0,), "first"
)
REPORTED = 6
"""Windows whose foretold future is drawn."""

# Data without proprioception makes a layer without inputs.
warnings.filterwarnings("ignore", message="Initializing zero-element tensors")


class Mask2Act:
    """An imitator (`agents/agent.py`) of two stages, planner and executor.

    Args:
        config: sizes and settings.
        data_spec: what the data fixes.
        statistics: of actions and proprioception (``envs.windows.statistics``).
        device: to compute on.

    Attributes:
        instructions: by task, what its data tells; empty before it is loaded from a run.
        goals: by task, pictures (K, S, S, 3) uint8 of the task done, from the demonstrations.
    """

    stages = ("planner", "executor")
    chunk = n_action_steps = 1
    """Actions that are predicted at once, and taken before the next ones are."""
    without_acting = ("target.", "planner.vae.decoder.", "planner.target.")
    """Beginnings of names of `acting`'s weights that no action depends on."""
    draws = True
    """Whether it can draw what it foretells: not without its target, which is not exported."""

    def __init__(
        self,
        config: Mask2ActConfig,
        data_spec: DataSpec,
        statistics: Mapping[str, Sequence[float]],
        device: torch.device | str,
    ):
        self.config, self.data_spec, self.statistics = config, data_spec, statistics
        self.device = torch.device(device)
        self.language = make_language(config.language)
        self.instructions: dict[str, str] = {}
        self.networks = Networks(config, data_spec, self.language.width).to(self.device)
        self.ema = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.actions = Normaliser.of(statistics, "action", ACTION_RANGE).to(self.device)
        self.proprio = Normaliser.of(statistics, "proprio").to(self.device)
        self.goals: dict[str, Tensor] = {}

    # What is learned from

    def reads(self, name: str) -> Reads:
        """What windows hold for a stage. Stage 1 reads no action, no proprioception, and one
        camera."""
        steps, video = self.config.steps, self.config.plan == "video"
        if name == "executor":
            reads = {
                "image": Read("rgb", steps),
                "proprio": Read("proprio", steps),
                "action": Read("action", steps),
            }
            return reads | ({"video": VIDEO_HISTORY} if video else {})
        if video:
            frames = range(1, self.config.dynamics.future_frames + 1)
            ahead = [VIDEO_STRIDE * frame for frame in frames]
            return {"image": VIDEO_HISTORY, "future": Read("rgb", [0], ahead, "first")}
        if self.config.plan == "none":
            return {}
        _, target = self.networks.foretelling
        return {"view": Read("rgb", steps, cameras="first")} | {
            part: Read(cast(Kind, kind), from_, ahead, "first")
            for part, (kind, from_, ahead) in target.reads(steps).items()
        }

    def describe(
        self, tasks: Sequence[TaskDescription], remember: bool = True
    ) -> dict[str, Tensor]:
        """What batches hold of each task, (tasks, ...): ``text``, ``text_mask``, ``goals``;
        `remember`: these goals are those to act by."""
        tokens, mask = self.language([task.instruction for task in tasks])
        fewest = min(len(task.goals) for task in tasks)
        goals = np.stack([task.goals[:fewest] for task in tasks])
        if remember:
            self.goals = {task.name: torch.from_numpy(task.goals) for task in tasks}
        described = {"text": tokens, "text_mask": mask, "goals": torch.from_numpy(goals)}
        return {name: part.to(self.device) for name, part in described.items()}

    # Learning

    def loss(self, name: str, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a stage ("planner" or "executor"), a scalar, and metrics."""
        with autocast(self.config.precision, self.device):
            return self._planner_loss(batch) if name == "planner" else self._executor_loss(batch)

    def _planner_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        networks = self.networks
        if isinstance(networks.planner, MaskDynamics):
            views = {name: batch[name][:, None] for name in ("image", "future")}  # V is 1
            return networks.planner.loss(batch | views)
        planner, target = networks.foretelling
        plan, _ = planner(self._with_goal(batch))
        return target.loss(plan.float(), batch, self.ema.foretelling[0].encoder)

    def _executor_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        plan, view = self.plan(self.networks, batch)
        predicted = self.networks.executor(
            batch["image"], self.proprio.normalise(batch["proprio"]), plan, view
        )
        error = (predicted - self.actions.normalise(batch["action"])).square().mean(-1)
        # A video model looks once a window: only the present step has a plan.
        loss = error[:, -1].mean() if self.config.plan == "video" else error.mean()
        return loss, {"present": error[:, -1].detach().mean()}

    def plan(self, networks: Networks, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Plan tokens (B, H, W), without gradients, and the encoded third-person pictures
        (B, H, W) where the planner has them.

        Args:
            networks: latest or averaged.
            batch: ``image`` (B, V, H, S, S, 3) uint8, ``goals``, ``text``, ``text_mask``; of a
                video model ``video`` (B, H', S, S, 3).
        """
        image, planner = batch["image"], networks.planner
        if isinstance(planner, Planner):
            with torch.no_grad():
                plan, picture = planner(self._with_goal({**batch, "view": image[:, 0]}))
            return plan, None if self.config.executor.own_view else picture
        nothing = torch.zeros(len(image), image.shape[2], networks.plan_width, device=image.device)
        if planner is None:
            return nothing, None
        assert networks.pool is not None
        with torch.no_grad():
            video, text = batch["video"][:, None], (batch["text"], batch["text_mask"])
            tokens = planner.features(video, *text)[-1]
        present = networks.pool(tokens)
        return torch.cat([nothing[:, 1:].to(present.dtype), present[:, None]], 1), None

    def _with_goal(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """With one of the goal pictures of each window's task, drawn at random: one of another
        episode, as in acting."""
        goals = batch["goals"]
        rows = torch.arange(len(goals), device=goals.device)
        drawn = torch.randint(goals.shape[1], (len(goals),), device=goals.device)
        return {**batch, "goal": goals[rows, drawn]}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which `loss` is that of the averaged weights."""
        latest, self.networks = self.networks, self.ema
        try:
            yield
        finally:
            self.networks = latest

    @torch.no_grad()
    def action_error(self, batch: dict[str, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        """Predicted less true present action, (B, 1, A), and that it is there, (B, 1); `batch` as
        the executor learns from, `seed` of the goal pictures."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), autocast(self.config.precision, self.device):
            torch.manual_seed(seed)
            plan, view = self.plan(self.ema, batch)
            proprio = self.proprio.normalise(batch["proprio"])
            predicted = self.ema.executor(batch["image"], proprio, plan, view)[:, -1:]
        error = self.actions.denormalise(predicted.float()) - batch["action"][:, -1:]
        return error, torch.ones(error.shape[:2], dtype=torch.bool, device=error.device)

    def stage(self, name: str) -> Stage:
        """What a stage trains."""
        networks = self.networks
        if name == "planner":
            modules = [part for part in (networks.planner, networks.target) if part is not None]
            return Stage(name, modules, self.config.planner_optimizer)
        modules = [part for part in (networks.executor, networks.pool) if part is not None]
        return Stage(name, modules, self.config.executor_optimizer)

    def begin(self, name: str) -> None:
        """Begin a stage with the averaged weights: stage 2 with the planner of stage 1, stage 1
        with one taken over from another run."""
        self.networks.load_state_dict(self.ema.state_dict())
        self.resume(name)

    def resume(self, name: str) -> None:
        """In stage 2 planner and target are frozen, their running statistics too (section 3.4)."""
        if name == "planner":
            return
        for part in (self.networks.planner, self.networks.target):
            if part is not None:
                part.requires_grad_(False).eval()

    def first_stage_state_dict(self) -> dict[str, Tensor] | None:
        """What stage 1 leaves, also for other runs: planner and target; None without a plan."""
        kept = ("planner.", "target.")
        state = self.networks.state_dict()
        return {n: part for n, part in state.items() if n.startswith(kept)} or None

    def load_first_stage_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what stage 1 of another run has left.

        Raises:
            RuntimeError: it is of other sizes.
        """
        self.ema.load_state_dict({**self.ema.state_dict(), **state})

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part."""
        parts = {
            "planner": self.networks.planner,
            "plan target": self.networks.target,
            "executor": self.networks.executor,
        }
        return {
            name: sum(p.numel() for p in part.parameters())
            for name, part in parts.items()
            if part is not None
        }

    def update_ema(self, updates: int) -> None:
        """Move the averaged weights towards the latest (`move_average`)."""
        move_average(self.ema, self.networks, self.config.ema_decay, updates)

    @torch.no_grad()
    def report(self, batch: dict[str, Tensor], seed: int) -> tuple[np.ndarray, dict[str, float]]:
        """What stage 1 foretells of some windows, for people.

        Args:
            batch: as stage 1 learns from.
            seed: of what is drawn at random.

        Returns:
            A picture (rows, columns, 3) uint8, of every window what is seen, what came and what
            was foretold; and metrics of the averaged weights on these windows.
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            networks = self.ema
            if isinstance(networks.planner, MaskDynamics):
                return self._report_video(networks.planner, batch, seed)
            planner, target = networks.foretelling
            plan, _ = planner(self._with_goal(batch))
            if "view_ahead" in batch:
                batch = {
                    **batch,
                    "encoded_ahead": planner.encoder(batch["view_ahead"][:, -1]),
                }
            _, metrics = target.loss(plan, batch, planner.encoder)
            true, foretold = target.draw(plan, batch)
        seen = batch["view"][:, -1:]
        sheet = torch.cat([seen, true, foretold], dim=1).cpu().numpy()  # (B, 1 + 2·K, S, S, 3)
        rows = [np.concatenate(list(row), 1) for row in sheet]
        return np.concatenate(rows), {name: float(value) for name, value in metrics.items()}

    def _report_video(
        self, planner: MaskDynamics, batch: dict[str, Tensor], seed: int
    ) -> tuple[np.ndarray, dict[str, float]]:
        generator = torch.Generator(self.device).manual_seed(seed)
        image = batch["image"][:, None]
        future = planner.predict(image, batch["text"], batch["text_mask"], generator=generator)
        foretold = planner.target.to_image(future)[:, 0, -1:]
        sheet = torch.cat([batch["image"][:, -1:], batch["future"][:, -1:], foretold], 1)
        difference = (foretold.float() - batch["future"][:, -1:].float()).abs().mean() / 127.5
        rows = [np.concatenate(list(row), 1) for row in sheet.cpu().numpy()]
        return np.concatenate(rows), {"difference": float(difference)}

    # Acting

    @property
    def acting(self) -> Networks:
        """The networks that act: the averaged ones."""
        return self.ema

    @property
    def films_masks(self) -> bool:
        """Whether what it foretells can only be drawn where the objects' masks are seen."""
        target = self.networks.target
        if target is None or not hasattr(target, "film") or not self.draws:
            return False
        reads = cast(PlanTarget, target).reads(self.config.steps)
        return any(kind == "mask" for kind, *_ in reads.values())

    def actor(self, task: TaskDescription, seed: int = 0, drawn: bool = False) -> PlanActor:
        """This agent at work on one task, for `run_episodes`; `drawn`: see `PlanActor`.

        Raises:
            UserError: the agent has no goal picture of the task.
        """
        goals = torch.from_numpy(task.goals) if len(task.goals) else self.goals.get(task.name)
        if goals is None:
            raise UserError(
                f"this agent has no goal picture of {task.name}, it learned"
                f" {', '.join(self.goals)}; give demonstrations of it with --goals FILE.hdf5"
            )
        return PlanActor(self, task.instruction, goals, seed, drawn)

    # Saving

    def state_dict(self) -> dict:
        """Latest and averaged weights, goal pictures, and what the data fixed."""
        return {
            "networks": self.networks.state_dict(),
            "ema": self.ema.state_dict(),
            "goals": dict(self.goals),
            "data_spec": vars(self.data_spec),
            "statistics": dict(self.statistics),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`.

        Raises:
            RuntimeError: another agent's.
        """
        self.networks.load_state_dict(state["networks"])
        self.ema.load_state_dict(state["ema"])
        self.goals = dict(state["goals"])


class PlanActor:
    """Plans and acts at every step in n environments of one task.

    What the encoders made of earlier pictures is kept, so that every picture is encoded once. With
    `drawn`, `film` collects what every camera of the first environment sees and what is foretold
    there, of masks where `mask` is shown.

    Args:
        agent: acts with its averaged weights.
        instruction: what it is told, where its planner listens.
        goals: (K, S, S, 3) uint8; each episode is shown one of them.
        seed: chooses which, and draws a video model's noise.
        drawn: whether it films.
    """

    def __init__(
        self, agent: Mask2Act, instruction: str, goals: Tensor, seed: int, drawn: bool = False
    ):
        self.agent, self.goals = agent, goals
        tokens, mask = agent.language([instruction])
        self.text = {"text": tokens.to(agent.device), "text_mask": mask.to(agent.device)}
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.film: list[np.ndarray] | None = [] if drawn else None
        self.back = [-step for step in agent.config.steps]  # (H,), how many steps ago, the last 0
        self.past: dict[str, Tensor] = {}  # by what: (n, steps back, ...), the present one last
        self.task: Tensor | None = None  # (n, 1, W)
        self.present: Tensor | None = None  # (n, W), the plan of now

    @torch.no_grad()
    def policy(self, observation: dict, state: None, explore: bool) -> tuple[np.ndarray, None]:
        """Actions (n, A) float32.

        Args:
            observation: ``image`` (n, [V,] S, S, 3), ``proprio`` (n, D) unless D is 0,
                ``is_first`` (n,) bool.
            state: not used: what is remembered is in this object.
            explore: not used: there is one action.
        """
        agent, device = self.agent, self.agent.device
        image = torch.from_numpy(np.ascontiguousarray(observation["image"])).to(device)
        if agent.data_spec.cameras == 1:
            image = image[:, None]
        first = torch.from_numpy(np.asarray(observation["is_first"], bool)).to(device)
        felt = observation.get("proprio", np.zeros((len(image), 0), np.float32))
        with autocast(agent.config.precision, device):
            action = self._act(image, torch.from_numpy(felt).to(device), first)
        if self.film is not None:
            pictures = [*image[0], *self._foretold(image, observation.get("mask"))]
            self.film.append(torch.cat(pictures, 1).cpu().numpy())
        return agent.actions.denormalise(action).cpu().numpy(), None

    def _act(self, image: Tensor, proprio: Tensor, first: Tensor) -> Tensor:
        networks, planner = self.agent.ema, self.agent.ema.planner
        self._remember("proprio", self.agent.proprio.normalise(proprio), first)
        for number, encoded in enumerate(networks.executor.encode(image[:, :, None])):
            self._remember(f"camera {number}", encoded[:, 0], first)
        cameras = [self._recall(name) for name in self.past if name.startswith("camera")]
        proprio = self._recall("proprio")
        view = None
        if isinstance(planner, Planner):
            self._remember("view", planner.encoder(image[:, 0]), first)
            view = self._recall("view")
            plan = planner.plan(view, self._task_token(planner, first))
            self.present = plan[:, -1].float()
            view = None if self.agent.config.executor.own_view else view
        else:
            plan = torch.zeros(*proprio.shape[:2], networks.plan_width, device=proprio.device)
            if planner is not None:
                plan = self._video_plan(networks, planner, image[:, 0], plan, first)
        return networks.executor.act(cameras, proprio, plan, view)[:, -1]

    def _foretold(self, image: Tensor, mask: np.ndarray | None) -> list[Tensor]:
        """Pictures (S, S, 3) of what the first environment's plan foretells, if its target draws.

        Args:
            image: (n, V, S, S, 3).
            mask: (n, [V,] S, S).
        """
        agent, target = self.agent, self.agent.ema.target
        if self.present is None or not hasattr(target, "film") or not agent.draws:
            return []
        seen = {"view": image[:1, :1]}
        if agent.films_masks:
            if mask is None:
                return []
            first = torch.from_numpy(np.array(mask[0])).to(image.device)
            seen["mask"] = first.view(1, -1, *first.shape[-2:])[:, :1]
        return list(cast(Any, target).film(self.present[:1], seen)[0])

    def _task_token(self, planner: Planner, first: Tensor) -> Tensor:
        """(n, 1, W); every episode begins with a goal picture of its own."""
        chosen = self.goals[self.rng.integers(len(self.goals), size=len(first))]
        text = {name: part.expand(len(first), *part.shape[1:]) for name, part in self.text.items()}
        if self.task is None or first.any():
            fresh = planner.task_token({"goal": chosen.to(first.device), **text})
            kept = fresh if self.task is None else self.task
            self.task = torch.where(first[:, None, None], fresh, kept)
        return self.task

    def _video_plan(
        self, networks: Networks, planner: MaskDynamics, view: Tensor, plan: Tensor, first: Tensor
    ) -> Tensor:
        self._remember("video", view, first, VIDEO_STRIDE * (VIDEO_FRAMES - 1) + 1)
        video = self.past["video"][:, ::VIDEO_STRIDE][:, None]
        text, mask = (part.expand(len(view), *part.shape[1:]) for part in self.text.values())
        tokens = planner.features(video, text, mask, generator=self.generator)[-1]
        assert networks.pool is not None
        return torch.cat([plan[:, 1:], networks.pool(tokens).float()[:, None]], 1)

    def _remember(self, name: str, value: Tensor, first: Tensor, steps: int = 0) -> None:
        """Keep (n, ...) as the present; an episode's first one stands for all before it."""
        steps = steps or self.back[0] + 1
        repeated = value[:, None].expand(-1, steps, *value.shape[1:])
        before = self.past.get(name, repeated)
        now = torch.cat([before[:, 1:], value[:, None]], 1)
        over = first.view(-1, *[1] * (now.ndim - 1))
        self.past[name] = torch.where(over, repeated, now)

    def _recall(self, name: str) -> Tensor:
        """(n, H, ...) of the steps that are seen."""
        kept = self.past[name]
        return kept[:, [kept.shape[1] - 1 - back for back in self.back]]
