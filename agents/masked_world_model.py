"""Masked World Models: Algorithm 1 of the paper (Seo et al., 2022).

An update teaches the parts in turn: the autoencoder to see, the latent dynamics to predict what it
sees, the actor-critic to act inside that prediction. How it acts is in `world_model_agent.py`.

Shape legend: n environments, B batch, T time, A action, V cameras, S edge of their pictures, which
lie below each other in one of H = V·S and W = S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic
from agents.batch_reader import BatchReader
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.replay import Replay
from agents.world_model_agent import WorldModelAgent, pictures_of
from world_models.convolutional_vae import make_autoencoder
from world_models.latent_dynamics import LatentDynamics
from world_models.layers import Optimizer
from world_models.rssm import State
from world_models.targets import target_image


class MaskedWorldModel(WorldModelAgent):
    """An online agent (`agents/agent.py`).

    Args:
        config: sizes and hyperparameters.
        action: A, size of the action vector in [−1, 1].
        device: where parameters live.
        proprio: D, numbers of proprioception that it sees beside the picture; 0: none.
        discrete: actions are one-hot.
        views: V, cameras that it sees; an observation of several has their pictures (V, S, S, 3).
    """

    without_acting = (
        *WorldModelAgent.without_acting,
        "autoencoder.decoder",
        "autoencoder.mask_token",
        "autoencoder.static_image",
        "autoencoder.target",
        "autoencoder.reward_head.",
    )

    def __init__(
        self,
        config: MaskedWorldModelConfig,
        action: int,
        device: torch.device | str,
        proprio: int = 0,
        discrete: bool = False,
        views: int = 1,
    ):
        super().__init__(config.behaviour, config.precision, action, device, views)
        self.config = config
        self.autoencoder = make_autoencoder(config.autoencoder, views)
        self.dynamics: LatentDynamics = LatentDynamics(
            config.dynamics,
            self.autoencoder.feature_grid,
            config.autoencoder.width,
            action,
            proprio,
            views,
        )
        for part in (self.autoencoder, self.dynamics):
            part.to(self.device)
        self.behaviour = ActorCritic(config.behaviour, self.dynamics.feature_size, action, discrete)
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
        self.reader = BatchReader(
            config.autoencoder_batch,
            config.batch,
            config.window,
            self.device,
            config.random_shift,
            also=("proprio",) if proprio else (),
        )

    def embed(self, image: Tensor) -> Tensor:
        """What the dynamics see of pictures (n, H, W, 3) uint8, (n, E)."""
        return self.dynamics.embed(self.autoencoder.features(image)[None])[0]

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
        frames = self.to_device(self.reader.frames(replay))
        with self.computing_in(self.config.autoencoder_precision):
            loss, metrics = self.autoencoder.loss(frames)
        metrics["gradient"] = self.autoencoder_optimizer.step(loss)
        return {f"autoencoder/{name}": value for name, value in metrics.items()}

    def sample(self, replay: Replay) -> dict[str, Tensor]:
        """Windows of the replay as the dynamics learn from them: features (B, T, N, D) of the
        frozen autoencoder in place of pictures."""
        batch = self.to_device(self.reader.windows(replay))
        with self.computing_in(self.config.precision):
            batch["feature"] = self._encode(batch.pop("image"))
        return batch

    def update_dynamics(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """One update on windows of frozen features (eq. 14); also their posterior states
        (T, B, ...)."""
        rows, length = batch["reward"].shape
        # Drawn here, so that compiled code draws what plain code does.
        noise = self.dynamics.exponential_noise(rows, length, self.device)
        with self.computing_in(self.config.precision):
            loss, posterior, metrics = self.dynamics.loss(batch, noise)
        metrics["gradient"] = self.dynamics_optimizer.step(loss)
        return {f"dynamics/{name}": value for name, value in metrics.items()}, posterior

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

    def compiled_parts(self, kind: str) -> list[tuple[Any, str]]:
        """(object, name of its method) of what `compile_updates` compiles."""
        parts: list[tuple[Any, str]]
        parts = [(self, "_encode"), (self.dynamics, "loss"), (self.behaviour, "losses")]
        if kind == "cuda":
            # Not on a CPU, where its convolutions are slower compiled than eagerly.
            parts.append((self.autoencoder, "loss"))
        return parts

    def optimizers(self) -> dict[str, Optimizer]:
        """By the name of what each trains."""
        return {
            "autoencoder": self.autoencoder_optimizer,
            "dynamics": self.dynamics_optimizer,
            "actor": self.behaviour.actor_optimizer,
            "critic": self.behaviour.critic_optimizer,
        }

    def seeing_parts(self) -> dict[str, nn.Module]:
        """Modules that `parameter_counts` counts beside heads, actor and critic."""
        return {
            "autoencoder": self.autoencoder,
            "dynamics/encoder": self.dynamics.encoder,
            "dynamics/rssm": self.dynamics.rssm,
            "dynamics/decoder": self.dynamics.decoder,
        }

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
        batch = self.to_device(replay.sample_windows(rows, length, rng))
        with self.own_randomness():
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
        predicted, reconstruction = (
            pictures_of(self.autoencoder.target, p) for p in (predicted, reconstruction)
        )
        return self.prediction_video([*shown, reconstruction], predicted)

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

    # Saving

    def load_autoencoder(self, weights: dict[str, Tensor]) -> None:
        """Take over the autoencoder of another agent, its `state_dict`.

        Raises:
            RuntimeError: it has other sizes.
        """
        self.autoencoder.load_state_dict(weights)
