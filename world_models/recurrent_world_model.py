"""What world models around a recurrent state-space model share: heads, losses and imagination.

Shape legend: B batch, T time, S variables, K classes, F model-state feature, H horizon, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_models.layers import MLP, symexp, symlog
from world_models.proprioception import Proprioception
from world_models.rssm import RSSM, State, balanced_kl


class Trajectory(NamedTuple):
    """Imagined states: `feature` (H+1, B, F) with the start first, `action` (H, B, A) taken in
    each but the last, `reward` (H+1, B) of each state, `continuation` (H+1, B) in [0, 1]: the
    probability that the episode goes on after it."""

    feature: Tensor
    action: Tensor
    reward: Tensor
    continuation: Tensor


class HeadsConfig(Protocol):
    """Loss weights that every such world model has; `LatentDynamicsConfig` explains them."""

    @property
    def reward_weight(self) -> float:
        """Weight of the reward loss."""

    @property
    def kl_scale(self) -> float:
        """Weight β of the KL."""

    @property
    def kl_balance(self) -> float:
        """Share of the KL that trains the prior."""

    @property
    def free_nats(self) -> float:
        """Nats of the KL below which it is not lowered further."""


class RecurrentWorldModel(nn.Module):
    """A world model for behaviour (`agents/actor_critic.py`): an RSSM with heads of reward and
    discount. What a picture is to it, and what it has to tell of one, a subclass says, which also
    makes `rssm` and the heads."""

    config: HeadsConfig
    rssm: RSSM
    reward_head: MLP
    discount_head: MLP | None
    proprioception: Proprioception | None

    def reward(self, feature: Tensor) -> Tensor:
        """Predicted reward of model states (..., F), in the environment's units, (...)."""
        return symexp(self.reward_head(feature).squeeze(-1).float())

    def continuation(self, feature: Tensor) -> Tensor:
        """Probability that the episode goes on after model states (..., F); 1 without a head."""
        if self.discount_head is None:
            return torch.ones_like(feature[..., 0])
        return torch.sigmoid(self.discount_head(feature).squeeze(-1).float())

    def exponential_noise(self, batch: int, length: int, device: torch.device) -> Tensor:
        """Noise that `observe` samples the states of a batch of windows with, (T, B, S, K)."""
        return self.rssm.exponential_noise(length, batch, device=device)

    def with_proprio(
        self, embedding: Tensor, batch: dict[str, Tensor], time_first: bool = False
    ) -> Tensor:
        """Embeddings (..., E) of pictures, with that of the batch's `proprio` (..., D) where the
        model sees it; with `time_first` (T, B, E) of (B, T, D)."""
        if self.proprioception is None:
            return embedding
        proprio = batch["proprio"]
        return self.proprioception.beside(
            embedding, proprio.transpose(0, 1) if time_first else proprio
        )

    def state_loss(
        self, posterior: State, prior: Tensor, feature: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of everything but the picture (Masked World Models, eq. 14; DreamerV2, eq. 2).

        Args:
            posterior: states (T, B, ...).
            prior: logits (T, B, S, K).
            feature: `posterior.feature` (T, B, F), as everything that learns from it reads it.
            batch: `reward` and `is_terminal`, (B, T), and `proprio` (B, T, D) where it is seen.

        Returns:
            The scalar loss and its parts for the log.
        """
        reward = self.reward_head(feature).squeeze(-1).float()
        reward_loss = (reward - symlog(batch["reward"].transpose(0, 1))).square().mean()
        kl_loss, kl = balanced_kl(
            posterior.logits, prior, self.config.kl_balance, self.config.free_nats
        )
        loss = self.config.reward_weight * reward_loss + self.config.kl_scale * kl_loss
        metrics = {"reward": reward_loss, "kl": kl}
        if self.proprioception is not None:
            own = self.proprioception.loss(feature, batch["proprio"].transpose(0, 1))
            loss, metrics["proprio"] = loss + own, own
        if self.discount_head is not None:
            logit = self.discount_head(feature).squeeze(-1).float()
            goes_on = 1.0 - batch["is_terminal"].transpose(0, 1).float()
            discount_loss = F.binary_cross_entropy_with_logits(logit, goes_on)
            loss = loss + discount_loss
            metrics["discount"] = discount_loss
        return loss, metrics

    def imagine(
        self, policy: Callable[[Tensor, int], Tensor], start: State, horizon: int
    ) -> Trajectory:
        """Imagine `horizon` steps ahead under `policy`.

        Args:
            policy: (state feature (B, F), step) → action (B, A).
            start: states (B, ...).
            horizon: H.
        """
        count, device = len(start.deterministic), start.deterministic.device
        noise = self.rssm.exponential_noise(horizon, count, device=device)
        state, features, actions = start, [start.feature], []
        for step in range(horizon):
            actions.append(policy(features[-1], step))
            state = self.rssm.imagine(state, actions[-1], noise[step])
            features.append(state.feature)
        feature = torch.stack(features)
        return Trajectory(
            feature, torch.stack(actions), self.reward(feature), self.continuation(feature)
        )
