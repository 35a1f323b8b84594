"""Faults in files that are no run folder's: demonstrations and scores, and where nothing can be
written."""

import csv
import io
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

from analysis.curves import task_id
from tests.faults import originals as made
from tests.faults import structures
from tests.faults.mutations import (
    changed_bytes,
    changed_encoding,
    changed_json,
    changed_text,
    replaced,
)
from tests.faults.place import Fault, Place, change
from tests.faults.process import Ended


def damaged_file(rng: random.Random, place: Place, path: Path) -> str:
    """Damage a demonstration file in one of all ways; says how."""
    kind = rng.random()
    if kind < 0.3:
        return change(rng, path, changed_bytes)
    if kind < 0.35:
        return structures.holes_after(path)
    if kind < 0.45:
        return replaced(rng, path, place.outside)
    return structures.changed_demonstrations(rng, path, place.outside)


def demonstrations(rng: random.Random, place: Place) -> Fault:
    """demonstrations (HDF5)"""
    plain = rng.random() < 0.3
    path = place.copy("plain.hdf5" if plain else "demos")
    if path.is_dir():
        path = path / "drawer.hdf5"
    what = damaged_file(rng, place, path)
    if plain:
        command = ["annotate", "--data", path]
    else:
        data = rng.choice((path, path.parent))
        new = place.folder / "new"
        command = rng.choice(
            (["inspect", path], ["inspect", path, "--picture", place.folder / "sheet.png"],
             ["inspect", path], made.imitate(new, data),
             [*made.train(new, 500), "--task", made.IMITATION_TASK, "--recorded", data,
              "--environment.size", "64", "--agent.autoencoder.image-size", "64"])
        )  # fmt: skip
    # Where only its folder is named, that has to be in the refusal.
    subject = path if path in command or path.is_file() else path.parent
    return Fault(what, command, subject, privileged=False)


def _compared(place: Place) -> Mapping[tuple[str, str], list[float]]:
    """Last scores by (task, method) in the report."""
    numbers = json.loads((place.folder / "out" / "scores.json").read_text())
    return {
        (task, method): sorted(found["finals"])
        for task, methods in numbers["tasks"].items()
        for method, found in methods.items()
    }


def compare_command(place: Place, *inputs: Path) -> list:
    options = ["--final", "last", "--repetitions", "100"]
    return ["compare", *inputs, "--out", place.folder / "out", *options]


def _difference(place: Place, rows: list[tuple]) -> str | None:
    """What the report has other than the last score of each run of `rows`, which are (task, method,
    seed, step, score)."""
    last: dict[tuple, tuple[float, float]] = {}
    for task, method, seed, step, score in rows:
        key = (task_id(task), method, float(seed))
        last[key] = max(last.get(key, (-1.0, 0.0)), (float(step), float(score)))
    wanted: dict[tuple[str, str], list[float]] = {}
    for (task, method, _), (_, score) in sorted(last.items()):
        wanted.setdefault((task, method), []).append(score)
    wanted = {key: sorted(scores) for key, scores in wanted.items()}
    found = _compared(place)
    return None if found == wanted else f"reported {found}, and there is {wanted}"


def scores_json(rng: random.Random, place: Place) -> Fault:
    """scores (JSON)"""
    path = place.copy("scores.json")
    what = change(rng, path, changed_text, changed_json, changed_json)

    def right(ended: Ended) -> str | None:
        text = path.read_bytes()
        wide = text[:2] in (b"\xff\xfe", b"\xfe\xff")
        entries = json.loads(text.decode("utf-16" if wide else "utf-8-sig"))
        rows = [
            (each["task"], each["method"], each["seed"], step, score)
            for each in ([entries] if isinstance(entries, dict) else entries)
            for step, score in zip(
                each["steps"], each.get("success_rates", each.get("returns")), strict=True
            )
        ]
        return _difference(place, rows)

    return Fault(what, compare_command(place, path), path, right=right)


