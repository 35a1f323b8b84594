"""The video diffusion transformer of Mask World Model: RGB history and language in, the future's
semantic masks out (or its pictures: the target is a plug-in).

Stage 1 learns it here (`loss`); stage 2's action head reads its `features`. Blocks, VAE and rotary
positions are LTX-Video's, from the library diffusers. Lou et al. 2026, sections 4.3.1 to 4.3.5.

One latent frame is a grid of G tokens with C channels. The sequence of one camera is its history,
each picture a latent frame of its own, then the K latent frames of the future:

    N = (H + K)·G,     K = 1 + (F − 1)/f_t,     G = height/f_s · width/f_s

Time of the flow, s: 0 is noise, 1 is data, and the model's velocity points from noise to data,

    z_s = (1 − s)·z_0 + s·z_1,     dz_s/ds = z_1 − z_0,     z_0 ~ N(0, I).

LTX counts the other way: its timestep is 1000·(1 − s) and its output z_0 − z_1. `_velocity` is the
one place that knows, so that weights trained by others keep their meaning.

Shape legend: B windows, V cameras, H history frames, F future frames, K future latent frames,
T = H + K latent frames, G tokens a latent frame, N tokens a camera, M kept tokens a camera,
C latent channels, D width, L caption tokens, f_s and f_t pixels and frames a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from errors import UserError
from world_models.imports import hide_broken_torchvision
from world_models.targets import measure
from world_models.video_targets import make_video_target, to_unit, weighted_mean

hide_broken_torchvision()

from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel  # noqa: E402

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
    """Weight of the posterior's divergence from N(0, I), in nats a clip (spec)."""
    windows: int = 0
    """Windows of a batch that the VAE learns from, the first ones; 0: all. It takes half of an
    update's time at small sizes and needs the fewest of its examples."""
    pretrained: str = ""
    """Folder or hub name of a diffusers model whose `vae` to start from; the sizes above are then
    its own. Empty: from scratch."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.scaling) == len(self.blocks) - 1 > 0:
            raise UserError(
                "the VAE needs one width and one scaling a stage, and one number of blocks more; "
                f"it got {len(self.widths)}, {len(self.scaling)} and {len(self.blocks)}"
            )
        if min(self.latent_channels, self.patch, *self.widths) < 1 or min(self.blocks) < 0:
            raise UserError("latent_channels, patch and widths must be above 0, blocks at least 0")


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

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.head_width) < 1 or self.cross_view_every < 0:
            raise UserError(
                "layers, heads and head_width must be above 0, cross_view_every not < 0"
            )
        if self.heads * self.head_width % 2:
            raise UserError("heads · head_width must be even: rotary positions turn pairs")


@dataclass(frozen=True)
class MaskDynamicsConfig:
    """Stage 1 of Mask World Model. The defaults are the paper's size."""

    target: str = "masks"
    """What the future is predicted as: masks, pixels (the baseline), or package.module:Class."""
    vae: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    """The VAE; it learns in stage 1 (paper)."""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    """The video transformer."""
    future_frames: int = 9
    """Frames F that `features` and `predict` imagine: a multiple of f_t, plus 1 (spec)."""
    frame_rate: float = 5.0
    """Frames a second of history and future, for LTX's rotary positions, which count time in
    seconds (20 Hz control, every 4th step)."""
    history_noise: float = 0.0
    """Largest share of noise mixed into the history while training, drawn per window; at most 0.1
    (paper: clean, or up to 0.1)."""
    jitter: float = 0.2
    """Brightness, contrast and saturation of a window's history are each multiplied by a factor in
    [1 − jitter, 1 + jitter] while training; 0: untouched."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.history_noise <= 0.1:
            raise UserError(f"history_noise must be in [0, 0.1], not {self.history_noise}")
        if not 0.0 <= self.jitter < 1.0:
            raise UserError(f"jitter must be at least 0 and below 1, not {self.jitter}")
        if not (self.future_frames >= 1 and self.frame_rate > 0):
            raise UserError("future_frames and frame_rate must be above 0")


def small(target: str = "masks") -> MaskDynamicsConfig:
    """For a CPU and pictures of 64 to 128 pixels: f_s = 16, f_t = 4, a 4×4 grid at 64×64."""
    return MaskDynamicsConfig(
        target=target,
        vae=VideoVAEConfig(32, widths=(16, 32), blocks=(0, 0, 1), scaling=(True, True)),
        transformer=TransformerConfig(layers=4, heads=4, head_width=32),
    )


class LatentStatistics(nn.Module):
    """Mean and deviation of every latent channel: those of all latents seen so far.

    Past 1,000 batches each new one counts as a thousandth: a VAE that learns leaves its early
    latents behind. Frozen, they stay as they are.
    """

    slowest = 1e-3

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def see(self, latents: Tensor) -> None:
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

    def undo(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return self.mean + normalised * self.variance.clamp(min=1e-6).sqrt()


class MultiViewTransformer(LTXVideoTransformer3DModel):
    """LTX-Video's transformer for several cameras, and for those who want to see inside.

    Every camera's tokens attend among themselves; in every `cross_view_every`-th block those of
    all cameras attend to each other. Which camera a token is from, it knows from a vector added to
    its time embedding.
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
        """
        Args:
            latents: (B, V, N, C).
            positions: (3, N) seconds, pixel row and pixel column of each token.
            timestep: (B, T) of every latent frame, LTX's: 1000 is noise.
            view: (V, D) what is added to the time embedding of a camera's tokens.
            text: (B, L, caption width); text_mask: (B, L) bool, the tokens that are there.
            cross_view_every: see `TransformerConfig`.
            keep: (B, V, M) indices of the tokens that stay, after the input projection; None: all.

        Returns:
            LTX's output (B, V, M, C), and what each block put out, (B, V·M, D).
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
            rotary = tuple(_take(part.expand(len(keep), -1, -1), keep) for part in rotary)
            hidden, time, modulation = (_take(part, keep) for part in (hidden, time, modulation))

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


def _take(sequences: Tensor, keep: Tensor) -> Tensor:
    """Rows `keep` (n, M, 1) of (n, N, ·)."""
    return sequences.gather(1, keep.expand(-1, -1, sequences.shape[-1]))


def photometric_jitter(
    picture: Tensor, strength: float, generator: torch.Generator | None = None
) -> Tensor:
    """Brightness, contrast and saturation changed at random, alike in all of a window's pictures.

    Args:
        picture: (B, ..., 3) in [−1, 1].
        strength: each factor is uniform in [1 − strength, 1 + strength].
    """
    draws = torch.rand(3, len(picture), generator=generator, device=picture.device)
    factors = (1.0 + strength * (2.0 * draws - 1.0)).view(3, -1, *[1] * (picture.ndim - 1))
    brightness, contrast, saturation = factors
    light = (picture + 1.0) * brightness  # 0 is black, 2 is white
    middle = light.mean(dim=tuple(range(1, light.ndim)), keepdim=True)
    light = middle + contrast * (light - middle)
    grey = light.mean(-1, keepdim=True)
    light = grey + saturation * (light - grey)
    return light.clamp(0.0, 2.0) - 1.0


class MaskDynamics(nn.Module):
    """Predicts how the scene's masks will move from what the cameras saw and what was asked.

    A batch is a dict of

        image         uint8 (B, V, H, height, width, 3), oldest first, the present last
        future        class ids uint8 (B, V, F, height, width), or what else the target reads
        future_valid  bool (B, F), the frames before the episode's end
        text          float (B, L, caption width), the caption's token embeddings
        text_mask     bool (B, L), the tokens that are there

    A generator lives on the model's device.

    Args:
        config: sizes.
        cameras: V.
        caption_width: width of the caption's token embeddings.

    Raises:
        UserError: target or pretrained weights cannot be had, or the frames do not fit the VAE.
    """

    def __init__(self, config: MaskDynamicsConfig, cameras: int, caption_width: int):
        super().__init__()
        self.config, self.cameras = config, cameras
        self.target = make_video_target(config.target)
        self.vae = _make_vae(config.vae)
        channels = self.vae.config.latent_channels
        self.transformer = _make_transformer(config.transformer, channels, caption_width)
        self.layers = len(self.transformer.transformer_blocks)
        self.width = self.transformer.proj_in.out_features
        self.view_token = nn.Parameter(0.02 * torch.randn(cameras, self.width))
        self.statistics = LatentStatistics(channels)
        self.patch = self.vae.spatial_compression_ratio
        self.stride = self.vae.temporal_compression_ratio
        self._check_frames(config.future_frames)

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The VAE's loss plus the flow's, whose gradients do not meet: the latents' is stopped.

        In training mode only, the history is jittered and noised and the statistics take in the
        latents. A VAE that is frozen adds no loss.

        Returns:
            The scalar, and parts of it for the log, on the device: `flow`, `vae/rgb` (the present
            redrawn), `vae/target` (the future redrawn), `vae/kl`, and under `vae/` what the target
            measures of the future redrawn.
        """
        grid = self._check_pictures(batch["image"])
        self._check_frames(batch["future"].shape[2])
        history = to_unit(batch["image"])
        if self.training and self.config.jitter:
            history = photometric_jitter(history, self.config.jitter, generator)
        learning = any(parameter.requires_grad for parameter in self.vae.parameters())
        count = (self.config.vae.windows or len(history)) if learning else 0
        pictures = self.target.encode(batch)

        loss, metrics = torch.zeros((), device=history.device), {}
        means = []
        if learning:
            redrawn = self._encode(pictures[:count].flatten(0, 1))
            first = {name: part[:count] for name, part in batch.items()}
            loss, metrics = self._vae_loss(history[:count, :, -1:], redrawn, first, generator)
            means.append(redrawn[0].detach())
        if count < len(history):
            with torch.no_grad():
                means.append(self._encode(pictures[count:].flatten(0, 1))[0])

        past, ahead = self._history(history), self._tokens(torch.cat(means))
        if self.training:
            self.statistics.see(torch.cat([past, ahead], dim=2))
        past, ahead = self.statistics.normalise(past), self.statistics.normalise(ahead)
        flow = self._flow_loss(past, ahead, grid, batch, generator)
        return loss + flow, {"flow": flow.detach(), **metrics}

    def _vae_loss(
        self,
        present: Tensor,
        future: Posterior,
        batch: dict[str, Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How well pictures come back from samples of their latents, and the latents' divergence.

        RGB is learned from the present alone: every frame is the present of some window.

        Args:
            present: (B, V, 1, height, width, 3) in [−1, 1].
            future: the posterior of the target's pictures.
        """
        present = present.flatten(0, 1)
        now = self._encode(present)
        rgb = (self._decode(self._sample(now, generator)) - present).abs().mean()
        redrawn = self._decode(self._sample(future, generator)).unflatten(0, (-1, self.cameras))
        target = self.target.loss(redrawn, batch)
        divergence = kl(now) + kl(future)
        metrics = {"rgb": rgb.detach(), "target": target.detach(), "kl": divergence.detach()}
        metrics |= measure(self.target, redrawn.detach(), batch)
        metrics = {f"vae/{name}": value for name, value in metrics.items()}
        return rgb + target + self.config.vae.kl_weight * divergence, metrics

    def _flow_loss(
        self,
        history: Tensor,
        future: Tensor,
        grid: tuple[int, int],
        batch: dict[str, Tensor],
        generator: torch.Generator | None,
    ) -> Tensor:
        """Flow matching: E ‖v(z_s, s) − (z_1 − z_0)‖² over the future's valid tokens, w(s) = 1.

        Args:
            history: (B, V, H·G, C) and future: (B, V, K·G, C), normalised latents.
        """
        windows, device = len(future), future.device
        time = torch.rand(windows, generator=generator, device=device)
        noise = torch.randn(future.shape, generator=generator, device=device)
        noisy = interpolate(noise, future, time)
        clean = torch.ones(windows, device=device)
        if self.training and self.config.history_noise:
            draw = torch.rand(windows, generator=generator, device=device)
            clean = 1.0 - self.config.history_noise * draw
            other = torch.randn(history.shape, generator=generator, device=device)
            history = interpolate(other, history, clean)

        velocity, _ = self._velocity(history, noisy, clean, time, grid, batch)
        error = (velocity - (future - noise)).square().mean(-1)  # (B, V, K·G)
        valid = self._valid(batch["future_valid"]).repeat_interleave(grid[0] * grid[1], dim=1)
        return weighted_mean(error, valid[:, None].expand(error.shape).float())

    def features(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pruning: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """What every block thinks while the future is still pure noise: one forward pass.

        Args:
            image: (B, V, H, height, width, 3) uint8.
            text: (B, L, caption width).
            text_mask: (B, L) bool.
            pruning: share r of each camera's N tokens that are dropped after the input projection,
                ⌊r·N⌋ of them, drawn anew for every window, camera and call. The others keep their
                positions.
            generator: draws the noise, then the tokens.

        Returns:
            One tensor a block, (B, V·M, D) with M = N − ⌊r·N⌋.
        """
        if not 0.0 <= pruning < 1.0:
            raise UserError(f"pruning must be at least 0 and below 1, not {pruning}")
        grid = self._check_pictures(image)
        history = self.statistics.normalise(self._history(to_unit(image)))
        noise = self._noise(history, grid, generator)
        keep = None
        if pruning:
            tokens = history.shape[2] + noise.shape[2]
            kept = tokens - math.floor(pruning * tokens + 1e-6)  # 0.29 · 100 is 28.999…
            draw = torch.rand(*noise.shape[:2], tokens, generator=generator, device=noise.device)
            keep = draw.argsort(dim=-1)[:, :, :kept].sort(dim=-1).values
        ends = noise.new_ones(len(noise)), noise.new_zeros(len(noise))
        caption = {"text": text, "text_mask": text_mask}
        return self._velocity(history, noise, *ends, grid, caption, keep)[1]

    @torch.no_grad()
    def predict(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        steps: int = 10,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The future as pictures; `target.decode` tells what they mean.

        Args:
            image: (B, V, H, height, width, 3) uint8.
            text: (B, L, caption width).
            text_mask: (B, L) bool.
            steps: Euler steps from noise to data.
            generator: draws the noise.

        Returns:
            (B, V, F, height, width, 3) float32 in [−1, 1].
        """
        if steps < 1:
            raise UserError(f"steps must be at least 1, not {steps}")
        grid = self._check_pictures(image)
        history = self.statistics.normalise(self._history(to_unit(image)))
        latents = self._noise(history, grid, generator)
        clean = latents.new_ones(len(latents))
        caption = {"text": text, "text_mask": text_mask}
        for step in range(steps):
            time = torch.full_like(clean, step / steps)
            velocity, _ = self._velocity(history, latents, clean, time, grid, caption)
            latents = latents + velocity / steps
        latents = self.statistics.undo(latents).flatten(0, 1).transpose(1, 2)  # (B·V, C, K·G)
        pictures = self._decode(latents.unflatten(2, (-1, *grid)))
        return pictures.unflatten(0, (-1, self.cameras)).clamp(-1.0, 1.0)

    def freeze_statistics(self) -> None:
        """The latents' mean and deviation change no more: the end of stage 1."""
        self.statistics.frozen.fill_(True)

    def freeze_vae(self) -> None:
        """The VAE learns no more, and `loss` is the flow's alone: stage 2."""
        self.vae.requires_grad_(False)

    # The VAE.

    def _encode(self, pictures: Tensor) -> Posterior:
        """Posterior of clips (n, frames, height, width, 3) in [−1, 1]."""
        posterior = self.vae.encode(pictures.permute(0, 4, 1, 2, 3)).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    def _decode(self, latents: Tensor) -> Tensor:
        """(n, C, frames, rows, columns) → pictures (n, frames, height, width, 3), float32."""
        return self.vae.decode(latents).sample.float().permute(0, 2, 3, 4, 1)

    def _sample(self, posterior: Posterior, generator: torch.Generator | None) -> Tensor:
        mean, logvar = posterior
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + (0.5 * logvar).exp() * noise

    @torch.no_grad()
    def _history(self, history: Tensor) -> Tensor:
        """Each of the pictures (B, V, H, height, width, 3) as a clip of its own: (B, V, H·G, C)."""
        clips = history.flatten(0, 2)[:, None]
        mean, _ = self._encode(clips)
        return self._tokens(mean).reshape(*history.shape[:2], -1, mean.shape[1])

    def _tokens(self, latents: Tensor) -> Tensor:
        """(B·V, C, frames, rows, columns) → (B, V, frames·G, C)."""
        return latents.flatten(2).transpose(1, 2).unflatten(0, (-1, self.cameras))

    # The transformer.

    def _velocity(
        self,
        history: Tensor,
        future: Tensor,
        history_time: Tensor,
        future_time: Tensor,
        grid: tuple[int, int],
        caption: dict[str, Tensor],
        keep: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The flow's velocity at the future's tokens, and the blocks' features.

        Args:
            history: (B, V, H·G, C) and future: (B, V, K·G, C).
            history_time: (B,) and future_time: (B,), s of their tokens: 0 noise, 1 data.
            grid: rows and columns of a latent frame.
            caption: `text` and `text_mask`.
            keep: (B, V, M), see `MultiViewTransformer`; there is no velocity then.

        Returns:
            (B, V, K·G, C) float32, and a list of (B, V·M, D).
        """
        size = grid[0] * grid[1]
        frames = history.shape[2] // size, future.shape[2] // size
        time = torch.cat(
            [
                history_time[:, None].expand(-1, frames[0]),
                future_time[:, None].expand(-1, frames[1]),
            ],
            dim=1,
        )
        output, features = self.transformer(
            torch.cat([history, future], dim=2),
            self._positions(*frames, grid, future.device),
            1000.0 * (1.0 - time),
            self.view_token,
            caption["text"],
            caption["text_mask"],
            self.config.transformer.cross_view_every,
            keep,
        )
        return -output[:, :, history.shape[2] :].float(), features

    def _positions(
        self, history: int, future: int, grid: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Seconds, pixel row and pixel column of every token, (3, N) float32.

        The present is second 0. A latent frame is where its first frame is, as in LTX-Video: the
        future's begin 1, 2, 2 + f_t, 2 + 2·f_t, … frames after it.
        """
        past = torch.arange(1 - history, 1, device=device)
        ahead = 1 + (torch.arange(future, device=device) * self.stride + 1 - self.stride).clamp(0)
        seconds = torch.cat([past, ahead]) / self.config.frame_rate
        rows, columns = (torch.arange(side, device=device) * self.patch for side in grid)
        coordinates = torch.meshgrid(seconds, rows.float(), columns.float(), indexing="ij")
        return torch.stack(coordinates).flatten(1)

    def _noise(
        self, history: Tensor, grid: tuple[int, int], generator: torch.Generator | None
    ) -> Tensor:
        """Noise in the place of the future's latents, (B, V, K·G, C)."""
        frames = 1 + (self.config.future_frames - 1) // self.stride
        shape = *history.shape[:2], frames * grid[0] * grid[1], history.shape[-1]
        return torch.randn(shape, generator=generator, device=history.device)

    def _valid(self, frames: Tensor) -> Tensor:
        """Latent frames all of whose frames (B, F) bool are valid: (B, K) bool."""
        later = frames[:, 1:].unflatten(1, (-1, self.stride)).all(-1)
        return torch.cat([frames[:, :1], later], dim=1)

    # What the user may have got wrong.

    def _check_frames(self, frames: int) -> None:
        if (frames - 1) % self.stride:
            raise UserError(
                f"the future must have a multiple of {self.stride} frames and 1 more, the VAE's "
                f"step in time being {self.stride}; it has {frames}"
            )

    def _check_pictures(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of the token grid of pictures (B, V, H, height, width, 3)."""
        _, cameras, _, height, width, _ = image.shape
        if cameras != self.cameras:
            raise UserError(f"the model was made for {self.cameras} cameras, not {cameras}")
        if height % self.patch or width % self.patch:
            raise UserError(
                f"height and width must be multiples of {self.patch} pixels, the VAE's step in "
                f"space; the pictures have {height}×{width}"
            )
        return height // self.patch, width // self.patch


def interpolate(noise: Tensor, data: Tensor, time: Tensor) -> Tensor:
    """z_s = (1 − s)·z_0 + s·z_1 of tensors (B, ...) at `time` s (B,)."""
    time = time.view(-1, *[1] * (data.ndim - 1))
    return (1.0 - time) * noise + time * data


def kl(posterior: Posterior) -> Tensor:
    """Divergence from N(0, I) in nats: the sum over a clip's latent, the mean over clips.

    The library's own sums over four axes of five.
    """
    mean, logvar = posterior
    nats = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    return nats.flatten(1).sum(1).mean()


def _make_vae(config: VideoVAEConfig) -> AutoencoderKLLTXVideo:
    if config.pretrained:
        vae = _pretrained(AutoencoderKLLTXVideo, config.pretrained, "vae")
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


def _make_transformer(
    config: TransformerConfig, channels: int, caption_width: int
) -> MultiViewTransformer:
    if config.pretrained:
        transformer = _pretrained(MultiViewTransformer, config.pretrained, "transformer")
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


def _pretrained(model: type[nn.Module], name: str, part: str) -> nn.Module:
    try:
        return model.from_pretrained(name, subfolder=part)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no {part} can be loaded from {name!r}: {reason}") from error
