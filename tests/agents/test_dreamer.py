"""DreamerV2: who learns from what, what a checkpoint holds, and what it shows."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from agents.agent import OnlineAgent
from agents.replay import Entry, Replay
from errors import UserError
from tests.agents.tiny_agent import (
    FAST,
    SIZE,
    TINY_DREAMER,
    forgets_an_ended_episode,
    goes_on_bit_for_bit,
    make,
    make_replay,
    observation,
)
from world_models.layers import OptimizerConfig

PARTS = ("dynamics", "behaviour.actor", "behaviour.critic")
KINDS = {
    "cnn": TINY_DREAMER,
    "vit": replace(TINY_DREAMER, encoder="vit"),
    "contrastive": replace(TINY_DREAMER, representation="contrastive"),
}


@pytest.fixture
def replay(tmp_path):
    return make_replay(tmp_path / "replay")


def tensors(module):
    """Parameters and buffers, by name, as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


# --------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_one_update_teaches_every_part(replay, config):
    agent: OnlineAgent = make(config)
    before = tensors(agent.networks)
    metrics = agent.update(replay)
    assert agent.updates == 1
    learned = changed(agent.networks, before)
    for part in PARTS:
        weights = [n for n, _ in agent.networks.get_submodule(part).named_parameters()]
        still = [n for n in weights if n.endswith("weight") and f"{part}.{n}" not in learned]
        assert still == []
    assert all(torch.isfinite(value) for value in metrics.values())
    assert {name.split("/")[0] for name in metrics} == {"dynamics", "behaviour"}
    assert [name for name, p in agent.networks.named_parameters() if p.grad is not None] == []
    assert agent.update_counts() == {"dynamics": 1, "actor": 1, "critic": 1}


@pytest.mark.parametrize("learner", PARTS)
def test_each_part_is_moved_by_its_own_optimiser_only(replay, learner):
    """No gradient of behaviour reaches the world model, and none of the world model behaviour."""
    still = OptimizerConfig(learning_rate=0.0, weight_decay=0.0)
    rates = {part: FAST if part == learner else still for part in PARTS}
    behaviour = replace(
        TINY_DREAMER.behaviour,
        actor_optimizer=rates["behaviour.actor"],
        critic_optimizer=rates["behaviour.critic"],
    )
    agent = make(replace(TINY_DREAMER, dynamics_optimizer=rates["dynamics"], behaviour=behaviour))
    before = tensors(agent.networks)
    agent.update(replay)
    learned = changed(agent.networks, before) - {"behaviour.reward_scale"}
    assert learned
    assert {name for name in learned if not name.startswith(learner)} == set()


def test_no_gradient_of_behaviour_reaches_the_world_model(replay):
    """Neither its weights, which imagination runs through, nor the states it starts from."""
    agent = make(TINY_DREAMER)
    before = tensors(agent.dynamics)
    batch = agent.sample(replay)
    _, posterior = agent.update_dynamics(batch)
    learned = tensors(agent.dynamics)
    assert changed(agent.dynamics, before)
    assert not any(part.requires_grad for part in posterior)
    passed = []
    losses = agent.behaviour.losses

    def listening(*arguments):
        found = losses(*arguments)
        weights = list(agent.dynamics.parameters())
        passed.append([weight.requires_grad for weight in weights])
        return found

    agent.behaviour.losses = listening
    agent.update_behaviour(*agent.start_states(posterior, batch["is_terminal"]))
    assert changed(agent.dynamics, learned) == set()
    assert not any(passed[0])
    assert all(weight.requires_grad for weight in agent.dynamics.parameters())


@pytest.mark.parametrize("target", ["pixels", "masks"])
def test_windows_hold_what_the_target_reads(tmp_path, target):
    agent = make(replace(TINY_DREAMER, target=target))
    without = make_replay(tmp_path / "without")
    entries = {**without.entries, "mask": Entry((SIZE, SIZE), "uint8")}
    replay = Replay(tmp_path / "replay", entries, 200, seed=0)
    for episode, record in without.episodes():
        mask = np.ones((len(episode["image"]), SIZE, SIZE), np.uint8)
        replay.add_episode({**episode, "mask": mask}, env_steps=record["env_steps"])
    assert set(agent.sample(replay)) == (
        {"image", "action", "reward", "is_first", "is_terminal"}
        | ({"mask"} if target == "masks" else set())
    )


def test_pretraining_makes_its_updates_once(replay):
    agent = make(TINY_DREAMER)
    assert len(list(agent.pretrain(replay))) == agent.pretraining_updates == 3
    assert (agent.pretrained, agent.updates) == (3, 0)
    assert list(agent.pretrain(replay)) == []


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_world_model_learns(tmp_path, config):
    replay = make_replay(tmp_path / "replay", plain=True)
    agent = make(replace(config, pretraining=80))
    name = "dynamics/contrast" if config.representation == "contrastive" else "dynamics/target"
    losses = [metrics[name].item() for metrics in agent.pretrain(replay)]
    most = 0.95 if config.representation == "contrastive" else 0.8
    assert np.mean(losses[-10:]) < most * np.mean(losses[:10])


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_half_precision_keeps_losses_and_states_in_float32(replay, config):
    plain, rounded = make(config), make(replace(config, precision="bfloat16"))
    generator = replay.state_dict()
    torch.manual_seed(1)
    expected = plain.update(replay)
    replay.load_state_dict(generator)
    torch.manual_seed(1)
    metrics = rounded.update(replay)
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert {p.dtype for p in rounded.networks.parameters()} == {torch.float32}
    picture = "dynamics/contrast" if "dynamics/contrast" in expected else "dynamics/target"
    for name in (picture, "dynamics/reward", "dynamics/kl"):
        assert metrics[name].item() == pytest.approx(expected[name].item(), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"representation": "contrastive", "target": "masks"}, "decodes nothing.*masks"),
        ({"dynamics": replace(TINY_DREAMER.dynamics, image_size=24)}, "power of two"),
        ({"batch": 0}, "batch"),
        ({"window": 0}, "window"),
        ({"pretraining": -1}, "pretraining"),
    ],
)
def test_configuration_that_cannot_be_is_one_sentence(changes, words):
    with pytest.raises(UserError, match=words) as error:
        replace(TINY_DREAMER, **changes)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------- acting


