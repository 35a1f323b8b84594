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
one place that converts, so that published weights keep their meaning.

Shape legend: B windows, V cameras, H history frames, F future frames, K future latent frames,
T = H + K latent frames, G tokens a latent frame, N tokens a camera, M kept tokens a camera,
C latent channels, D width, L caption tokens, f_s and f_t pixels and frames a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from errors import UserError, refuse_above, refuse_below
from world_models.targets import classes_named, measure
from world_models.video_targets import make_video_target, to_unit, weighted_mean
from world_models.video_transformer import TransformerConfig, make_transformer
from world_models.video_vae import LatentStatistics, Posterior, VideoVAEConfig, kl, make_vae

MOST_FRAMES = 1000
"""Of the future: no episode is longer."""


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
    """Frames F that `features` and `predict` imagine: a multiple of f_t, plus 1."""
    frame_rate: float = 5.0
    """Frames a second of history and future, for LTX's rotary positions, which count time in
    seconds (20 Hz control, every 4th step)."""
    pure_noise: float = 0.0
    """Share of the windows whose future is pure noise while training: s = 0, the only s at which
    `features` are read. s of the others is uniform (paper: of all)."""
    jitter: float = 0.2
    """Brightness, contrast and saturation of a window's history are each multiplied by a factor in
    [1 − jitter, 1 + jitter] while training; 0: untouched."""

    LOADS: ClassVar = {"target": classes_named}
    # The largest share of noise mixed into the history while training (paper: 0, or up to 0.1).
    REMOVED: ClassVar = {"history_noise": (0.0,)}

    def __post_init__(self) -> None:
        if not 0.0 <= self.pure_noise <= 1.0:
            raise UserError(f"pure_noise must be in [0, 1], not {self.pure_noise}")
        if not 0.0 <= self.jitter < 1.0:
            raise UserError(f"jitter must be at least 0 and below 1, not {self.jitter}")
        refuse_below(1, self, "future_frames")
        refuse_above(MOST_FRAMES, self, "future_frames")
        if self.frame_rate <= 0:
            raise UserError(f"frame_rate must be above 0, not {self.frame_rate}")


