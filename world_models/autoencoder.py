"""The masked autoencoder φ: convolution stem, feature masking, ViT encoder and decoder.

Masked World Models, sections 4.1 and E.1. What it shares with the other autoencoder
(`world_models/convolutional_vae.py`) is `Autoencoder`. Shape legend: B images, H = W image size,
G = H / 8 tokens a side, N = G² tokens, K kept tokens, D width, C channels of the target.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from errors import UserError, refuse_above, refuse_below
from world_models.layers import (
    MOST_LAYERS,
    VIT_WAVELENGTHS,
    RunningScale,
    VisionTransformer,
    initialise,
    symlog,
    token_positions,
)
from world_models.targets import Standardise, classes_named, make_target, measure

PATCH = 8
"""Pixels a side of one token: three convolutions of stride 2 (paper E.1)."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder. The defaults are the paper's (E.1, Table 1)."""

    kind: Literal["mae", "vae"] = "mae"
    """mae: the masked autoencoder; vae: a convolutional variational autoencoder in its place, whose
    features are one token (paper, appendix K). Whatever is of tokens, blocks, heads and masks does
    nothing for it."""
    image_size: int = 64
    """Pixels a side, a multiple of 8; of a VAE, of 16."""
    width: int = 256
    """Width D of every token; the stem has D/8, D/4 and D/2 channels before it. Of a VAE: the
    number of its latents."""
    encoder_depth: int = 4
    """Transformer blocks of the encoder."""
    decoder_depth: int = 3
    """Transformer blocks of the decoder."""
    heads: int = 4
    """Attention heads of every block."""
    mask: Literal["features", "pixels", "none"] = "features"
    """What is masked while training. features: convolutional features, whose neighbours have seen
    their pixels (the paper); pixels: patches of 8×8 pixels before the convolutions, as in MAE
    (figure 6 a); none: nothing."""
    mask_ratio: float = 0.75
    """Share of them that is dropped while training; 0: none."""
    features: Literal["all", "class"] = "all"
    """Tokens of the unmasked picture that the dynamics read and predict: all, or the class token
    alone (figure 11 a)."""
    reward_weight: float = 1.0
    """Weight of the reward loss beside the target's loss (eq. 13: 1); 0: without reward (figure 6
    c)."""
    beta: float = 1.0
    """Weight of a VAE's KL. At 1 (and a target weight of 1) the loss of pixels is the evidence
    lower bound of standardised pixels with unit variance."""
    wavelengths: tuple[float, float] = VIT_WAVELENGTHS
    """Shortest and longest wavelength of the position rows, in tokens. The usual ones far exceed
    an 8×8 grid, which leaves a narrow model hardly able to tell neighbours apart."""
    stem_channels: int | None = None
    """Channels of the first convolution, twice and four times as many follow; None takes D/8."""
    centre_input: bool = False
    """Subtract the running mean picture from the input and divide by one running deviation. The
    static part of a scene is most of a picture and says nothing of the state. The paper has no
    such thing."""
    static_image_lr_scale: float = 0.0
    """Learning rate of a learned static image over that of other biases. The image is added to
    every prediction, so that the tokens only carry the difference from it. 0, as in the paper:
    there is none."""
    target: str = "pixels"
    """What the decoder predicts: pixels, masks, package.module:Class, or a weighted sum of them:
    pixels:1+masks:0.5."""
    target_weight: float = 1.0
    """Weight of the target's loss (eq. 13: 1)."""

    LOADS: ClassVar = {"target": classes_named}
    RENAMED: ClassVar = {"still_speed": "static_image_lr_scale"}
    REMOVED: ClassVar = {
        "reward_from": ("token",),  # else from the last patch's values, as the public code does
        "scale_target": (False,),  # else over the loss of the best constant prediction
    }

    def __post_init__(self) -> None:
        if self.image_size < PATCH or self.image_size % PATCH:
            raise UserError(f"image_size must be a multiple of {PATCH}, not {self.image_size}")
        if not 0.0 <= self.mask_ratio < 1.0:
            raise UserError(f"mask_ratio must be at least 0 and below 1, not {self.mask_ratio}")
        if self.width < 8 or self.width % 8:
            raise UserError(f"the autoencoder's width must be a multiple of 8, not {self.width}")
        if self.kind == "vae" and self.image_size % 16:
            raise UserError(f"image_size of a VAE must be a multiple of 16, not {self.image_size}")
        if not self.beta >= 0.0:
            raise UserError(f"beta must be at least 0, not {self.beta}")
        refuse_below(0, self, "encoder_depth", "decoder_depth")
        refuse_above(MOST_LAYERS, self, "encoder_depth", "decoder_depth")
        if self.stem_channels is not None and self.stem_channels < 1:
            raise UserError(f"stem_channels must be at least 1, not {self.stem_channels}")


