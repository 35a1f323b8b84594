"""Latent dynamics θ: the recurrent state-space model on frozen autoencoder features.

Masked World Models, sections 4.2 and E.2. Shape legend: B batch, T time, V cameras, N = 1 + V·G²
tokens with the class token first, Z width of a frozen feature token, D width of the small ViTs, E
embedding, F model-state feature, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from errors import refuse_above, refuse_below
from world_models.layers import (
    MLP,
    MOST_LAYERS,
    RunningScale,
    VisionTransformer,
    initialise,
    token_positions,
)
from world_models.proprioception import Proprioception
from world_models.recurrent_world_model import RecurrentWorldModel
from world_models.rssm import RSSM, RSSMConfig, State


@dataclass(frozen=True)
class FeatureEncoderConfig:
    """Sizes of the encoder of 65 feature tokens into one embedding. The defaults are the paper's
    (E.2)."""

    width: int = 128
    """Width D of its tokens."""
    depth: int = 2
    """Transformer blocks; 0 leaves one linear layer per token."""
    heads: int = 4
    """Attention heads."""
    pooling: Literal["mean", "flatten"] = "mean"
    """mean: average the tokens (E = D); flatten: one linear layer on all of them together."""
    embedding: int = 256
    """Width E of the embedding with flatten; mean gives E = D."""

    def __post_init__(self) -> None:
        refuse_below(0, self, "depth")
        refuse_above(MOST_LAYERS, self, "depth")
        refuse_below(1, self, "width", "embedding")


@dataclass(frozen=True)
class FeatureDecoderConfig:
    """Sizes of the decoder of a model state into 65 feature tokens. The defaults are the paper's
    (E.2)."""

    width: int = 128
    """Width D of its tokens."""
    depth: int = 2
    """Transformer blocks; 0 leaves one linear layer per token."""
    heads: int = 4
    """Attention heads."""
    tokens: Literal["mask", "linear"] = "mask"
    """mask: the state as one token beside copies of a learnable one; linear: all tokens from one
    hidden layer."""
    hidden: int = 256
    """Units of that hidden layer with linear."""

    def __post_init__(self) -> None:
        refuse_below(0, self, "depth")
        refuse_above(MOST_LAYERS, self, "depth")
        refuse_below(1, self, "width", "hidden")


@dataclass(frozen=True)
class LatentDynamicsConfig:
    """Sizes and loss weights of the latent dynamics model. The defaults are the paper's."""

    encoder: FeatureEncoderConfig = field(default_factory=FeatureEncoderConfig)
    """Features to embedding."""
    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    """The recurrent state-space model."""
    decoder: FeatureDecoderConfig = field(default_factory=FeatureDecoderConfig)
    """Model state to features."""
    head_layers: int = 4
    """Hidden layers of the reward and discount heads."""
    head_units: int = 512
    """Units of each of them."""
    head_scale: float = 0.1
    """Factor on the first weights of their last layers. (The published code's 0.1 is a factor on
    the variance, 0.316 on weights.)"""
    reward_weight: float = 1.0
    """Weight of the reward loss (eq. 14: 1). The features' loss sums over the numbers of a token,
    the reward's is of one number: more weight makes the state keep what tells a small reward from
    a large one."""
    kl_scale: float = 1.0
    """Weight β of the KL (Table 1: 1.0; RLBench 0.1)."""
    kl_balance: float = 0.8
    """Share of the KL that trains the prior (DreamerV2)."""
    free_nats: float = 0.01
    """Nats of the KL, before scaling, below which it is not lowered further."""
    standardise_features: bool = False
    """Subtract each token's running mean from the features and divide by their common running
    deviation, for encoder, decoder and loss. The static part of a scene is most of a feature; a
    small model learns the moving part about twice as fast without it. The paper has no such
    thing."""
    predict_discount: bool = False
    """Learn when an episode terminates; for episodic suites only (Table 1: RLBench)."""

    # What is compared with the free nats: the mean over the batch, else every time step.
    REMOVED: ClassVar = {"kl_clip": ("mean",)}

    def __post_init__(self) -> None:
        refuse_below(0, self, "head_layers", "head_scale")
        refuse_above(MOST_LAYERS, self, "head_layers")
        refuse_below(1, self, "head_units")


class FeatureEncoder(nn.Module):
    """Frozen feature tokens (B, N, Z) → embedding (B, E); `outputs` is E."""

    positions: Tensor

    def __init__(self, config: FeatureEncoderConfig, grid: int, feature_width: int, views: int = 1):
        super().__init__()
        tokens = 1 + views * grid * grid
        self.project = nn.Linear(feature_width, config.width)
        positions = token_positions(grid, config.width, after=1, views=views)[None]
        self.register_buffer("positions", positions, persistent=False)
        self.transformer = VisionTransformer(config.width, config.depth, config.heads)
        self.flatten = None
        self.outputs = config.width
        if config.pooling == "flatten":
            self.outputs = config.embedding
            self.flatten = nn.Linear(tokens * config.width, config.embedding)

    def forward(self, feature: Tensor) -> Tensor:
        feature = torch.cat([feature[:, 1:], feature[:, :1]], dim=1)  # class token last
        tokens = self.transformer(self.project(feature) + self.positions)
        return tokens.mean(dim=1) if self.flatten is None else self.flatten(tokens.flatten(1))


