"""Every kind of input.

A kind is a function of a generator and of a place: it puts an original into the place, harms it,
and says which command meets it there and what must come of that.
"""

import random
from collections.abc import Callable

from tests.faults import other_files, run_folders
from tests.faults.command_lines import command_line
from tests.faults.place import Fault, Place

KINDS: dict[Callable[[random.Random, Place], Fault], int] = {
    run_folders.config: 300,
    run_folders.metrics: 200,
    run_folders.checkpoint: 200,
    run_folders.replay: 150,
    run_folders.evaluation: 150,
    run_folders.folder: 200,
    other_files.demonstrations: 300,
    other_files.scores_json: 200,
    other_files.scores_csv: 200,
    other_files.events: 200,
    other_files.scores_replaced: 100,
    other_files.out_paths: 100,
    command_line: 250,
}
"""How many of 2,500 tries are of each kind."""


def fault(kind: Callable, seed: int, number: int, place: Place) -> Fault:
    """The `number`-th try of a kind, always the same for the same seed."""
    return kind(random.Random(f"{seed} {kind.__name__} {number}"), place)
