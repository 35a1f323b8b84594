"""Masked World Models: Algorithm 1 of the paper (Seo et al., 2022).

An update teaches the parts in turn: the autoencoder to see, the latent dynamics to predict what it
sees, the actor-critic to act inside that prediction.

Shape legend: n environments, B batch, T time, H = W image size, A action.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic
from agents.batch_reader import BatchReader
from agents.device import Precision, autocast, compiled, require_compiler
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.replay import Replay
from world_models.convolutional_vae import make_autoencoder
from world_models.latent_dynamics import LatentDynamics
from world_models.layers import Optimizer, without_gradients
from world_models.rssm import State
from world_models.targets import target_image


class MaskedWorldModel:
    """An online agent (`agents/agent.py`).

    Args:
        config: sizes and hyperparameters.
        action: A, size of the action vector in [−1, 1].
        device: where parameters live.
    """

    context = 5
    """Frames the prediction video shows the model before it has to imagine."""

    def __init__(self, config: MaskedWorldModelConfig, action: int, device: torch.device | str):
        self.config, self.action, self.device = config, action, torch.device(device)
        self.autoencoder = make_autoencoder(config.autoencoder)
        self.dynamics = LatentDynamics(
            config.dynamics, self.autoencoder.feature_grid, config.autoencoder.width, action
        )
        for part in (self.autoencoder, self.dynamics):
            part.to(self.device)
        self.behaviour = ActorCritic(config.behaviour, self.dynamics.feature_size, action)
        self.behaviour.to(self.device)
        self.networks = nn.ModuleDict(
            {
                "autoencoder": self.autoencoder,
                "dynamics": self.dynamics,
                "behaviour": self.behaviour,
            }
        )
        self.autoencoder_optimizer = Optimizer([self.autoencoder], config.autoencoder_optimizer)
        self.dynamics_optimizer = Optimizer([self.dynamics], config.dynamics_optimizer)
        self.updates = 0  # made in the loop
        self.pretrained = 0  # made by `pretrain`
        self.reader = BatchReader(
            config.autoencoder_batch, config.batch, config.window, self.device, config.random_shift
        )
        self._compiled = False

    # Acting

    @torch.no_grad()
    def policy(
        self, observation: dict[str, np.ndarray], state: dict[str, Tensor] | None, explore: bool
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Act on one observation of each of n environments.

        Args:
            observation: `image` (n, H, W, 3) uint8 and `is_first` (n,) bool.
            state: what the last call returned; None before the first.
            explore: sample the action; otherwise the actor's mode, the model state still sampled.

        Returns:
            Actions (n, A) float32 in [−1, 1] and the state for the next call.
        """
        image = torch.as_tensor(observation["image"], device=self.device)
        is_first = torch.as_tensor(observation["is_first"], device=self.device)[None]
        model_state, action = None, torch.zeros(len(image), self.action, device=self.device)
        if state is not None:
            model_state, action = State(*(state[name] for name in State._fields)), state["action"]
        embedding = self.dynamics.embed(self.autoencoder.features(image)[None])
        posterior, _ = self.dynamics.rssm.observe(embedding, action[None], is_first, model_state)
        model_state = posterior.map(lambda part: part[0])
        distribution = self.behaviour.actor(model_state.feature)
        if explore:
            action = distribution.sample(torch.rand_like(distribution.mean))
        else:
            action = distribution.mode
        return action.cpu().numpy(), {**model_state._asdict(), "action": action}

    def acted(self, state: dict[str, Tensor], action: np.ndarray) -> dict[str, Tensor]:
        """`state` of `policy` for when the environments were given `action` (n, A) instead."""
        return {**state, "action": torch.as_tensor(action, device=self.device)}

    # Learning

    def update(self, replay: Replay, pretraining: bool = False) -> dict[str, Tensor]:
        """One update of every part (Algorithm 1, lines 9 to 18).

        Args:
            replay: to learn from.
            pretraining: on the prefill, where the autoencoder's part is always due.

        Returns:
            Scalars for the log, on the device.
        """
        self.begin()
        metrics: dict[str, Tensor] = {}
        due = pretraining or self.updates % self.config.autoencoder_every == 0
        if due and not self.frozen:
            metrics |= self.update_autoencoder(replay)
        batch = self.sample(replay)
        learned, posterior = self.update_dynamics(batch)
        metrics |= learned
        metrics |= self.update_behaviour(*self.start_states(posterior, batch["is_terminal"]))
        if not pretraining:
            self.updates += 1
        return metrics

    def pretrain(self, replay: Replay) -> Iterator[dict[str, Tensor]]:
        """Updates on the prefill; yields the metrics of each, and goes on where it stopped."""
        while self.pretrained < self.pretraining_updates:
            if self.pretrained < self.autoencoder_pretraining:
                self.begin()
                metrics = self.update_autoencoder(replay)
            else:
                metrics = self.update(replay, pretraining=True)
            self.pretrained += 1
            yield metrics

    @property
    def pretraining_updates(self) -> int:
        """How many updates `pretrain` makes in all."""
        return self.autoencoder_pretraining + self.config.joint_pretraining

    @property
    def autoencoder_pretraining(self) -> int:
        """How many of them are of the autoencoder alone: none where it comes trained."""
        return 0 if self.frozen else self.config.autoencoder_pretraining

    @property
    def frozen(self) -> bool:
        """Whether the autoencoder is another run's and learns nothing more."""
        return self.config.autoencoder_from is not None

    def update_autoencoder(self, replay: Replay) -> dict[str, Tensor]:
        """One update on frames drawn independently (eq. 13)."""
        frames = self._to_device(self.reader.frames(replay))
        with self._autocast(self.config.autoencoder_precision):
            loss, metrics = self.autoencoder.loss(frames)
        metrics["gradient"] = self.autoencoder_optimizer.step(loss)
        return {f"autoencoder/{name}": value for name, value in metrics.items()}

    def sample(self, replay: Replay) -> dict[str, Tensor]:
        """Windows of the replay as the dynamics learn from them: features (B, T, N, D) of the
        frozen autoencoder in place of pictures."""
        batch = self._to_device(self.reader.windows(replay))
        with self._autocast(self.config.precision):
            batch["feature"] = self._encode(batch.pop("image"))
        return batch

    def update_dynamics(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """One update on windows of frozen features (eq. 14); also their posterior states
        (T, B, ...)."""
        rows, length = batch["reward"].shape
        # Drawn here, so that compiled code draws what plain code does.
        noise = self.dynamics.exponential_noise(rows, length, self.device)
        with self._autocast(self.config.precision):
            loss, posterior, metrics = self.dynamics.loss(batch, noise)
        metrics["gradient"] = self.dynamics_optimizer.step(loss)
        return {f"dynamics/{name}": value for name, value in metrics.items()}, posterior

    def start_states(self, posterior: State, is_terminal: Tensor) -> tuple[State, Tensor | None]:
        """Start states of imagination: all posterior states of a batch, or a random choice.

        Args:
            posterior: states (T, B, ...).
            is_terminal: (B, T) of the batch.

        Returns:
            States (n, ...), and for world models that predict ends whether the episode really went
            on after each, (n,), which counts in place of the prediction (published code).
        """
        start = posterior.map(lambda part: part.detach().flatten(0, 1))
        goes_on = None
        if self.config.dynamics.predict_discount:
            goes_on = 1.0 - is_terminal.transpose(0, 1).flatten().float()
        count, total = self.config.behaviour.start_states, len(start.deterministic)
        if count is None or count >= total:
            return start, goes_on
        chosen = torch.randperm(total, device=self.device)[:count]
        return start.map(lambda part: part[chosen]), None if goes_on is None else goes_on[chosen]

    def update_behaviour(self, start: State, goes_on: Tensor | None = None) -> dict[str, Tensor]:
        """One update in imagination (eqs. 10 and 12) from what `start_states` returned."""
        with self._autocast(self.config.precision), without_gradients(self.dynamics):
            losses = self.behaviour.losses(self.dynamics, start, goes_on)
        metrics = self.behaviour.step(*losses)
        return {f"behaviour/{name}": value for name, value in metrics.items()}

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Frozen, unmasked autoencoder tokens of images (B, T, H, W, 3) → (B, T, N, D)."""
        tokens = self.autoencoder.features(image.flatten(0, 1)).float()
        return tokens.unflatten(0, image.shape[:2])

    def representation(self, batch: dict[str, Tensor]) -> Tensor:
        """What a probe reads of windows: `features` of `image` (B, T, H, W, 3), flat, (B, T, F).
        An agent whose state is recurrent reads `action` and `is_first` as well."""
        return self.features(batch["image"]).flatten(2)

    def _encode(self, image: Tensor) -> Tensor:
        """`features` of what is learned from; compiled apart from those of acting."""
        return self.features(image)

    def _autocast(self, precision: Precision) -> torch.autocast:
        return autocast(precision, self.device)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    # Compiling

    def compile_updates(self) -> None:
        """Put what an update computes, gradients included, through torch.compile; on a GPU into
        CUDA graphs: then what an update returns is overwritten by the next.

        Raises:
            UserError: there is no compiler.
        """
        require_compiler(self.device)
        parts = [(self, "_encode"), (self.dynamics, "loss"), (self.behaviour, "losses")]
        if self.device.type == "cuda":
            # Not on a CPU, where its convolutions are slower compiled than eagerly.
            parts.append((self.autoencoder, "loss"))
        for part, name in parts:
            setattr(part, name, compiled(getattr(part, name), self.device))
        self._compiled = True

    def begin(self) -> None:
        """Let CUDA graphs overwrite what they have returned so far. `update` begins with it; where
        its parts are called one by one, call it before each round of them."""
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()

    # Showing

    @torch.no_grad()
    def report(self, replay: Replay, rows: int = 3, length: int = 50) -> dict[str, np.ndarray]:
        """Pictures of what the models believe, drawn without touching the training's randomness.

        Returns:
            `prediction`: (T, rows·H, columns·W, 3) uint8, per frame from left to right the image,
            what the target should have been (where that is not the image), the autoencoder's
            reconstruction under masking, and the open-loop prediction: after `context` frames the
            model sees only the actions. A bar above the prediction is green while it still sees.
        """
        rng = np.random.default_rng(self.updates)
        batch = self._to_device(replay.sample_windows(rows, length, rng))
        with torch.random.fork_rng(self._cuda_devices()):
            torch.manual_seed(self.updates)
            image = batch["image"]
            reconstruction = self.autoencoder.reconstruct(image.flatten(0, 1))
            reconstruction = reconstruction.unflatten(0, (rows, length))
            predicted = self.open_loop(batch, self.context)
        shown = [image]
        flat = {name: value.flatten(0, 1) for name, value in batch.items()}
        wanted = target_image(self.autoencoder.target, flat)
        if wanted is not None:
            shown.append(wanted.unflatten(0, (rows, length)))
        predicted, reconstruction = (self._to_image(p) for p in (predicted, reconstruction))
        seen, imagined = predicted.new_tensor([0, 200, 80]), predicted.new_tensor([220, 60, 40])
        predicted[:, : self.context, :2] = seen
        predicted[:, self.context :, :2] = imagined
        video = torch.cat([*shown, reconstruction, predicted], dim=3)  # along the width
        video = video.permute(1, 0, 2, 3, 4).flatten(1, 2)  # rows below each other
        return {"prediction": video.cpu().numpy()}

    @torch.no_grad()
    def open_loop(self, batch: dict[str, Tensor], context: int) -> Tensor:
        """The target's values (B, T, H, W, C): `context` frames from posterior states, the rest
        imagined from the recorded actions alone, decoded through the autoencoder."""
        seen = {name: value[:, :context] for name, value in batch.items()}
        seen["feature"] = self.features(seen["image"])
        posterior, _ = self.dynamics.observe(seen)
        actions = batch["action"][:, context:].transpose(0, 1)
        start = posterior.map(lambda part: part[-1])
        dream = self.dynamics.imagine(lambda _, step: actions[step], start, len(actions))
        state = torch.cat([posterior.feature, dream.feature[1:]])  # (T, B, F)
        tokens = self.dynamics.reconstruct(state).transpose(0, 1)
        prediction, _ = self.autoencoder.predict(tokens.flatten(0, 1))
        return prediction.unflatten(0, tokens.shape[:2])

    def _to_image(self, prediction: Tensor) -> Tensor:
        """The target's values (B, T, H, W, C) as pictures (B, T, H, W, 3) uint8."""
        images = self.autoencoder.target.to_image(prediction.flatten(0, 1))
        return images.clone(memory_format=torch.contiguous_format).unflatten(
            0, prediction.shape[:2]
        )

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters by module; the target critic is a copy and not counted."""
        behaviour = self.behaviour
        parts = {
            "autoencoder": self.autoencoder,
            "dynamics/encoder": self.dynamics.encoder,
            "dynamics/rssm": self.dynamics.rssm,
            "dynamics/decoder": self.dynamics.decoder,
            "dynamics/heads": nn.ModuleList(
                head
                for head in (self.dynamics.reward_head, self.dynamics.discount_head)
                if head is not None
            ),
            "behaviour/actor": behaviour.actor,
            "behaviour/critic": behaviour.critic,
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def update_counts(self) -> dict[str, int]:
        """Updates made so far by each part, pretraining included."""
        return {name: optimizer.updates for name, optimizer in self._optimizers().items()}

    # Saving

    def load_autoencoder(self, weights: dict[str, Tensor]) -> None:
        """Take over the autoencoder of another agent, its `state_dict`.

        Raises:
            RuntimeError: it has other sizes.
        """
        self.autoencoder.load_state_dict(weights)

    def _optimizers(self) -> dict[str, Optimizer]:
        return {
            "autoencoder": self.autoencoder_optimizer,
            "dynamics": self.dynamics_optimizer,
            "actor": self.behaviour.actor_optimizer,
            "critic": self.behaviour.critic_optimizer,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything learning needs to go on: tensors and plain numbers only."""
        return {
            "modules": self.networks.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self._optimizers().items()},
            "updates": self.updates,
            "pretrained": self.pretrained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; what else older checkpoints hold is left out."""
        self.networks.load_state_dict(state["modules"])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.updates, self.pretrained = int(state["updates"]), int(state["pretrained"])
