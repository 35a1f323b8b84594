"""The configuration of DreamerV2: what it sees with, sizes, batches, optimisers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from agents.actor_critic import ActorCriticConfig
from agents.device import Precision
from errors import UserError, refuse_below
from world_models.layers import OptimizerConfig
from world_models.pixel_networks import Kind, refuse_size
from world_models.pixel_world_model import PixelWorldModelConfig, Representation
from world_models.targets import classes_named


@dataclass(frozen=True)
class DreamerConfig:
    """The agent: a world model that learns end to end, and behaviour. The defaults are those of
    the baseline of Masked World Models."""

    encoder: Kind = "cnn"
    """What sees, and what reconstructs: cnn (DreamerV2), or vit, "DreamerV2 w/ ViT" of the paper's
    appendix I."""
    representation: Representation = "reconstruction"
    """What makes states represent the picture: reconstruction (DreamerV2), or contrastive, InfoNCE
    in place of the decoder (appendix K)."""
    target: str = "pixels"
    """What the decoder predicts: pixels, masks, package.module:Class, or a weighted sum of them:
    pixels:1+masks:0.5."""
    dynamics: PixelWorldModelConfig = field(default_factory=PixelWorldModelConfig)
    """Learns to see and to predict (θ)."""
    behaviour: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Learns to act (ψ, ξ)."""
    dynamics_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser of the world model (DreamerV2 on DMC: 3e-4)."""
    precision: Precision = "float32"
    """What networks compute in (auto: bfloat16 where the device has arithmetic for it); losses, KL
    and returns are float32."""
    compile: bool = False
    """Put updates through torch.compile, on a GPU into CUDA graphs; needs a compiler. It draws
    other random numbers."""
    batch: int = 50
    """Windows per update (Table 1: 50; DMC 16)."""
    window: int = 50
    """Agent steps per window (Table 1)."""
    pretraining: int = 100
    """Updates of all parts on the prefill (DreamerV2 on DMC: 100)."""

    SEES: ClassVar[str] = "dynamics"
    """The part that sees pictures."""
    LOADS: ClassVar = {"target": classes_named}

    def __post_init__(self) -> None:
        refuse_below(1, self, "batch", "window")
        refuse_below(0, self, "pretraining")
        refuse_size(self.encoder, self.image_size)
        if self.representation == "contrastive" and self.target != "pixels":
            raise UserError(
                "the representation contrastive decodes nothing, so it has no target"
                f" {self.target}; leave the target out, or take the representation reconstruction"
            )

    @property
    def image_size(self) -> int:
        """Edge of the pictures it sees, pixels."""
        return self.dynamics.image_size

    def predicting(self, target: str) -> DreamerConfig:
        """The same agent with another prediction target."""
        return replace(self, target=target)