class ConvolutionStem(nn.Module):
    """3 × [convolution 4×4 stride 2, ReLU], then a 1×1 convolution. (B, H, W, I) → (B, N, D)."""

    def __init__(self, width: int, first: int, inputs: int = 3):
        super().__init__()
        channels = [inputs, first, 2 * first, 4 * first]
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, image: Tensor) -> Tensor:
        features = self.layers(image.permute(0, 3, 1, 2))  # (B, D, G, G), channels last in memory
        return features.permute(0, 2, 3, 1).flatten(1, 2)


class Autoencoder(nn.Module, abc.ABC):
    """What predicts a target and the reward of a picture from features that others can learn from:
    the parts that do not depend on how.

    A subclass calls `add_static_image` after its own parameters, whose order optimisers know.

    Args:
        config: sizes and loss weights.
        views: V, cameras whose pictures lie below each other in what it sees and predicts: W is
            `config.image_size`, H is V times as much.
    """

    feature_grid: int
    """Side of the square of tokens that `features` returns of each view after the first token; 0:
    only that one."""

    def __init__(self, config: AutoencoderConfig, views: int = 1):
        super().__init__()
        self.config, self.views = config, views
        self.target = make_target(config.target)
        self.standardise = Standardise()
        self.centre = None
        if config.centre_input:
            self.centre = RunningScale(views * config.image_size, config.image_size, 3)

    def add_static_image(self) -> None:
        """Make the learned image that is added to every prediction, where there is one."""
        self.static_image = None
        if self.config.static_image_lr_scale:
            size = self.views * self.config.image_size**2 * self.target.channels
            self.static_image = nn.Parameter(torch.zeros(size))

    @abc.abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """What the dynamics learn from of pictures (B, H, W, 3) uint8: (B, 1 + V · `feature_grid`²,
        D). Nothing is masked, and nothing drawn."""

    @abc.abstractmethod
    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The target's values (B, H, W, C) and the symlog reward (B,) from `features`."""

    @abc.abstractmethod
    def reconstruct(self, image: Tensor) -> Tensor:
        """The target's values (B, H, W, C) of pictures (B, H, W, 3) uint8, masked as in
        training."""

    def see(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → standardised, and centred where that is asked for."""
        pixels = self.standardise(image)
        return pixels if self.centre is None else self.centre.standardise(pixels)

    def centre_on(self, image: Tensor) -> None:
        """Move the running mean picture towards a batch (B, H, W, 3) uint8."""
        if self.centre is not None:
            self.centre.update(self.standardise(image))

    def with_static_image(self, picture: Tensor) -> Tensor:
        """A predicted picture (B, H, W, C) and the learned image, where there is one."""
        if self.static_image is None:
            return picture
        static = self.static_image.view(picture.shape[1:])
        return picture + self.config.static_image_lr_scale * static

    def loss_of(
        self, prediction: Tensor, reward: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of equation 13.

        Args:
            prediction, reward: the target's values (B, H, W, C) and the symlog reward (B,).
            batch: `image` (B, H, W, 3) uint8, `reward` (B,), and what the target reads.

        Returns:
            The scalar loss and its parts for the log, on the device.
        """
        prediction = prediction.float()
        target_loss = self.target.loss(prediction, batch)
        reward_loss = (reward.float() - symlog(batch["reward"])).square().mean()
        metrics = {"target": target_loss.detach(), "reward": reward_loss.detach()}
        metrics |= measure(self.target, prediction.detach(), batch)
        loss = self.config.target_weight * target_loss + self.config.reward_weight * reward_loss
        return loss, metrics


class MaskedAutoencoder(Autoencoder):
    """Predicts a target and the reward from the convolutional features that masking leaves."""

    positions: Tensor

    def __init__(self, config: AutoencoderConfig, views: int = 1):
        super().__init__(config, views)
        width, grid = config.width, config.image_size // PATCH
        self.grid, self.tokens = grid, views * grid * grid
        self.feature_grid = grid if config.features == "all" else 0
        # Rounded down, as published: 6 of 64 at 0.9. The inner rounding is of binary fractions.
        self.kept = max(1, int(round(self.tokens * (1.0 - config.mask_ratio), 6)))

        self.stem = ConvolutionStem(width, config.stem_channels or width // 8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = VisionTransformer(width, config.encoder_depth, config.heads)
        self.decoder_input = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = VisionTransformer(width, config.decoder_depth, config.heads)
        self.target_head = nn.Linear(width, PATCH * PATCH * self.target.channels)
        self.reward_head = nn.Linear(width, 1)
        self.add_static_image()
        self.register_load_state_dict_pre_hook(_rename_static_image)

        # Row 0 is the class token's; the decoder's last row is the reward token's.
        positions = token_positions(
            grid, width, before=1, after=1, wavelengths=config.wavelengths, views=views
        )
        self.register_buffer("positions", positions[None], persistent=False)
        initialise(self)

    def stem_features(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features with their positions added, before any of them is dropped.

        Args:
            image: (B, H, W, 3) uint8.
            keep: (B, K), the patches that may be seen where pixels are masked; None: all.

        Returns:
            (B, N, D).
        """
        pixels = self.see(image)
        if keep is not None and self.config.mask == "pixels":
            pixels = self._only(keep, pixels)
        views = pixels.unflatten(1, (self.views, -1)).flatten(0, 1)  # each is convolved by itself
        features = self.stem(views).reshape(len(image), self.tokens, -1)
        return features + self.positions[:, 1 : 1 + self.tokens]

    def _only(self, keep: Tensor, pixels: Tensor) -> Tensor:
        """Standardised pictures (B, H, W, 3) whose patches that are not kept are 0."""
        seen = torch.zeros(len(keep), self.tokens, dtype=pixels.dtype, device=pixels.device)
        seen = seen.scatter(1, keep, 1.0).view(-1, self.views * self.grid, 1, self.grid, 1, 1)
        patches = pixels.view(-1, self.views * self.grid, PATCH, self.grid, PATCH, 3)
        return (patches * seen).view(pixels.shape)

    def random_keep(self, batch: int, device: torch.device) -> Tensor | None:
        """Which features each image keeps: K of N without replacement, uniform, (B, K) int64;
        None, and nothing drawn, where all stay."""
        if not self.config.mask_ratio or self.config.mask == "none":
            return None
        noise = torch.rand(batch, self.tokens, device=device)
        return noise.argsort(dim=1)[:, : self.kept]

    def encode(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """The encoder's tokens, class token first.

        Args:
            image: (B, H, W, 3) uint8.
            keep: (B, K) indices of the features that stay; None keeps all N in their order and
                draws no random number (m = 0).

        Returns:
            (B, 1 + K, D), or (B, 1 + N, D) without masking.
        """
        features = self.stem_features(image, keep)
        if keep is not None:
            features = features.gather(1, keep[:, :, None].expand(-1, -1, features.shape[-1]))
        class_token = self.class_token + self.positions[:, :1]
        tokens = torch.cat([class_token.expand(len(features), -1, -1), features], dim=1)
        return self.encoder(tokens)

    def decode(self, tokens: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predictions from the encoder's tokens and the places they came from.

        Args:
            tokens: (B, 1 + K, D) from `encode` with the same `keep`.
            keep: (B, K), or None for all N tokens in order.

        Returns:
            The target's values (B, H, W, C) and the symlog reward (B,), the latter read from the
            reward token's own final representation.
        """
        tokens = self.decoder_input(tokens)
        batch, _, width = tokens.shape
        class_token, features = tokens[:, :1], tokens[:, 1:]
        if keep is not None:
            dropped = self.mask_token.expand(batch, self.tokens, -1)
            index = keep[:, :, None].expand(-1, -1, width)
            features = dropped.to(features.dtype).scatter(1, index, features)
        reward_token = self.mask_token.expand(batch, -1, -1).to(features.dtype)
        sequence = torch.cat([class_token, features, reward_token], dim=1) + self.positions
        sequence = self.decoder(sequence)
        picture = self._to_picture(self.target_head(sequence[:, 1:-1]))
        return picture, self.reward_head(sequence[:, -1]).squeeze(-1)

    def _to_picture(self, patches: Tensor) -> Tensor:
        """(B, N, 8·8·C) → (B, H, W, C)."""
        size, grid, channels = self.config.image_size, self.grid, self.target.channels
        rows = self.views * grid
        patches = patches.view(-1, rows, grid, PATCH, PATCH, channels)
        picture = patches.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * PATCH, size, channels)
        return self.with_static_image(picture)

    def features(self, image: Tensor) -> Tensor:
        """As `Autoencoder`: the class token, and the others unless it is asked for alone."""
        return self.encode(image)[:, : 1 + self.views * self.feature_grid**2]

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """As `Autoencoder`; from a class token alone as if all else had been masked."""
        if features.shape[1] > 1:
            return self.decode(features)
        nothing = torch.zeros(len(features), 0, dtype=torch.int64, device=features.device)
        return self.decode(features, nothing)

    def reconstruct(self, image: Tensor) -> Tensor:
        """As `Autoencoder`."""
        keep = self.random_keep(len(image), image.device)
        return self.decode(self.encode(image, keep), keep)[0]

    def loss(
        self, batch: dict[str, Tensor], keep: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of equation 13 on independent frames.

        Args:
            batch: `image` (B, H, W, 3) uint8, `reward` (B,), and what the target reads.
            keep: (B, K) from `random_keep`; drawn here when None.

        Returns:
            The scalar loss and its parts for the log, on the device.
        """
        image = batch["image"]
        self.centre_on(image)
        if keep is None:
            keep = self.random_keep(len(image), image.device)
        return self.loss_of(*self.decode(self.encode(image, keep), keep), batch)


def _rename_static_image(
    module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any
) -> None:
    """Hook of `load_state_dict`: older checkpoints call the static image `still`."""
    if f"{prefix}still" in state:
        state[f"{prefix}static_image"] = state.pop(f"{prefix}still")
