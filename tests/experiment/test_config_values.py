"""Plain values become a configuration, or one sentence that names the field."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from errors import UserError
from experiment.config_values import check_numbers, from_plain, shown


@dataclass(frozen=True)
class Layer:
    units: int = 8
    bias: bool = True
    rate: float = 1e-3

    def __post_init__(self):
        if self.units < 1:
            raise UserError(f"units must be at least 1, not {self.units}")


@dataclass(frozen=True)
class Network:
    task: str
    kind: Literal["video", "none"] = "video"
    layer: Layer = field(default_factory=Layer)
    widths: tuple[int, ...] = (8, 16)
    betas: tuple[float, float] = (0.9, 0.95)
    camera: str | None = None
    repeat: int | None = None
    scale: int | str = 1
    folder: Path | None = None


GIVEN = {
    "task": "a/b",
    "kind": "none",
    "layer": {"units": 3, "bias": False, "rate": "1e-4"},
    "widths": [1, 2, 3],
    "betas": [0, 1.5],
    "camera": "top",
    "repeat": None,
    "scale": "half",
    "folder": "runs/a",
}


def test_plain_values_become_a_configuration():
    assert from_plain(GIVEN, Network) == Network(
        "a/b", "none", Layer(3, False, 1e-4), (1, 2, 3), (0.0, 1.5), "top", None, "half",
        Path("runs/a"),
    )  # fmt: skip
    assert from_plain({"task": "a/b"}, Network) == Network("a/b")
    assert isinstance(from_plain(GIVEN, Network).betas[0], float)


def put(name, value):
    """`GIVEN` with another value of a dotted name."""
    *path, last = name.split(".")
    changed = inner = {**GIVEN, "layer": dict(GIVEN["layer"])}
    for key in path:
        inner = inner[key]
    inner[last] = value
    return changed


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task", None, "task is None; it must be text"),
        ("task", 3, "task is 3; it must be text"),
        ("task", ["a/b"], "task is ['a/b']; it must be text"),
        ("kind", "blind", "kind is blind; it must be one of video, none"),
        ("kind", None, "kind is None; it must be one of"),
        ("layer", None, "layer is None; it must be a group of options"),
        ("layer", [], "layer is []; it must be a group of options"),
        ("layer.units", True, "layer.units is True; it must be a whole number"),
        ("layer.units", 3.0, "layer.units is 3.0; it must be a whole number"),
        ("layer.units", "3", "layer.units is 3; it must be a whole number"),
        ("layer.units", 2**63, "layer.units is 9223372036854775808; it must be a whole number"),
        ("layer.units", 0, "in layer, units must be at least 1, not 0"),
        ("layer.bias", 1, "layer.bias is 1; it must be true or false"),
        ("layer.bias", "yes", "layer.bias is yes; it must be true or false"),
        ("layer.rate", math.nan, "layer.rate is nan; it must be a finite number"),
        ("layer.rate", -math.inf, "layer.rate is -inf; it must be a finite number"),
        ("layer.rate", "nan", "layer.rate is nan; it must be a finite number"),
        ("layer.rate", "fast", "layer.rate is fast; it must be a finite number"),
        ("layer.rate", True, "layer.rate is True; it must be a finite number"),
        ("layer.rate", 10**400, "it must be a finite number"),
        ("layer.x", 1, "unknown layer.x"),
        ("widths", "abc", "widths is abc; it must be a list"),
        ("widths", {"a": 1}, "widths is {'a': 1}; it must be a list"),
        ("widths", [1, None], "widths[1] is None; it must be a whole number"),
        ("betas", [0.9], "betas is [0.9]; it must be a list of 2"),
        ("camera", 2, "camera is 2; it must be text"),
        ("repeat", "x", "repeat is x; it must be a whole number"),
        ("scale", None, "scale is None; it must be text"),
        ("colour", "red", "unknown colour"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_the_name_of_its_field(name, value, words):
    with pytest.raises(UserError) as refusal:
        from_plain(put(name, value), Network)
    assert words in str(refusal.value)


def test_a_field_without_a_default_is_asked_for():
    with pytest.raises(UserError, match="task is missing"):
        from_plain({}, Network)


def test_a_value_in_an_error_is_short_and_printable():
    assert shown("metaworld/reach") == "metaworld/reach"
    nested: object = "deep"
    for _ in range(100):
        nested = {f"key {number}": nested for number in range(10)}
    for value in (
        "",
        "a" * 10_000,
        "\x1b[2J",
        "a\nb",
        list(range(10_000)),
        nested,
        10**300,
        10**5000,
    ):
        assert shown(value).isprintable()
        assert 0 < len(shown(value)) < 400


def test_numbers_that_a_record_could_not_give_back_are_refused_by_name():
    check_numbers(Network("a/b"))
    for config, name in (
        (Network("a/b", layer=Layer(rate=math.nan)), "layer.rate is nan"),
        (Network("a/b", betas=(0.9, math.inf)), r"betas\[1\] is inf"),
        (Network("a/b", repeat=2**63), "repeat is 9223372036854775808; it must be at most"),
    ):
        with pytest.raises(UserError, match=name):
            check_numbers(config)
