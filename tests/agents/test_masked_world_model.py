"""The agent: who learns from what, what a checkpoint holds, and what may not touch chance."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.agents.tiny_agent import (
    FAST,
    SIZE,
    TINY,
    goes_on_bit_for_bit,
    make,
    make_replay,
    observation,
)
from world_models.layers import OptimizerConfig
from world_models.rssm import State

PARTS = ("autoencoder", "dynamics", "behaviour.actor", "behaviour.critic")


@pytest.fixture
def replay(tmp_path):
    return make_replay(tmp_path / "replay")


def tensors(module):
    """Parameters and buffers, by name, as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


# --------------------------------------------------------------------------------- learning


def test_one_update_teaches_every_part(replay):
    agent = make()
    before = tensors(agent.networks)
    metrics = agent.update(replay)
    assert agent.updates == 1
    learned = changed(agent.networks, before)
    for part in PARTS:
        weights = [n for n, _ in agent.networks.get_submodule(part).named_parameters()]
        # A bias may have no gradient (all mask tokens alike); no weight matrix may.
        still = [n for n in weights if n.endswith("weight") and f"{part}.{n}" not in learned]
        assert still == []
    assert all(torch.isfinite(value) for value in metrics.values())
    assert {name.split("/")[0] for name in metrics} == {"autoencoder", "dynamics", "behaviour"}


def test_frames_of_the_autoencoder_are_independent(replay, monkeypatch):
    agent, seen = make(), []
    loss = agent.autoencoder.loss
    monkeypatch.setattr(agent.autoencoder, "loss", lambda batch: seen.append(batch) or loss(batch))
    for _ in range(20):
        agent.update_autoencoder(replay)
    stored = [image.tobytes() for episode, _ in replay.episodes() for image in episode["image"]]
    places = np.array([[stored.index(x.numpy().tobytes()) for x in b["image"]] for b in seen])
    assert places.shape == (20, 6)
    assert (np.diff(places) == 1).mean() < 0.15


def test_autoencoder_can_be_updated_less_often_than_the_rest(replay):
    agent = make(replace(TINY, autoencoder_every=3))
    for _ in range(7):
        agent.update(replay)
    assert agent.update_counts() == {"autoencoder": 3, "dynamics": 7, "actor": 7, "critic": 7}
    agent.update(replay)
    agent.update(replay)
    assert agent.update_counts()["autoencoder"] == 3
    agent.update(replay)
    assert agent.update_counts()["autoencoder"] == 4


@pytest.mark.parametrize("learner", PARTS)
def test_each_part_is_moved_by_its_own_optimiser_only(replay, learner):
    """With the other three standing still, an update changes this part and no other."""
    still = OptimizerConfig(learning_rate=0.0, weight_decay=0.0)
    rates = {part: FAST if part == learner else still for part in PARTS}
    config = replace(
        TINY,
        autoencoder_optimizer=rates["autoencoder"],
        dynamics_optimizer=rates["dynamics"],
        behaviour=replace(
            TINY.behaviour,
            actor_optimizer=rates["behaviour.actor"],
            critic_optimizer=rates["behaviour.critic"],
        ),
    )
    agent = make(config)
    before = tensors(agent.networks)
    agent.update(replay)
    learned = changed(agent.networks, before) - {"behaviour.reward_scale"}
    assert learned
    assert {name for name in learned if not name.startswith(learner)} == set()


def test_an_update_is_algorithm_1(replay, monkeypatch):
    """The autoencoder learns first; features, posterior and imagination are of what has learned."""
    agent, order = make(), []

    def listen(name):
        method = getattr(agent, name)

        def listening(*arguments):
            order.append((name, tensors(agent.networks), arguments))
            result = method(*arguments)
            order[-1] += (result,)
            return result

        monkeypatch.setattr(agent, name, listening)

    for name in ("update_autoencoder", "sample", "update_dynamics", "update_behaviour"):
        listen(name)
    before = tensors(agent.networks)
    agent.update(replay)
    names = [name for name, *_ in order]
    assert names == ["update_autoencoder", "sample", "update_dynamics", "update_behaviour"]
    (_, _, _, batch), (_, _, (learned_from,), (_, posterior)), behaviour = order[1:]
    _, at_end, (start, _), _ = behaviour
    assert learned_from is batch
    for part, (_, weights, *_) in zip(("autoencoder", "dynamics"), order[1::2], strict=True):
        ours = {n for n in weights if n.startswith(part)}
        assert any(not weights[n].equal(before[n]) for n in ours)
    assert changed(agent.autoencoder, {n[12:]: v for n, v in at_end.items()}) == set()
    states = {tuple(row) for row in posterior.deterministic.flatten(0, 1).tolist()}
    assert {tuple(row) for row in start.deterministic.tolist()} <= states


