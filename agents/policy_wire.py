"""Observations and actions as bytes: MessagePack, with NumPy arrays as openpi encodes them.

An array is a map of ``__ndarray__``, ``data``, ``dtype`` and ``shape``, a NumPy scalar one of
``__npgeneric__``, ``data`` and ``dtype``; the keys are bytes. Nothing is pickled: only numbers and
truth values are arrays here, and reading runs no code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from errors import UserError

MOST_BYTES = 2**26
"""Of a message, 64 MiB: five pictures of 2,000 pixels a side."""
KINDS = "biuf"
"""Kinds of numbers that arrays may hold: truth values, whole and real ones."""
HOW = "pip install '.[serve]'"


def pack(value: Any) -> bytes:
    """A dict of text, numbers, lists and arrays as a message.

    Raises:
        UserError: the library is not there, or the value holds something else.
    """
    try:
        return _msgpack().packb(value, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"this cannot be sent: {error}") from error


def unpack(message: bytes) -> dict[str, Any]:
    """The inverse of `pack`; arrays may be read only.

    Raises:
        UserError: the library is not there, or the message is none that `pack` makes.
    """
    library = _msgpack()
    if len(message) > MOST_BYTES:
        raise UserError(f"a message of {len(message):,} bytes is longer than {MOST_BYTES:,}")
    try:
        value = library.unpackb(message, object_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError, KeyError, RecursionError, library.UnpackException) as error:
        raise UserError(
            f"a message is no MessagePack that a policy reads ({error!s:.100})"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"a message is a {type(value).__name__}, not a map of names to values")
    return value


def check_libraries() -> None:
    """Find out now whether policies can be served and asked.

    Raises:
        UserError: a library is not there.
    """
    _msgpack()
    try:
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(f"policies are served with the library websockets: {HOW}") from error


def check_token(token: str | None) -> None:
    """Refuse a token that no header can carry.

    Raises:
        UserError: it is empty, or holds more than printable ASCII characters.
    """
    if token is not None and not (token.strip() and token.isascii() and token.isprintable()):
        raise UserError("--token is empty or not ASCII; give letters and digits")


def renamed(keys: str | None) -> dict[str, str]:
    """ "image/0=observation/image,proprio=observation/state" → by our name, theirs.

    Raises:
        UserError: it is written otherwise.
    """
    found: dict[str, str] = {}
    for part in (keys or "").split(",") if keys else ():
        ours, equals, theirs = part.strip().partition("=")
        known = ours in ("image", "proprio", "prompt", "action", "actions") or (
            ours.startswith("image/") and ours.removeprefix("image/").isdecimal()
        )
        if not (equals and theirs and known) or ours in found:
            raise UserError(
                f"--keys takes OURS=THEIRS, separated by commas, ours being image, image/0,"
                f" image/1, ..., proprio, prompt and actions; not {part!r:.80}"
            )
        found[ours] = theirs
    return found


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise UserError(f"policies are served with the library msgpack: {HOW}") from error
    return msgpack


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in KINDS:
        raise TypeError(f"an array of {value.dtype} holds no numbers")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str,
            b"shape": value.shape,
        }  # fmt: skip
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} is neither text nor numbers")


def _decode(value: dict) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _dtype(value[b"dtype"]).type(value[b"data"])
    return value


def _array(value: dict) -> np.ndarray:
    dtype, shape, data = _dtype(value[b"dtype"]), tuple(value[b"shape"]), value[b"data"]
    whole = all(type(side) is int and side >= 0 for side in shape) and len(shape) <= 8
    if not whole or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data):,} bytes are no array {shape!r:.60} of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(name: Any) -> np.dtype:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    dtype = np.dtype(text) if isinstance(text, str) and len(text) <= 8 else None
    if dtype is None or dtype.kind not in KINDS or dtype.itemsize > 8:
        raise ValueError(f"{name!r:.40} is no kind of number")
    return dtype
