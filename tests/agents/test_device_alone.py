"""The whole update of every method computes on its device alone: nothing waits for the host.

On the meta device, where tensors have no values, whoever reads one fails: `.item()`, a branch in
Python, a copy to the host. `OnDevice` refuses every tensor of another device. What runs is what a
GPU runs: branches for CPUs are left out here too.
"""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.data_spec import DataSpec
from agents.dreamer import Dreamer
from agents.dreamer_config import DreamerConfig
from agents.mask_world_model import MaskWorldModel
from agents.masked_world_model import MaskedWorldModel
from tests.agents import test_mask2act as mask2act
from tests.agents.tiny_agent import SIZE, TINY, TINY_DREAMER, A
from tests.agents.tiny_imitation import TINY as TINY_IMITATION
from world_models.layers import Optimizer

META = torch.device("meta")


class OnDevice(TorchDispatchMode):
    """Refuses operations that read or make a tensor of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.check(func, "reads", (args, kwargs))
        result = func(*args, **kwargs)
        self.check(func, "makes", result)
        return result

    def check(self, func, verb, value):
        if isinstance(value, torch.Tensor):
            assert value.device == META, f"{func} {verb} a tensor of {value.device}"
        elif isinstance(value, dict):
            self.check(func, verb, list(value.values()))
        elif isinstance(value, tuple | list):
            for part in value:
                self.check(func, verb, part)


class ReplayOnDevice:
    """Draws as a replay does whose frames are in the device's memory; the frames are empty."""

    rng = np.random.default_rng(0)
    shapes = {"image": (SIZE, SIZE, 3), "mask": (SIZE, SIZE), "action": (A,)}
    types = {"image": torch.uint8, "mask": torch.uint8, "is_first": torch.bool,
             "is_terminal": torch.bool}  # fmt: skip

    def draw_frames(self, batch):
        return np.zeros(batch, np.int64)

    def draw_windows(self, batch, length):
        return np.zeros((batch, length), np.int64)

    def single_frames(self, index):
        return self.windows(index, ("image", "reward", "is_terminal", "mask"))

    def windows(self, index, names):
        return {
            name: torch.zeros(
                *index.shape, *self.shapes.get(name, ()), dtype=self.types.get(name), device=META
            )
            for name in names
        }


@pytest.fixture(autouse=True)
def as_a_gpu(monkeypatch):
    """What torch's own checks of devices refuse the meta device, though its operations know it."""
    for module, check in (
        ("torch.nn.utils.clip_grad", "_device_has_foreach_support"),
        ("torch.optim.adam", "_device_dtype_check_for_fused"),
    ):
        monkeypatch.setattr(importlib.import_module(module), check, lambda *_, **__: True)


def all_on_device(metrics):
    return all(value.device == META and value.shape == () for value in metrics.values())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.sum().item(),
        lambda x: x if x.any() else -x,
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.zeros(3),
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.arange(3),
    ],
)
def test_what_a_gpu_would_wait_for_is_found(wrong):
    value = torch.zeros(3, device=META)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), OnDevice():
        wrong(value)


# ------------------------------------------------------------------------------------- online


SHORT = {"batch": 2, "window": 2, "behaviour": replace(TINY.behaviour, horizon=2, start_states=3)}
MASKED = replace(TINY, **SHORT, autoencoder_pretraining=1)
DREAMER = replace(TINY_DREAMER, **SHORT, pretraining=1)
RSSM = replace(TINY.dynamics.rssm, gate_bias=True, zero_first_action=True)


def masked(**autoencoder):
    return replace(MASKED, autoencoder=replace(TINY.autoencoder, **autoencoder))


ONLINE = {
    "as the paper preset": replace(
        MASKED,
        dynamics=replace(TINY.dynamics, rssm=RSSM),
        behaviour=replace(SHORT["behaviour"], start_states=None),
    ),
    "as the cpu preset, and masks": replace(
        masked(target="pixels:1+masks:0.5", centre_input=True, static_image_lr_scale=1.0),
        dynamics=replace(TINY.dynamics, standardise_features=True, predict_discount=True),
    ),
    "pixels masked, class token alone": masked(mask="pixels", features="class"),
    "vae": masked(kind="vae"),
    "dreamer": DREAMER,
    "dreamer, vit and masks": replace(DREAMER, encoder="vit", target="masks"),
    "dreamer, contrastive": replace(DREAMER, representation="contrastive"),
}


@pytest.mark.parametrize("name", ONLINE)
def test_an_online_agent_learns_on_its_device_alone(name):
    config = ONLINE[name]
    kind = Dreamer if isinstance(config, DreamerConfig) else MaskedWorldModel
    with META:  # `to` makes other parameters on the meta device than the optimisers know
        agent = kind(config, A, META)
    replay = ReplayOnDevice()
    with OnDevice():
        found = [*agent.pretrain(replay), agent.update(replay)]
    assert all(all_on_device(metrics) for metrics in found)
    assert agent.updates == 1


# -------------------------------------------------------------------------------- imitation


def learn(agent, stage, batch):
    """An update of a stage, of two micro-batches. (That the optimiser's second update needs the
    host no more than its first, online agents show.)"""
    agent.resume(stage)
    trained = agent.stage(stage)
    optimizer = Optimizer(trained.modules, trained.optimizer)
    with OnDevice():
        for _ in range(2):
            loss, metrics = agent.loss(stage, batch)
            optimizer.accumulate(loss / 2)
        norm = optimizer.apply()
        agent.update_ema(1)
    assert all_on_device({**metrics, "loss": loss, "norm": norm})


def on_device(batch):
    return {name: part.to(META) for name, part in batch.items()}


@pytest.mark.parametrize("world_model", ["video", "pixels", "none", "blind"])
def test_mask_world_model_learns_on_its_device_alone(world_model):
    kind = "video" if world_model == "pixels" else world_model
    target = "pixels" if world_model == "pixels" else "masks"
    dynamics = replace(TINY_IMITATION.dynamics, target=target)
    config = replace(TINY_IMITATION, world_model=kind, dynamics=dynamics)
    agent = MaskWorldModel(config, DataSpec(2, 32, 4, 5), mask2act.STATISTICS, META)
    windows, frames = 2, config.dynamics.future_frames
    past = len(config.windows().past())
    future = (32, 32) if target == "masks" else (32, 32, 3)
    batch = {
        "image": torch.zeros(windows, 2, past, 32, 32, 3, dtype=torch.uint8),
        "future": torch.zeros(windows, 2, frames, *future, dtype=torch.uint8),
        "future_valid": torch.ones(windows, frames, dtype=torch.bool),
        "action": torch.zeros(windows, config.policy.chunk, 4),
        "action_valid": torch.ones(windows, config.policy.chunk, dtype=torch.bool),
        "proprio": torch.zeros(windows, 1, 5),
    }
    batch = on_device(batch) | agent.caption(["close the drawer", "open it"])
    for stage in agent.stages[0 if kind == "video" else 1 :]:
        learn(agent, stage, batch)


@pytest.mark.parametrize("plan", mask2act.ALL_PLANS)
def test_mask2act_learns_on_its_device_alone(plan):
    """Whatever the planner's tokens foretell, the executor reads them in the same way: once is
    enough for all of those."""
    agent, (planner, executor) = mask2act.make(plan, device=META), ("planner", "executor")
    stages = {"none": [executor], "video": [planner, executor], "masks": [planner, executor]}
    for stage in stages.get(plan, [planner]):
        learn(agent, stage, on_device(mask2act.batch(agent, stage)))
