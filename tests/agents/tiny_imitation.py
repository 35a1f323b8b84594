"""A mask world model small enough for tests, and demonstrations it learns from."""

from agents.diffusion_policy import DiffusionPolicyConfig
from agents.mask_world_model_config import MaskWorldModelConfig
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from world_models.image_encoder import ImageEncoderConfig
from world_models.layers import OptimizerConfig
from world_models.mask_dynamics import MaskDynamicsConfig
from world_models.video_transformer import TransformerConfig
from world_models.video_vae import VideoVAEConfig

TASK = "metaworld/drawer-close"
TINY = MaskWorldModelConfig(
    dynamics=MaskDynamicsConfig(
        vae=VideoVAEConfig(8, widths=(8,), blocks=(0, 1), scaling=(True,)),
        transformer=TransformerConfig(layers=2, heads=2, head_width=16),
        future_frames=3,
    ),
    image_encoder=ImageEncoderConfig(width=32, layers=2, grid=4),
    policy=DiffusionPolicyConfig(
        width=32, heads=2, chunk=4, num_inference_steps=2, n_action_steps=3
    ),
    n_obs_steps=2,
    stride=2,
    dynamics_optimizer=OptimizerConfig(1e-3, clip=1.0),
    policy_optimizer=OptimizerConfig(1e-3, clip=1.0),
    precision="float32",
)


def record(path):
    """Two demonstrations of closing a drawer, at `path`."""
    seen = EnvironmentConfig(size=32, quality="fast")
    collect(TASK, 2, path, ScriptedActor, seen, seed=3)
    return path
