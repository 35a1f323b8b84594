"""The VAE between clips and latents (LTX-Video's, from diffusers), and statistics of latents.

Shape legend: n clips, C latent channels, f_s and f_t pixels and frames a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from errors import UserError
from world_models.imports import hide_broken_torchvision, pretrained, weights_named
from world_models.layers import MOST_LAYERS

hide_broken_torchvision()

from diffusers import AutoencoderKLLTXVideo  # noqa: E402

Posterior = tuple[Tensor, Tensor]
"""Mean and log-variance of a latent, each float32 (n, C, frames, height/f_s, width/f_s)."""


@dataclass(frozen=True)
class VideoVAEConfig:
    """The VAE between pictures and latents. The defaults are LTX-Video's, as in the paper:
    f_s = 32, f_t = 8, 419 million parameters."""

    latent_channels: int = 128
    """Channels C of a latent."""
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each stage, from the picture's side; encoder and decoder alike."""
    blocks: tuple[int, ...] = (4, 3, 3, 3, 4)
    """Residual blocks of each stage, and of the middle; 0 leaves a stage its scaling alone."""
    scaling: tuple[bool, ...] = (True, True, True, False)
    """Stages that halve height, width and time."""
    patch: int = 4
    """Pixels a side that are folded into channels before the first stage."""
    kl_weight: float = 1e-6
    """Weight of the posterior's divergence from N(0, I), in nats a clip."""
    windows: int = 0
    """Windows of a batch that the VAE learns from, the first ones; 0: all. At small sizes the VAE
    takes half of an update's time, and few examples are enough for it."""
    pretrained: str = ""
    """Folder or hub name of a diffusers model whose `vae` to start from; the sizes above are then
    its own. Empty: from scratch."""

    LOADS: ClassVar = {"pretrained": weights_named}

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.scaling) == len(self.blocks) - 1 > 0:
            raise UserError(
                "the VAE needs one width and one scaling a stage, and one number of blocks more; "
                f"it got {len(self.widths)}, {len(self.scaling)} and {len(self.blocks)}"
            )
        if min(self.latent_channels, self.patch, *self.widths) < 1 or min(self.blocks) < 0:
            raise UserError("latent_channels, patch and widths must be above 0, blocks at least 0")
        if max(sum(self.blocks), len(self.widths)) > MOST_LAYERS:
            raise UserError(f"the VAE may have {MOST_LAYERS} blocks at most")


def make_vae(config: VideoVAEConfig) -> AutoencoderKLLTXVideo:
    """The VAE of `config`.

    Raises:
        UserError: its pretrained weights cannot be loaded, or are of a VAE that denoises.
    """
    if config.pretrained:
        vae = pretrained(AutoencoderKLLTXVideo, config.pretrained, "vae")
        if vae.config.timestep_conditioning:
            raise UserError(
                f"the VAE of {config.pretrained!r} denoises while it decodes, which is not "
                "supported; use one without, such as Lightricks/LTX-Video"
            )
        return vae
    stages = len(config.widths)
    return AutoencoderKLLTXVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.widths,
        decoder_block_out_channels=config.widths,
        layers_per_block=config.blocks,
        decoder_layers_per_block=config.blocks,
        spatio_temporal_scaling=config.scaling,
        decoder_spatio_temporal_scaling=config.scaling,
        patch_size=config.patch,
        # Defaults of the library, but one for each stage.
        down_block_types=("LTXVideoDownBlock3D",) * stages,
        downsample_type=("conv",) * stages,
        decoder_inject_noise=(False,) * (stages + 1),
        upsample_residual=(False,) * stages,
        upsample_factor=(1,) * stages,
    )


def kl(posterior: Posterior) -> Tensor:
    """Divergence from N(0, I) in nats: the sum over a clip's latent, the mean over clips.

    The library's own sums over four axes of five.
    """
    mean, logvar = posterior
    nats = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    return nats.flatten(1).sum(1).mean()


class LatentStatistics(nn.Module):
    """Mean and deviation of every latent channel: those of all latents seen so far.

    Past 1,000 batches each new one counts as a thousandth: a VAE that learns leaves its early
    latents behind. Frozen, they stay as they are.
    """

    slowest = 1e-3
    mean: Tensor
    variance: Tensor
    count: Tensor
    frozen: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, latents: Tensor) -> None:
        """Take in latents (..., C): Chan's merging of two means and variances."""
        rows = latents.flatten(0, -2).to(self.mean.dtype)
        share = len(rows) / (self.count + len(rows)).to(self.mean.dtype)
        share = torch.where(self.frozen, 0.0, share.clamp(min=self.slowest))
        moved = rows.mean(0) - self.mean
        self.variance.lerp_(rows.var(0, correction=0), share)
        self.variance.add_(share * (1.0 - share) * moved.square())
        self.mean.add_(share * moved)
        self.count += torch.where(self.frozen, 0, len(rows))

    def normalise(self, latents: Tensor) -> Tensor:
        """(z − μ)/σ of latents (..., C)."""
        return (latents - self.mean) * self.variance.clamp(min=1e-6).rsqrt()

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return self.mean + normalised * self.variance.clamp(min=1e-6).sqrt()
