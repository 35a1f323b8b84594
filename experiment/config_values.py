"""Plain values, as YAML has them, to the dataclass of a configuration: every field is checked."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from errors import UserError

Config = TypeVar("Config")

LARGEST = 2**63 - 1
"""Of whole numbers: what 64 bits hold."""

LONGEST_TEXT = 60
"""Characters of a text that an error repeats."""
MOST_NAMED = 6
"""Unknown fields that an error names."""

_shortened = reprlib.Repr()
_shortened.maxstring = LONGEST_TEXT
_shortened.maxlevel, _shortened.maxdict, _shortened.maxlist = 2, 3, 3


def from_plain(recorded: Mapping[str, Any], config_class: type[Config], prefix: str = "") -> Config:
    """``recorded`` as a ``config_class``; a field that is missing takes its default.

    Args:
        recorded: by field, dicts for dataclasses and lists for tuples.
        config_class: a dataclass whose fields are bool, int, float, str, Path, Literal,
            dataclasses, tuples of these, or any of them or None.
        prefix: of the fields' dotted names in errors, ``agent.``.

    Raises:
        UserError: a field is unknown, missing, or of another type (whole numbers beyond 64 bits and
            numbers that are not finite included), or the class refuses its values; names the field.
    """
    unknown = sorted(recorded.keys() - {field.name for field in fields(config_class)})  # type: ignore[arg-type]  # it is a dataclass
    if unknown:
        named = ", ".join(prefix + name for name in unknown[:MOST_NAMED])
        others = len(unknown) - MOST_NAMED
        raise UserError(f"unknown {named}{f' and {others} more' if others > 0 else ''}")
    types = get_type_hints(config_class)
    values = {}
    for field in fields(config_class):  # type: ignore[arg-type]  # it is a dataclass
        if field.name in recorded:
            name = prefix + field.name
            values[field.name] = _checked(recorded[field.name], types[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{prefix}{field.name} is missing")
    try:
        return config_class(**values)
    except UserError as error:
        where = f"in {prefix.rstrip('.')}, " if prefix else ""
        raise UserError(f"{where}{error}") from error


def _checked(value: Any, kind: Any, name: str) -> Any:
    """``value`` as the type ``kind`` of the field ``name``."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise _wrong(name, value, "a group of options")
        return from_plain(value, kind, f"{name}.")
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        *others, last = (part for part in parts if part is not NoneType)
        for other in others:
            with contextlib.suppress(UserError):
                return _checked(value, other, name)
        return _checked(value, last, name)
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in parts:
            raise _wrong(name, value, f"one of {', '.join(parts)}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _wrong(name, value, "a list")
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(value) != len(kinds):
            raise _wrong(name, value, f"a list of {len(kinds)}")
        each = zip(value, kinds, strict=True)
        return tuple(_checked(v, k, f"{name}[{i}]") for i, (v, k) in enumerate(each))
    return _checked_scalar(value, kind, name)


def _checked_scalar(value: Any, kind: Any, name: str) -> Any:
    if kind is float:
        number = _number(value)
        if number is None:
            raise _wrong(name, value, "a finite number")
        return number
    if kind is int:
        if type(value) is not int or abs(value) > LARGEST:
            raise _wrong(name, value, "a whole number of at most 64 bits")
    elif kind is bool:
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
    elif not isinstance(value, str):
        raise _wrong(name, value, "text")
    return Path(value) if kind is Path else value


def _number(value: Any) -> float | None:
    """A finite number, also one that YAML takes for text (1e-4); None for anything else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _wrong(name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{name} is {shown(value)}; it must be {wanted}")


def shown(value: Any, longest: int = LONGEST_TEXT) -> str:
    """A value in an error: on one line, and shortened."""
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= longest:
        return value
    if isinstance(value, int) and value.bit_length() > 4 * longest:
        return f"a number of {value.bit_length():,} bits"  # Python may refuse to write it out
    return _shortened.repr(value)


def check_numbers(config: Any) -> None:
    """Refuse a configuration whose record could not be read again: with a number that is none, is
    infinite, or takes more than 64 bits. Raises UserError."""
    for name, value in _numbers(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}; it must be a finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{name} is {shown(value)}; it must be at most {LARGEST}")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a dataclass, with its dotted name."""
    if isinstance(value, (int, float)):
        yield name, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{name}[{index}]")
    elif is_dataclass(value):
        for field in fields(value):
            below = f"{name}.{field.name}" if name else field.name
            yield from _numbers(getattr(value, field.name), below)
