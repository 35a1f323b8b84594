"""Pictures are drawn on the GPU that learns, whatever EGL's order; a user's own choice stands."""

import os
import uuid

import pytest

from envs import graphics_device
from envs.graphics_device import VARIABLE, draw_on, egl_devices, place_of

ONE, TWO = (uuid.UUID(int=number) for number in (1, 2))
REVERSED = [(TWO.bytes, 1), (None, None), (ONE.bytes, 0)]
"""Two GPUs in another order than CUDA's, and a software renderer."""


@pytest.mark.parametrize(
    ("devices", "place"),
    [
        (REVERSED, 0),
        ([(ONE.bytes, 1), (TWO.bytes, 0)], 1),  # the UUID counts, not the number
        ([(None, 1), (None, 0)], 0),  # a driver too old for UUIDs
        ([(None, 1), (None, 1)], None),  # two may be it
        ([(ONE.bytes, None)], None),
        ([(None, None)], None),  # software alone
        ([], None),
    ],
)
def test_a_gpu_is_found_in_egls_order(devices, place):
    assert place_of(devices, TWO.bytes, 1) == place


def test_what_egl_lists_here_can_be_asked():
    for identifier, number in egl_devices():
        assert identifier is None or len(identifier) == 16
        assert number is None or number >= 0


@pytest.fixture
def listed(monkeypatch):
    """A machine with the devices of `REVERSED`, which none that runs the tests need be."""
    monkeypatch.setattr(graphics_device, "egl_devices", lambda: REVERSED)
    monkeypatch.setattr(graphics_device, "_chosen", None)
    monkeypatch.delenv(VARIABLE, raising=False)


def test_drawing_follows_the_device_from_one_to_another(listed):
    draw_on(str(ONE), 0)
    assert os.environ[VARIABLE] == "2"
    draw_on(f"GPU-{TWO}", 1)
    assert os.environ[VARIABLE] == "0"
    draw_on("of another maker", 7)  # EGL does not know it: MuJoCo chooses
    assert VARIABLE not in os.environ


def test_the_users_choice_stands(listed, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    draw_on(str(ONE), 0)
    assert os.environ[VARIABLE] == "1"
