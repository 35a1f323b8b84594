"""Online agents small enough for tests, and what they learn from and see."""

import numpy as np
import torch

from agents.actor_critic import ActorCriticConfig
from agents.dreamer import Dreamer
from agents.dreamer_config import DreamerConfig
from agents.masked_world_model import MaskedWorldModel
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.replay import Entry, Replay
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

A, SIZE = 3, 16
FAST = OptimizerConfig(learning_rate=1e-3)
TINY = MaskedWorldModelConfig(
    autoencoder=AutoencoderConfig(
        image_size=SIZE, width=16, encoder_depth=1, decoder_depth=1, heads=2
    ),
    dynamics=LatentDynamicsConfig(
        encoder=FeatureEncoderConfig(width=8, depth=1, heads=2),
        rssm=RSSMConfig(deterministic=12, hidden=12, variables=4, classes=4),
        decoder=FeatureDecoderConfig(width=8, depth=1, heads=2),
        head_layers=1,
        head_units=16,
    ),
    behaviour=ActorCriticConfig(
        horizon=4, start_states=8, layers=1, units=16, target_every=2,
        actor_optimizer=FAST, critic_optimizer=FAST,
    ),
    autoencoder_optimizer=OptimizerConfig(learning_rate=1e-3, warmup=10),
    dynamics_optimizer=FAST,
    autoencoder_batch=6,
    batch=3,
    window=5,
    autoencoder_pretraining=2,
    joint_pretraining=1,
)  # fmt: skip
TINY_DREAMER = DreamerConfig(
    dynamics=PixelWorldModelConfig(
        image_size=SIZE,
        cnn=CNNConfig(depth=4),
        vit=ViTConfig(width=32, encoder_depth=1, decoder_depth=1, heads=2),
        rssm=TINY.dynamics.rssm,
        head_layers=1,
        head_units=16,
    ),
    behaviour=TINY.behaviour,
    dynamics_optimizer=FAST,
    batch=3,
    window=5,
    pretraining=3,
)


def make(config=TINY, seed=0):
    torch.manual_seed(seed)
    kind = Dreamer if isinstance(config, DreamerConfig) else MaskedWorldModel
    return kind(config, A, "cpu")


def make_replay(folder, seed=0, plain=False):
    """Three episodes of noise; `plain`: every picture of one colour, which can be learned."""
    entries = {
        "image": Entry((SIZE, SIZE, 3), "uint8"),
        "action": Entry((A,), "float32"),
        "reward": Entry((), "float32"),
        "is_first": Entry((), "bool"),
        "is_terminal": Entry((), "bool"),
    }
    replay = Replay(folder, entries, 200, seed=seed)
    rng = np.random.default_rng(0)
    places = (1, 1) if plain else (SIZE, SIZE)
    while len(replay.records) < 3:
        image = rng.integers(0, 256, (21, *places, 3), np.uint8)
        episode = {
            "image": np.broadcast_to(image, (21, SIZE, SIZE, 3)),
            "action": rng.uniform(-1, 1, (21, A)).astype(np.float32),
            "reward": rng.normal(size=21).astype(np.float32),
            "is_first": np.arange(21) == 0,
            "is_terminal": np.zeros(21, bool),
        }
        episode["action"][0], episode["reward"][0] = 0, 0
        replay.add_episode(episode, env_steps=40)
    return replay


def observation(count, seed=0, is_first=False):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
        "is_first": np.full(count, is_first),
    }
