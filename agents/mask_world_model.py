"""What imitation learns and acts with: a world model of the future, and a policy on its features.

Shape legend: B windows, V cameras, H history frames, S picture edge, A action, D proprioception,
H' actions of a chunk, n environments, L caption tokens.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.action_chunks import ActionQueue, Normaliser
from agents.device import autocast
from agents.diffusion_policy import DiffusionPolicy
from agents.mask_world_model_config import ImitationAgentConfig, Interface
from errors import UserError
from world_models.image_encoder import ImageEncoder
from world_models.language import make_language
from world_models.mask_dynamics import MaskDynamics
from world_models.video_targets import VideoTarget

ACTION_RANGE = (-1.0, 1.0)

# diffusers keeps the weights of its norms in float32; that they are not fused then is no news.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


class Networks(nn.Module):
    """Everything that learns, so that its average is one module too."""

    def __init__(self, config: ImitationAgentConfig, interface: Interface, caption_width: int):
        super().__init__()
        if config.world_model == "video":
            self.world_model = MaskDynamics(config.dynamics, interface.cameras, caption_width)
        else:
            self.world_model = ImageEncoder(
                config.image_encoder,
                interface.cameras,
                config.history,
                interface.size,
                caption_width,
            )
        self.policy = DiffusionPolicy(
            config.policy,
            self.world_model.layers,
            self.world_model.width,
            interface.action_size,
            interface.proprio_size,
        )


class ImitationAgent:
    """Learns both stages and acts.

    Args:
        config: sizes and settings.
        interface: what the data fixes.
        statistics: of actions and proprioception (``envs.windows.statistics``).
        device: to compute on.

    Attributes:
        pruning: share of the video tokens that are dropped when acting.
        execute: actions of a chunk that are taken before the next one.
        predictor: what `predict` draws with where it is not None. Stage 2 trains the transformer
            further for its features alone, and its predictions decay: those shown are stage 1's.
    """

    def __init__(
        self,
        config: ImitationAgentConfig,
        interface: Interface,
        statistics: dict[str, Sequence[float]],
        device: torch.device | str,
    ):
        self.config, self.interface, self.statistics = config, interface, statistics
        self.device = torch.device(device)
        self.language = make_language(config.language)
        self.networks = Networks(config, interface, self.language.width).to(self.device)
        self.averaged = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.actions = Normaliser.of(statistics, "action", ACTION_RANGE).to(self.device)
        self.proprio = Normaliser.of(statistics, "proprio").to(self.device)
        self.pruning = 0.0
        self.execute = config.policy.execute
        self.predictor: MaskDynamics | None = None

    # Learning

    def caption(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """``text`` (B, L, C) and ``text_mask`` (B, L) of instructions."""
        tokens, mask = self.language(list(instructions))
        return {"text": tokens.to(self.device), "text_mask": mask.to(self.device)}

    def dynamics_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Stage 1's loss, a scalar, and metrics."""
        with self._autocast():
            return self.networks.world_model.loss(batch)

    def policy_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Stage 2's loss, a scalar, and metrics.

        Args:
            batch: ``image`` (B, V, H, S, S, 3) uint8, ``text``, ``text_mask``, ``action``
                (B, H', A), ``action_valid`` (B, H') bool, ``proprio`` (B, D).
        """
        frozen = self.config.world_model == "video" and not self.config.train_backbone
        with self._autocast():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                context = self._features(self.networks, batch)
            return self.networks.policy.loss(
                self.actions.normalise(batch["action"]),
                batch["action_valid"],
                self.proprio.normalise(batch["proprio"]),
                context,
            )

    def begin_policy(self) -> None:
        """End stage 1: its averaged weights are what stage 2 begins with."""
        self.networks.load_state_dict(self.averaged.state_dict())
        self.freeze()

    def freeze(self) -> None:
        """What stage 2 leaves alone: the VAE, its latents' statistics, the backbone if asked."""
        for networks in (self.networks, self.averaged):
            if self.config.world_model == "video":
                networks.world_model.freeze_statistics()
                networks.world_model.freeze_vae()
                if not self.config.train_backbone:
                    networks.world_model.requires_grad_(False)
        self.averaged.requires_grad_(False)

    def learned_by(self, stage: str) -> list[nn.Module]:
        """The modules that a stage ("dynamics" or "policy") trains."""
        if stage == "dynamics":
            return [self.networks.world_model]
        return [self.networks.policy, self.networks.world_model]

    @torch.no_grad()
    def average(self, updates: int) -> None:
        """Move the averaged weights towards the latest; early averages forget faster."""
        decay = min(self.config.averaging, (1 + updates) / (10 + updates))
        if not self.config.averaging:
            decay = 0.0
        averaged = [p for p in self.averaged.parameters() if p.is_floating_point()]
        latest = [p.detach() for p in self.networks.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(averaged, latest, 1.0 - decay)
        for kept, new in zip(self.averaged.buffers(), self.networks.buffers(), strict=True):
            kept.copy_(new)

    # Acting

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
            chunk = self.averaged.policy.sample(self.proprio.normalise(proprio), context, generator)
        return self.actions.undo(chunk.float())

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
            return self._features(self.averaged, batch, self.pruning, generator)

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
            return self._predicting.predict(image, **caption, generator=generator)

    @property
    def target(self) -> VideoTarget:
        """What a video world model predicts."""
        return self._predicting.target

    @property
    def _predicting(self) -> MaskDynamics:
        return self.predictor or self.averaged.world_model

    def actor(self, instruction: str, seed: int = 0, drawn: bool = False) -> Actor:
        """This agent at work on one instruction, for `run_episodes`; `drawn`: see `Actor`."""
        return Actor(self, instruction, seed, drawn)

    def _features(
        self,
        networks: Networks,
        batch: dict[str, Tensor],
        pruning: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        inputs = batch["image"], batch["text"], batch["text_mask"]
        if self.config.world_model == "blind":
            return networks.world_model(torch.zeros_like(batch["image"]), *inputs[1:])
        if self.config.world_model == "none":
            return networks.world_model(*inputs)
        return networks.world_model.features(*inputs, pruning=pruning, generator=generator)

    def _autocast(self) -> torch.autocast:
        return autocast(self.config.precision, self.device)

    # Saving

    def state_dict(self) -> dict:
        """Latest and averaged weights, and what the data fixed."""
        return {
            "networks": self.networks.state_dict(),
            "averaged": self.averaged.state_dict(),
            "interface": vars(self.interface),
            "statistics": dict(self.statistics),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`.

        Raises:
            RuntimeError: another agent's.
        """
        self.networks.load_state_dict(state["networks"])
        self.averaged.load_state_dict(state["averaged"])


class Actor:
    """Receding-horizon execution in n environments of one task.

    Keeps the frames that the agent's history reaches back to, and the rest of each chunk. With
    `drawn`, `film` collects a frame a step of the first environment: what every camera sees, above
    it with the predicted future laid over it (its own draw of noise, which changes no action).
    """

    def __init__(self, agent: ImitationAgent, instruction: str, seed: int, drawn: bool = False):
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
            observation: ``image`` (n, [V,] S, S, 3), ``proprio`` (n, D), ``is_first`` (n,) bool.
            state: not used: what is remembered is in this object.
            explore: not used: every chunk is a sample.
        """
        image, first = observation["image"], np.asarray(observation["is_first"], bool)
        if self.agent.interface.cameras == 1:
            image = image[:, None]
        if self.queue is None:
            self.queue = ActionQueue(len(image), self.agent.execute)
            self.frames = np.repeat(image[:, :, None], 1 - self.past[0], axis=2)
        self.frames = np.concatenate([self.frames[:, :, 1:], image[:, :, None]], axis=2)
        self.frames[first] = image[first][:, :, None]
        due = self.queue.due(first)
        if due.any():
            device = self.agent.device
            seen = np.ascontiguousarray(self.frames[due][:, :, self.past - 1])
            pictures = torch.from_numpy(seen).to(device)
            proprio = torch.from_numpy(observation["proprio"][due]).to(device)
            caption = {
                name: part.expand(len(seen), *part.shape[1:]) for name, part in self.caption.items()
            }
            chunk = self.agent.act(pictures, proprio, caption, self.generator)
            self.queue.fill(due, chunk.cpu().numpy())
            if self.film is not None and due[0]:
                self._future = self._predict(pictures[:1])
        if self.film is not None:
            self.film.append(self._frame(image[0]))
        return self.queue.next(), None

    def _predict(self, pictures: Tensor) -> np.ndarray | None:
        """The last predicted frame of each camera; nothing where nothing predicts."""
        if self.agent.config.world_model != "video":
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


def check_agreement(interface: Interface, seen: spaces.Dict, action: spaces.Box) -> None:
    """Refuse an environment that shows or takes something else than the data.

    Args:
        interface: what the data fixes.
        seen: the environment's observation space, with ``image`` and ``proprio``.
        action: its action space.

    Raises:
        UserError: says what differs.
    """
    *several, size, _, _ = seen["image"].shape
    pairs = {
        "cameras": (several[0] if several else 1, interface.cameras),
        "pixels a side": (size, interface.size),
        "numbers of proprioception": (seen["proprio"].shape[0], interface.proprio_size),
        "numbers an action": (action.shape[0], interface.action_size),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise UserError(f"the task has {here} {name}, the data the agent learned from {there}")
