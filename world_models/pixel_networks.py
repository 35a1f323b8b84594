"""Encoders and decoders of pictures for a world model that learns end to end.

Convolutional ones (DreamerV2) and ViTs (Masked World Models, appendix I). Shape legend: n pictures,
H = W picture edge, I channels of the picture, C of the target, E embedding, F model-state feature,
N = (H / 8)² tokens, D width. Several cameras lie beside each other in channels, as in DreamerV2's
code: I and C count those of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from errors import UserError, refuse_above, refuse_below
from world_models.autoencoder import PATCH, ConvolutionStem
from world_models.latent_dynamics import FeatureDecoder, FeatureDecoderConfig
from world_models.layers import MOST_LAYERS, VisionTransformer, initialise, token_positions

Kind = Literal["cnn", "vit"]
"""Convolutions, or a vision transformer."""
SMALLEST = 16
"""Least picture edge of the convolutional networks, pixels."""


@dataclass(frozen=True)
class CNNConfig:
    """Sizes of the convolutional encoder and decoder. The default is DreamerV2's."""

    depth: int = 48
    """Channels of the encoder's first convolution; each of the following has twice as many."""

    def __post_init__(self) -> None:
        refuse_below(1, self, "depth")


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of the ViT encoder and decoder. The defaults are those of the paper's autoencoder
    (Table 1), which appendix I puts in place of the convolutions."""

    width: int = 256
    """Width D of every token."""
    encoder_depth: int = 4
    """Transformer blocks of the encoder."""
    decoder_depth: int = 3
    """Transformer blocks of the decoder."""
    heads: int = 4
    """Attention heads of every block."""
    pooling: Literal["mean", "flatten"] = "mean"
    """mean: average the tokens (E = D), and decode the state as one token beside copies of a
    learnable one (E.2). flatten: one linear layer on all tokens together, and all of them from one
    hidden layer."""
    embedding: int = 256
    """Width E of the embedding, and of that hidden layer, with flatten."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise UserError(f"the width of the ViT must be a multiple of 8, not {self.width}")
        refuse_below(0, self, "encoder_depth", "decoder_depth")
        refuse_above(MOST_LAYERS, self, "encoder_depth", "decoder_depth")
        refuse_below(1, self, "embedding")


def refuse_size(encoder: Kind, size: int) -> None:
    """Raise UserError where networks of a kind, cnn or vit, cannot see pictures of this edge."""
    if encoder == "cnn" and (size < SMALLEST or size & (size - 1)):
        raise UserError(
            f"image_size must be a power of two, at least {SMALLEST}, for the encoder cnn, not"
            f" {size}"
        )
    if encoder == "vit" and (size < PATCH or size % PATCH):
        raise UserError(f"image_size must be a multiple of {PATCH} for the encoder vit, not {size}")


def _layers(size: int) -> int:
    """Convolutions between a picture and 2×2: four for DreamerV2's 64 pixels."""
    return size.bit_length() - 3


class ConvolutionalEncoder(nn.Module):
    """DreamerV2's: [convolution 4×4 stride 2, ELU] down to 2×2. (n, H, W, I) → (n, E)."""

    def __init__(self, config: CNNConfig, size: int, inputs: int = 3):
        super().__init__()
        channels = [inputs, *(config.depth * 2**layer for layer in range(_layers(size)))]
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2), nn.ELU()]
        self.layers = nn.Sequential(*layers)
        self.outputs = 2 * 2 * channels[-1]
        initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, image: Tensor) -> Tensor:
        features = self.layers(image.permute(0, 3, 1, 2))  # channels last in memory
        return features.permute(0, 2, 3, 1).flatten(1)


class ConvolutionalDecoder(nn.Module):
    """DreamerV2's: one linear layer, then transposed convolutions of stride 2 with ELUs between
    them, kernels 5 and at last twice 6. (n, F) → (n, H, W, C)."""

    def __init__(self, config: CNNConfig, size: int, state: int, channels: int):
        super().__init__()
        count = _layers(size)
        narrowing = [config.depth * 2**layer for layer in reversed(range(count - 1))]
        first = 2 * 2 * config.depth * 2 ** (count - 1)
        self.spread = nn.Linear(state, first)
        sizes = [first, *narrowing, channels]
        layers: list[nn.Module] = []
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            kernel = 6 if layer >= count - 2 else 5
            layers += [nn.ConvTranspose2d(inputs, outputs, kernel, stride=2), nn.ELU()]
        self.layers = nn.Sequential(*layers[:-1])
        initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, state: Tensor) -> Tensor:
        picture = self.layers(self.spread(state)[:, :, None, None])
        return picture.permute(0, 2, 3, 1)


class TransformerEncoder(nn.Module):
    """The paper's convolution stem and ViT encoder, nothing masked. (n, H, W, I) → (n, E)."""

    positions: Tensor

    def __init__(self, config: ViTConfig, size: int, inputs: int = 3):
        super().__init__()
        grid = size // PATCH
        self.stem = ConvolutionStem(config.width, config.width // 8, inputs)
        positions = token_positions(grid, config.width)[None]
        self.register_buffer("positions", positions, persistent=False)
        self.transformer = VisionTransformer(config.width, config.encoder_depth, config.heads)
        self.flatten = None
        self.outputs = config.width
        if config.pooling == "flatten":
            self.outputs = config.embedding
            self.flatten = nn.Linear(grid * grid * config.width, config.embedding)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.transformer(self.stem(image) + self.positions)  # (n, N, D)
        return tokens.mean(dim=1) if self.flatten is None else self.flatten(tokens.flatten(1))


class TransformerDecoder(nn.Module):
    """The decoder of E.2 in the sizes of the autoencoder's, with pixels in place of features.
    (n, F) → (n, H, W, C)."""

    def __init__(self, config: ViTConfig, size: int, state: int, channels: int):
        super().__init__()
        self.grid, self.channels = size // PATCH, channels
        sizes = FeatureDecoderConfig(
            config.width,
            config.decoder_depth,
            config.heads,
            tokens="mask" if config.pooling == "mean" else "linear",
            hidden=config.embedding,
        )
        self.tokens = FeatureDecoder(sizes, state, self.grid, PATCH * PATCH * channels)
        initialise(self)

    def forward(self, state: Tensor) -> Tensor:
        patches = self.tokens(state)[:, 1:]  # the first has no place in the picture
        patches = patches.unflatten(-1, (PATCH, PATCH, self.channels))
        patches = patches.unflatten(1, (self.grid, self.grid))
        return patches.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def make_encoder(
    kind: Kind, cnn: CNNConfig, vit: ViTConfig, size: int, inputs: int = 3
) -> ConvolutionalEncoder | TransformerEncoder:
    """The encoder of a kind for pictures of an edge, of I = `inputs` channels."""
    if kind == "cnn":
        return ConvolutionalEncoder(cnn, size, inputs)
    return TransformerEncoder(vit, size, inputs)


def make_decoder(
    kind: Kind, cnn: CNNConfig, vit: ViTConfig, size: int, state: int, channels: int
) -> ConvolutionalDecoder | TransformerDecoder:
    """The decoder of a kind from F = `state` numbers to `channels` of every pixel."""
    if kind == "cnn":
        return ConvolutionalDecoder(cnn, size, state, channels)
    return TransformerDecoder(vit, size, state, channels)
