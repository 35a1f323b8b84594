"""What can happen inside of files that have a structure: demonstrations, checkpoints, event files.

Each function changes the file at a path and says in a few words what it did.
"""

import contextlib
import copy
import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from tests.faults.mutations import HOLES, VALUES, changed_bytes, changed_value

# ------------------------------------------------------------------------ demonstrations


def changed_demonstrations(rng: random.Random, path: Path, outside: Path) -> str:
    """One or two changes in the structure or the values of an HDF5 file."""
    said: list[str] = []
    wanted = rng.choice((1, 1, 1, 2))
    while len(said) < wanted:
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            if not names:
                break
            name, change = rng.choice(names), rng.choice(HDF5_CHANGES)
            with contextlib.suppress(*IMPOSSIBLE):
                said.append(f"{name}: {change(rng, file, name, outside)}")
    return "; ".join(said)


IMPOSSIBLE = (
    ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, OverflowError,
)  # fmt: skip
"""What h5py raises where a change does not fit what it is made to."""


def _lost(rng, file, name, outside):
    del file[name]
    return "lost"


def _renamed(rng, file, name, outside):
    names = ("x", "demo_01", "demo_-1", "demo_x", "demo_" + "9" * 30, "obs", "ü", "actions")
    new = rng.choice(names)
    file.move(name, f"{name.rpartition('/')[0]}/{new}")
    return f"renamed to {new}"


def _another_type(rng, file, name, outside):
    values = file[name][()]
    kind = rng.choice(("S5", "i1", "f2", "f8", "c8", "bool", "i8", "V3", "u8"))
    del file[name]
    if kind.startswith(("S", "V")):
        file[name] = np.zeros(values.shape, kind)
    else:
        file[name] = values.astype(kind)
    return f"type {kind}"


def _text(rng, file, name, outside):
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape[:1], h5py.string_dtype())
    return "text of any length"


def _another_shape(rng, file, name, outside):
    values = file[name][()]
    changed = rng.choice(
        (lambda: values[:-1], lambda: values[:0], lambda: values[0], lambda: values[None],
         lambda: values[..., None], lambda: values[..., :1], lambda: np.concatenate([values] * 2),
         lambda: values.reshape(-1), lambda: values.swapaxes(0, -1), lambda: values[::2])
    )()  # fmt: skip
    del file[name]
    file[name] = changed
    return f"shape {values.shape} became {changed.shape}"


def _values(rng, file, name, outside):
    value = rng.choice((np.nan, np.inf, -np.inf, 9, 254, 255, -1, 1e30, 0, 2))
    rows = rng.choice((slice(None), slice(0, 1), slice(-1, None)))
    file[name][rows] = value
    return f"{value} in {rows.start}:{rows.stop}"


def _dataset_or_group(rng, file, name, outside):
    is_group = isinstance(file[name], h5py.Group)
    del file[name]
    if is_group:
        file[name] = np.zeros(3)
        return "a dataset, not a group"
    file.create_group(name)
    return "a group, not a dataset"


def _link(rng, file, name, outside):
    target = rng.choice(("/nowhere", "/", f"/{name}", f"/{name.rpartition('/')[0]}", "/data"))
    del file[name]
    file[name] = h5py.SoftLink(target)
    return f"a link to {target}"


def _other_file(rng, file, name, outside):
    del file[name]
    file[name] = h5py.ExternalLink(str(outside / "other.hdf5"), f"/{name}")
    return "a link to another file"


def _other_raw_data(rng, file, name, outside):
    shape, kind = file[name].shape, file[name].dtype
    size = int(np.prod(shape)) * kind.itemsize
    del file[name]
    file.create_dataset(name, shape, kind, external=[(str(outside / "mine"), 0, size)])
    return "values in another file"


def _virtual(rng, file, name, outside):
    shape, kind = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[:] = h5py.VirtualSource(str(outside / "other.hdf5"), name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)
    return "a view of another file"


def _absurd_size(rng, file, name, outside):
    shape, kind = file[name].shape, file[name].dtype
    larger = (rng.choice((10**7, 10**9, 2**40)), *shape[1:])
    del file[name]
    file.create_dataset(name, larger, kind, chunks=(1, *shape[1:]))
    return f"shape {larger} without values"


