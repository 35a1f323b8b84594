"""Presets of imitation: complete configurations by method and name, less data and task.

`paper` is the method's published size, `gpu` what one GPU trains in an hour, `cpu` learns on two
cores.
"""

from __future__ import annotations

from dataclasses import replace

from agents.diffusion_policy import DiffusionPolicyConfig
from agents.executor import ExecutorConfig
from agents.imitation_config import METHODS, ImitationConfig, Mask2ActRunConfig, RunConfig
from agents.mask2act_config import Mask2ActConfig
from agents.mask_world_model_config import MaskWorldModelConfig
from errors import UserError
from world_models.image_encoder import ImageEncoderConfig
from world_models.layers import OptimizerConfig
from world_models.mask_dynamics import MaskDynamicsConfig, small
from world_models.planner import CausalTransformerConfig, PlannerConfig
from world_models.resnet import ResNetConfig
from world_models.video_transformer import TransformerConfig
from world_models.video_vae import VideoVAEConfig

LTX_VIDEO = "Lightricks/LTX-Video"
"""Hub name of the weights that the paper's size starts from; a folder with them does as well."""
PRESETS = ("cpu", "gpu", "paper")


def preset(name: str, method: str = "mask-world-model") -> RunConfig:
    """The configuration `name` of a method; `data` and `task` are left empty.

    Raises:
        UserError: no such preset or method.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    if method == "mask2act":
        return {"cpu": _mask2act_cpu, "gpu": _mask2act_gpu, "paper": _mask2act_paper}[name]()
    return {"cpu": _cpu, "gpu": _gpu, "paper": _paper}[name]()


def _paper() -> ImitationConfig:
    # Layers, widths and learning rates are the classes' defaults.
    return ImitationConfig(
        data=(),
        task="",
        picture_size=256,
        agent=MaskWorldModelConfig(
            language="t5",
            dynamics=MaskDynamicsConfig(
                vae=VideoVAEConfig(pretrained=LTX_VIDEO),
                transformer=TransformerConfig(pretrained=LTX_VIDEO),
            ),
        ),
        micro_batch=8,
        workers=8,
        evaluate_envs=10,
        evaluate_episodes=50,
    )


def _optimizer(rate: float, warmup: int = 100) -> OptimizerConfig:
    return OptimizerConfig(
        rate, epsilon=1e-8, clip=1.0, weight_decay=1e-5 * rate, warmup=warmup, betas=(0.9, 0.95)
    )


def _gpu() -> ImitationConfig:
    return ImitationConfig(
        data=(),
        task="",
        dynamics_steps=20_000,
        policy_steps=20_000,
        agent=MaskWorldModelConfig(
            dynamics=MaskDynamicsConfig(
                vae=VideoVAEConfig(
                    32, widths=(64, 128), blocks=(1, 1, 2), scaling=(True, True), patch=4
                ),
                transformer=TransformerConfig(layers=8, heads=8, head_width=64),
            ),
            image_encoder=ImageEncoderConfig(layers=8, width=512),
            policy=DiffusionPolicyConfig(width=256, heads=8, chunk=16),
            dynamics_optimizer=_optimizer(3e-4, 500),
            policy_optimizer=_optimizer(1e-4, 500),
        ),
        batch=64,
        workers=8,
        evaluate_every=5_000,
        evaluate_episodes=20,
        evaluate_envs=8,
    )


def _sparing(dynamics: MaskDynamicsConfig) -> MaskDynamicsConfig:
    """Its VAE learns from a quarter of each batch of 16."""
    return replace(dynamics, vae=replace(dynamics.vae, windows=4))


def _cpu() -> ImitationConfig:
    return ImitationConfig(
        data=(),
        task="",
        dynamics_steps=6_000,
        policy_steps=10_000,
        agent=MaskWorldModelConfig(
            dynamics=_sparing(replace(small(), future_frames=5)),
            image_encoder=ImageEncoderConfig(layers=4, width=128),
            policy=DiffusionPolicyConfig(width=128, heads=4, chunk=16, num_inference_steps=5),
            dynamics_optimizer=_optimizer(1e-3),
            policy_optimizer=_optimizer(5e-4),
        ),
        batch=16,
        evaluate_every=5_000,
        evaluate_episodes=10,
    )


# ---------------------------------------------------------------------------------- Mask2Act


def _mask2act_paper() -> Mask2ActRunConfig:
    # Encoders and transformers are the classes' defaults; how long and in what batches it learns,
    # the paper does not say.
    return Mask2ActRunConfig(
        data=(),
        task="",
        videos=50,
        demonstrations=10,
        batch=128,
        workers=8,
        evaluate_envs=10,
        evaluate_episodes=20,
    )


def _mask2act_gpu() -> Mask2ActRunConfig:
    transformer = CausalTransformerConfig(width=256, layers=6, heads=8)
    encoder = ResNetConfig(width=32, pool_stem=False)
    return Mask2ActRunConfig(
        data=(),
        task="",
        dynamics_steps=20_000,
        policy_steps=20_000,
        agent=Mask2ActConfig(
            planner=PlannerConfig(encoder, transformer),
            executor=ExecutorConfig(encoder, transformer),
            dynamics=replace(_gpu().agent.dynamics, target="pixels"),
        ),
        videos=50,
        demonstrations=10,
        batch=64,
        workers=8,
        evaluate_every=5_000,
        evaluate_episodes=20,
        evaluate_envs=8,
    )


def _mask2act_cpu() -> Mask2ActRunConfig:
    transformer = CausalTransformerConfig(width=128, layers=3, heads=4)
    encoder = ResNetConfig(width=16, pool_stem=False)
    return Mask2ActRunConfig(
        data=(),
        task="",
        dynamics_steps=6_000,
        policy_steps=6_000,
        agent=Mask2ActConfig(
            planner=PlannerConfig(encoder, transformer),
            executor=ExecutorConfig(encoder, transformer),
            dynamics=_sparing(replace(small("pixels"), future_frames=5)),
            n_obs_steps=4,
            ahead=(4, 8, 16),
            decoded_steps=1,
            planner_optimizer=_optimizer(1e-3),
            executor_optimizer=_optimizer(1e-3),
        ),
        videos=50,
        demonstrations=10,
        batch=16,
        evaluate_every=6_000,
        evaluate_episodes=5,
    )