def scores_csv(rng: random.Random, place: Place) -> Fault:
    """scores (CSV)"""
    path = place.copy("scores.csv")
    harmless = rng.random() < 0.3
    text = path.read_bytes()
    if harmless:
        written = rng.choice((b"\t", b";", b"\r\n", b"\r", b", "))
        before = b"\r\n" if written[:1] == b"\r" else b","
        encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16"))
        path.write_bytes(text.replace(before, written).decode().encode(encoding))
        what = f"{before!r} written as {written!r}, {encoding}"
    else:
        what = change(rng, path, changed_text, changed_text, changed_encoding)

    def right(ended: Ended) -> str | None:
        content = text if harmless else path.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        content = content.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n")
        rows = list(csv.DictReader(io.StringIO(content.replace("\r", "\n"))))
        if None in rows[0] or "task" not in rows[0]:
            return None  # another delimiter than the one that this reader knows
        names = ("task", "method", "seed", "step", "success")
        return _difference(place, [tuple(row[name].strip() for name in names) for row in rows])

    return Fault(what, compare_command(place, path), path, right=right)


def events(rng: random.Random, place: Place) -> Fault:
    """scores (TensorBoard)"""
    run = place.copy("events")
    (path,) = run.glob("events.out.*")
    content = path.read_bytes()
    kind = rng.random()
    if kind < 0.5:
        what = change(rng, path, structures.changed_records)
    elif kind < 0.55:
        what = structures.holes_after(path)
    else:
        what = change(rng, path, changed_bytes)
    harmed = path.read_bytes() if path.stat().st_size < 2**30 else b""

    def right(ended: Ended) -> str | None:
        # What is there has to be the beginning of what was, and its end has to be said.
        more = harmed.startswith(content) and len(harmed) - len(content) < RECORD_HEADER
        parts = structures.records(content)
        whole = [p for p in parts if p.stop <= len(harmed) and harmed[p] == content[p]]
        if not whole:
            return "a file without a whole record was accepted"
        begun = whole[-1].stop
        # What is less than a record's length has no checksum: it may be cut off, or lack a middle.
        header = slice(0, begun + RECORD_HEADER)
        cut = len(harmed) < next((p.stop for p in parts if p.start == begun), 0)
        if not (more or cut and harmed[header] == content[: min(len(harmed), header.stop)]):
            return "a broken record was passed over"
        if whole[-1].stop < len(harmed) and "ends within a record" not in ended.output:
            return "a last record that is cut off was passed over"
        left = [score for part, score in _scores_by_record(content) if part.stop <= len(harmed)]
        ((_, found),) = _compared(place).items()
        return None if found == left[-1:] else f"reported {found}, and there is {left}"

    return Fault(what, compare_command(place, path), path, right=right)


RECORD_HEADER = 12
"""Bytes: fewer of them may be the beginning of a record that is being written."""


def _scores_by_record(content: bytes) -> list[tuple[slice, float]]:
    parts = [p for p in structures.records(content) if b"eval/success" in content[p]]
    return list(zip(parts, made.CURVES[0], strict=True))


def scores_replaced(rng: random.Random, place: Place) -> Fault:
    """score files replaced"""
    name = rng.choice(("scores.json", "scores.csv", "events"))
    path = place.copy(name)
    if name == "events":
        path = rng.choice(sorted(path.iterdir()))
    what = f"{path.name}: {replaced(rng, path, place.outside)}"
    return Fault(what, compare_command(place, path), path, privileged=False)


def out_paths(rng: random.Random, place: Place) -> Fault:
    """places to write to"""
    run, out = place.copy("online"), place.folder / "out"
    command = rng.choice(
        (["record", run, "--out", out], ["compare", run, "--out", out, "--repetitions", "100"],
         ["inspect", place.copy("plain.hdf5"), "--picture", out],
         ["annotate", "--data", place.copy("demos"), "--out", out],
         made.collect(out), [*made.train(out, 500)], made.imitate(out, place.originals / "demos"))
    )  # fmt: skip
    kind = rng.choice(("replaced", "replaced", "below a file", "read-only", "long", "control"))
    at = [index for index, word in enumerate(command) if str(word) == str(out)][0]
    if kind == "replaced":
        out.touch()
        what = replaced(rng, out, place.outside)
    elif kind == "below a file":
        out.write_text("mine")
        command[at] = out / "below"
        what = "below a file"
    elif kind == "read-only":
        out.mkdir(mode=0o500)
        what = "a folder that may not be written in"
    elif kind == "long":
        command[at] = out.with_name("x" * rng.choice((240, 250, 255, 256, 5000)))
        what = f"a name of {len(command[at].name)} bytes"
    else:
        command[at] = out.with_name("a\nb\x1b[2J" + os.fsdecode(b"\xff"))
        what = "a name that cannot be printed"
    return Fault(f"{command[0]} to {what}", command, None, privileged=False)