def _compressed(rng, file, name, outside):
    values = file[name][()]
    options = rng.choice(
        ({"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True},
         {"maxshape": (None, *values.shape[1:])}, {"scaleoffset": 1})
    )  # fmt: skip
    del file[name]
    file.create_dataset(name, data=values, chunks=True, **options)
    return f"stored with {', '.join(options)}"


def _attribute(rng, file, name, outside):
    names = list(file[name].attrs) or ["num_samples"]
    key = rng.choice(names)
    before = file[name].attrs.get(key)
    value = rng.choice(
        (None, b"bytes", np.zeros(0), np.zeros((2, 2)), np.array(["a", "b"], object), "",
         "x" * 60000, -1, 0, 10**9, np.nan, np.inf, True, "\x1b[2J", "{", "[" * 5000, "null",
         h5py.Empty("f"), str(before).encode(), np.array([str(before)], object), "{}",
         '{"env_name": "x"}', "after_action", "before_action", "metaworld/reach",
         "libero/object/0", "../x", "opengl")
    )  # fmt: skip
    if value is None:
        del file[name].attrs[key]
        return f"attribute {key} lost"
    file[name].attrs[key] = value
    return f"attribute {key} is {str(value)[:30]!r}"


def _more(rng, file, name, outside):
    group = file[name] if isinstance(file[name], h5py.Group) else file[name].parent
    what = rng.choice(("demo_7", "demo_0_copy", "mask", "obs/second_rgb", "obs/corner2_mask2", "x"))
    if rng.random() < 0.5:
        group.create_group(what)
        return f"an empty group {what} in it"
    group[what] = np.arange(4)
    return f"a dataset {what} in it"


def _filter_keys(rng, file, name, outside):
    keys = [rng.choice(("demo_0", "demo_9", "", "../data", "demo_1")) for _ in range(2)]
    file.require_group("mask")
    file["mask/train"] = np.array(keys, "S")
    return f"filter key train {keys}"


def _deep(rng, file, name, outside):
    file.create_group("/".join(["a"] * rng.choice((30, 300))))
    return "many groups in each other"


HDF5_CHANGES: tuple[Callable, ...] = (
    _lost, _renamed, _another_type, _text, _another_shape, _another_shape, _values, _values,
    _dataset_or_group, _link, _other_file, _other_raw_data, _virtual, _absurd_size, _compressed,
    _attribute, _attribute, _attribute, _more, _filter_keys, _deep,
)  # fmt: skip


# ----------------------------------------------------------------------------- checkpoints


def changed_checkpoint(rng: random.Random, path: Path, outside: Path) -> str:
    """A checkpoint that can be opened and is not what it was, or that would run code."""
    change = rng.choice((_state, _state, _state, _archive, _payload))
    return change(rng, path, outside)


def _state(rng, path, outside):
    content = torch.load(path, weights_only=True)
    places = list(_places(content))
    holder, key, name = rng.choice(places)
    value = holder[key]
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        holder[key], what = changed_tensor(rng, value)
    elif isinstance(value, dict | list) and value and rng.random() < 0.5:
        holder[key], what = changed_value(rng, value)
    elif rng.random() < 0.3 and isinstance(holder, dict):
        del holder[key]
        what = "lost"
    else:
        holder[key], what = copy.deepcopy(rng.choice(VALUES)), "another value"
    torch.save(content, path)
    return f"{name}: {what}"


def _places(content: Any, path: str = ""):
    """(holder, key, dotted path) of every value, tensors and containers."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(pairs):
        yield content, key, f"{path}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from _places(value, f"{path}.{key}")


def changed_tensor(rng: random.Random, value: torch.Tensor) -> tuple[torch.Tensor, str]:
    """A tensor of other numbers, of another shape or of another kind."""
    changes = {
        "NaN": lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value,
        "infinite": lambda: value + float("inf"),
        "one axis more": lambda: value[None],
        "doubled": lambda: torch.cat([value.reshape(-1)] * 2),
        "empty": lambda: value.reshape(-1)[:0],
        "float16": lambda: value.to(torch.float16),
        "int64": lambda: value.to(torch.int64),
        "bool": lambda: value.to(torch.bool),
        "complex": lambda: value.to(torch.complex64),
        "10^12 times one number": lambda: torch.zeros(1).expand(10**12),
        "sparse": lambda: value.reshape(-1).to_sparse(),
        "on no device": lambda: value.to("meta"),
        "huge": lambda: torch.full_like(value, 3e38) if value.is_floating_point() else value,
        "negative": lambda: -value - 1,
    }
    name = rng.choice(list(changes))
    return changes[name](), name


def _archive(rng, path, outside):
    """The zip archive around it: entries lost, renamed, doubled, compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index = rng.randrange(len(entries))
    name, data = entries[index]
    kind = rng.choice(("lost", "renamed", "twice", "compressed", "empty", "bomb", "changed"))
    compression = zipfile.ZIP_STORED
    if kind == "lost":
        del entries[index]
    elif kind == "renamed":
        names = ("../../outside/executed", "/tmp/executed", "archive/data/999")
        entries[index] = (rng.choice(names), data)
    elif kind == "twice":
        entries.append((name, data[::-1]))
    elif kind == "compressed":
        compression = zipfile.ZIP_DEFLATED
    elif kind == "empty":
        entries[index] = (name, b"")
    elif kind == "bomb":
        entries[index], compression = (name, bytes(2**28)), zipfile.ZIP_DEFLATED
    else:
        entries[index] = (name, changed_bytes(rng, data or b"0")[0])
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return f"archive, {name.rpartition('/')[2]}: {kind}"


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _payload(rng, path, outside):
    """A pickle that makes a folder outside when it is read without care."""
    payload = _Touch(str(outside / "executed"))
    kind = rng.choice(("state", "value", "bare", "old"))
    if kind == "bare":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "old":
        torch.save({"state": payload}, path, _use_new_zipfile_serialization=False)
    elif kind == "state":
        torch.save(payload, path)
    else:
        content = torch.load(path, weights_only=True)
        content["state"]["task"] = payload
        torch.save(content, path)
    return f"a pickle that would run code ({kind})"


# ------------------------------------------------------------------------------ event files


def records(content: bytes) -> list[slice]:
    """Where each record of an event file lies."""
    found, position = [], 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        found.append(slice(position, position + 16 + length))
        position += 16 + length
    return found


def changed_records(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Within a record a bit is flipped, or its length or a checksum is another."""
    record = rng.randrange(len(records(content)))
    part = records(content)[record]
    inside = io.BytesIO(content)
    field, place, size = rng.choice(
        (("length", part.start, 8), ("its checksum", part.start + 8, 4),
         ("event", part.start + 12, part.stop - part.start - 16), ("checksum", part.stop - 4, 4))
    )  # fmt: skip
    place += rng.randrange(size)
    inside.seek(place)
    inside.write(bytes([content[place] ^ 1 << rng.randrange(8)]))
    return inside.getvalue(), f"record {record}, {field}: a bit flipped at byte {place}"


def holes_after(path: Path) -> str:
    """The file is said to be 8 TiB long."""
    os.truncate(path, HOLES)
    return "8 TiB of holes after its end"
