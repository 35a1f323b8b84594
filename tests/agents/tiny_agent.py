"""Online agents small enough for tests, and what they learn from and see."""

import numpy as np
import torch

from agents.actor_critic import ActorCriticConfig
from agents.dreamer import Dreamer
from agents.dreamer_config import DreamerConfig
from agents.masked_world_model import MaskedWorldModel
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.replay import Entry, Replay
from experiment.checkpoint import load_checkpoint, save_checkpoint
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


def goes_on_bit_for_bit(config, behind, folder):
    """An agent restored from a checkpoint makes the same next updates as the one that goes on.

    Args:
        config: of the agent.
        behind: what it has learned before: "pretraining", one update of it, or "updates".
        folder: to work in.
    """
    replay = make_replay(folder / "replay")
    agent = make(config)
    pretraining = agent.pretrain(replay)
    next(pretraining)
    if behind == "updates":
        list(pretraining)
        for _ in range(3):
            agent.update(replay)
    path = folder / "checkpoint.pt"
    save_checkpoint(path, {"agent": agent.state_dict(), "replay": replay.state_dict(),
                           "random": torch.get_rng_state()})  # fmt: skip

    def go_on(agent, replay):
        metrics = list(agent.pretrain(replay)) + [agent.update(replay) for _ in range(3)]
        return metrics, agent.state_dict()

    expected = go_on(agent, replay)
    state = load_checkpoint(path)
    again, same_replay = make(config, seed=99), make_replay(folder / "replay", seed=99)
    again.load_state_dict(state["agent"])
    same_replay.load_state_dict(state["replay"])
    torch.set_rng_state(state["random"])
    actual = go_on(again, same_replay)
    for left, right in zip(expected, actual, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert (again.updates, again.pretrained) == (agent.updates, agent.pretrained)


def forgets_an_ended_episode(agent):
    """The environment whose episode began forgets; its neighbour does not."""
    _, state = agent.policy(observation(2, is_first=True), None, explore=True)
    second = observation(2, seed=1)
    second["is_first"] = np.array([True, False])
    torch.manual_seed(4)
    _, carried = agent.policy(second, state, explore=True)
    torch.manual_seed(4)
    _, fresh = agent.policy({**second, "is_first": np.ones(2, bool)}, None, explore=True)
    assert torch.equal(carried["deterministic"][0], fresh["deterministic"][0])
    assert not torch.equal(carried["deterministic"][1], fresh["deterministic"][1])
