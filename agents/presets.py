"""Presets: complete configurations by name. `paper` is as published, `cpu` learns on two cores.

What depends on the suite (of `paper`: Table 1) is decided here and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace

from agents.actor_critic import ActorCriticConfig
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.online_config import OnlineConfig
from envs import EnvironmentConfig, published_budget
from envs import suite as suite_of
from errors import UserError
from world_models.autoencoder import AutoencoderConfig
from world_models.latent_dynamics import (
    FeatureDecoderConfig,
    FeatureEncoderConfig,
    LatentDynamicsConfig,
)
from world_models.layers import OptimizerConfig
from world_models.rssm import RSSMConfig

PRESETS = ("cpu", "paper")
EPISODIC = ("rlbench", "panda")
"""Suites in which an episode can terminate: the discount is predicted, too."""


def preset(name: str, task: str) -> OnlineConfig:
    """The configuration `name` for `task`.

    Raises:
        UserError: no such preset, or no such task.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}")
    suite = suite_of(task)
    config = {"cpu": _cpu, "paper": _paper}[name](task, suite)
    return _episodic(config) if suite in EPISODIC else config


def _episodic(config: OnlineConfig) -> OnlineConfig:
    """What Table 1 and appendix F say of RLBench; free nats are counted before scaling."""
    dynamics = replace(config.agent.dynamics, predict_discount=True, kl_scale=0.1, free_nats=1.0)
    return replace(
        config,
        agent=replace(config.agent, dynamics=dynamics),
        evaluate_first=10_000,
        evaluate_every=10_000,
        evaluate_episodes=5,
    )


def _paper(task: str, suite: str) -> OnlineConfig:
    dmc = suite == "dmc"
    return OnlineConfig(
        task=task,
        steps=published_budget(task),
        environment=EnvironmentConfig(quality="full"),
        agent=MaskedWorldModelConfig(
            batch=16 if dmc else 50, behaviour=ActorCriticConfig(normalise_reward=not dmc)
        ),
        prioritise_ends=not dmc,
        replay_capacity=2_000_000,
        evaluate_first=20_000 if dmc else 10_000,
        evaluate_every=20_000,
        evaluate_episodes=5 if dmc else 10,
    )


def _cpu(task: str, suite: str) -> OnlineConfig:
    # Tuned on Meta-World. Settings of their own for DMC (a longer discount, a narrower policy, more
    # updates, no random blocks) did no better:
    # docs/notes/2026-11-28-settings-of-their-own-for-dmc.md
    return OnlineConfig(
        task=task,
        steps=100_000,
        environment=EnvironmentConfig(quality="smooth"),
        # More starts; two of the 50 tasks take an expert about as long:
        # docs/notes/2026-11-29-shorter-training-episodes.md
        episode_steps=200 if suite == "metaworld" else 0,
        agent=MaskedWorldModelConfig(
            autoencoder=AutoencoderConfig(
                width=64,
                encoder_depth=1,
                decoder_depth=1,
                mask_ratio=0.5,
                wavelengths=(2.0, 10.0),
                stem_channels=16,
                centre_input=True,
                static_image_lr_scale=20.0,
                target_weight=4.0,
            ),
            dynamics=LatentDynamicsConfig(
                encoder=FeatureEncoderConfig(width=16, depth=0, pooling="flatten", embedding=256),
                rssm=RSSMConfig(deterministic=256, hidden=256, variables=16, classes=16),
                decoder=FeatureDecoderConfig(width=64, depth=0, tokens="linear", hidden=512),
                reward_weight=10.0,
                standardise_features=True,
                head_layers=3,
                head_units=256,
            ),
            behaviour=ActorCriticConfig(
                horizon=20,
                start_states=64,
                discount=0.97,
                layers=3,
                units=256,
                min_std=0.2,
                entropy=0.1,
                target_every=1,
                target_rate=0.02,
                actor_optimizer=OptimizerConfig(learning_rate=2e-4),
                critic_optimizer=OptimizerConfig(learning_rate=2e-4),
            ),
            autoencoder_optimizer=OptimizerConfig(
                learning_rate=2e-3, warmup=100, anneal=1900, final=0.25
            ),
            dynamics_optimizer=OptimizerConfig(learning_rate=1e-3),
            random_shift=2,
            precision="auto",
            autoencoder_every=2,
            autoencoder_batch=32,
            batch=16,
            window=16,
            autoencoder_pretraining=2000,
            joint_pretraining=300,
        ),
        prefill=2500,
        random_hold=8,
        random_actions="extreme",
        random_share=0.2,
        update_every=3,
        prioritise_ends=suite != "dmc",
        replay_capacity=100_000,
        evaluate_first=10_000,
        evaluate_every=5_000,
        evaluate_episodes=10,
    )
