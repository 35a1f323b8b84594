"""What can happen inside of what people share: safetensors, Parquet tables, masks as files.

Each function changes the file at a path and says in a few words what it did.
"""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from PIL import Image

from agents.exported import load_policy, save_policy
from tests.faults.mutations import changed_value
from tests.faults.structures import IMPOSSIBLE, changed_tensor

# ------------------------------------------------------------------------------ safetensors


def changed_policy(rng: random.Random, path: Path) -> str:
    """An exported policy with other values or tensors: signed anew, as whoever wants to harm would
    do, or with the old signature."""
    said = None
    while said is None:
        change = rng.choice((_policy_state, _policy_state, _tensors, _tensors, _header))
        with contextlib.suppress(*IMPOSSIBLE):
            said = change(rng, path)
    return said


def _policy_state(rng, path):
    """Plain values beside the weights."""
    state = load_policy(path)
    weights, goals = state["agent"].pop("weights"), state["agent"].pop("goals")
    state, what = changed_value(rng, state)
    save_policy(path, {**weights, **{f"goals/{task}": each for task, each in goals.items()}}, state)
    return f"state, {what}"


def _tensors(rng, path):
    content = path.read_bytes()
    weights, header = safetensors.torch.load(content), header_of(content)["__metadata__"]
    name = rng.choice(sorted(weights))
    kind = rng.choice(("lost", "renamed", "another", "another", "another"))
    what = kind
    if kind == "another":
        weights[name], what = changed_tensor(rng, weights[name])
    else:
        part = weights.pop(name)
        if kind == "renamed":
            weights[rng.choice(("x", "", "goals/x", "a" * 5000, "\x1b[2J"))] = part
    if rng.random() < 0.5 and all(part.isfinite().all() for part in weights.values()):
        save_policy(path, weights, json.loads(header["policy"])["state"])
        return f"{name}: {what}, signed"
    path.write_bytes(safetensors.torch.save(weights, header))
    return f"{name}: {what}"


def header_of(content: bytes) -> dict:
    """The JSON at the beginning of safetensors."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _header(rng, path):
    """Offsets, shapes and kinds of tensors, or how long the header is said to be."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.3:
        other = rng.choice((0, 1, size - 1, size + 1, len(content), 2**31, 2**63, 2**64 - 1))
        path.write_bytes(other.to_bytes(8, "little") + content[8:])
        return f"a header of {other} bytes"
    header, what = changed_value(rng, header_of(content))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f"header, {what}"


# ----------------------------------------------------------------------------------- Parquet


def changed_table(rng: random.Random, path: Path) -> str:
    """A Parquet file of other rows, columns or values."""
    said = None
    while said is None:
        with contextlib.suppress(*IMPOSSIBLE):
            rows, said = _changed_rows(rng, rows_of(path))
            pq.write_table(pa.Table.from_pylist(rows), path)
    return said


def rows_of(path: Path) -> list[dict]:
    """The rows of a Parquet file without statistics, read by one thread: processes are forked from
    this one."""
    table = pq.ParquetFile(path).read(use_threads=False)
    return table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()


def _changed_rows(rng, rows):
    row, name = rng.randrange(len(rows)), rng.choice(sorted(rows[0]))
    kind = rng.choice(
        ("value", "value", "value", "column", "drop", "rename", "lose", "double", "shuffle", "none")
    )
    if kind == "value":
        rows[row], what = changed_value(rng, rows[row])
        return rows, f"row {row}, {what}"
    if kind == "column":
        value = changed_value(rng, {name: rows[row][name]})[0].get(name)
        return [{**each, name: value} for each in rows], f"{name} is the same in all rows"
    if kind == "drop":
        return [{k: v for k, v in each.items() if k != name} for each in rows], f"{name} is lost"
    if kind == "rename":
        return [
            {("x" if k == name else k): v for k, v in each.items()} for each in rows
        ], f"{name} is x"
    if kind == "lose":
        del rows[row]
    elif kind == "double":
        rows.insert(row, rows[row])
    elif kind == "shuffle":
        rng.shuffle(rows)
    else:
        rows = []
    return rows, f"rows: {kind}" + (f" {row}" if kind in ("lose", "double") else "")


# ------------------------------------------------------------------------------------- masks


def changed_mask(rng: random.Random, path: Path) -> tuple[str, bool]:
    """Another mask in the place of one, or of an episode's; whether that has to be refused."""
    mask, said = read_mask(path), None
    while said is None:
        kind, (make, wrong) = rng.choice(list(MASKS.items()))
        with contextlib.suppress(*IMPOSSIBLE, IndexError):
            put_mask(path, make(mask, 1 if path.suffix == ".npz" else 0))
            said = kind
    return said, wrong


def read_mask(path: Path) -> np.ndarray:
    """(H, W), (H, W, 3) of a picture in colours, (T, H, W) of an episode."""
    if path.suffix == ".png":
        return np.array(Image.open(path))
    found = np.load(path)
    return found["mask"] if path.suffix == ".npz" else found


def put_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask in the format that the file's ending says."""
    if path.suffix == ".png":
        Image.fromarray(mask).save(path)
    elif path.suffix == ".npy":
        np.save(path, mask)
    else:
        np.savez_compressed(path, mask=mask)


def _corner(mask, value):
    mask = mask.copy()
    mask[-1, -1] = value
    return mask


MASKS: dict[str, tuple[Callable, bool]] = {
    "twice as large": (lambda mask, rows: mask.repeat(2, rows).repeat(2, rows + 1), False),
    "no square": (lambda mask, rows: np.delete(mask, 0, rows), True),
    "no rows": (lambda mask, rows: np.delete(mask, slice(None), rows), True),
    "a number that the palette does not have": (lambda mask, rows: _corner(mask, 77), True),
    "of 16 bits": (lambda mask, rows: mask.astype(np.uint16), False),
    "of floating point": (lambda mask, rows: mask.astype(np.float32), True),
    "an axis more": (lambda mask, rows: np.stack([mask] * 3, -1), True),
    "a single number": (lambda mask, rows: mask.reshape(-1)[0], True),
}
"""What becomes of a mask (array, axis of its rows), and whether that has to be refused."""
