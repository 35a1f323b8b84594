"""The masked autoencoder φ: convolution stem, feature masking, ViT encoder and decoder.

Masked World Models, sections 4.1 and E.1. Shape legend: B images, H = W image size,
G = H / 8 tokens a side, N = G² tokens, K kept tokens, D width, C channels of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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

    image_size: int = 64
    """Pixels a side, a multiple of 8."""
    width: int = 256
    """Width D of every token; the stem has D/8, D/4 and D/2 channels before it."""
    encoder_depth: int = 4
    """Transformer blocks of the encoder."""
    decoder_depth: int = 3
    """Transformer blocks of the decoder."""
    heads: int = 4
    """Attention heads of every block."""
    mask_ratio: float = 0.75
    """Share of the convolutional features that is dropped while training."""
    reward_weight: float = 1.0
    """Weight of the reward loss beside the target's loss (eq. 13: 1)."""
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
        refuse_below(0, self, "encoder_depth", "decoder_depth")
        refuse_above(MOST_LAYERS, self, "encoder_depth", "decoder_depth")
        if self.stem_channels is not None and self.stem_channels < 1:
            raise UserError(f"stem_channels must be at least 1, not {self.stem_channels}")


class ConvolutionStem(nn.Module):
    """3 × [convolution 4×4 stride 2, ReLU], then a 1×1 convolution. (B, H, W, 3) → (B, N, D)."""

    def __init__(self, width: int, first: int):
        super().__init__()
        channels = [3, first, 2 * first, 4 * first]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, image: Tensor) -> Tensor:
        features = self.layers(image.permute(0, 3, 1, 2))  # (B, D, G, G), channels last in memory
        return features.permute(0, 2, 3, 1).flatten(1, 2)


class MaskedAutoencoder(nn.Module):
    """Predicts a target and the reward from the convolutional features that masking leaves."""

    positions: Tensor

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        width, grid = config.width, config.image_size // PATCH
        self.grid, self.tokens = grid, grid * grid
        # Rounded down, as published: 6 of 64 at 0.9. The inner rounding is of binary fractions.
        self.kept = max(1, int(round(self.tokens * (1.0 - config.mask_ratio), 6)))

        self.target = make_target(config.target)
        self.standardise = Standardise()
        self.centre = None
        if config.centre_input:
            self.centre = RunningScale(config.image_size, config.image_size, 3)
        self.stem = ConvolutionStem(width, config.stem_channels or width // 8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = VisionTransformer(width, config.encoder_depth, config.heads)
        self.decoder_input = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = VisionTransformer(width, config.decoder_depth, config.heads)
        self.target_head = nn.Linear(width, PATCH * PATCH * self.target.channels)
        self.reward_head = nn.Linear(width, 1)
        self.static_image = None
        if config.static_image_lr_scale:
            size = config.image_size**2 * self.target.channels
            self.static_image = nn.Parameter(torch.zeros(size))
        self.register_load_state_dict_pre_hook(_rename_static_image)

        # Row 0 is the class token's; the decoder's last row is the reward token's.
        positions = token_positions(grid, width, before=1, after=1, wavelengths=config.wavelengths)
        self.register_buffer("positions", positions[None], persistent=False)
        initialise(self)

    def stem_features(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → features with their positions added, before masking (B, N, D)."""
        pixels = self.standardise(image)
        if self.centre is not None:
            pixels = self.centre.standardise(pixels)
        return self.stem(pixels) + self.positions[:, 1 : 1 + self.tokens]

    def random_keep(self, batch: int, device: torch.device) -> Tensor | None:
        """Which features each image keeps: K of N without replacement, uniform, (B, K) int64;
        None, and nothing drawn, where all stay."""
        if not self.config.mask_ratio:
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
        features = self.stem_features(image)
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
        patches = patches.view(-1, grid, grid, PATCH, PATCH, channels)
        picture = patches.permute(0, 1, 3, 2, 4, 5).reshape(-1, size, size, channels)
        if self.static_image is None:
            return picture
        static = self.static_image.view(size, size, channels)
        return picture + self.config.static_image_lr_scale * static

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
        if self.centre is not None:
            self.centre.update(self.standardise(image))
        if keep is None:
            keep = self.random_keep(len(image), image.device)
        prediction, reward = self.decode(self.encode(image, keep), keep)
        prediction = prediction.float()
        target_loss = self.target.loss(prediction, batch)
        reward_loss = (reward.float() - symlog(batch["reward"])).square().mean()
        metrics = {"target": target_loss.detach(), "reward": reward_loss.detach()}
        metrics |= measure(self.target, prediction.detach(), batch)
        loss = self.config.target_weight * target_loss + self.config.reward_weight * reward_loss
        return loss, metrics


def _rename_static_image(
    module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any
) -> None:
    """Hook of `load_state_dict`: older checkpoints call the static image `still`."""
    if f"{prefix}still" in state:
        state[f"{prefix}static_image"] = state.pop(f"{prefix}still")
