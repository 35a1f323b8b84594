"""A world model that learns end to end on pixels: DreamerV2's (Hafner et al., 2021).

Encoder, recurrent state-space model, heads, and what makes the states represent the picture: a
decoder that reconstructs it, or a contrast between the pictures of a batch. Shape legend: B batch,
T time, V cameras whose pictures lie below each other, W picture edge, H = V·W, C channels of the
target, E embedding, F model-state feature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import refuse_above, refuse_below
from world_models.layers import MLP, MOST_LAYERS, RunningScale, initialise
from world_models.pixel_networks import (
    CNNConfig,
    ConvolutionalDecoder,
    Kind,
    TransformerDecoder,
    ViTConfig,
    make_decoder,
    make_encoder,
)
from world_models.proprioception import Proprioception
from world_models.recurrent_world_model import RecurrentWorldModel
from world_models.rssm import RSSM, RSSMConfig, State
from world_models.targets import Standardise, make_target, measure
from world_models.views import as_channels, from_channels

Representation = Literal["reconstruction", "contrastive"]
"""What makes model states represent the picture."""


@dataclass(frozen=True)
class PixelWorldModelConfig:
    """Sizes and loss weights of a world model on pixels. The defaults are the baseline's of Masked
    World Models: DreamerV2 with a recurrent model and heads of that paper's sizes (E.2)."""

    image_size: int = 64
    """Pixels a side: a power of two for the encoder cnn, a multiple of 8 for vit."""
    cnn: CNNConfig = field(default_factory=CNNConfig)
    """Encoder and decoder of the encoder cnn."""
    vit: ViTConfig = field(default_factory=ViTConfig)
    """Encoder and decoder of the encoder vit."""
    centre_input: bool = False
    """Subtract the running mean picture from the input and divide by one running deviation. The
    static part of a scene is most of a picture and says nothing of the state. DreamerV2 has no such
    thing."""
    static_image_lr_scale: float = 0.0
    """Learning rate of a learned static image over that of other biases. The image is added to
    every reconstruction, so that the state only carries the difference from it. 0, as in DreamerV2:
    there is none."""
    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    """The recurrent state-space model."""
    head_layers: int = 4
    """Hidden layers of the reward and discount heads."""
    head_units: int = 512
    """Units of each of them."""
    head_scale: float = 0.1
    """Factor on the first weights of their last layers. (The published code's 0.1 is a factor on
    the variance, 0.316 on weights.)"""
    target_weight: float = 314.0
    """Weight of the target's loss, which is a mean over pixels. DreamerV2 takes half the squared
    error of pixels from -0.5 to 0.5, summed over the picture: of 64 x 64 standardised pixels the
    mean times 64 x 64 x 3 / 2 x 0.051, the variance that standardising divides by."""
    reward_weight: float = 1.0
    """Weight of the reward loss (Masked World Models, eq. 14: 1)."""
    kl_scale: float = 1.0
    """Weight β of the KL (Table 1: 1.0; RLBench 0.1)."""
    kl_balance: float = 0.8
    """Share of the KL that trains the prior (DreamerV2)."""
    free_nats: float = 0.01
    """Nats of the KL, before scaling, below which it is not lowered further (Table 1: 0.01)."""
    predict_discount: bool = False
    """Learn when an episode terminates; for episodic suites only (Table 1: RLBench)."""

    def __post_init__(self) -> None:
        refuse_below(0, self, "head_layers", "head_scale")
        refuse_above(MOST_LAYERS, self, "head_layers")
        refuse_below(1, self, "head_units")