class FeatureDecoder(nn.Module):
    """Model-state features (..., F) → feature tokens (..., N, Z), class token first."""

    positions: Tensor

    def __init__(
        self,
        config: FeatureDecoderConfig,
        state: int,
        grid: int,
        feature_width: int,
        views: int = 1,
    ):
        super().__init__()
        self.tokens = 1 + views * grid * grid
        self.transformer = VisionTransformer(config.width, config.depth, config.heads)
        self.outputs = nn.Linear(config.width, feature_width)
        self.spread = None
        if config.tokens == "linear":
            self.spread = nn.Sequential(
                nn.Linear(state, config.hidden),
                nn.ELU(),
                nn.Linear(config.hidden, self.tokens * config.width),
            )
            positions = token_positions(grid, config.width, before=1, views=views)
        else:
            self.project = nn.Linear(state, config.width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
            positions = token_positions(grid, config.width, before=1, after=1, views=views)
        self.register_buffer("positions", positions[None], persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        leading = state.shape[:-1]
        state = state.reshape(-1, state.shape[-1])
        if self.spread is None:
            masks = self.mask_token.expand(len(state), self.tokens, -1)
            tokens = torch.cat([masks, self.project(state)[:, None]], dim=1)
        else:
            tokens = self.spread(state).unflatten(1, (self.tokens, -1))
        tokens = self.transformer(tokens + self.positions)[:, : self.tokens]
        return self.outputs(tokens).unflatten(0, leading)


class LatentDynamics(RecurrentWorldModel):
    """The latent dynamics model: encoder, RSSM, decoder, and heads of reward and discount.

    The actor-critic learns in what it imagines.

    Batches are dicts with leading (B, T): `feature` (B, T, N, Z) frozen tokens of the
    autoencoder, `action`, `reward`, `is_first`, `is_terminal`, and `proprio` (B, T, D) if seen.

    Args:
        config: sizes and loss weights.
        grid: G.
        feature_width: Z.
        action: size of the action vector.
        proprio: D, numbers of proprioception that are seen beside the picture; 0: none.
        views: V.
    """

    config: LatentDynamicsConfig

    def __init__(
        self,
        config: LatentDynamicsConfig,
        grid: int,
        feature_width: int,
        action: int,
        proprio: int = 0,
        views: int = 1,
    ):
        super().__init__()
        self.config = config
        self.encoder = FeatureEncoder(config.encoder, grid, feature_width, views)
        own = Proprioception.outputs if proprio else 0
        self.rssm = RSSM(config.rssm, self.encoder.outputs + own, action)
        self.feature_size = self.rssm.feature_size
        sizes = (config.decoder, self.feature_size, grid, feature_width)
        self.decoder = FeatureDecoder(*sizes, views)
        head = (self.feature_size, config.head_units, config.head_layers, 1)
        self.reward_head = MLP(*head)
        self.feature_scale = None
        if config.standardise_features:
            self.feature_scale = RunningScale(1 + views * grid * grid, feature_width)
        self.discount_head = MLP(*head) if config.predict_discount else None
        for part in (self.encoder, self.decoder, self.reward_head, self.discount_head):
            if part is not None:
                initialise(part, config.head_scale)
        self.proprioception = Proprioception(proprio, self.feature_size) if proprio else None

    def embed(self, feature: Tensor) -> Tensor:
        """Frozen tokens (..., N, Z) → embeddings (..., E)."""
        feature = self._standardise(feature)
        return self.encoder(feature.flatten(0, -3)).unflatten(0, feature.shape[:-2])

    def _standardise(self, feature: Tensor) -> Tensor:
        return feature if self.feature_scale is None else self.feature_scale.standardise(feature)

    def reconstruct(self, state: Tensor) -> Tensor:
        """Model-state features (..., F) → the autoencoder's tokens (..., N, Z)."""
        tokens = self.decoder(state).float()
        return tokens if self.feature_scale is None else self.feature_scale.denormalise(tokens)

    def observe(
        self,
        batch: dict[str, Tensor],
        start: State | None = None,
        noise: Tensor | None = None,
    ) -> tuple[State, Tensor]:
        """Posterior states (T, B, ...) and prior logits (T, B, S, K) along a batch; `noise` from
        `exponential_noise`, drawn here when None."""
        embedding = self.embed(batch["feature"].transpose(0, 1))
        embedding = self.with_proprio(embedding, batch, time_first=True)
        action, is_first = batch["action"].transpose(0, 1), batch["is_first"].transpose(0, 1)
        return self.rssm.observe(embedding, action, is_first, start, noise)

    def loss(
        self, batch: dict[str, Tensor], noise: Tensor | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Loss of equation 14. No gradient reaches the autoencoder: features enter detached.

        Args:
            batch: see the class.
            noise: (T, B, S, K) from `exponential_noise`; drawn here when None.

        Returns:
            The scalar loss, the posterior states (T, B, ...) without gradients, and the parts of
            the loss for the log.
        """
        batch = {**batch, "feature": batch["feature"].detach()}
        if self.feature_scale is not None:
            self.feature_scale.update(batch["feature"])
        if self.proprioception is not None:
            self.proprioception.scale.update(batch["proprio"])
        posterior, prior = self.observe(batch, noise=noise)
        state = posterior.feature
        target = self._standardise(batch["feature"]).transpose(0, 1)  # (T, B, N, Z)
        feature_loss = (self.decoder(state).float() - target).square().sum(-1).mean()
        loss, metrics = self.state_loss(posterior, prior, state, batch)
        loss = feature_loss + loss
        metrics = {"feature": feature_loss, **metrics}
        posterior = posterior.map(Tensor.detach)
        return loss, posterior, {name: value.detach() for name, value in metrics.items()}
