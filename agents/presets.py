"""Presets: complete configurations by method and name. `paper` is as published, `cpu` learns on two
cores.

What depends on the suite (of `paper`: Table 1) is decided here and nowhere else.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal, overload

from agents.actor_critic import ActorCriticConfig
from agents.dreamer_config import DreamerConfig
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.online_config import METHODS, DreamerRunConfig, OnlineConfig, RunConfig
from envs import EnvironmentConfig, episodic, published_budget
from envs import suite as suite_of
from errors import UserError
from world_models.autoencoder import AutoencoderConfig
from world_models.latent_dynamics import (
    FeatureDecoderConfig,
    FeatureEncoderConfig,
    LatentDynamicsConfig,
)
from world_models.layers import OptimizerConfig
from world_models.pixel_networks import CNNConfig, ViTConfig
from world_models.pixel_world_model import PixelWorldModelConfig
from world_models.rssm import RSSMConfig

PRESETS = ("cpu", "paper")
EPISODIC = ("rlbench", "panda")
"""Suites of which Table 1 and appendix F say how an episode that can terminate is learned."""


@overload
def preset(
    name: str, task: str, method: Literal["masked-world-model"] = "masked-world-model"
) -> OnlineConfig: ...
@overload
def preset(name: str, task: str, method: str) -> RunConfig: ...
def preset(name: str, task: str, method: str = "masked-world-model") -> RunConfig:
    """The configuration `name` of a method for `task`.

    Raises:
        UserError: no such preset, no such task, or no such method.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    suite = suite_of(task)
    config: RunConfig
    if method == "dreamer":
        config = {"cpu": _dreamer_cpu, "paper": _dreamer_paper}[name](task, suite)
    else:
        config = {"cpu": _cpu, "paper": _paper}[name](task, suite)
    if suite in EPISODIC:
        return _episodic(config)
    if episodic(task):
        return replace(config, agent=_predicting_ends(config.agent))
    return config


def _predicting_ends(agent: Any) -> Any:  # all methods' dynamics have these
    return replace(agent, dynamics=replace(agent.dynamics, predict_discount=True))


def _episodic(config: RunConfig) -> RunConfig:
    """What Table 1 and appendix F say of RLBench; free nats are counted before scaling."""
    agent: Any = config.agent  # all methods' dynamics have these
    dynamics = replace(agent.dynamics, predict_discount=True, kl_scale=0.1, free_nats=1.0)
    return replace(
        config,
        agent=replace(agent, dynamics=dynamics),
        evaluate_first=10_000,
        evaluate_every=10_000,
        evaluate_episodes=5,
    )


def _paper(task: str, suite: str) -> OnlineConfig:
    # Where the paper is silent, as its published code.
    dmc = suite == "dmc"
    adam = OptimizerConfig(epsilon_hat=True)
    slower = replace(adam, learning_rate=1e-4)
    variance = 0.1  # of the initial weights of heads, as a factor
    return OnlineConfig(
        task=task,
        steps=published_budget(task),
        environment=EnvironmentConfig(quality="full"),
        agent=MaskedWorldModelConfig(
            dynamics=LatentDynamicsConfig(
                rssm=RSSMConfig(gate_bias=True, zero_first_action=True),
                head_scale=variance**0.5,
            ),
            behaviour=ActorCriticConfig(
                head_scale=variance**0.5,
                std_head_scale=1.0,
                normalise_reward=not dmc,
                actor_optimizer=slower,
                critic_optimizer=slower,
            ),
            autoencoder_optimizer=replace(adam, warmup=2500),
            dynamics_optimizer=adam,
            # The published code has half precision too: float16, with scaled losses.
            precision="auto",
            autoencoder_precision="auto",
            batch=16 if dmc else 50,
        ),
        # The published code has one. Five agent steps owe one update either way (`update_every`).
        num_envs=5,
        prioritise_ends=not dmc,
        replay_capacity=2_000_000,
        evaluate_first=10_000,
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


# ------------------------------------------------------------------------------------ DreamerV2

# A comparison of methods compares nothing else: the loop, the recurrent model, the heads, behaviour
# and all optimisers are those of Masked World Models.


def _with(config: OnlineConfig, agent: DreamerConfig) -> DreamerRunConfig:
    """The same run of another agent."""
    run = {field.name: getattr(config, field.name) for field in fields(config)}
    return DreamerRunConfig(**{**run, "method": "dreamer", "agent": agent})


def _dreamer_paper(task: str, suite: str) -> DreamerRunConfig:
    # Networks and loss weights are the classes' defaults.
    masked = _paper(task, suite)
    ours = masked.agent
    agent = DreamerConfig(
        dynamics=PixelWorldModelConfig(
            rssm=ours.dynamics.rssm, head_scale=ours.dynamics.head_scale
        ),
        behaviour=ours.behaviour,
        dynamics_optimizer=ours.dynamics_optimizer,
        precision=ours.precision,
        batch=ours.batch,
    )
    return _with(masked, agent)


def _dreamer_cpu(task: str, suite: str) -> DreamerRunConfig:
    masked = _cpu(task, suite)
    ours = masked.agent
    agent = DreamerConfig(
        dynamics=PixelWorldModelConfig(
            cnn=CNNConfig(depth=16),
            vit=ViTConfig(width=64, encoder_depth=1, decoder_depth=1, pooling="flatten"),
            centre_input=True,
            static_image_lr_scale=20.0,
            rssm=ours.dynamics.rssm,
            head_layers=ours.dynamics.head_layers,
            head_units=ours.dynamics.head_units,
            reward_weight=ours.dynamics.reward_weight,
        ),
        behaviour=ours.behaviour,
        dynamics_optimizer=ours.dynamics_optimizer,
        precision=ours.precision,
        batch=ours.batch,
        window=ours.window,
        pretraining=600,
    )
    return _with(masked, agent)
