"""The action head of Mask World Model (stage 2): flow matching over chunks of actions.

A transformer with as many blocks as the backbone whose features it reads. Its tokens are one for
proprioception, always clean, and one for each action of the chunk; block i attends to what block i
of the backbone made of the pictures and the instruction. The blocks are LTX-Video's.

Shape legend: B samples, H actions of a chunk, A size of an action, P of proprioception, N context
tokens of all views, C their width, D width of the head's own tokens, M heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError, refuse_above, refuse_below

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a sequence of N tokens, both (B, M, N, D/M)."""
TIMESTEPS = 1000.0
"""Timestep of pure noise; 0 is clean (LTX-Video's scale)."""
TIME_CHANNELS = 256
"""Sines and cosines that describe a timestep (LTX-Video)."""
MOST = 1000
"""Actions of a chunk and Euler steps that a configuration may ask for."""
ROTARY_BASE = 10_000.0
"""Longest wavelength of rotary positions over the shortest (RoFormer)."""


@dataclass(frozen=True)
class DiffusionPolicyConfig:
    """Sizes of the action head. The defaults are the paper's (Mask World Model, stage 2).

    The paper's cross-attention width, 2048, is that of the backbone and no choice of the head's.
    """

    width: int = 512
    """Width D of the head's tokens, a multiple of twice the heads."""
    heads: int = 16
    """Attention heads M of every block."""
    chunk: int = 36
    """Actions H predicted at once, steps."""
    num_inference_steps: int = 10
    """Steps of Euler's method from noise to actions (10)."""
    n_action_steps: int = 8
    """Actions of a chunk that are executed before the next one is predicted, steps (8)."""

    RENAMED: ClassVar = {"euler_steps": "num_inference_steps", "execute": "n_action_steps"}

    def __post_init__(self) -> None:
        refuse_below(1, self, "width", "heads", "chunk", "num_inference_steps", "n_action_steps")
        refuse_above(MOST, self, "chunk", "num_inference_steps")
        if self.width % (2 * self.heads):
            raise UserError(
                f"the policy's width, {self.width}, must be a multiple of twice its heads,"
                f" {2 * self.heads}"
            )
        if self.n_action_steps > self.chunk:
            raise UserError(
                f"n_action_steps is {self.n_action_steps}; a chunk has {self.chunk} actions"
            )


# ------------------------------------------------------------------------------------ blocks