class InfoNCE(nn.Module):
    """Contrast of states with pictures: of which of the n pictures is a state? (van den Oord et
    al., 2018, with the log-bilinear scores of their eq. 3.)

    The other n − 1 pictures of the batch, of other windows and of other steps, are the negatives.
    """

    def __init__(self, state: int, embedding: int):
        super().__init__()
        self.project = nn.Linear(state, embedding, bias=False)
        initialise(self)

    def scores(self, state: Tensor, embedding: Tensor) -> Tensor:
        """How well states (n, F) fit the embeddings (m, E) of pictures, logits (n, m): dot products
        over √E, as large as one product whatever E."""
        scores = self.project(state) @ embedding.T
        return scores.float() / embedding.shape[-1] ** 0.5

    def loss(self, state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mean negative log-probability of every state's own picture, in nats, and the share of
        states whose own scores highest. Chance is ln n and 1 / n.

        Args:
            state: (n, F).
            embedding: (n, E), in the same order.

        Returns:
            Two scalars.
        """
        scores = self.scores(state, embedding)
        own = torch.arange(len(scores), device=scores.device)
        accuracy = (scores.detach().argmax(1) == own).float().mean()
        return F.cross_entropy(scores, own), accuracy


class PixelWorldModel(RecurrentWorldModel):
    """The world model: encoder, RSSM, decoder or contrast, and heads of reward and discount.

    Batches are dicts with leading (B, T): `image` (B, T, H, W, 3) uint8, `action`, `reward`,
    `is_first`, `is_terminal`, what the target reads, and `proprio` (B, T, D) if seen.

    Args:
        config: sizes and loss weights.
        action: A.
        encoder: cnn or vit, and the decoder with it.
        representation: reconstruction or contrastive.
        target: what the decoder predicts (`world_models/targets.py`).
        proprio: D, numbers of proprioception that are seen beside the picture; 0: none.
        views: V; networks see and draw them as channels of one picture, as DreamerV2's code does.
    """

    config: PixelWorldModelConfig
    decoder: ConvolutionalDecoder | TransformerDecoder | None
    contrast: InfoNCE | None
    static_image: nn.Parameter | None

    def __init__(
        self,
        config: PixelWorldModelConfig,
        action: int,
        encoder: Kind = "cnn",
        representation: Representation = "reconstruction",
        target: str = "pixels",
        proprio: int = 0,
        views: int = 1,
    ):
        super().__init__()
        size = config.image_size
        self.config, self.views = config, views
        self.target = make_target(target)
        self.standardise = Standardise()
        self.centre = RunningScale(views * size, size, 3) if config.centre_input else None
        self.encoder = make_encoder(encoder, config.cnn, config.vit, size, 3 * views)
        own = Proprioception.outputs if proprio else 0
        self.rssm = RSSM(config.rssm, self.encoder.outputs + own, action)
        self.feature_size = self.rssm.feature_size
        self.decoder = self.contrast = self.static_image = None
        if representation == "contrastive":
            self.contrast = InfoNCE(self.feature_size, self.encoder.outputs)
        else:
            channels = views * self.target.channels
            self.decoder = make_decoder(
                encoder, config.cnn, config.vit, size, self.feature_size, channels
            )
            if config.static_image_lr_scale:  # flat, as biases are, which do not decay
                self.static_image = nn.Parameter(torch.zeros(size * size * channels))
        head = (self.feature_size, config.head_units, config.head_layers, 1)
        self.reward_head = MLP(*head)
        self.discount_head = MLP(*head) if config.predict_discount else None
        for part in (self.reward_head, self.discount_head):
            if part is not None:
                initialise(part, config.head_scale)
        self.proprioception = Proprioception(proprio, self.feature_size) if proprio else None

    def embed(self, image: Tensor) -> Tensor:
        """Pictures (..., H, W, 3) uint8 → embeddings (..., E)."""
        pixels = self.standardise(image.flatten(0, -4))
        if self.centre is not None:
            pixels = self.centre.standardise(pixels)
        return self.encoder(as_channels(pixels, self.views)).unflatten(0, image.shape[:-3])

    def reconstruct(self, feature: Tensor) -> Tensor:
        """Model-state features (..., F) → the target's values (..., H, W, C) float32. Only where
        there is a decoder."""
        assert self.decoder is not None
        picture = from_channels(self.decoder(feature.flatten(0, -2)).float(), self.views)
        if self.static_image is not None:
            static = self.static_image.view(picture.shape[1:])
            picture = picture + self.config.static_image_lr_scale * static
        return picture.unflatten(0, feature.shape[:-1])

    def observe(
        self, batch: dict[str, Tensor], noise: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Posterior states (T, B, ...) and prior logits (T, B, S, K) along a batch; `noise` from
        `exponential_noise`, drawn here when None."""
        embedding = self.with_proprio(self.embed(batch["image"]), batch)
        return self._states(embedding, batch["action"], batch["is_first"], noise)

    def filter(
        self, embedding: Tensor, action: Tensor, is_first: Tensor, noise: Tensor | None
    ) -> tuple[State, Tensor]:
        """`observe` of what is learned from, given embeddings (B, T, E), actions (B, T, A) and
        first steps (B, T); compiled apart from what is shown."""
        return self._states(embedding, action, is_first, noise)

    def _states(
        self, embedding: Tensor, action: Tensor, is_first: Tensor, noise: Tensor | None
    ) -> tuple[State, Tensor]:
        embedding, action, is_first = (
            part.transpose(0, 1) for part in (embedding, action, is_first)
        )
        return self.rssm.observe(embedding, action, is_first, noise=noise)

    def loss(
        self, batch: dict[str, Tensor], noise: Tensor | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Loss of DreamerV2 (its eq. 2), or with a contrast in place of the reconstruction.

        Args:
            batch: see the class.
            noise: (T, B, S, K) from `exponential_noise`; drawn here when None.

        Returns:
            The scalar loss, the posterior states (T, B, ...) without gradients, and the parts of
            the loss for the log.
        """
        if self.centre is not None:
            self.centre.update(self.standardise(batch["image"]))
        embedding = self.embed(batch["image"])
        if self.proprioception is not None:
            self.proprioception.scale.update(batch["proprio"])
        seen = self.with_proprio(embedding, batch)
        posterior, prior = self.filter(seen, batch["action"], batch["is_first"], noise)
        feature = posterior.feature
        loss, metrics = self.state_loss(posterior, prior, feature, batch)
        flat = {name: value.flatten(0, 1) for name, value in batch.items()}
        rows = feature.transpose(0, 1).flatten(0, 1)  # (B·T, F)
        if self.contrast is not None:
            picture_loss, accuracy = self.contrast.loss(rows, embedding.flatten(0, 1))
            metrics |= {"contrast": picture_loss, "contrast_accuracy": accuracy}
        else:
            prediction = self.reconstruct(rows)
            target_loss = self.target.loss(prediction, flat)
            picture_loss = self.config.target_weight * target_loss
            metrics |= {"target": target_loss, **measure(self.target, prediction.detach(), flat)}
        posterior = posterior.map(Tensor.detach)
        metrics = {name: value.detach() for name, value in metrics.items()}
        return loss + picture_loss, posterior, metrics
