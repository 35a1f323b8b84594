"""Compiling says what it needs."""

import pytest
import torch

from agents.compilation import require_compiler
from errors import UserError


@pytest.mark.parametrize(("variable", "device"), [("CXX", "cpu"), ("CC", "cuda")])
def test_compiling_needs_a_compiler(variable, device, monkeypatch):
    monkeypatch.setenv(variable, "/nowhere/compiler")
    with pytest.raises(UserError, match=f"/nowhere/compiler was not found.*{variable}"):
        require_compiler(torch.device(device))