def small(target: str = "masks") -> MaskDynamicsConfig:
    """Sizes for a CPU and pictures of 64 to 128 pixels: f_s = 16, f_t = 4, a 4×4 grid at 64×64."""
    return MaskDynamicsConfig(
        target=target,
        vae=VideoVAEConfig(32, widths=(16, 32), blocks=(0, 0, 1), scaling=(True, True)),
        transformer=TransformerConfig(layers=4, heads=4, head_width=32),
    )


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
    """Flow-matching model of the future's masks, given the cameras' history and an instruction.

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
        self.vae = make_vae(config.vae)
        channels = self.vae.config.latent_channels
        self.transformer = make_transformer(config.transformer, channels, caption_width)
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

        In training mode only, the history is jittered, some futures are pure noise, and the
        statistics take in the latents. A VAE that is frozen adds no loss.

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

        loss = torch.zeros((), device=history.device)
        metrics: dict[str, Tensor] = {}
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
            self.statistics.update(torch.cat([past, ahead], dim=2))
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
        """Reconstruction loss of pictures from samples of their latents, and the latents' KL.

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
        if self.training and self.config.pure_noise:
            draw = torch.rand(windows, generator=generator, device=device)
            time = torch.where(draw < self.config.pure_noise, 0.0, time)
        noise = torch.randn(future.shape, generator=generator, device=device)
        noisy = interpolate(noise, future, time)
        velocity, _ = self._velocity(history, noisy, time, grid, batch)
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
        noise: Tensor | None = None,
    ) -> list[Tensor]:
        """Outputs of all transformer blocks in one forward pass, the future pure noise (s = 0).

        Args:
            image: (B, V, H, height, width, 3) uint8.
            text: (B, L, caption width).
            text_mask: (B, L) bool.
            pruning: share r of each camera's N tokens that are dropped after the input projection,
                ⌊r·N⌋ of them, drawn anew for every window, camera and call. The others keep their
                positions.
            generator: draws the noise, then the tokens.
            noise: (B, V, K·G, C), in place of the future's; drawn here when None.

        Returns:
            One tensor a block, (B, V·M, D) with M = N − ⌊r·N⌋.
        """
        if not 0.0 <= pruning < 1.0:
            raise UserError(f"pruning must be at least 0 and below 1, not {pruning}")
        grid = self._check_pictures(image)
        history = self.statistics.normalise(self._history(to_unit(image)))
        if noise is None:
            noise = self._noise(history, grid, generator)
        keep = None
        if pruning:
            tokens = history.shape[2] + noise.shape[2]
            kept = tokens - math.floor(pruning * tokens + 1e-6)  # 0.29 · 100 is 28.999…
            draw = torch.rand(*noise.shape[:2], tokens, generator=generator, device=noise.device)
            keep = draw.argsort(dim=-1)[:, :, :kept].sort(dim=-1).values
        start = noise.new_zeros(len(noise))
        caption = {"text": text, "text_mask": text_mask}
        return self._velocity(history, noise, start, grid, caption, keep)[1]

    @torch.no_grad()
    def predict(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        steps: int = 10,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample the future as pictures; `target.decode` turns them into class ids or RGB.

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
        caption = {"text": text, "text_mask": text_mask}
        for step in range(steps):
            time = latents.new_full((len(latents),), step / steps)
            velocity, _ = self._velocity(history, latents, time, grid, caption)
            latents = latents + velocity / steps
        latents = self.statistics.denormalise(latents).flatten(0, 1)
        latents = latents.transpose(1, 2)  # (B·V, C, K·G)
        pictures = self._decode(latents.unflatten(2, (-1, *grid)))
        return pictures.unflatten(0, (-1, self.cameras)).clamp(-1.0, 1.0)

    def freeze_statistics(self, frozen: bool = True) -> None:
        """Stop updating the latents' mean and deviation, at the end of stage 1; not `frozen`: go
        on."""
        self.statistics.frozen.fill_(frozen)

    def freeze_vae(self) -> None:
        """Stop training the VAE, for stage 2: `loss` is then the flow's alone."""
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
        time: Tensor,
        grid: tuple[int, int],
        caption: dict[str, Tensor],
        keep: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The flow's velocity at the future's tokens, and the blocks' features.

        Args:
            history: (B, V, H·G, C) and future: (B, V, K·G, C).
            time: (B,), s of the future's tokens: 0 noise, 1 data. The history is data.
            grid: rows and columns of a latent frame.
            caption: `text` and `text_mask`.
            keep: (B, V, M), see `MultiViewTransformer`; there is no velocity then.

        Returns:
            (B, V, K·G, C) float32, and a list of (B, V·M, D).
        """
        size = grid[0] * grid[1]
        frames = history.shape[2] // size, future.shape[2] // size
        time = time[:, None]
        clean = torch.ones_like(time)
        times = torch.cat([clean.expand(-1, frames[0]), time.expand(-1, frames[1])], dim=1)
        output, features = self.transformer(
            torch.cat([history, future], dim=2),
            self._positions(*frames, grid, future.device),
            1000.0 * (1.0 - times),
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
        """Initial noise of the future's latents, (B, V, K·G, C)."""
        shape = *history.shape[:2], self._future_tokens(grid), history.shape[-1]
        return torch.randn(shape, generator=generator, device=history.device)

    def noise_shape(self, windows: int, cameras: int, size: int) -> tuple[int, int, int, int]:
        """Shape (B, V, K·G, C) of the future's noise for pictures of `size` pixels."""
        side = size // self.patch
        return windows, cameras, self._future_tokens((side, side)), len(self.statistics.mean)

    def _future_tokens(self, grid: tuple[int, int]) -> int:
        return (1 + (self.config.future_frames - 1) // self.stride) * grid[0] * grid[1]

    def _valid(self, frames: Tensor) -> Tensor:
        """Latent frames all of whose frames (B, F) bool are valid: (B, K) bool."""
        later = frames[:, 1:].unflatten(1, (-1, self.stride)).all(-1)
        return torch.cat([frames[:, :1], later], dim=1)

    # Checks of what the user gives.

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
