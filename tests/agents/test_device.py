"""Precision by device, and compiled functions that say what they need and change nothing."""

from pathlib import Path

import pytest
import torch

from agents.device import Precision, autocast, compiled, require_compiler
from agents.imitation_presets import preset as imitation_preset
from agents.presets import preset
from errors import UserError
from experiment.hardware import hardware, has_bfloat16
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


def test_presets_for_any_processor_let_it_decide():
    for config in (preset("cpu", "metaworld/window-close"), imitation_preset("cpu")):
        assert config.agent.precision == "auto"
    assert preset("paper", "metaworld/window-close").agent.precision == "float32"
    assert preset("cpu", "dmc/walker-walk").agent.autoencoder_precision == "float32"


@pytest.mark.parametrize(("variable", "device"), [("CXX", "cpu"), ("CC", "cuda")])
def test_compiling_needs_a_compiler(variable, device, monkeypatch):
    monkeypatch.setenv(variable, "/nowhere/compiler")
    with pytest.raises(UserError, match=f"/nowhere/compiler was not found.*{variable}"):
        require_compiler(torch.device(device))


def test_compiled_code_computes_the_same_with_gradients():
    """Really compiled, with the options that updates are compiled with."""
    torch.manual_seed(0)
    cell, inputs = NormGRUCell(5, 8), torch.randn(3, 4, 5)

    def along(inputs):
        state = torch.zeros(4, 8)
        for step in inputs:
            state = cell(step, state)
        return state.square().sum()

    results = []
    for function in (along, compiled(along, torch.device("cpu"))):
        value = function(inputs)
        results.append([value, *torch.autograd.grad(value, list(cell.parameters()))])
    torch.testing.assert_close(*results)