def test_policy_filters_as_learning_does(replay):
    """Acting through an episode gives the states that observing it as a window gives."""
    agent = make(TINY_DREAMER)
    batch = replay.sample_windows(1, 6)
    with torch.no_grad():
        posterior, _ = agent.dynamics.observe(batch)
    for t in range(1, 6):
        before = posterior.map(lambda part, t=t: part[t - 1])
        state = {**before._asdict(), "action": batch["action"][:, t]}
        step = {"image": batch["image"][:, t].numpy(), "is_first": batch["is_first"][:, t].numpy()}
        _, state = agent.policy(step, state, explore=True)
        torch.testing.assert_close(state["deterministic"], posterior.deterministic[t])
        torch.testing.assert_close(state["logits"], posterior.logits[t], rtol=1e-4, atol=1e-4)


def test_policy_starts_afresh_where_an_episode_does():
    forgets_an_ended_episode(make(TINY_DREAMER))


# --------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("behind", ["pretraining", "updates"])
def test_restored_agent_makes_the_same_next_updates_bit_for_bit(tmp_path, config, behind):
    small = replace(config.dynamics, centre_input=True, static_image_lr_scale=20.0)
    config = replace(config, dynamics=small)
    goes_on_bit_for_bit(config, behind, tmp_path)


# --------------------------------------------------------------------------------- showing


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_report_shows_a_video_and_touches_no_chance(replay, config):
    agent = make(config)
    agent.update(replay)
    before = tensors(agent.networks), replay.state_dict(), torch.get_rng_state()
    video = agent.report(replay, rows=2, length=9)["prediction"]
    assert video.shape == (9, 2 * SIZE, 3 * SIZE, 3)
    assert video.dtype == np.uint8
    assert changed(agent.networks, before[0]) == set()
    assert replay.state_dict() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.array_equal(agent.report(replay, rows=2, length=9)["prediction"], video)
    batch = replay.sample_windows(2, 9, np.random.default_rng(agent.updates))
    for row in range(2):
        picture = video[:, row * SIZE : (row + 1) * SIZE, :SIZE]
        assert np.array_equal(picture, batch["image"][row].numpy())


def test_where_nothing_is_decoded_the_picture_that_fits_best_is_shown(replay):
    agent = make(KINDS["contrastive"])
    batch = replay.sample_windows(2, 4)
    with torch.no_grad():
        posterior, _ = agent.dynamics.observe(batch)
        feature = posterior.feature.transpose(0, 1)
        shown = agent.pictures(feature, batch["image"])
        embedding = agent.dynamics.embed(batch["image"])
        for row, step in np.ndindex(2, 4):
            scores = agent.dynamics.contrast.scores(
                feature[row, step][None], embedding.flatten(0, 1)
            )
            best = batch["image"].flatten(0, 1)[scores[0].argmax()]
            assert torch.equal(shown[row, step], best)


def test_open_loop_prediction_sees_no_picture_after_its_context(replay):
    agent, context = make(TINY_DREAMER), 4
    batch = replay.sample_windows(2, 9)
    torch.manual_seed(0)
    expected = agent.open_loop(batch, context)
    assert expected.shape == (9, 2, agent.dynamics.feature_size)

    def predict(**other):
        torch.manual_seed(0)
        return agent.open_loop({**batch, **other}, context)

    later = batch["image"].clone()
    later[:, context:] = 0
    assert torch.equal(predict(image=later), expected)
    for name, step in (("image", context - 1), ("action", context), ("action", 8)):
        other = batch[name].clone()
        other[:, step] = 1
        prediction = predict(**{name: other})
        assert torch.equal(prediction[:step], expected[:step])
        assert not torch.equal(prediction[step], expected[step])


# -------------------------------------------------------------------------------- compiled


def test_compiled_updates_compute_the_same(tmp_path, monkeypatch):
    # Captured as graphs with their gradients, but run by PyTorch: code generation takes minutes.
    captured = CompileCounterWithBackend("aot_eager")
    compiling = functools.partial(torch.compile, backend=captured)
    monkeypatch.setattr(
        torch, "compile", lambda call, dynamic, **_: compiling(call, dynamic=dynamic)
    )
    # Steps as long as the gradient: Adam's first ones are as long where there is but rounding.
    plain = OptimizerConfig(learning_rate=0.01, epsilon=1.0)
    # Loops over time are unrolled where they are captured: two steps show what ten do.
    behaviour = replace(
        TINY_DREAMER.behaviour, horizon=2, actor_optimizer=plain, critic_optimizer=plain
    )
    config = replace(
        TINY_DREAMER, window=3, behaviour=behaviour, dynamics_optimizer=plain, pretraining=1
    )
    metrics, weights = [], []
    for compiled in (False, True):
        agent, replay = make(config), make_replay(tmp_path / str(compiled))
        if compiled:
            agent.compile_updates()
        metrics.append([*agent.pretrain(replay), agent.update(replay)])
        agent.policy(observation(2), None, explore=True)  # is not compiled
        weights.append(agent.networks.state_dict())
    bounds = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(*metrics, **bounds)
    torch.testing.assert_close(*weights, **bounds)
    assert captured.frame_count == 2  # filtering and behaviour: each whole, once
