"""What can happen to a file, drawn from a seed: bytes, lines, values, and what has its name.

Each function changes something and says in a few words what it was.
"""

import copy
import json
import math
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Change = tuple[bytes, str]
"""The bytes after a change, and what was changed."""

# ------------------------------------------------------------------------------- bytes


def changed_bytes(rng: random.Random, content: bytes) -> Change:
    """Bytes flipped, lost, doubled, zeroed, cut off or added."""
    size = len(content)
    place = rng.randrange(size)
    length = min(size - place, rng.choice((1, 2, 8, 100, 4096, size // 2 or 1)))
    span = slice(place, place + length)
    junk = bytes(rng.randrange(256) for _ in range(min(length, 64)))
    kind = rng.choice(
        ("flip", "flip", "set", "zeros", "junk", "lose", "insert", "double", "end", "append")
    )
    if kind == "flip":
        bit = rng.randrange(8)
        one = bytes([content[place] ^ 1 << bit])
        return content[:place] + one + content[place + 1 :], f"bit {bit} of byte {place} flipped"
    if kind == "set":
        byte = rng.choice(b"\x00\xff\n\"',;:{}[]0 -e\x80")
        one = bytes([byte])
        return content[:place] + one + content[place + 1 :], f"byte {place} set to {byte}"
    if kind == "zeros":
        middle, what = bytes(length), f"{length} zeros at byte {place}"
    elif kind == "junk":
        middle, what = junk, f"{length} bytes at {place} replaced by {len(junk)} of junk"
    elif kind == "lose":
        middle, what = b"", f"{length} bytes lost at byte {place}"
    elif kind == "insert":
        middle, what = junk + content[span], f"{len(junk)} bytes of junk before byte {place}"
    elif kind == "double":
        middle, what = content[span] * 2, f"{length} bytes doubled at byte {place}"
    elif kind == "end":
        return content[:place], f"cut off at byte {place}"
    else:
        return content + junk, f"{len(junk)} bytes of junk appended"
    return content[:place] + middle + content[place + length :], what


def changed_lines(rng: random.Random, content: bytes) -> Change:
    """Lines lost, doubled, swapped, cut, joined, or replaced by what is none of the file's."""
    lines = content.split(b"\n")
    line = rng.randrange(len(lines))
    kind = rng.choice(("lose", "double", "swap", "cut", "join", "foreign", "shuffle", "endings"))
    if kind == "lose":
        del lines[line]
    elif kind == "double":
        lines.insert(line, lines[line])
    elif kind == "swap":
        other = rng.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    elif kind == "cut":
        lines[line] = lines[line][: rng.randrange(len(lines[line]) + 1)]
    elif kind == "join":
        lines[line : line + 2] = [b"".join(lines[line : line + 2])]
    elif kind == "foreign":
        lines[line] = rng.choice(FOREIGN)
    elif kind == "shuffle":
        rng.shuffle(lines)
    else:
        return rng.choice((b"\r\n", b"\r", b"\n\n", b"\x00")).join(lines), "other line endings"
    return b"\n".join(lines), f"line {line + 1}: {kind}"


FOREIGN = (
    b"", b" ", b"\t", b"null", b"[]", b"{}", b"1", b'"', b"{", b"nan", b"\xff\xfe", b"\x00" * 20,
    b"[" * 5000, b"9" * 5000, b'{"step": 1e400}', b'{"step": -1}', b"<<<<<<< HEAD", b"#", b",,,,,,",
    b"\xef\xbb\xbf", b"\x1b[2J", b"a" * 100_000, b"\xc3\x28", b'{"step": true}', b'{"a": {"a": 1}}',
)  # fmt: skip
"""Lines that have no place in a file."""


def changed_encoding(rng: random.Random, content: bytes) -> Change:
    """The same text in another encoding."""
    text = content.decode(errors="replace")
    name = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp500", "utf-7"))
    return text.encode(name), f"encoded as {name}"


# ------------------------------------------------------------------------------- values

VALUES: tuple[Any, ...] = (
    None, True, False, "", " ", [], {}, [None], [[]], {"a": 1}, [1, "a"], 0, -1, 1, 2, 3, 255, 256,
    2**31, 2**53, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, -0.5, 0.5, 1.5, 1e16, 1e308, 5e-324,
    math.nan, math.inf, -math.inf, "1", "0.0", "nan", "true", "x", "a" * 5000, "a\nb", "\x1b[2J",
    "\u202e", "捡", "../outside/mine", "/etc/passwd", "/dev/zero", "payload:Payload", "os:abort",
    "metaworld/reach", "metaworld/window-close", "libero/object/0", "frames", "image", "uint8",
    "float32", "object", "O", [64, 64, 3], [0, 0, 3], [-1, 2], [10**6] * 3,
)  # fmt: skip
"""In the place of a value."""


def changed_value(rng: random.Random, content: Any) -> tuple[Any, str]:
    """Nested lists and dicts in which a value is another, is missing, or stands elsewhere too."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places:
        return rng.choice(VALUES), "everything replaced"
    holder, key, path = rng.choice(places)
    kind = rng.choice(("set", "set", "set", "lose", "add", "wrap", "copy", "scale"))
    if kind == "lose":
        del holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder[rng.choice(("x", "", "step", "seed", "frames", "ü"))] = rng.choice(VALUES)
    elif kind == "add":
        holder.insert(key, rng.choice(VALUES))
    elif kind == "wrap":
        holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
    elif kind == "copy":
        other, its_key, _ = rng.choice(places)
        holder[key] = copy.deepcopy(other[its_key])
    elif kind == "scale" and type(holder[key]) in (int, float):
        holder[key] *= rng.choice((-1, 0, 2, 10**9))
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return content, f"{path}: {kind}"


def _places(content: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(holder, key, dotted path) of every value."""
    if isinstance(content, dict):
        pairs: Any = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content)
    else:
        return
    for key, value in pairs:
        yield content, key, f"{path}.{key}".lstrip(".")
        yield from _places(value, f"{path}.{key}")


def changed_json(rng: random.Random, content: bytes) -> Change:
    """A JSON document with another value."""
    value, what = changed_value(rng, json.loads(content))
    return json.dumps(value).encode(), what


def changed_json_line(rng: random.Random, content: bytes) -> Change:
    """A file of JSON lines, one of them with another value."""
    lines = content.splitlines()
    line = rng.randrange(len(lines))
    lines[line], what = changed_json(rng, lines[line])
    return b"\n".join(lines) + b"\n", f"line {line + 1}, {what}"


def changed_text(rng: random.Random, content: bytes) -> Change:
    """Bytes, lines or the encoding of a text."""
    change = rng.choice((changed_bytes, changed_bytes, changed_lines, changed_lines,
                         changed_encoding))  # fmt: skip
    return change(rng, content)


# ------------------------------------------------------------------- what has its name

HOLES = 2**43
"""Bytes of a file of nothing but holes, 8 TiB."""


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's name is at most 107 bytes
        one.bind(path.name)
        os.chdir(before)


def _full_folder(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("mine")


def _holes(path: Path, outside: Path) -> None:
    path.touch()
    os.truncate(path, HOLES)


def _out_of_the_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "mine")


def _hard_link(path: Path, outside: Path) -> None:
    os.link(outside / "mine", path)


PLACES: dict[str, Callable[[Path, Path], None]] = {
    "nothing": lambda path, outside: None,
    "an empty file": lambda path, outside: path.touch(),
    "an empty folder": lambda path, outside: path.mkdir(),
    "a folder": _full_folder,
    "a pipe": _fifo,
    "a socket": _socket,
    "a file of holes": _holes,
    "a link to nowhere": lambda path, outside: path.symlink_to("nowhere"),
    "a link to itself": lambda path, outside: path.symlink_to(path.name),
    "a link to a device": lambda path, outside: path.symlink_to("/dev/zero"),
    "a link to the folder above": lambda path, outside: path.symlink_to(".."),
    "a link out of the folder": _out_of_the_folder,
    "a hard link to a file elsewhere": _hard_link,
}
"""What may be where a file should be, and how it gets there."""


def replaced(rng: random.Random, path: Path, outside: Path) -> str:
    """Put something else in the place of a file, or let nobody read it; says what."""
    if rng.random() < 0.1:
        path.chmod(0)
        return "may not be read"
    kind = rng.choice(list(PLACES))
    if path.is_dir() and not path.is_symlink():
        path.rename(outside / f"was {path.name}")
    else:
        path.unlink()
    PLACES[kind](path, outside)
    return f"{kind} in its place"
