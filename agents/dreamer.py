"""DreamerV2 (Hafner et al., 2021), the baseline of Masked World Models.

An update teaches the world model on windows of pictures, end to end, then the actor-critic to act
inside its imagination. How it acts is in `world_model_agent.py`.

Shape legend: n environments, B batch, T time, A action, F model-state feature, V cameras, S edge of
their pictures, which lie below each other in one of H = V·S and W = S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic
from agents.batch_reader import BatchReader
from agents.dreamer_config import DreamerConfig
from agents.replay import Replay
from agents.world_model_agent import WorldModelAgent, pictures_of
from world_models.layers import Optimizer
from world_models.pixel_world_model import PixelWorldModel
from world_models.rssm import State
from world_models.targets import reads, target_image


class Dreamer(WorldModelAgent):
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
        "dynamics.static_image",
        "dynamics.contrast.",
        "dynamics.target.",
    )

    def __init__(
        self,
        config: DreamerConfig,
        action: int,
        device: torch.device | str,
        proprio: int = 0,
        discrete: bool = False,
        views: int = 1,
    ):
        super().__init__(config.behaviour, config.precision, action, device, views)
        self.config = config
        learned = (config.encoder, config.representation, config.target)
        self.dynamics: PixelWorldModel = PixelWorldModel(
            config.dynamics, action, *learned, proprio, views
        )
        self.dynamics.to(self.device)
        self.behaviour = ActorCritic(config.behaviour, self.dynamics.feature_size, action, discrete)
        self.behaviour.to(self.device)
        self.networks = nn.ModuleDict({"dynamics": self.dynamics, "behaviour": self.behaviour})
        self.dynamics_optimizer = Optimizer([self.dynamics], config.dynamics_optimizer)
        also = (*reads(self.dynamics.target), *(("proprio",) if proprio else ()))
        self.reader = BatchReader(0, config.batch, config.window, self.device, also=also)

    def embed(self, image: Tensor) -> Tensor:
        """What the dynamics see of pictures (n, H, W, 3) uint8, (n, E)."""
        return self.dynamics.embed(image)

    # Learning

    def update(self, replay: Replay, pretraining: bool = False) -> dict[str, Tensor]:
        """One update of every part.

        Args:
            replay: to learn from.
            pretraining: on the prefill.

        Returns:
            Scalars for the log, on the device.
        """
        self.begin()
        batch = self.sample(replay)
        metrics, posterior = self.update_dynamics(batch)
        metrics |= self.update_behaviour(*self.start_states(posterior, batch["is_terminal"]))
        if not pretraining:
            self.updates += 1
        return metrics

    def pretrain(self, replay: Replay) -> Iterator[dict[str, Tensor]]:
        """Updates on the prefill; yields the metrics of each, and goes on where it stopped."""
        while self.pretrained < self.pretraining_updates:
            metrics = self.update(replay, pretraining=True)
            self.pretrained += 1
            yield metrics

    @property
    def pretraining_updates(self) -> int:
        """How many updates `pretrain` makes in all."""
        return self.config.pretraining

    def sample(self, replay: Replay) -> dict[str, Tensor]:
        """Windows of the replay, every entry (B, T, ...)."""
        return self.to_device(self.reader.windows(replay))

    def update_dynamics(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """One update of encoder, dynamics, heads and decoder on windows of pictures (DreamerV2, eq.
        2); also their posterior states (T, B, ...)."""
        rows, length = batch["reward"].shape
        # Drawn here, so that compiled code draws what plain code does.
        noise = self.dynamics.exponential_noise(rows, length, self.device)
        with self.computing_in(self.config.precision):
            loss, posterior, metrics = self.dynamics.loss(batch, noise)
        metrics["gradient"] = self.dynamics_optimizer.step(loss)
        return {f"dynamics/{name}": value for name, value in metrics.items()}, posterior

    @torch.no_grad()
    def representation(self, batch: dict[str, Tensor]) -> Tensor:
        """What a probe reads of windows: posterior states (B, T, F) of `image` (B, T, H, W, 3),
        `action` (B, T, A) and `is_first` (B, T)."""
        posterior, _ = self.dynamics.observe(batch)
        return posterior.feature.transpose(0, 1)

    def compiled_parts(self, kind: str) -> list[tuple[Any, str]]:
        """(object, name of its method) of what `compile_updates` compiles."""
        if kind == "cuda":
            return [(self.dynamics, "loss"), (self.behaviour, "losses")]
        # On a CPU without the convolutions, which are slower compiled than eagerly.
        return [(self.dynamics, "filter"), (self.behaviour, "losses")]

    def optimizers(self) -> dict[str, Optimizer]:
        """By the name of what each trains."""
        return {
            "dynamics": self.dynamics_optimizer,
            "actor": self.behaviour.actor_optimizer,
            "critic": self.behaviour.critic_optimizer,
        }

    def seeing_parts(self) -> dict[str, nn.Module]:
        """Modules that `parameter_counts` counts beside heads, actor and critic."""
        dynamics = self.dynamics
        picture = nn.ModuleList(p for p in (dynamics.decoder, dynamics.contrast) if p is not None)
        if dynamics.static_image is not None:
            picture.append(nn.ParameterList([dynamics.static_image]))
        name = "decoder" if dynamics.contrast is None else "contrast"
        return {
            "dynamics/encoder": dynamics.encoder,
            "dynamics/rssm": dynamics.rssm,
            f"dynamics/{name}": picture,
        }

    # Showing

    @torch.no_grad()
    def report(self, replay: Replay, rows: int = 3, length: int = 50) -> dict[str, np.ndarray]:
        """Pictures of what the model believes, drawn without touching the training's randomness.

        Returns:
            `prediction`: (T, rows·H, columns·W, 3) uint8, per frame from left to right the image,
            what the target should have been (where that is not the image), the reconstruction of
            what the model sees, and the open-loop prediction: after `context` frames it sees only
            the actions. Where nothing is decoded, of both the picture of these windows that fits
            the state best.
        """
        rng = np.random.default_rng(self.updates)
        batch = self.to_device(replay.sample_windows(rows, length, rng))
        with self.own_randomness():
            torch.manual_seed(self.updates)
            posterior, _ = self.dynamics.observe(batch)
            dreamt = self.open_loop(batch, self.context)
        shown = [batch["image"]]
        flat = {name: value.flatten(0, 1) for name, value in batch.items()}
        wanted = target_image(self.dynamics.target, flat)
        if wanted is not None:
            shown.append(wanted.unflatten(0, (rows, length)))
        seen, predicted = (
            self.pictures(feature.transpose(0, 1), batch["image"])
            for feature in (posterior.feature, dreamt)
        )
        return self.prediction_video([*shown, seen], predicted)

    @torch.no_grad()
    def open_loop(self, batch: dict[str, Tensor], context: int) -> Tensor:
        """Model-state features (T, B, F): `context` frames from posterior states, the rest imagined
        from the recorded actions alone."""
        seen = {name: value[:, :context] for name, value in batch.items()}
        posterior, _ = self.dynamics.observe(seen)
        actions = batch["action"][:, context:].transpose(0, 1)
        start = posterior.map(lambda part: part[-1])
        dream = self.dynamics.imagine(lambda _, step: actions[step], start, len(actions))
        return torch.cat([posterior.feature, dream.feature[1:]])

    def pictures(self, feature: Tensor, image: Tensor) -> Tensor:
        """Pictures (B, T, H, W, 3) uint8 of model states (B, T, F): decoded, or where nothing is
        decoded the one of `image` (B, T, H, W, 3) that fits best."""
        contrast = self.dynamics.contrast
        if contrast is None:
            return pictures_of(self.dynamics.target, self.dynamics.reconstruct(feature))
        scores = contrast.scores(feature.flatten(0, 1), self.dynamics.embed(image).flatten(0, 1))
        return image.flatten(0, 1)[scores.argmax(1)].unflatten(0, image.shape[:2])
