"""What can happen to a config.yaml, drawn from a seed: values, keys, lines and bytes go wrong."""

import copy
import random
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    None, True, False, "", [], {}, [None], [[]], {"a": 1}, [1], ["a"], [10**9] * 2,
    0, -1, 1, 3, 8, 64, 1000, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30,
    0.0, -0.5, 1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf"),
    "x", "1", "1e-4", "nan", "true", "a" * 5000, "a\nb", "\x1b[2J", "\u202e", "\ud800", "../x",
    "masks", "pixels", "pixels+", "pixels:0", "pixels:nan", "masks:1e400", "a:b:c", "t5:nowhere",
    "cuda:99", "fast", "none", "metaworld/reach", "corner2,gripperPOV",
)  # fmt: skip
"""In the place of a value."""

FRAGMENTS = (
    b"&a ", b"*a", b"<<: ", b"? ", b": ", b"- ", b"#", b"'", b'"', b"|\n", b">\n", b"\t", b"\r",
    b"@", b"`", b"%YAML 9.9\n", b"---\n", b"...\n", b"config: 1\n", b"? [a]\n: b\n",
    b"!!python/object/apply:os.abort []", b"!!python/name:os.abort ", b"!!binary aGk=", b"!!set {}",
    b"[" * 3000, b"{" * 3000, b"- " * 3000, b"9" * 5000, b"0x" + b"f" * 5000, b"0b_", b"1:2:3",
    b".nan", b"-.inf", b"1.0e+999", b"~", b"2001-99-99", b'"\\uD800"',
    b"\x00", b"\xff\xfe", b"\xc3", b"\xe2\x80\xa8", b"\xef\xbb\xbf",
)  # fmt: skip
"""In the midst of a file."""


def mutated(rng: random.Random, config: dict) -> bytes:
    """A config.yaml of `config` in which something is wrong, most likely."""
    if rng.random() < 0.5:
        return written(changed(rng, config))
    text = written(config)
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = damaged(rng, text)
    return text


def written(config: dict) -> bytes:
    text = yaml.safe_dump({"config": config}, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def changed(rng: random.Random, config: dict) -> dict:
    """Values or keys are others."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice((1, 1, 1, 2))):
        section, name = rng.choice(list(places(config)))
        kind = rng.random()
        if kind < 0.75:
            section[name] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.85:
            del section[name]
        elif kind < 0.95:
            section[rng.choice(("x", "target", "0", "steps ", "ü"))] = rng.choice(VALUES)
        else:
            section[name] = copy.deepcopy(config)
    return config


def places(section: dict):
    """Every (section, name) of nested dicts."""
    for name, value in section.items():
        yield section, name
        if isinstance(value, dict):
            yield from places(value)


def damaged(rng: random.Random, text: bytes) -> bytes:
    """Bytes or lines are added, lost, doubled or in another order."""
    place = rng.randrange(len(text) + 1)
    lines = text.split(b"\n")
    line = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        return text[:place] + rng.choice(FRAGMENTS) + text[place:]
    if kind == 1:
        return text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
    if kind == 2:
        return text[:place] + text[place + rng.choice((1, 5, 50, 500, 5000)) :]
    if kind == 3:
        lines[line] = lines[line].partition(b": ")[0] + b": " + rng.choice(FRAGMENTS)
    elif kind == 4:
        lines.insert(rng.randrange(len(lines)), lines[line])
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)