def test_no_gradient_is_left_behind(replay):
    agent = make()
    agent.update(replay)
    assert [name for name, p in agent.networks.named_parameters() if p.grad is not None] == []
    assert all(
        p.requires_grad or name.startswith("behaviour.target_critic")
        for name, p in agent.networks.named_parameters()
    )


def test_no_gradient_of_the_dynamics_reaches_the_autoencoder(replay):
    """Even when the features arrive with their graph attached."""
    agent = make()
    batch = replay.sample_windows(3, 5)
    feature = agent.autoencoder.encode(batch["image"].flatten(0, 1)).unflatten(0, (3, 5))
    assert feature.requires_grad
    loss, posterior, _ = agent.dynamics.loss({**batch, "feature": feature})
    actor_loss, critic_loss, _ = agent.behaviour.losses(
        agent.dynamics, posterior.map(lambda part: part.flatten(0, 1))
    )
    (loss + actor_loss + critic_loss).backward()
    assert [n for n, p in agent.autoencoder.named_parameters() if p.grad is not None] == []
    assert any(p.grad is not None for p in agent.dynamics.parameters())


def test_features_are_unmasked_and_have_no_graph(replay):
    agent = make()
    image = replay.sample_windows(3, 5)["image"]
    feature = agent.features(image)
    assert feature.shape == (3, 5, 1 + 4, 16)
    assert not feature.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(feature[2, 4], agent.autoencoder.encode(image[2, 4:])[0])


def test_pretraining_teaches_the_autoencoder_first_and_then_everything(replay):
    agent = make()
    kinds, dynamics = [], tensors(agent.dynamics)
    for metrics in agent.pretrain(replay):
        kinds.append({name.split("/")[0] for name in metrics})
        if len(kinds) == 2:
            assert changed(agent.dynamics, dynamics) == set()
    assert kinds == [{"autoencoder"}] * 2 + [{"autoencoder", "dynamics", "behaviour"}]
    assert agent.pretrained == agent.pretraining_updates == 3
    assert agent.updates == 0
    assert list(agent.pretrain(replay)) == []
    assert agent.update_counts() == {"autoencoder": 3, "dynamics": 1, "actor": 1, "critic": 1}


