"""Gradients by finite differences in float64."""

import copy

import numpy as np
import torch

STEP = 1e-6


def numerical_gradient(function, x):
    """The gradient of a scalar function at x (...), one entry at a time."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += STEP
        down[index] -= STEP
        gradient[index] = (function(up) - function(down)) / (2 * STEP)
    return gradient


def assert_gradients(loss, module, objective):
    """The gradient of `loss` for every parameter of `module` is that of `objective`.

    Args:
        loss: scalar with a graph; its gradients are made in float32.
        module: what it was computed with.
        objective: a float64 copy of the module → the loss as a float, computed independently.
            What no gradient is to pass is the same in every call.
    """
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    twin = copy.deepcopy(module).double().requires_grad_(False)
    value = objective(twin)
    assert abs(loss.item() - value) < 1e-5 * abs(value), (loss.item(), value)
    generator = torch.Generator().manual_seed(0)
    wrong = {}
    for (name, parameter), gradient in zip(twin.named_parameters(), gradients, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient.double()
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        middle = parameter.clone()
        parameter.copy_(middle + STEP * direction)
        above = objective(twin)
        parameter.copy_(middle - STEP * direction)
        slope = (above - objective(twin)) / (2 * STEP)
        parameter.copy_(middle)
        found = (gradient * direction).sum().item()
        if abs(found - slope) > 1e-3 * abs(slope) + 1e-4 * gradient.norm().item() + 1e-6:
            wrong[name] = (found, slope)
    assert wrong == {}
