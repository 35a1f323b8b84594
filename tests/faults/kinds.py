"""Every kind of input.

A kind is a function of a generator and of a place: it puts an original into the place, harms it,
and says which command meets it there and what must come of that.
"""

import random
from collections.abc import Callable

from tests.faults import other_files, run_folders, shared_files
from tests.faults.command_lines import command_line
from tests.faults.place import Fault, Place

KINDS: dict[Callable[[random.Random, Place], Fault], int] = {
    run_folders.config: 250,
    run_folders.metrics: 160,
    run_folders.checkpoint: 150,
    run_folders.replay: 80,
    run_folders.evaluation: 130,
    run_folders.folder: 120,
    other_files.demonstrations: 200,
    other_files.scores_json: 210,
    other_files.scores_csv: 190,
    other_files.events: 230,
    other_files.scores_replaced: 80,
    other_files.out_paths: 50,
    command_line: 200,
    shared_files.exported: 60,
    shared_files.lerobot: 60,
    shared_files.own_demonstrations: 60,
    shared_files.mask_folders: 60,
}
"""How many of 2,290 tries are of each kind; those that a simulator follows take the longest."""


def fault(kind: Callable, seed: int, number: int, place: Place) -> Fault:
    """The `number`-th try of a kind, always the same for the same seed."""
    return kind(random.Random(f"{seed} {kind.__name__} {number}"), place)
