"""Precision by device, and compiled functions that say what they need and change nothing."""

import contextlib
from pathlib import Path

import pytest
import torch

from agents.device import Precision, autocast, choose_device, compiled, require_compiler
from agents.imitation_presets import preset as imitation_preset
from agents.online_config import METHODS
from agents.presets import preset
from agents.training import random_state, set_random_state
from errors import UserError
from experiment.hardware import draws_in_software, gpu_name, hardware, has_bfloat16
from world_models.rssm import NormGRUCell

CPU = torch.device("cpu")


def dtype_of(precision: Precision) -> torch.dtype:
    """What a dense layer computes in."""
    with autocast(precision, CPU):
        return torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype


def flags() -> set[str]:
    """What Linux says the processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(named, "").split())


def test_arithmetic_is_found_where_the_processor_has_it():
    if flags() and hasattr(torch.cpu, "get_capabilities"):
        assert has_bfloat16(CPU) == bool(flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    assert hardware()["bfloat16"] == has_bfloat16(CPU)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_auto_is_bfloat16_with_its_arithmetic_only(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert dtype_of("auto") == (torch.bfloat16 if expected else torch.float32)
    assert dtype_of("bfloat16") == torch.bfloat16
    assert dtype_of("float32") == torch.float32


def test_older_pytorch_that_cannot_be_asked_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert dtype_of("auto") == torch.float32


class TwoGPUs:
    """What torch.cuda would say of a machine with two GPUs, of which only the second one has
    arithmetic for bfloat16; none need be there."""

    def __init__(self, monkeypatch):
        self.current, self.states = 0, {0: torch.zeros(1), 1: torch.ones(1)}
        self.drawn_on: list = []

        class Properties:
            uuid = "00000000-0000-0000-0000-000000000001"

        class Empty:
            device = torch.device("cuda", 1)

        answers = {
            "is_available": lambda: True,
            "set_device": lambda device: setattr(self, "current", device.index),
            "get_device_name": lambda device=None: f"GPU {self.number(device)}",
            "get_device_properties": lambda device: Properties,
            "device": self.within,
            "is_bf16_supported": lambda including_emulation: self.current == 1,
            "get_rng_state": lambda device: self.states[self.number(device)],
            "set_rng_state": lambda state, device: self.states.update({self.number(device): state}),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch, "empty", lambda *shape, device: Empty)
        monkeypatch.setattr(
            "agents.device.draw_on", lambda identifier, number: self.drawn_on.append(number)
        )

    def number(self, device):
        number = None if device is None else torch.device(device).index
        return self.current if number is None else number

    @contextlib.contextmanager
    def within(self, device):
        before, self.current = self.current, self.number(device)
        yield
        self.current = before


def test_the_second_gpu_is_asked_used_and_drawn_with_where_it_is_chosen(monkeypatch):
    gpus = TwoGPUs(monkeypatch)
    second = torch.device("cuda", 1)
    assert has_bfloat16(second)
    assert not has_bfloat16(torch.device("cuda", 0))
    assert choose_device("cuda:1") == second
    assert gpus.current == 1
    assert gpus.drawn_on == [1]
    assert gpu_name("cuda:0") == "GPU 0"
    assert gpu_name("cuda:1") == "GPU 1"
    assert hardware()["gpu"] == "GPU 1"


def test_random_numbers_are_kept_of_the_device_in_use(monkeypatch):
    gpus = TwoGPUs(monkeypatch)
    kept = random_state(torch.device("cuda", 1))
    assert torch.equal(kept["cuda"], torch.ones(1))
    gpus.states[1] = torch.full((1,), 7.0)
    set_random_state(kept, torch.device("cuda", 1))
    assert [float(state) for state in gpus.states.values()] == [0.0, 1.0]
    assert random_state(CPU).keys() == {"cpu"}
    set_random_state(kept, CPU)  # a run that goes on without a GPU


def test_no_gpu_has_no_name():
    if not torch.cuda.is_available():
        assert gpu_name("cuda:1") is None
        assert hardware("cuda:1")["gpu"] is None


@pytest.mark.parametrize(
    ("renderer", "software"),
    [
        ("llvmpipe (LLVM 15.0.7, 256 bits)", True),
        ("Software Rasterizer", True),
        ("NVIDIA H200/PCIe/SSE2", False),
        ("Mesa Intel(R) UHD Graphics 630 (CFL GT2)", False),
    ],
)
def test_renderers_that_draw_on_the_processor_are_known_by_name(renderer, software):
    assert draws_in_software(renderer) == software


def test_presets_for_any_processor_let_it_decide():
    for config in (preset("cpu", "metaworld/window-close"), imitation_preset("cpu")):
        assert config.agent.precision == "auto"
    for method in METHODS:
        assert preset("paper", "metaworld/window-close", method).agent.precision == "auto"
    assert preset("paper", "dmc/walker-walk").agent.autoencoder_precision == "auto"
    assert preset("cpu", "dmc/walker-walk").agent.autoencoder_precision == "float32"


@pytest.mark.parametrize(("variable", "device"), [("CXX", "cpu"), ("CC", "cuda")])
def test_compiling_needs_a_compiler(variable, device, monkeypatch):
    monkeypatch.setenv(variable, "/nowhere/compiler")
    with pytest.raises(UserError, match=f"/nowhere/compiler was not found.*{variable}"):
        require_compiler(torch.device(device))


def test_compiled_code_computes_the_same_with_gradients():
    """Really compiled, with the options that updates are compiled with."""
    torch.manual_seed(0)
    cell, inputs, state = NormGRUCell(5, 8), torch.randn(4, 5), torch.randn(4, 8)

    def loss(inputs, state):
        return cell(inputs, state).square().sum()

    results = []
    for function in (loss, compiled(loss, torch.device("cpu"))):
        value = function(inputs, state)
        results.append([value, *torch.autograd.grad(value, list(cell.parameters()))])
    torch.testing.assert_close(*results)
