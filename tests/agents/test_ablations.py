"""Every ablation of the agent is a value of a field: it learns, acts, shows, and is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.agents.tiny_agent import TINY, A, make, make_replay, observation

SEEING = {
    "pixels masked": {"mask": "pixels"},
    "nothing masked": {"mask": "none"},
    "masked less": {"mask_ratio": 0.25},
    "no reward": {"reward_weight": 0.0},
    "class token only": {"features": "class"},
    "deeper": {"encoder_depth": 2, "decoder_depth": 2},
    "vae": {"kind": "vae"},
    "vae, centred": {"kind": "vae", "centre_input": True, "static_image_lr_scale": 20.0},
}


def ablated(name, **options):
    return replace(TINY, autoencoder=replace(TINY.autoencoder, **SEEING[name]), **options)


@pytest.mark.parametrize("name", SEEING)
def test_ablation_learns_acts_and_shows_and_is_restored_bit_for_bit(tmp_path, name):
    config = ablated(name)
    results = []
    for stopped in (False, True):
        replay, agent = make_replay(tmp_path / str(stopped)), make(config)
        for metrics in agent.pretrain(replay):
            assert all(torch.isfinite(value) for value in metrics.values())
        agent.update(replay)
        if stopped:
            again = make(config, seed=1)
            again.load_state_dict(agent.state_dict())
            agent = again
        torch.manual_seed(3)
        results.append((agent.update(replay), agent.state_dict()))
        action, _ = agent.policy(observation(2), None, explore=True)
        assert action.shape == (2, A)
        shown = agent.report(replay, rows=2, length=8)["prediction"]
        assert shown.dtype == np.uint8
        assert shown.std() > 0
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vae", "class token only"])
def test_dynamics_learn_from_one_token_of_the_frozen_autoencoder(tmp_path, name):
    agent = make(ablated(name))
    replay = make_replay(tmp_path)
    batch = agent.sample(replay)
    assert batch["feature"].shape == (TINY.batch, TINY.window, 1, TINY.autoencoder.width)
    assert agent.representation({"image": replay.sample_windows(2, 4)["image"]}).shape == (
        2, 4, TINY.autoencoder.width,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in agent.autoencoder.named_parameters()}
    _, posterior = agent.update_dynamics(batch)
    agent.update_behaviour(*agent.start_states(posterior, batch["is_terminal"]))
    assert all(torch.equal(p, before[n]) for n, p in agent.autoencoder.named_parameters())


def test_an_autoencoder_that_comes_trained_is_frozen_and_not_pretrained(tmp_path):
    agent, replay = make(replace(TINY, autoencoder_from="runs/other")), make_replay(tmp_path)
    before = {n: v.clone() for n, v in agent.autoencoder.state_dict().items()}
    assert agent.pretraining_updates == TINY.joint_pretraining
    metrics = [*agent.pretrain(replay), agent.update(replay)]
    assert len(metrics) == TINY.joint_pretraining + 1
    assert all(torch.equal(v, before[n]) for n, v in agent.autoencoder.state_dict().items())
    assert agent.update_counts()["autoencoder"] == 0
    assert agent.update_counts()["dynamics"] == TINY.joint_pretraining + 1
    assert not any(name.startswith("autoencoder") for name in metrics[-1])
