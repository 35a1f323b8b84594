"""Faults in what is typed: values, options and their order."""

import random

from tests.faults import originals as made
from tests.faults.other_files import compare_command
from tests.faults.place import Fault, Place

ODD = (
    "", " ", "0", "-1", "1", "2", "1.5", "1e3", "nan", "inf", "-inf", "9" * 30, "9" * 5000,
    str(2**31), str(2**63), str(2**64), "1e400", "x", "a,b", "a/b", "/dev/null", "/dev/full",
    "none", "None", "True", "[]", "{}", "捡", "\udcff", "a\nb", "\x1b[2J", "x" * 300, "--steps",
    "-", "--", "=", "*", "metaworld/reach", "metaworld/mt10", "dmc/walker-walk", "libero/object/0",
    "masks",
    "pixels", "payload:Payload", "os:abort", "t5:nowhere", "cuda:99", "cpu", "noise:1", "all",
    "all:nan", "noise:nan,noise:1", "0.1,0.9",
)  # fmt: skip
"""Values that somebody may type, or a script may."""


def command_line(rng: random.Random, place: Place) -> Fault:
    """command lines"""
    place.payload(place.folder)
    new = place.folder / "new"
    lines = {
        "train": lambda: made.train(new, 500),
        "imitate": lambda: made.imitate(new, place.copy("demos")),
        "evaluate": lambda: made.evaluate(place.copy("online")),
        "compare": lambda: compare_command(place, place.copy("scores.json")),
        "record": lambda: ["record", place.copy("online"), "--out", place.folder / "out"],
        "collect": lambda: made.collect(place.folder / "a.hdf5", 1),
        "annotate": lambda: ["annotate", "--data", place.copy("plain.hdf5")],
        "inspect": lambda: ["inspect", place.copy("plain.hdf5")],
        "tasks": lambda: ["tasks", "--suite", "metaworld"],
    }
    line = [str(word) for word in lines[rng.choice(("train", "train", "imitate", *lines))]()]
    said = []
    for _ in range(rng.choice((1, 1, 2))):
        if len(line) == 1:
            break  # its only word was lost
        at = rng.randrange(1, len(line))
        value = rng.choice(ODD)
        kind = rng.choice(("value", "value", "value", "lose", "double", "insert", "misspell"))
        if kind == "value" and "=" in line[at]:
            line[at] = f"{line[at].partition('=')[0]}={value}"
        elif kind == "value":
            line[at] = value
        elif kind == "lose":
            del line[at]
        elif kind == "double":
            line.insert(at, line[at])
        elif kind == "insert":
            line.insert(at, value)
        else:
            line[at] = line[at][:-1]
        said.append(f"{kind} at {at}: {value[:20]!r}")
    return Fault(f"{line[0]}, {'; '.join(said)}", line, None)
