"""Image encoder of the baseline without a world model: pictures and an instruction → tokens.

The policy attends to these tokens in place of a world model's features. The encoder predicts
nothing and learns from the policy's loss alone; the difference between the two is what a world
model is worth.

Shape legend: B samples, V cameras, T frames each, S edge of a picture in pixels, G tokens a side,
D width, L words of the instruction, C their width, K instruction tokens, N = V·T·G² + K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError, refuse_above, refuse_below
from world_models.layers import MOST_LAYERS, token_positions

GROUP = 8
"""Channels that are normalised together; widths are multiples of it."""


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of the image encoder. The paper has no such baseline: all are ours."""

    width: int = 128
    """Width D of a token, a multiple of 8."""
    layers: int = 4
    """Blocks of the policy that reads the features; each gets the same ones."""
    grid: int = 8
    """Tokens G a side of each picture; the picture is halved until it has this size."""
    channels: int = 32
    """Channels of the first stage, a multiple of 8; the next ones have twice as many each, up to
    the width."""
    instruction_tokens: int = 8
    """Tokens K that the instruction becomes, whatever its length."""

    def __post_init__(self) -> None:
        refuse_below(1, self, "width", "layers", "grid", "channels", "instruction_tokens")
        refuse_above(MOST_LAYERS, self, "layers")
        if self.width % GROUP or self.channels % GROUP:
            raise UserError(
                f"width and channels of the image encoder must be multiples of {GROUP}, not"
                f" {self.width} and {self.channels}"
            )


class InstructionSummary(nn.Module):
    """Words (B, L, C) → K tokens (B, K, D): one attention layer whose queries are learned.

    Their number does not depend on the longest instruction of a batch, so that padding cannot be
    seen, and the policy needs no mask.
    """

    def __init__(self, caption_width: int, width: int, tokens: int):
        super().__init__()
        self.expand = nn.Linear(caption_width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_token = nn.Parameter(torch.randn(tokens, width))

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        # Which word and where: only a function of both tells "a on b" from "b on a" in a sum.
        key, value = self.key_value(F.gelu(self.expand(text))).chunk(2, dim=-1)
        query = self.query_token.to(key.dtype).expand(len(text), -1, -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])


class Stage(nn.Module):
    """Halves a picture, then a residual convolution that the instruction modulates (FiLM)."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.halve = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(outputs // GROUP, outputs)
        self.modulate = nn.Linear(width, 2 * outputs)
        self.convolve = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, pictures: Tensor, summary: Tensor) -> Tensor:
        """(n, c, s, s) and (n, D) → (n, c', s/2, s/2)."""
        features = F.relu(self.halve(pictures))
        scale, shift = self.modulate(summary)[:, :, None, None].chunk(2, dim=1)
        return features + self.convolve(F.relu(self.norm(features) * (1.0 + scale) + shift))


class ImageEncoder(nn.Module):
    """A small residual network on every picture, which the instruction modulates (FiLM).

    The instruction's own tokens follow those of the pictures.

    Args:
        config: sizes.
        cameras: V.
        frames: T, history and present.
        size: edge S of a picture, pixels: a power of two times the grid.
        caption_width: width C of the words.
    """

    def __init__(
        self, config: ImageEncoderConfig, cameras: int, frames: int, size: int, caption_width: int
    ):
        super().__init__()
        self.config, self.cameras, self.frames, self.size = config, cameras, frames, size
        self.width, self.layers = config.width, config.layers
        ratio = size // config.grid
        if ratio * config.grid != size or ratio < 2 or ratio & (ratio - 1):
            raise UserError(
                f"pictures of {size} pixels cannot be halved down to a grid of {config.grid}"
            )
        halvings = ratio.bit_length() - 1
        channels = [min(config.channels << stage, config.width) for stage in range(halvings)]
        self.instruction = InstructionSummary(
            caption_width, config.width, config.instruction_tokens
        )
        self.stages = nn.ModuleList(
            [
                Stage(inputs, outputs, config.width)
                for inputs, outputs in zip([3, *channels], channels, strict=False)
            ]
        )
        self.project = nn.Conv2d(channels[-1], config.width, 1)
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        # Position embeddings of place, frame and camera. Places start as sines no longer than the
        # grid needs: neighbours hardly differ in the usual ones.
        places = token_positions(config.grid, config.width, wavelengths=(4.0, 4.0 * config.grid))
        self.place_token = nn.Parameter(places)
        self.frame_token = nn.Parameter(0.5 * torch.randn(frames, config.width))
        self.camera_token = nn.Parameter(0.5 * torch.randn(cameras, config.width))

    def forward(self, image: Tensor, text: Tensor, text_mask: Tensor) -> list[Tensor]:
        """The context of each block of a policy: the same `layers` times.

        Args:
            image: (B, V, T, S, S, 3) uint8, oldest frame first.
            text: (B, L, C) words of the instruction.
            text_mask: (B, L) bool, true where there is a word.

        Returns:
            `layers` times (B, N, D): pictures by camera, frame, row and column, then the
            instruction.

        Raises:
            UserError: pictures of another number or size than the encoder was made for.
        """
        expected = (self.cameras, self.frames, self.size, self.size, 3)
        if image.shape[1:] != expected:
            raise UserError(
                f"the image encoder sees (cameras, frames, rows, columns, 3) = {expected}, not"
                f" {tuple(image.shape[1:])}"
            )
        instruction = self.instruction(text, text_mask)  # (B, K, D)
        summary = instruction.mean(1).repeat_interleave(self.cameras * self.frames, dim=0)
        features = image.flatten(0, 2).permute(0, 3, 1, 2) / 127.5 - 1.0  # (B·V·T, 3, S, S)
        for stage in self.stages:
            features = stage(features, summary)
        tokens = self.project(features).flatten(2).transpose(1, 2)  # (B·V·T, G², D)
        tokens = tokens.unflatten(0, (-1, self.cameras, self.frames)) + self.place_token
        tokens = tokens + self.frame_token[:, None] + self.camera_token[:, None, None]
        context = torch.cat([tokens.flatten(1, 3), instruction], dim=1)
        return [context] * self.layers
