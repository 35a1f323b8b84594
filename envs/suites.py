"""Suites of tasks, the built-in ones and those of other packages, registered alike.

A package brings a suite by an entry point of the group ``mask_world_models.suites``, whose name is
the suite's and which leads to a ``Suite``. It is loaded when a task of that suite, or the list of
all tasks, is asked for.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

import gymnasium

from envs.environment_config import EnvironmentConfig
from errors import UserError

GROUP = "mask_world_models.suites"
"""The group of entry points."""
RESERVED = ("gym", "own")
"""What environments without a suite are called (``envs/own_names.py``)."""
BUDGET = 500_000
"""Environment steps to train for where nothing is published (easy Meta-World tasks: Masked World
Models, appendix F)."""


@dataclass(frozen=True)
class Suite:
    """What ``envs.make`` and the commands need to know of a suite of tasks."""

    name: str
    """Before the slash of a task's id."""
    tasks: Sequence[str]
    """Names of the tasks, after the slash."""
    make: Callable[[str, EnvironmentConfig, int | None], gymnasium.Env]
    """Makes a task, given its name, how it is seen, and the seed of its first reset. What is no
    ``envs.environment.Environment`` is taken for an environment of the user's own
    (``envs/own.py``), which cares for pictures, action repeat and time limit."""
    action_repeat: int = 1
    """Control steps per agent step, where nobody asks for another number."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names that stand for several tasks where an option takes several."""
    episodic: bool = True
    """Whether a task can end an episode for good: presets then predict the discount."""
    budget: Callable[[str], int] | None = None
    """Published environment steps of a task, by its name."""
    recorded_starts: Callable[[str], int] | None = None
    """Starts of a task that its benchmark has recorded, for ``reset(options={"init_state": k})``;
    without, every seed is a start of its own."""
    highest_return: Callable[[str], float | None] | None = None
    """What an episode of a task pays at most, where it pays at least 0; None: nobody knows."""


_suites: dict[str, Suite] = {}
_broken: dict[str, str] = {}
"""What is wrong with entry points that could not be loaded, by their name."""
_tried: set[tuple[str, str]] = set()
"""Name and value of the entry points that were loaded, or could not be."""
_said: set[str] = set()


def register_suite(suite: Suite) -> None:
    """Make a suite's tasks known in this process.

    Raises:
        UserError: it is no suite, or its name is taken.
    """
    if not isinstance(suite, Suite):
        raise UserError(f"{suite!r:.60} is no envs.suites.Suite")
    if not isinstance(suite.name, str) or not re.fullmatch(r"[a-z][\w-]*", suite.name):
        raise UserError(f"{suite.name!r:.60} is no name of a suite: letters, digits, - and _")
    if suite.name in _suites or suite.name in RESERVED:
        raise UserError(f"there is a suite {suite.name} already")
    names = [*suite.tasks, *suite.groups]
    wrong = [name for name in names if not isinstance(name, str) or not name or "," in name]
    if wrong or not suite.tasks or len(set(names)) < len(names):
        raise UserError(
            f"the tasks of suite {suite.name} must be different names without commas, at least one"
        )
    _suites[suite.name] = suite


def find_suite(name: str) -> Suite | None:
    """The suite of a name; None where there is none.

    Raises:
        UserError: another package brings it, and it cannot be loaded.
    """
    if name not in _suites:
        for point in entry_points(group=GROUP, name=name):
            _load(point)
    if name in _broken and name not in _suites:
        raise UserError(_broken[name])
    return _suites.get(name)


def all_suites() -> list[Suite]:
    """Every suite, the built-in ones first; of one that cannot be loaded, a line says so."""
    for point in entry_points(group=GROUP):
        _load(point)
    for sentence in _broken.values():
        if sentence not in _said:
            _said.add(sentence)
            print(f"note: {sentence}", file=sys.stderr, flush=True)
    return list(_suites.values())


def _load(point: EntryPoint) -> None:
    """Register what an entry point leads to, once."""
    if (point.name, point.value) in _tried:
        return
    _tried.add((point.name, point.value))
    package = point.dist.name if point.dist is not None else "a package"
    try:
        suite = point.load()
        if isinstance(suite, Suite) and suite.name != point.name:
            raise UserError(f"its entry point is called {point.name}, the suite {suite.name}")
        register_suite(suite)
    except (Exception, SystemExit) as error:  # whatever a package raises while it is imported
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        _broken[point.name] = f"the suite {point.name} of {package} cannot be loaded: {reason}"
