"""The configuration of Masked World Models: sizes, batches, optimisers and schedules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from agents.actor_critic import ActorCriticConfig
from agents.device import Precision
from errors import UserError, refuse_below
from experiment.config_record import ANY
from world_models.autoencoder import AutoencoderConfig
from world_models.latent_dynamics import LatentDynamicsConfig
from world_models.layers import OptimizerConfig


@dataclass(frozen=True)
class MaskedWorldModelConfig:
    """The agent: its three parts, their batches and optimisers. The defaults are the paper's."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Learns to see (φ)."""
    dynamics: LatentDynamicsConfig = field(default_factory=LatentDynamicsConfig)
    """Learns to predict (θ)."""
    behaviour: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Learns to act (ψ, ξ)."""
    autoencoder_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(warmup=2500)
    )
    """Optimiser of the autoencoder (Table 1: 3e-4, warm-up 2,500)."""
    dynamics_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser of the latent dynamics (3e-4)."""
    precision: Precision = "float32"
    """What dense layers of dynamics and behaviour compute in (auto: bfloat16 where the device has
    arithmetic for it); losses, KL and returns are float32."""
    autoencoder_precision: Precision = "float32"
    """The same for the autoencoder's own update (bfloat16 slows that of `cpu` down on a CPU)."""
    compile: bool = False
    """Put updates through torch.compile, on a GPU into CUDA graphs; needs a compiler. Two minutes
    at the start, then about four fifths of the time. It draws other random numbers."""
    autoencoder_from: str | None = None
    """Run folder of `run.py train`, of this or another task, whose autoencoder sees for this run,
    frozen: it is copied at the start and learns nothing more (paper, figure 15). Its sizes must be
    `autoencoder`'s. None: the run learns its own."""
    autoencoder_every: int = 1
    """In the loop, updates of dynamics and behaviour per update of the autoencoder (paper: 1)."""
    autoencoder_batch: int = 1024
    """Frames per autoencoder update (Table 1)."""
    random_shift: int = 0
    """Augmentation: pixels by which each frame of the autoencoder's updates is shifted at most,
    down and across. What the dynamics learn from and the agent acts on stays where it is (why:
    docs/notes/2026-11-29-shifts-of-whole-windows.md). DrQ has 4 of 84; the paper has none."""
    batch: int = 50
    """Windows per dynamics update (Table 1: 50; DMC 16)."""
    window: int = 50
    """Agent steps per window (Table 1)."""
    autoencoder_pretraining: int = 5000
    """Autoencoder updates on the prefill before anything else (E.1)."""
    joint_pretraining: int = 0
    """Updates of all parts on the prefill after that (paper: none)."""

    SEES: ClassVar[str] = "autoencoder"
    """The part that sees pictures."""
    REMOVED: ClassVar = {
        "autoencoder_window": (1,),  # how many of its frames were consecutive
        "overlap": ANY,  # the order in which an update's parts were computed
    }

    def __post_init__(self) -> None:
        refuse_below(1, self, "autoencoder_every", "autoencoder_batch", "batch", "window")
        refuse_below(0, self, "autoencoder_pretraining", "joint_pretraining")
        if not 0 <= self.random_shift < self.autoencoder.image_size:
            raise UserError(
                f"random_shift must be from 0 to {self.autoencoder.image_size - 1} pixels, not "
                f"{self.random_shift}"
            )

    @property
    def image_size(self) -> int:
        """Edge of the pictures it sees, pixels."""
        return self.autoencoder.image_size

    @property
    def target(self) -> str:
        """What is predicted (`world_models/targets.py`)."""
        return self.autoencoder.target

    def predicting(self, target: str) -> MaskedWorldModelConfig:
        """The same agent with another prediction target."""
        return replace(self, autoencoder=replace(self.autoencoder, target=target))