def test_autoencoder_learns_to_reconstruct(replay):
    agent = make(replace(TINY, autoencoder_pretraining=150, joint_pretraining=0))
    losses = [m["autoencoder/target"].item() for m in agent.pretrain(replay)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_half_precision_keeps_losses_and_states_in_float32(replay):
    """bfloat16 for the dense layers changes the first update's losses by its rounding only."""
    plain, rounded = make(), make(replace(TINY, precision="bfloat16"))
    generator = replay.state_dict()
    torch.manual_seed(1)
    expected = plain.update(replay)
    replay.load_state_dict(generator)
    torch.manual_seed(1)
    metrics = rounded.update(replay)
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert {p.dtype for p in rounded.networks.parameters()} == {torch.float32}
    for name in ("dynamics/feature", "dynamics/reward", "dynamics/kl"):
        assert metrics[name].item() == pytest.approx(expected[name].item(), rel=0.1)
    assert torch.equal(metrics["autoencoder/target"], expected["autoencoder/target"])


@pytest.mark.parametrize(
    "changes", [{}, {"mask": "pixels", "features": "class"}, {"kind": "vae"}], ids=str
)
def test_an_autoencoder_in_half_precision_keeps_losses_in_float32(replay, changes):
    config = replace(TINY, autoencoder=replace(TINY.autoencoder, **changes))
    half = replace(config, precision="bfloat16", autoencoder_precision="bfloat16")
    found, generator = [], replay.state_dict()
    for agent in (make(config), make(half)):
        replay.load_state_dict(generator)
        torch.manual_seed(1)
        found.append(agent.update(replay))
        assert {value.dtype for value in found[-1].values()} == {torch.float32}
        assert {p.dtype for p in agent.networks.parameters()} == {torch.float32}
    for name in ("autoencoder/target", "autoencoder/reward", "dynamics/feature", "dynamics/kl"):
        assert found[1][name].item() == pytest.approx(found[0][name].item(), rel=0.1, abs=0.01)
    assert found[0]["autoencoder/target"] != found[1]["autoencoder/target"]  # it is half


@pytest.mark.parametrize(("has", "same_as"), [(True, "bfloat16"), (False, "float32")])
def test_precision_auto_computes_in_what_the_device_has(tmp_path, monkeypatch, has, same_as):
    """Exactly the updates of the precision it stands for, and not those of the other."""
    monkeypatch.setattr("agents.device.has_bfloat16", lambda device: has)
    results = {}
    for precision in ("auto", "float32", "bfloat16"):
        agent = make(replace(TINY, precision=precision))
        results[precision] = agent.update(make_replay(tmp_path / precision))
    torch.testing.assert_close(results["auto"], results[same_as], rtol=0, atol=0)
    assert results["float32"]["dynamics/feature"] != results["bfloat16"]["dynamics/feature"]


@pytest.mark.parametrize("shift", [0, 2])
def test_where_frames_come_from_changes_nothing(tmp_path, shift):
    """Read from the disk when they are needed, or kept in the device's memory."""
    results = []
    for way in ("disk", "device"):
        replay = make_replay(tmp_path / way)
        agent = make(replace(TINY, autoencoder_every=2, random_shift=shift))
        if way == "device":
            replay.keep_on(agent.device)
        metrics = [*agent.pretrain(replay), *(agent.update(replay) for _ in range(5))]
        results.append((metrics, agent.state_dict()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_start_states_are_drawn_from_all_states_of_the_batch():
    """Without replacement, anew every time, whatever their place in the window."""
    agent = make()
    length, rows, count = TINY.window, TINY.batch, TINY.behaviour.start_states
    number = torch.arange(float(length * rows)).view(length, rows, 1)
    posterior = State(number, number + 0.25, number[..., None] + 0.5)
    ends = torch.zeros(rows, length, dtype=torch.bool)
    drawn = torch.stack(
        [agent.start_states(posterior, ends)[0].deterministic[:, 0] for _ in range(2000)]
    )
    assert drawn.shape == (2000, count)
    assert count < length * rows
    assert all(len(set(row)) == count for row in drawn.tolist())
    shares = drawn.long().flatten().bincount(minlength=length * rows) / 2000
    expected = count / (length * rows)
    assert (shares - expected).abs().max() < 5 * (expected * (1 - expected) / 2000) ** 0.5
    start, goes_on = agent.start_states(posterior, ends)  # the parts of a state stay together
    assert goes_on is None  # nothing predicts ends
    assert torch.equal(start.stochastic, start.deterministic + 0.25)
    assert torch.equal(start.logits[..., 0], start.deterministic + 0.5)


@pytest.mark.parametrize("count", [None, 8])
def test_start_states_know_whether_the_episode_went_on_where_ends_are_predicted(replay, count):
    config = replace(TINY, dynamics=replace(TINY.dynamics, predict_discount=True))
    agent = make(replace(config, behaviour=replace(config.behaviour, start_states=count)))
    number = torch.arange(float(TINY.window * TINY.batch)).view(TINY.window, TINY.batch, 1)
    ended = number[..., 0].T % 3 == 0
    start, goes_on = agent.start_states(State(number, number, number[..., None]), ended)
    assert torch.equal(goes_on, (start.deterministic[:, 0] % 3 != 0).float())
    passed = []
    losses = agent.behaviour.losses
    agent.behaviour.losses = lambda *given: passed.append(given[-1]) or losses(*given)
    agent.update(replay)
    assert passed[0].tolist() == [1.0] * len(passed[0])  # no episode of this replay terminates


def test_all_states_are_starts_where_no_number_is_given(replay):
    seen = []
    agent = make(replace(TINY, behaviour=replace(TINY.behaviour, start_states=None)))
    agent.behaviour.actor.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    agent.update(replay)
    assert set(seen) == {TINY.batch * TINY.window}


# --------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("behind", ["pretraining", "updates"])
def test_restored_agent_makes_the_same_next_updates_bit_for_bit(tmp_path, behind, shift):
    """Weights, optimisers, warm-up, the scale of rewards, the target critic's counter,
    chance."""
    config = replace(TINY, random_shift=shift)
    goes_on_bit_for_bit(config, behind, tmp_path)


@pytest.mark.parametrize("also", [{}, {"start": {"deterministic": torch.zeros(8, 12)}}])
def test_checkpoints_that_hold_more_are_gone_on_with(replay, also):
    """Once the start states of the next update's imagination were kept, and an index of frames."""
    agent = make()
    agent.update(replay)
    state = {**agent.state_dict(), "seen": {"index": torch.zeros(3, 5)}, **also}
    again = make(seed=9)
    again.load_state_dict(state)
    again.update(replay)
    assert again.update_counts() == {"autoencoder": 2, "dynamics": 2, "actor": 2, "critic": 2}


def test_report_shows_a_video_and_touches_no_chance(replay):
    agent = make()
    agent.update(replay)
    before = tensors(agent.networks), replay.state_dict(), torch.get_rng_state()
    video = agent.report(replay, rows=2, length=9)["prediction"]
    assert video.shape == (9, 2 * SIZE, 3 * SIZE, 3)
    assert video.dtype == np.uint8
    assert changed(agent.networks, before[0]) == set()
    assert replay.state_dict() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.array_equal(agent.report(replay, rows=2, length=9)["prediction"], video)


def test_readmes_own_target_learns_and_is_shown(replay, tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    (example,) = [block for block in blocks if "class Edges" in block]
    (tmp_path / "target_of_the_readme.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    target = "target_of_the_readme:Edges"
    agent = make(replace(TINY, autoencoder=replace(TINY.autoencoder, target=target)))
    assert all(torch.isfinite(value) for value in agent.update(replay).values())
    video = agent.report(replay, rows=1, length=7)["prediction"]
    assert video.shape == (7, SIZE, 3 * SIZE, 3)


def test_report_begins_with_the_truth(replay):
    """The left third of every frame is a picture of the replay, window by window."""
    agent = make()
    video = agent.report(replay, rows=2, length=9)["prediction"]
    batch = replay.sample_windows(2, 9, np.random.default_rng(agent.updates))
    for row in range(2):
        picture = video[:, row * SIZE : (row + 1) * SIZE, :SIZE]
        assert np.array_equal(picture, batch["image"][row].numpy())


def test_open_loop_prediction_sees_no_picture_after_its_context(replay):
    agent, context = make(), 4
    batch = replay.sample_windows(2, 9)
    torch.manual_seed(0)
    expected = agent.open_loop(batch, context)
    assert expected.shape == (2, 9, SIZE, SIZE, 3)

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
        assert torch.equal(prediction[:, :step], expected[:, :step])
        assert not torch.equal(prediction[:, step], expected[:, step])


# --------------------------------------------------------------------------------- compiled

# Loops over time are unrolled where they are captured: two steps show what ten do.
SHORT = replace(TINY, window=3, behaviour=replace(TINY.behaviour, horizon=2))


def test_what_a_gpu_compiles_is_compiled_once_for_all_phases(replay):
    """The autoencoder's loss too: pretraining, updates, and what is done between them."""
    captured = CompileCounterWithBackend("eager")
    agent = make(replace(SHORT, autoencoder_every=2, autoencoder_pretraining=1))
    parts = agent.compiled_parts("cuda")
    assert (agent.autoencoder, "loss") in parts
    for part, name in parts:
        whole = torch.compile(getattr(part, name), backend=captured, dynamic=False, fullgraph=True)
        setattr(part, name, whole)
    list(agent.pretrain(replay))
    agent.update(replay)
    agent.policy(observation(2), None, explore=True)
    agent.report(replay, rows=2, length=7)
    agent.load_state_dict(agent.state_dict())
    for _ in range(2):
        agent.update(replay)
    assert captured.frame_count == len(parts) == 4


@pytest.mark.parametrize(
    ("precision", "bounds"),
    [("float32", {"rtol": 1e-5, "atol": 1e-7}), ("bfloat16", {"rtol": 1e-2, "atol": 1e-4})],
)
def test_compiled_updates_compute_the_same(tmp_path, monkeypatch, precision, bounds):
    # Captured as graphs with their gradients, but run by PyTorch: code generation takes minutes.
    captured = CompileCounterWithBackend("aot_eager")
    compiling = functools.partial(torch.compile, backend=captured)
    monkeypatch.setattr(
        torch, "compile", lambda call, dynamic, **_: compiling(call, dynamic=dynamic)
    )
    dynamics = replace(TINY.dynamics, standardise_features=True)
    # Steps as long as the gradient: Adam's first ones are as long where there is but rounding.
    plain = OptimizerConfig(learning_rate=0.01, epsilon=1.0)
    behaviour = replace(SHORT.behaviour, actor_optimizer=plain, critic_optimizer=plain)
    config = replace(
        SHORT,
        dynamics=dynamics,
        behaviour=behaviour,
        autoencoder_optimizer=plain,
        dynamics_optimizer=plain,
        precision=precision,
        autoencoder_pretraining=1,
    )
    metrics, weights = [], []
    for compiled in (False, True):
        agent, replay = make(config), make_replay(tmp_path / str(compiled))
        if compiled:
            agent.compile_updates()
        found = [*agent.pretrain(replay), agent.update(replay)]
        restarted = make(config, seed=1)
        if compiled:
            restarted.compile_updates()
        restarted.load_state_dict(agent.state_dict())
        torch.manual_seed(1)
        found.append(restarted.update(replay))
        metrics.append(found)
        weights.append(restarted.networks.state_dict())
    for name in weights[0]:
        if name.endswith("query_key_value.bias"):  # the key's has no gradient but rounding
            for state in weights:
                state[name][len(state[name]) // 3 : 2 * len(state[name]) // 3] = 0.0
    torch.testing.assert_close(*metrics, **bounds)
    torch.testing.assert_close(*weights, **bounds)
    assert captured.frame_count == 3  # encoding, dynamics and behaviour: each whole, once