def rotary_positions(count: int, width: int) -> Tensor:
    """Angles of rotary positions 0, 1, ..., `count` − 1 for heads of `width` channels.

    Returns:
        (count, width/2) float32, radians.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(count, dtype=torch.float64), frequencies).float()


def rotate(vectors: Tensor, angles: Tensor) -> Tensor:
    """Each pair of neighbouring channels of (B, M, N, W), turned by its angle of (N, W/2)."""
    first, second = vectors.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(vectors.dtype)


class Attention(nn.Module):
    """Multi-head attention with queries and keys normalised over all heads (LTX-Video).

    What is attended to comes as keys and values, so that ten Euler steps compute those of the
    backbone's features once.
    """

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.project = nn.Linear(width, width)
        self.norm_query = nn.RMSNorm(width, eps=1e-5)
        self.norm_key = nn.RMSNorm(width, eps=1e-5)

    def _split(self, vectors: Tensor) -> Tensor:
        """(B, N, D) → (B, M, N, D/M)."""
        return vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor, angles: Tensor | None = None) -> KeysValues:
        """Keys and values of `context` (B, N, C), with rotary positions where given."""
        value = self.value(context)
        key = self._split(self.norm_key(self.key(context).float()).to(value.dtype))
        return key if angles is None else rotate(key, angles), self._split(value)

    def forward(
        self, tokens: Tensor, keys_values: KeysValues, angles: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        key, value = keys_values
        query = self._split(self.norm_query(self.query(tokens).float()).to(value.dtype))
        if angles is not None:
            query = rotate(query, angles)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.project(attended.transpose(1, 2).flatten(2))


class ActionBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward: LTX-Video's block.

    Time reaches the first and the last of them as shift, scale and gate of every channel (AdaLN).
    The block of the library diffusers computes the same (a test compares them), but would project
    the context anew in every Euler step.
    """

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.self_attention = Attention(width, heads, width)
        self.cross_attention = Attention(width, heads, context_width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, tokens: Tensor, context: KeysValues, time: Tensor, angles: Tensor) -> Tensor:
        """Self-attention, cross-attention and feed-forward, each with a residual connection.

        Args:
            tokens: (B, T, D).
            context: what `cross_attention.keys_values` made of the backbone's features.
            time: (B, T, 6, D) modulation of each token.
            angles: (T, D/M/2) rotary positions of the tokens.

        Returns:
            (B, T, D).
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.modulation + time).unbind(2)
        normed = F.rms_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1.0 + scale) + shift
        own = self.self_attention.keys_values(normed, angles)
        tokens = tokens + gate * self.self_attention(normed, own, angles)
        tokens = tokens + self.cross_attention(tokens, context)
        normed = F.rms_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1.0 + scale_mlp) + shift_mlp
        hidden = F.gelu(self.expand(normed), approximate="tanh")
        return tokens + gate_mlp * self.contract(hidden)


class TimeEmbedding(nn.Module):
    """Timesteps (...) → their embedding (..., D) and the six modulations of a block (..., 6, D)."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        exponents = torch.arange(TIME_CHANNELS // 2) / (TIME_CHANNELS // 2)
        self.register_buffer("frequencies", 10_000.0**-exponents, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        angles = timestep[..., None] * self.frequencies
        embedding = self.embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedding, self.modulate(embedding).unflatten(-1, (6, -1))


# ------------------------------------------------------------------------------------ the head


def draw(
    sample: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """`torch.rand` or `torch.randn` on the generator's device, which need not be the tensors'."""
    source = device if generator is None else generator.device
    return sample(shape, generator=generator, device=source).to(device)


def euler(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Follow a velocity field from noise (s = 0) to a sample (s = 1) in equal steps.

    Args:
        velocity: (B, ...) and s (B,) → (B, ...).
        noise: (B, ...) float32.
        steps: of Euler's method.

    Returns:
        (B, ...) float32.
    """
    sample = noise
    for step in range(steps):
        s = torch.full((len(noise),), step / steps, device=noise.device)
        sample = sample + velocity(sample, s).float() / steps
    return sample


class DiffusionPolicy(nn.Module):
    """Proprioception and the backbone's features → a chunk of actions.

    Flow matching in the world model's convention: z_s = (1 − s)·noise + s·actions, s = 1 is clean,
    and the network predicts the velocity actions − noise.

    Args:
        config: sizes.
        layers: blocks of the backbone, and of this head.
        context_width: width C of the backbone's tokens.
        action_size: A.
        proprio_size: P; 0 for a suite without proprioception.
    """

    angles: Tensor
    places: Tensor

    def __init__(
        self,
        config: DiffusionPolicyConfig,
        layers: int,
        context_width: int,
        action_size: int,
        proprio_size: int,
    ):
        super().__init__()
        self.config, self.context_width = config, context_width
        self.action_size, self.proprio_size = action_size, proprio_size
        width, heads = config.width, config.heads
        self.proprio_in = nn.Linear(proprio_size, width)
        self.action_in = nn.Linear(action_size, width)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(
            [ActionBlock(width, heads, context_width) for _ in range(layers)]
        )
        self.output_modulation = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.action_out = nn.Linear(width, action_size)
        # The first velocity is 0, as in DiT: what is learned starts from nothing.
        nn.init.zeros_(self.action_out.weight)
        nn.init.zeros_(self.action_out.bias)
        angles = rotary_positions(1 + config.chunk, width // heads)
        self.register_buffer("angles", angles, persistent=False)
        # Rotary positions are relative: a token finds its place from the others, block by block.
        # Told it at once, the head learned eight chunks of 16 actions to an error of 0.03 in 200
        # updates, and of 0.12 without.
        angles = rotary_positions(config.chunk, width)
        places = torch.cat([angles.sin(), angles.cos()], dim=-1)
        self.register_buffer("places", places, persistent=False)

    def read(self, context: Sequence[Tensor]) -> list[KeysValues]:
        """Keys and values that each block attends to, of the backbone's features (B, N, C) of each.

        Raises:
            UserError: the features are not those of the backbone this head was made for.
        """
        if len(context) != len(self.blocks):
            raise UserError(
                f"the policy has {len(self.blocks)} blocks, the context {len(context)} layers:"
                f" they must be equal"
            )
        for features in context:
            if features.ndim != 3 or features.shape[-1] != self.context_width:
                raise UserError(
                    f"the policy reads context (B, N, {self.context_width}), not"
                    f" {tuple(features.shape)}"
                )
        blocks = cast("Iterable[ActionBlock]", self.blocks)
        # A residual stream grows from block to block; the policy should not have to learn how much.
        return [
            block.cross_attention.keys_values(F.rms_norm(features, features.shape[-1:], eps=1e-6))
            for block, features in zip(blocks, context, strict=True)
        ]

    def timesteps(self, s: Tensor) -> Tensor:
        """s (B,) → timesteps (B, 2) of the proprioception token, always clean, and of actions."""
        return TIMESTEPS * torch.stack([torch.zeros_like(s), 1.0 - s], dim=-1)

    def velocity(
        self, noisy: Tensor, s: Tensor, proprio: Tensor, context: Sequence[KeysValues]
    ) -> Tensor:
        """The network: predicted velocity from noise to actions.

        Args:
            noisy: (B, H, A) z_s.
            s: (B,) in [0, 1].
            proprio: (B, P).
            context: from `read`.

        Returns:
            (B, H, A), the velocity at z_s.
        """
        tokens = self.action_in(noisy) + self.places
        tokens = torch.cat([self.proprio_in(proprio)[:, None], tokens], dim=1)  # (B, 1 + H, D)
        embedding, modulation = self.time(self.timesteps(s))  # (B, 2, D), (B, 2, 6, D)
        count = noisy.shape[1]
        of_actions = modulation[:, 1:].expand(-1, count, -1, -1)
        time = torch.cat([modulation[:, :1], of_actions], dim=1)  # (B, 1 + H, 6, D)
        for block, keys_values in zip(self.blocks, context, strict=True):
            tokens = block(tokens, keys_values, time, self.angles)
        shift, scale = (self.output_modulation + embedding[:, 1:, None]).unbind(2)  # (B, 1, D)
        normed = F.layer_norm(tokens[:, 1:], tokens.shape[-1:], eps=1e-6)
        return self.action_out(normed * (1.0 + scale) + shift)

    def loss(
        self,
        actions: Tensor,
        valid: Tensor,
        proprio: Tensor,
        context: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching at one random s of each chunk.

        Args:
            actions: (B, H, A), normalised.
            valid: (B, H) bool; what is after the end of an episode carries no weight.
            proprio: (B, P), normalised.
            context: the backbone's features of each block, (B, N, C).
            generator: of noise and s.

        Returns:
            The mean squared error of the velocity, a scalar, and metrics on the device:
            `action_flow`, the same, and `action_error`, the mean distance between the actions
            recorded and those that the predicted velocity leads to.

        Raises:
            UserError: the chunks have another shape than the policy's.
        """
        expected = (self.config.chunk, self.action_size)
        if actions.shape[1:] != expected:
            raise UserError(
                f"the policy learns chunks of {expected[0]} actions of size {expected[1]}, not"
                f" {tuple(actions.shape[1:])}"
            )
        # What stands where nothing was recorded must not reach its neighbours by attention.
        actions = torch.where(valid[..., None], actions, 0.0)
        noise = draw(torch.randn, actions.shape, generator, actions.device)
        s = draw(torch.rand, (len(actions),), generator, actions.device)
        share = s[:, None, None]
        noisy = (1.0 - share) * noise + share * actions
        predicted = self.velocity(noisy, s, proprio, self.read(context)).float()
        difference = predicted - (actions - noise)
        weight = valid / valid.sum().clamp(min=1)  # (B, H), sums to 1
        loss = (weight * difference.square().mean(-1)).sum()
        distance = (1.0 - share) * difference.detach().abs()
        metrics = {
            "action_flow": loss.detach(),
            "action_error": (weight * distance.mean(-1)).sum(),
        }
        return loss, metrics

    @torch.no_grad()
    def sample(
        self,
        proprio: Tensor,
        context: Sequence[Tensor],
        generator: torch.Generator | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Chunks of normalised actions, by Euler's method from noise.

        Args:
            proprio: (B, P), normalised.
            context: the backbone's features of each block, (B, N, C).
            generator: of the noise.
            steps: of Euler's method; None takes the configured ones.

        Returns:
            (B, H, A) float32.
        """
        read = self.read(context)
        shape = (len(proprio), self.config.chunk, self.action_size)
        noise = draw(torch.randn, shape, generator, proprio.device)
        return euler(
            lambda noisy, s: self.velocity(noisy, s, proprio, read),
            noise,
            self.config.num_inference_steps if steps is None else steps,
        )
