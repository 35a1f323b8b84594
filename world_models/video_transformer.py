"""LTX-Video's transformer (from diffusers), extended to several cameras.

Shape legend: n clips, B windows, V cameras, T latent frames, N tokens a camera, M kept ones, C
latent channels, D width, L caption tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from errors import UserError, refuse_above
from world_models.imports import hide_broken_torchvision, pretrained, weights_named
from world_models.layers import MOST_LAYERS

hide_broken_torchvision()

from diffusers import LTXVideoTransformer3DModel  # noqa: E402


@dataclass(frozen=True)
class TransformerConfig:
    """The video transformer. The defaults are the paper's: 1.92 billion parameters."""

    layers: int = 28
    """Transformer blocks (paper, table of hyperparameters)."""
    heads: int = 32
    """Attention heads of every block (paper)."""
    head_width: int = 64
    """Width of a head; the tokens' width D is heads · head_width (paper: 2048)."""
    cross_view_every: int = 3
    """Every so many blocks, the tokens of all cameras attend to each other; 0: never."""
    pretrained: str = ""
    """Folder or hub name of a diffusers model whose `transformer` to start from; the sizes above
    are then its own. Empty: from scratch."""

    LOADS: ClassVar = {"pretrained": weights_named}

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.head_width) < 1 or self.cross_view_every < 0:
            raise UserError(
                "layers, heads and head_width must be above 0, cross_view_every not < 0"
            )
        refuse_above(MOST_LAYERS, self, "layers")
        if self.heads * self.head_width % 2:
            raise UserError("heads · head_width must be even: rotary positions turn pairs")


class MultiViewTransformer(LTXVideoTransformer3DModel):
    """LTX-Video's transformer for several cameras, which also returns the output of every block.

    Every camera's tokens attend among themselves; in every `cross_view_every`-th block those of
    all cameras attend to each other. A vector added to a token's time embedding tells which camera
    it is from.
    """

    def forward(
        self,
        latents: Tensor,
        positions: Tensor,
        timestep: Tensor,
        view: Tensor,
        text: Tensor,
        text_mask: Tensor,
        cross_view_every: int,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Output and features of all cameras' tokens.

        Args:
            latents: (B, V, N, C).
            positions: (3, N) seconds, pixel row and pixel column of each token.
            timestep: (B, T) of every latent frame, LTX's: 1000 is noise.
            view: (V, D) what is added to the time embedding of a camera's tokens.
            text: (B, L, caption width); text_mask: (B, L) bool, the tokens that are there.
            cross_view_every: see `TransformerConfig`.
            keep: (B, V, M) indices of the tokens that stay, after the input projection; None: all.

        Returns:
            LTX's output (B, V, M, C), and the output of each block, (B, V·M, D).
        """
        batch, views, tokens, _ = latents.shape
        frames = timestep.shape[1]

        hidden = self.proj_in(latents).flatten(0, 1)  # (B·V, N, D)
        rotary = self.rope(latents, video_coords=positions[None])  # cosines, sines (1, N, D)
        time = self.time_embed.emb(
            timestep.flatten(), None, None, batch, hidden_dtype=self.proj_in.weight.dtype
        )
        time = time.view(batch, 1, frames, -1) + view[:, None]  # (B, V, T, D)
        time = time.flatten(0, 1)
        modulation = self.time_embed.linear(self.time_embed.silu(time))  # (B·V, T, 6·D)
        time = time.repeat_interleave(tokens // frames, dim=1)  # (B·V, N, D)
        modulation = modulation.repeat_interleave(tokens // frames, dim=1)
        if keep is not None:
            keep = keep.flatten(0, 1)[:, :, None]  # (B·V, M, 1)
            rotary = tuple(take(part.expand(len(keep), -1, -1), keep) for part in rotary)
            hidden, time, modulation = (take(part, keep) for part in (hidden, time, modulation))

        caption = self.caption_projection(text)
        absent = (~text_mask[:, None]).to(caption.dtype) * -10_000.0  # (B, 1, L), as LTX does

        def of_all(sequences: Tensor) -> Tensor:
            """(B·V, M, ·) → (B, V·M, ·): all cameras of a window in one sequence."""
            return sequences.reshape(batch, -1, sequences.shape[-1])

        def of_each(rows: Tensor) -> Tensor:
            """(B, ...) → (B·V, ...)."""
            return rows.repeat_interleave(views, dim=0)

        alone = (of_each(caption), modulation, rotary, of_each(absent))
        if keep is None:
            rotary = tuple(part.repeat(1, views, 1) for part in rotary)
        else:
            rotary = tuple(of_all(part) for part in rotary)
        together = (caption, of_all(modulation), rotary, absent)

        features = []
        for index, block in enumerate(self.transformer_blocks, start=1):
            if views > 1 and cross_view_every and index % cross_view_every == 0:
                hidden = block(of_all(hidden), *together).view(hidden.shape)
            else:
                hidden = block(hidden, *alone)
            features.append(of_all(hidden))

        shift, scale = (self.scale_shift_table + time[:, :, None]).unbind(dim=2)
        output = self.proj_out(self.norm_out(hidden) * (1.0 + scale) + shift)
        return output.unflatten(0, (batch, views)), features


def take(sequences: Tensor, keep: Tensor) -> Tensor:
    """Rows `keep` (n, M, 1) of (n, N, ·)."""
    return sequences.gather(1, keep.expand(-1, -1, sequences.shape[-1]))


def make_transformer(
    config: TransformerConfig, channels: int, caption_width: int
) -> MultiViewTransformer:
    """The transformer of `config` for latents of `channels` and captions of `caption_width`.

    Raises:
        UserError: its pretrained weights cannot be loaded, or are for other widths.
    """
    if config.pretrained:
        transformer = pretrained(MultiViewTransformer, config.pretrained, "transformer")
        wanted = {"in_channels": channels, "caption_channels": caption_width}
        for name, value in wanted.items():
            if (given := transformer.config[name]) != value:
                raise UserError(
                    f"the transformer of {config.pretrained!r} has {name} = {given}, not {value}"
                )
        return transformer
    return MultiViewTransformer(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        cross_attention_dim=config.heads * config.head_width,  # of projected captions: the width
        num_layers=config.layers,
        caption_channels=caption_width,
    )
