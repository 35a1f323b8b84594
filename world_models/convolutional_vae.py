"""A convolutional variational autoencoder in place of the masked one: what the paper compares with.

Masked World Models, appendix K, learns the dynamics on frozen features of a VAE (Kingma and
Welling, 2014) and states no sizes; these are World Models' (Ha and Schmidhuber, 2018): four
convolutions of stride 2, and as many back. Shape legend: B images, H = W image size, D latents,
C channels of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_models.autoencoder import Autoencoder, AutoencoderConfig, MaskedAutoencoder
from world_models.layers import initialise

STRIDES = 4
"""Convolutions of stride 2, each way."""


class ConvolutionalVAE(Autoencoder):
    """Predicts a target and the reward from a sample of D independent normal latents.

    Its features are the latents' means, one token of width D.
    """

    feature_grid = 0

    def __init__(self, config: AutoencoderConfig, views: int = 1):
        super().__init__(config, views)
        first = config.stem_channels or config.width // 8
        channels = [first * 2**index for index in range(STRIDES)]
        self.side, self.channels = config.image_size // 2**STRIDES, channels[-1]
        flat = self.channels * views * self.side**2

        encoder: list[nn.Module] = []
        for inputs, outputs in zip([3, *channels], channels, strict=False):
            encoder += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder)
        self.statistics = nn.Linear(flat, 2 * config.width)
        self.decoder_input = nn.Linear(config.width, flat)
        decoder: list[nn.Module] = []
        back = [*channels[::-1], self.target.channels]
        for inputs, outputs in zip(back, back[1:], strict=False):
            decoder += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*decoder)
        self.reward_head = nn.Linear(config.width, 1)
        self.add_static_image()
        initialise(self)

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, H, W, 3) → mean and log-variance of the latents, (B, D) each, float32."""
        hidden = self.encoder(self.see(image).permute(0, 3, 1, 2)).flatten(1)
        mean, log_variance = self.statistics(hidden).float().chunk(2, dim=-1)
        return mean, log_variance

    def features(self, image: Tensor) -> Tensor:
        """As `Autoencoder`: the means as one token (B, 1, D)."""
        return self.posterior(image)[0][:, None]

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """As `Autoencoder`, from one token (B, 1, D) of latents."""
        latent = features[:, 0]
        hidden = self.decoder_input(latent)
        hidden = hidden.view(-1, self.channels, self.views * self.side, self.side)
        picture = self.decoder(hidden).permute(0, 2, 3, 1)
        return self.with_static_image(picture), self.reward_head(latent).squeeze(-1)

    def reconstruct(self, image: Tensor) -> Tensor:
        """As `Autoencoder`, from the means: nothing is masked."""
        return self.predict(self.features(image))[0]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of equation 13 from sampled latents, and their KL to a standard normal.

        The target's loss is a mean over values where the evidence lower bound has half a sum, so
        the KL is divided by half the number of values.

        Args:
            batch: `image` (B, H, W, 3) uint8, `reward` (B,), and what the target reads.

        Returns:
            The scalar loss and its parts for the log, on the device; `kl` in nats.
        """
        self.centre_on(batch["image"])
        mean, log_variance = self.posterior(batch["image"])
        latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        prediction, reward = self.predict(latent[:, None])
        loss, metrics = self.loss_of(prediction, reward, batch)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(-1).mean()
        metrics["kl"] = kl.detach()
        return loss + self.config.beta * kl / (0.5 * prediction[0].numel()), metrics


def make_autoencoder(
    config: AutoencoderConfig, views: int = 1
) -> MaskedAutoencoder | ConvolutionalVAE:
    """The autoencoder that a configuration asks for, of the pictures of `views` cameras."""
    kind = ConvolutionalVAE if config.kind == "vae" else MaskedAutoencoder
    return kind(config, views)
