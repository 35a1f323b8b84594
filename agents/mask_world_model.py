"""Mask World Model (Lou et al., 2026): a world model of the future, and a policy on its features.

Shape legend: B windows, V cameras, H history frames, S picture edge, A action, D proprioception,
H' actions of a chunk, n environments, L caption tokens.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.action_chunks import ActionQueue, Normaliser
from agents.agent import Stage, TaskDescription
from agents.data_spec import DataSpec
from agents.device import autocast
from agents.diffusion_policy import DiffusionPolicy
from agents.mask_world_model_config import MaskWorldModelConfig
from envs.windows import Reads
from world_models.image_encoder import ImageEncoder
from world_models.language import make_language
from world_models.layers import move_average
from world_models.mask_dynamics import MaskDynamics
from world_models.targets import reads
from world_models.video_targets import VideoTarget, to_unit

ACTION_RANGE = (-1.0, 1.0)
REPORTED_FRAMES = 4
"""Frames of a predicted future that are drawn."""

# diffusers keeps the weights of its norms in float32; that they are not fused then is no news.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
# Data without proprioception makes a layer without inputs.
warnings.filterwarnings("ignore", message="Initializing zero-element tensors")


class Networks(nn.Module):
    """Everything that learns, so that its average is one module too."""

    world_model: MaskDynamics | ImageEncoder

    def __init__(self, config: MaskWorldModelConfig, data_spec: DataSpec, caption_width: int):
        super().__init__()
        if config.world_model == "video":
            self.world_model = MaskDynamics(config.dynamics, data_spec.cameras, caption_width)
        else:
            self.world_model = ImageEncoder(
                config.image_encoder,
                data_spec.cameras,
                config.n_obs_steps,
                data_spec.size,
                caption_width,
            )
        self.policy = DiffusionPolicy(
            config.policy,
            self.world_model.layers,
            self.world_model.width,
            data_spec.action_size,
            data_spec.proprio_size,
        )

    @property
    def dynamics(self) -> MaskDynamics:
        """The world model, where it is one: `world_model` "video"."""
        assert isinstance(self.world_model, MaskDynamics)
        return self.world_model


class MaskWorldModel:
    """An imitator (`agents/agent.py`) that learns in two stages, dynamics and policy.

    Args:
        config: sizes and settings.
        data_spec: what the data fixes.
        statistics: of actions and proprioception (``envs.windows.statistics``).
        device: to compute on.

    Attributes:
        instructions: by task, what its data tells; empty before it is loaded from a run.
        pruning: share of the video tokens that are dropped when acting.
        n_action_steps: actions of a chunk that are taken before the next one.
        predictor: what `predict` draws with where it is not None. Stage 2 trains the transformer
            further for its features alone, and its predictions decay: those shown are stage 1's.
    """

    def __init__(
        self,
        config: MaskWorldModelConfig,
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
        self.pruning = 0.0
        self.n_action_steps = config.policy.n_action_steps
        self.predictor: MaskDynamics | None = None

    stages = ("dynamics", "policy")
    films_masks = False
    without_acting = ("world_model.vae.decoder.", "world_model.target.")
    """Beginnings of names of `acting`'s weights that no action depends on."""
    draws = True
    """Whether it can draw what it foretells: not without its decoder, which is not exported."""

    @property
    def chunk(self) -> int:
        """Actions that are predicted at once."""
        return self.config.policy.chunk

    # Learning

    def reads(self, name: str) -> Reads:
        """What windows hold for a stage; stage 2 reads no future."""
        if name == "policy" or not self.config.predicts:
            return self.config.windows().reads("none")
        masks = "mask" in reads(self.networks.dynamics.target)
        return self.config.windows().reads("masks" if masks else "pixels")

    def describe(
        self, tasks: Sequence[TaskDescription], remember: bool = True
    ) -> dict[str, Tensor]:
        """What batches hold of each task: ``text`` and ``text_mask``; there is nothing to
        remember."""
        return self.caption([task.instruction for task in tasks])

    def caption(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """``text`` (B, L, C) and ``text_mask`` (B, L) of instructions."""
        tokens, mask = self.language(list(instructions))
        return {"text": tokens.to(self.device), "text_mask": mask.to(self.device)}

    def dynamics_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Stage 1's loss, a scalar, and metrics."""
        dynamics = self.predictor or self.networks.dynamics
        with self._autocast():
            return dynamics.loss(batch)

    def policy_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Stage 2's loss, a scalar, and metrics.

        Args:
            batch: ``image`` (B, V, H, S, S, 3) uint8, ``text``, ``text_mask``, ``action``
                (B, H', A), ``action_valid`` (B, H') bool, ``proprio`` (B, 1, D).
        """
        frozen = self.config.world_model == "video" and not self.config.train_backbone
        with self._autocast():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                context = self._features(self.networks, batch)
            return self.networks.policy.loss(
                self.actions.normalise(batch["action"]),
                batch["action_valid"],
                self.proprio.normalise(batch["proprio"][:, -1]),
                context,
            )

    def loss(self, name: str, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a stage ("dynamics" or "policy"), a scalar, and metrics."""
        return self.dynamics_loss(batch) if name == "dynamics" else self.policy_loss(batch)

    def stage(self, name: str) -> Stage:
        """What a stage ("dynamics" or "policy") trains."""
        networks = self.networks
        if name == "dynamics":
            return Stage(name, [networks.world_model], self.config.dynamics_optimizer)
        modules = [networks.policy, networks.world_model]
        return Stage(name, modules, self.config.policy_optimizer)

    def begin(self, name: str) -> None:
        """Begin a stage with the averaged weights: stage 2 with those of stage 1, stage 1 with
        those taken over from another run."""
        if name == "dynamics":
            self.ema.dynamics.freeze_statistics(False)
        self.networks.load_state_dict(self.ema.state_dict())
        self.resume(name)

    def resume(self, name: str) -> None:
        """Freeze what a stage leaves alone: in stage 2 the VAE, its latents' statistics, and the
        backbone if asked."""
        if name == "dynamics":
            return
        for networks in (self.networks, self.ema):
            if self.config.world_model == "video":
                networks.dynamics.freeze_statistics()
                networks.dynamics.freeze_vae()
                if not self.config.train_backbone:
                    networks.dynamics.requires_grad_(False)
        self.ema.requires_grad_(False)

    def first_stage_state_dict(self) -> dict[str, Tensor] | None:
        """What stage 1 leaves, also for other runs: the world model; None without one."""
        if self.config.world_model != "video":
            return None
        return self.networks.world_model.state_dict()

    def load_first_stage_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what stage 1 of another run has left."""
        self.ema.world_model.load_state_dict(state)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part."""
        parts = {"world model": self.networks.world_model, "policy": self.networks.policy}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which `loss` is that of the averaged weights, of stage 1 that of the
        `predictor` where there is one."""
        latest, self.networks = self.networks, self.ema
        try:
            yield
        finally:
            self.networks = latest

    def action_error(self, batch: dict[str, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        """Sampled less true chunks, (B, H', A), and which of their actions the episode has,
        (B, H') bool; `batch` as of `policy_loss`, `seed` of the noise."""
        generator = torch.Generator(self.device).manual_seed(seed)
        caption = {name: batch[name] for name in ("text", "text_mask")}
        sampled = self.act(batch["image"], batch["proprio"][:, -1], caption, generator)
        return sampled - batch["action"], batch["action_valid"]

    def update_ema(self, updates: int) -> None:
        """Move the averaged weights towards the latest (`move_average`)."""
        move_average(self.ema, self.networks, self.config.ema_decay, updates)

    # Acting

    @property
    def acting(self) -> nn.Module:
        """The networks that act: the averaged ones."""
        return self.ema

    @torch.no_grad()
    def act(
        self,
        image: Tensor,
        proprio: Tensor,
        caption: dict[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A chunk of actions from RGB, proprioception and words; it never sees a mask.

        Args:
            image: (n, V, H, S, S, 3) uint8, oldest frame first.
            proprio: (n, D).
            caption: from `caption`, n rows.
            generator: of all noise.

        Returns:
            (n, H', A) float32 in [-1, 1].
        """
        context = self.features(image, caption, generator)
        with self._autocast():
            chunk = self.ema.policy.sample(self.proprio.normalise(proprio), context, generator)
        return self.actions.denormalise(chunk.float())

    @torch.no_grad()
    def features(
        self,
        image: Tensor,
        caption: dict[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """What the policy attends to: for each of its blocks (n, tokens, width).

        Args:
            image: (n, V, H, S, S, 3) uint8, oldest frame first.
            caption: from `caption`, n rows.
            generator: of all noise.
        """
        with self._autocast():
            batch = {"image": image, **caption}
            return self._features(self.ema, batch, self.pruning, generator)

    def predict(
        self,
        image: Tensor,
        caption: dict[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The predicted future for people, (n, V, F, S, S, 3) uint8; needs a video world model."""
        return self.target.to_image(self.future(image, caption, generator))

    @torch.no_grad()
    def future(
        self,
        image: Tensor,
        caption: dict[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The predicted future as the target has it, (n, V, F, S, S, 3) in [−1, 1]; needs a video
        world model."""
        with self._autocast():
            return self._predicting.predict(
                image, caption["text"], caption["text_mask"], generator=generator
            )

    def report(self, batch: dict[str, Tensor], seed: int) -> tuple[np.ndarray, dict[str, float]]:
        """What stage 1 predicts of some windows, for people.

        Args:
            batch: ``image`` (B, V, H, S, S, 3) uint8, ``future`` as the target reads it, ``text``,
                ``text_mask``.
            seed: of the noise.

        Returns:
            A picture (rows, columns, 3) uint8 of true and predicted futures, and ``difference``,
            their mean distance in [−1, 1].
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        caption = {name: batch[name] for name in ("text", "text_mask")}
        predicted = self.predict(batch["image"], caption, generator)
        target = self.ema.dynamics.target
        true = target.to_image(target.encode({"future": batch["future"]}))
        chosen = np.unique(np.linspace(0, true.shape[2] - 1, REPORTED_FRAMES).astype(int))
        frames = (future.cpu()[:, :, chosen] for future in (true, predicted))
        difference = (to_unit(predicted) - to_unit(true)).abs().mean()
        return prediction_sheet(batch["image"].cpu(), *frames), {"difference": float(difference)}

    @property
    def target(self) -> VideoTarget:
        """What a video world model predicts."""
        return self._predicting.target

    @property
    def _predicting(self) -> MaskDynamics:
        return self.predictor or self.ema.dynamics

    def actor(self, task: TaskDescription, seed: int = 0, drawn: bool = False) -> ChunkActor:
        """This agent at work on one task, for `run_episodes`; `drawn`: see `ChunkActor`."""
        return ChunkActor(self, task.instruction, seed, drawn)

    def _features(
        self,
        networks: Networks,
        batch: dict[str, Tensor],
        pruning: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        image, text, text_mask = batch["image"], batch["text"], batch["text_mask"]
        if self.config.world_model == "blind":
            image = torch.zeros_like(image)
        if self.config.world_model != "video":
            return networks.world_model(image, text, text_mask)
        return networks.dynamics.features(image, text, text_mask, pruning, generator)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.config.precision, self.device)

    # Saving

    def state_dict(self) -> dict:
        """Latest and averaged weights, and what the data fixed."""
        return {
            "networks": self.networks.state_dict(),
            "ema": self.ema.state_dict(),
            "data_spec": vars(self.data_spec),
            "statistics": dict(self.statistics),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`.

        Raises:
            RuntimeError: another agent's.
        """
        self.networks.load_state_dict(state["networks"])
        # Older checkpoints call the moving average `averaged`.
        self.ema.load_state_dict(state["ema"] if "ema" in state else state["averaged"])


class ChunkActor:
    """Receding-horizon execution in n environments of one task.

    Keeps the frames that the agent's history reaches back to, and the rest of each chunk. With
    `drawn`, `film` collects a frame a step of the first environment: what every camera sees, above
    it with the predicted future laid over it (its own draw of noise, which changes no action).
    """

    def __init__(self, agent: MaskWorldModel, instruction: str, seed: int, drawn: bool = False):
        self.agent = agent
        self.caption = agent.caption([instruction])
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.past = agent.config.windows().past()  # (H,), the last 0
        self.frames: np.ndarray | None = None  # (n, V, steps back to the oldest, S, S, 3)
        self.queue: ActionQueue | None = None
        self.film: list[np.ndarray] | None = [] if drawn else None
        self._future: np.ndarray | None = None  # predicted for the first environment, (V, S, S, 3)

    def policy(self, observation: dict, state: None, explore: bool) -> tuple[np.ndarray, None]:
        """Actions (n, A) float32.

        Args:
            observation: ``image`` (n, [V,] S, S, 3), ``proprio`` (n, D) unless D is 0,
                ``is_first`` (n,) bool.
            state: not used: what is remembered is in this object.
            explore: not used: every chunk is a sample.
        """
        image, first = observation["image"], np.asarray(observation["is_first"], bool)
        felt = observation.get("proprio", np.zeros((len(image), 0), np.float32))
        self.see(image, first)
        if self.queue is None:
            self.queue = ActionQueue(len(image), self.agent.n_action_steps)
        due = self.queue.due(first)
        if due.any():
            pictures = self.seen(due)
            self.queue.fill(due, self.chunk(pictures, felt[due]))
            if self.film is not None and due[0]:
                self._future = self._predict(pictures[:1])
        if self.film is not None:
            self.film.append(self._frame(image[0] if image.ndim > 4 else image[0][None]))
        return self.queue.next(), None

    def see(self, image: np.ndarray, first: np.ndarray, steps: int = 1) -> None:
        """Take pictures into the history.

        Args:
            image: (n, [V,] S, S, 3) uint8.
            first: (n,) bool, where an episode begins.
            steps: since the last pictures, which stand for those that came between.
        """
        image = image[:, None] if self.agent.data_spec.cameras == 1 else image
        now = image[:, :, None]
        length = 1 - int(self.past[0])
        if self.frames is None:
            self.frames = np.repeat(now, length, axis=2)
        between = np.repeat(self.frames[:, :, -1:], steps - 1, axis=2)
        self.frames = np.concatenate([self.frames, between, now], axis=2)[:, :, -length:]
        self.frames[first] = now[first]

    def seen(self, which: np.ndarray) -> Tensor:
        """The history of the environments `which` (n,) bool, (K, V, H, S, S, 3) uint8."""
        assert self.frames is not None
        history = np.ascontiguousarray(self.frames[which][:, :, self.past - 1])
        return torch.from_numpy(history).to(self.agent.device)

    def chunk(self, pictures: Tensor, proprio: np.ndarray) -> np.ndarray:
        """Chunks (K, H', A) float32 from what `seen` gave and proprioception (K, D)."""
        count = len(pictures)
        caption = {name: part.expand(count, *part.shape[1:]) for name, part in self.caption.items()}
        robot = torch.from_numpy(proprio).to(self.agent.device)
        return self.agent.act(pictures, robot, caption, self.generator).cpu().numpy()

    def _predict(self, pictures: Tensor) -> np.ndarray | None:
        """The last predicted frame of each camera; nothing where nothing predicts."""
        if self.agent.config.world_model != "video" or not self.agent.draws:
            return None
        generator = torch.Generator(self.agent.device).manual_seed(0)
        future = self.agent.predict(pictures, self.caption, generator)
        return future[0, :, -1].cpu().numpy()

    def _frame(self, image: np.ndarray) -> np.ndarray:
        """(2·S, V·S, 3) uint8: the cameras' pictures, and the future over them."""
        seen = np.concatenate(list(image), 1)
        if self._future is None:
            return seen
        future = np.concatenate(list(self._future), 1)
        return np.concatenate([seen // 2 + future // 2, seen])


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
