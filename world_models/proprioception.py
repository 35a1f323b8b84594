"""Proprioception: the robot's own state beside the picture, seen and predicted by a world model.

Shape legend: D numbers of proprioception, F model-state feature, P width of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_models.layers import MLP, RunningScale, initialise

WIDTH = 64
"""Units of the hidden layers, and P."""
LIMIT = 10.0
"""Deviations at which a number is cut off: that of one which hardly varied is small."""


class Proprioception(nn.Module):
    """An MLP from proprioception into the embedding, another back from model states.

    Numbers are standardised one by one with running statistics, since their units differ: metres,
    radians, and speeds of either. DreamerV2 encodes vectors the same way, but for the
    standardising.

    Args:
        size: D.
        feature: F.
    """

    outputs = WIDTH

    def __init__(self, size: int, feature: int):
        super().__init__()
        self.scale = RunningScale(size, each=True)
        self.encoder = MLP(size, WIDTH, 1, WIDTH)
        self.decoder = MLP(feature, WIDTH, 1, size)
        for part in (self.encoder, self.decoder):
            initialise(part, head_scale=1.0)

    def standardise(self, proprio: Tensor) -> Tensor:
        """(..., D) in units of their deviations."""
        return self.scale.standardise(proprio.float()).clamp(-LIMIT, LIMIT)

    def forward(self, proprio: Tensor) -> Tensor:
        """What the recurrent model sees of proprioception (..., D): (..., P)."""
        return self.encoder(self.standardise(proprio))

    def loss(self, feature: Tensor, proprio: Tensor) -> Tensor:
        """Squared error of the prediction from model states (..., F), summed over the numbers of
        proprioception (..., D): a scalar."""
        error = self.decoder(feature).float() - self.standardise(proprio)
        return error.square().sum(-1).mean()

    def beside(self, embedding: Tensor, proprio: Tensor) -> Tensor:
        """Embeddings (..., E) of pictures with that of proprioception (..., D): (..., E + P)."""
        return torch.cat([embedding, self(proprio).to(embedding.dtype)], dim=-1)
