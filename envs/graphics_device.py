"""Which GPU draws: the one that learns.

EGL counts GPUs in an order of its own, so that CUDA's number says nothing of it. Unless MuJoCo is
told which, it draws on the first one that EGL lists, whatever `--device` says.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Callable
from typing import Any

VARIABLE = "MUJOCO_EGL_DEVICE_ID"
"""Read by MuJoCo, and by dm_control, when a process draws for the first time: a number in EGL's
order."""

# eglext.h
EGL_EXTENSIONS = 0x3055
EGL_DEVICE_UUID_EXT = 0x335C  # of EGL_EXT_device_persistent_id
EGL_CUDA_DEVICE_NV = 0x323A  # of EGL_NV_device_cuda: its place among CUDA's visible devices
UUID_BYTES, MOST_DEVICES = 16, 64

Identity = tuple[bytes | None, int | None]
"""UUID and CUDA number of a device, None where it does not say."""

_chosen: str | None = None  # what this module has put into the environment


def draw_on(uuid: str, cuda: int) -> None:
    """Let this process and those it starts draw on a GPU. A user's own choice in the environment
    stands, and where EGL does not know the GPU, MuJoCo chooses as ever.

    Args:
        uuid: of the GPU, as CUDA writes it.
        cuda: its number among those that CUDA shows.
    """
    global _chosen
    if os.environ.get(VARIABLE) not in (None, _chosen):
        return
    os.environ.pop(VARIABLE, None)
    number = place_of(egl_devices(), _bytes(uuid), cuda)
    if number is not None:
        os.environ[VARIABLE] = _chosen = str(number)


def _bytes(written: str) -> bytes:
    """The bytes of a UUID; none if it is something else."""
    try:
        return uuid.UUID(written.removeprefix("GPU-")).bytes
    except ValueError:
        return b""


def place_of(devices: list[Identity], identity: bytes, cuda: int) -> int | None:
    """Where in `egl_devices` the GPU with a UUID or, where EGL knows none, a CUDA number is; None
    where it is not, or not told apart from another."""
    for index, wanted in ((0, identity), (1, cuda)):
        found = [place for place, device in enumerate(devices) if device[index] == wanted]
        if len(found) == 1:
            return found[0]
    return None


def egl_devices() -> list[Identity]:
    """Every device in EGL's order; none without EGL."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        find = egl.eglGetProcAddress
    except (OSError, AttributeError):
        return []
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    pointer, integer = ctypes.c_void_p, ctypes.c_int

    def function(name: str, result: Any, *arguments: Any) -> Callable:
        address = find(name.encode())
        # What a library lacks finds nothing.
        return ctypes.CFUNCTYPE(result, *arguments)(address) if address else lambda *_: None

    devices, count = (pointer * MOST_DEVICES)(), integer()
    query = function("eglQueryDevicesEXT", integer, integer, pointer, pointer)
    text = function("eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, integer)
    binary = function(
        "eglQueryDeviceBinaryEXT", integer, pointer, integer, integer, pointer, pointer
    )
    attribute = function("eglQueryDeviceAttribEXT", integer, pointer, integer, pointer)
    if not query(MOST_DEVICES, devices, ctypes.byref(count)):
        return []

    def identity(device: int | None) -> Identity:
        extensions = (text(device, EGL_EXTENSIONS) or b"").decode().split()
        identifier, size = (ctypes.c_ubyte * UUID_BYTES)(), integer()
        number = ctypes.c_ssize_t()
        has_uuid = "EGL_EXT_device_persistent_id" in extensions and binary(
            device, EGL_DEVICE_UUID_EXT, UUID_BYTES, identifier, ctypes.byref(size)
        )
        has_number = "EGL_NV_device_cuda" in extensions and attribute(
            device, EGL_CUDA_DEVICE_NV, ctypes.byref(number)
        )
        return bytes(identifier) if has_uuid else None, number.value if has_number else None

    return [identity(device) for device in devices[: count.value]]
