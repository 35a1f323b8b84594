"""The agent: who learns from what, what a checkpoint holds, and what may not touch chance."""

import copy
import functools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from errors import UserError
from experiment.checkpoint import load_checkpoint, save_checkpoint
from tests.agents.tiny_agent import FAST, SIZE, TINY, make, make_replay
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
    before = tensors(agent)
    metrics = agent.update(replay)
    assert agent.updates == 1
    learned = changed(agent, before)
    for part in PARTS:
        weights = [n for n, _ in agent.get_submodule(part).named_parameters()]
        # A bias may have no gradient (all mask tokens alike); no weight matrix may.
        still = [n for n in weights if n.endswith("weight") and f"{part}.{n}" not in learned]
        assert still == []
    assert all(torch.isfinite(value) for value in metrics.values())
    assert {name.split("/")[0] for name in metrics} == {"autoencoder", "dynamics", "behaviour"}


@pytest.mark.parametrize("window", [1, 3])
def test_frames_of_the_autoencoder_are_independent_or_windows(replay, window, monkeypatch):
    agent, seen = make(replace(TINY, autoencoder_window=window)), []
    loss = agent.autoencoder.loss
    monkeypatch.setattr(
        agent.autoencoder, "loss", lambda batch, _: seen.append(batch) or loss(batch)
    )
    for _ in range(20):
        agent.update_autoencoder(replay)
    stored = [image.tobytes() for episode, _ in replay.episodes() for image in episode["image"]]
    places = np.array([[stored.index(x.numpy().tobytes()) for x in b["image"]] for b in seen])
    assert places.shape == (20, 6)
    consecutive = np.diff(places.reshape(20, 6 // window, window), axis=2) == 1
    assert consecutive.all()  # of nothing, where frames are independent
    assert (np.diff(places.reshape(20, -1)) == 1).mean() == pytest.approx(
        (window - 1) / window, abs=0.15
    )


def test_windows_of_frames_have_to_fill_the_batch():
    with pytest.raises(UserError, match="multiple of autoencoder_window, 4"):
        replace(TINY, autoencoder_window=4)


def test_autoencoder_can_be_updated_less_often_than_the_rest(replay):
    agent = make(replace(TINY, autoencoder_every=3))
    for _ in range(7):
        agent.update(replay)
    assert agent.update_counts() == {"autoencoder": 3, "dynamics": 8, "actor": 7, "critic": 7}
    agent.update(replay)
    agent.update(replay)  # after it, the autoencoder learns for the tenth
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
    before = tensors(agent)
    agent.update(replay)
    learned = changed(agent, before) - {"behaviour.reward_scale"}
    assert learned
    assert {name for name in learned if not name.startswith(learner)} == set()


def test_behaviour_learns_in_the_world_that_the_last_update_left(replay):
    """From its states, with its weights, and before the dynamics' next step."""
    agent, seen = make(), []
    agent.update(replay)
    losses = agent.behaviour.losses

    def listening(world, start):
        seen.append((tensors(world), start))
        return losses(world, start)

    agent.behaviour.losses = listening
    for _ in range(2):
        before, left = tensors(agent.dynamics), agent._start.map(torch.clone)
        agent.update(replay)
        world, start = seen.pop()
        torch.testing.assert_close(world, before, rtol=0, atol=0)
        torch.testing.assert_close(start, left, rtol=0, atol=0)
        assert changed(agent.dynamics, before)


@pytest.mark.parametrize("elsewhere", [nn.Module.double, copy.deepcopy])
def test_an_agent_elsewhere_imagines_with_its_own_weights(replay, elsewhere):
    """Moved, as to another device, or copied: with the weights that its dynamics learn."""
    agent = make()
    agent.update(replay)
    other = elsewhere(agent)
    assert not any(name.startswith("_world") for name in other.state_dict())
    for weight in other.dynamics.parameters():
        torch.nn.init.zeros_(weight)
    assert {p.abs().sum().item() for p in other.world.parameters()} == {0.0}
    assert not any(p.requires_grad for p in other.world.parameters())
    if other is not agent:
        assert any(p.any() for p in agent.world.parameters())


def test_no_gradient_is_left_behind(replay):
    agent = make()
    agent.update(replay)
    assert [name for name, p in agent.named_parameters() if p.grad is not None] == []


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
    # The world model is one ahead: in it the next update's behaviour learns.
    assert agent.update_counts() == {"autoencoder": 4, "dynamics": 2, "actor": 1, "critic": 1}


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
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    for name in ("dynamics/feature", "dynamics/reward", "dynamics/kl"):
        assert metrics[name].item() == pytest.approx(expected[name].item(), rel=0.1)
    assert torch.equal(metrics["autoencoder/target"], expected["autoencoder/target"])


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


@pytest.fixture
def one_thread(monkeypatch):
    """Every operation on one thread, whatever is asked for: sums have one order."""
    before, asked, here = torch.get_num_threads(), [2], threading.local()

    def ask(number):  # every thread has a number of its own
        here.number = number
        asked.append(number)

    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: getattr(here, "number", 2))
    monkeypatch.setattr(torch, "set_num_threads", ask)
    yield asked
    monkeypatch.undo()
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_beside_each_other_are_those_one_after_the_other(tmp_path, one_thread, precision):
    """A second thread changes when things are computed, and nothing else."""
    results = []
    autocast = torch.autocast
    for overlap in (False, True):
        replay = make_replay(tmp_path / str(overlap))
        agent = make(replace(TINY, overlap=overlap, autoencoder_every=2, precision=precision))
        # Without the cache of cast weights here as there: it decides in which order gradients add.
        agent._autocast = lambda p: autocast("cpu", torch.bfloat16, p == "bfloat16", False)
        metrics = [*agent.pretrain(replay), *(agent.update(replay) for _ in range(6))]
        results.append((metrics, tensors(agent), agent.save()["optimizers"]))
        assert (agent._beside._thread is not None) == overlap
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert set(one_thread) == {1, 2}
    assert torch.get_num_threads() == 2  # given back


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_what_goes_wrong_in_the_other_thread_is_raised(replay, two_threads, monkeypatch):
    agent, where = make(replace(TINY, overlap=True)), []
    agent.update(replay)

    def fail(batch, race):
        where.append(threading.current_thread())
        raise ArithmeticError("predicted")

    monkeypatch.setattr(agent.dynamics, "loss", fail)
    with pytest.raises(ArithmeticError, match="predicted"):
        agent.update(replay)
    assert where != [threading.current_thread()]
    assert torch.get_num_threads() == 2


def test_what_goes_wrong_in_this_thread_leaves_nothing_to_the_next_update(
    tmp_path, two_threads, monkeypatch
):
    results = []
    for failing in (False, True):
        replay = make_replay(tmp_path / str(failing))
        agent = make(replace(TINY, overlap=True))
        agent.update(replay)
        if failing:
            chance = replay.state_dict(), torch.get_rng_state()
            monkeypatch.setattr(agent, "update_behaviour", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                agent.update(replay)
            monkeypatch.undo()
            assert torch.get_num_threads() == 2
            agent.updates -= 1
            replay.load_state_dict(chance[0])
            torch.set_rng_state(chance[1])
        results.append((agent.update(replay), tensors(agent)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def _interrupted(start):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("window", "shift"), [(1, 0), (1, 2), (3, 2)])
def test_where_frames_come_from_changes_nothing(tmp_path, window, shift):
    """Read when they are needed, read ahead in a thread, or kept in the device's memory."""
    results = []
    for way in ("disk", "prefetch", "device"):
        replay = make_replay(tmp_path / way)
        config = replace(TINY, autoencoder_every=2, autoencoder_window=window, random_shift=shift)
        agent = make(config)
        agent.reader.prefetch = way == "prefetch"
        if way == "device":
            replay.keep_on(agent.device)
        metrics = [*agent.pretrain(replay), *(agent.update(replay) for _ in range(5))]
        results.append((metrics, tensors(agent), agent.save()["optimizers"]))
        assert (agent.reader.thread is not None) == agent.reader.prefetch
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


def test_start_states_are_drawn_from_all_states_of_the_batch():
    """Without replacement, anew every time, whatever their place in the window."""
    agent = make()
    length, rows, count = TINY.window, TINY.batch, TINY.behaviour.start_states
    number = torch.arange(float(length * rows)).view(length, rows, 1)
    posterior = State(number, number + 0.25, number[..., None] + 0.5)
    drawn = torch.stack([agent._start_states(posterior).deterministic[:, 0] for _ in range(2000)])
    assert drawn.shape == (2000, count)
    assert count < length * rows
    assert all(len(set(row)) == count for row in drawn.tolist())
    shares = drawn.long().flatten().bincount(minlength=length * rows) / 2000
    expected = count / (length * rows)
    assert (shares - expected).abs().max() < 5 * (expected * (1 - expected) / 2000) ** 0.5
    start = agent._start_states(posterior)  # the parts of a state stay together
    assert torch.equal(start.stochastic, start.deterministic + 0.25)
    assert torch.equal(start.logits[..., 0], start.deterministic + 0.5)


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
    """Weights, optimisers, warm-up, scales of reward and return, the target critic's counter,
    chance."""
    behaviour = replace(TINY.behaviour, scale_returns=True)
    config = replace(TINY, behaviour=behaviour, random_shift=shift)
    replay = make_replay(tmp_path / "replay")
    agent = make(config)
    pretraining = agent.pretrain(replay)
    next(pretraining)
    if behind == "updates":
        list(pretraining)
        for _ in range(3):
            agent.update(replay)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"agent": agent.save(), "replay": replay.state_dict(),
                           "random": torch.get_rng_state()})  # fmt: skip

    def go_on(agent, replay):
        metrics = list(agent.pretrain(replay)) + [agent.update(replay) for _ in range(3)]
        return metrics, tensors(agent), agent.save()["optimizers"]

    expected = go_on(agent, replay)
    state = load_checkpoint(path)
    again, same_replay = make(config, seed=99), make_replay(tmp_path / "replay", seed=99)
    again.load(state["agent"])
    same_replay.load_state_dict(state["replay"])
    torch.set_rng_state(state["random"])
    actual = go_on(again, same_replay)
    for left, right in zip(expected, actual, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert (again.updates, again.pretrained) == (agent.updates, agent.pretrained)


def test_checkpoints_from_before_a_world_was_kept_are_gone_on_with(replay):
    agent = make()
    agent.update(replay)
    state = agent.save()
    del state["start"]
    state["seen"] = {"index": torch.zeros(3, 5, dtype=torch.int64), "metrics": {}}
    again = make(seed=9)
    again.load(state)
    again.update(replay)
    assert again.update_counts() == {"autoencoder": 4, "dynamics": 4, "actor": 2, "critic": 2}


def test_report_shows_a_video_and_touches_no_chance(replay):
    agent = make()
    agent.update(replay)
    before = tensors(agent), replay.state_dict(), torch.get_rng_state()
    video = agent.report(replay, rows=2, length=9)["prediction"]
    assert video.shape == (9, 2 * SIZE, 3 * SIZE, 3)
    assert video.dtype == np.uint8
    assert changed(agent, before[0]) == set()
    assert replay.state_dict() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.array_equal(agent.report(replay, rows=2, length=9)["prediction"], video)


def test_readmes_own_target_learns_and_is_shown(replay, tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    assert "class Edges" in example
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
    behaviour = replace(
        TINY.behaviour,
        mean="clipped_tanh",
        scale_returns=True,
        actor_optimizer=plain,
        critic_optimizer=plain,
    )
    config = replace(
        TINY,
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
        restarted.load(agent.save())
        torch.manual_seed(1)
        found.append(restarted.update(replay))
        metrics.append(found)
        weights.append(restarted.state_dict())
    for name in weights[0]:
        if name.endswith("query_key_value.bias"):  # the key's has no gradient but rounding
            for state in weights:
                state[name][len(state[name]) // 3 : 2 * len(state[name]) // 3] = 0.0
    torch.testing.assert_close(*metrics, **bounds)
    torch.testing.assert_close(*weights, **bounds)
    assert captured.frame_count == 3  # encoding, dynamics and behaviour: each whole, once


def test_compiling_beside_each_other_leaves_chance_as_it_is(tmp_path, two_threads, monkeypatch):
    """Also after a restart, where all parts are compiled in the same update."""
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiling(call, backend="eager"))
    states = []
    for overlap in (False, True):
        torch._dynamo.reset()
        config, replay = replace(TINY, overlap=overlap), make_replay(tmp_path / str(overlap))
        agent = make(config)
        agent.update(replay)
        again = make(config, seed=9)
        again.compile_updates()
        again.load(agent.save())
        torch.manual_seed(3)
        for _ in range(2):
            again.update(replay)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
