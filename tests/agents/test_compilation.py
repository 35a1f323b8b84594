"""Compiling says what it needs, and changes nothing."""

import pytest
import torch

from agents.compilation import compiled, require_compiler
from errors import UserError
from world_models.rssm import NormGRUCell


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
