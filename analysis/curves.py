"""A learning curve: what scored how much after how many environment steps, in one run.

Wherever it was read (``analysis/score_files.py``), the same things are refused: no evaluation at
all, NaN, steps that go backwards, a success outside [0, 1]; the error names the file and the row.
"""

from __future__ import annotations

import functools
import math
import os
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import envs
from errors import UserError

Kind = Literal["success", "return"]
LARGEST = 1e12
"""A return beyond it is a broken number; its square would no longer be exact."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I | re.A)


@dataclass(frozen=True)
class Curve:
    """One run: `scores` (E,) at environment steps `steps` (E,), strictly increasing."""

    method: str
    task: str
    seed: int
    steps: np.ndarray
    scores: np.ndarray
    kind: Kind
    source: str
    """The file it was read from."""
    modified: float
    """When that file was last written, seconds since the epoch."""
    where: str = ""
    """The file and, of many runs in it, which."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the file says of how it came about: command, commit, versions, hardware."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest return of an episode, where the run or the file says it."""

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Scores at `steps`, on straight lines between evaluations; NaN outside of them."""
        return np.interp(steps, self.steps, self.scores, left=np.nan, right=np.nan)

    def until(self, step: int) -> Curve | None:
        """The curve up to and including `step`, with the score there on the straight line to the
        next evaluation; None when nothing was evaluated by then."""
        keep = self.steps <= step
        if not keep.any():
            return None
        steps, scores = self.steps[keep], self.scores[keep]
        if steps[-1] < step < self.steps[-1]:
            steps = np.append(steps, step)
            scores = np.append(scores, self.at(np.array([step])))
        return replace(self, steps=steps, scores=scores)


def task_id(name: str) -> str:
    """The task id that a name means: metaworld_window_close, metaworld/window-close-v3, …

    Names that are nobody's are kept, so that results on other benchmarks can be compared too.
    """
    plain = re.sub(r"-v\d+$", "", name.strip().lower().replace("_", "-").replace("/", "-"))
    return _known().get(plain, name.strip())


@functools.cache
def _known() -> dict[str, str]:
    return {task.lower().replace("_", "-").replace("/", "-"): task for task in envs.tasks()}


def score_bounds(value: Any, where: str) -> tuple[float, float] | None:
    """Lowest and highest return of an episode, out of a file that may say them.

    Raises:
        UserError: they are not two numbers, the second higher; names `where`.
    """
    if value is None:
        return None
    try:
        lowest, highest = (number(each) for each in value)
        if -LARGEST <= lowest < highest <= LARGEST:
            return lowest, highest
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"{where} has score_bounds {shown(value)}; they must be two numbers, the second higher"
    )


def shown(value: Any) -> str:
    """A value from a file as an error shows it: on one line, and cut short."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def number(value: Any) -> float:
    """A number, or the text of one.

    Raises:
        ValueError: it is neither; what Python alone takes for a number ("1_0", True) is none.
    """
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ValueError(f"{shown(value)} is no number")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def whole_number(value: Any) -> int:
    """A whole number, or the text of one, which a table may have written as 0.0.

    Raises:
        ValueError: it is none of at most 64 bits.
    """
    found = number(value)
    if not found.is_integer() or abs(found) >= 2**64:
        raise ValueError(f"{shown(value)} is no whole number of 64 bits")
    try:
        return int(value)  # exact beyond 2^53
    except ValueError:
        return int(found)


def make_curve(
    path: Path,
    rows: Iterable[tuple[str, Any, Any]],
    kind: Kind,
    method: Any,
    task: Any,
    seed: Any,
    entry: str = "",
    provenance: dict[str, Any] | None = None,
) -> Curve:
    """The curve of `rows` (where, step, score); `entry` says which of a file's runs it is.

    Raises:
        UserError: naming `path` and the row that cannot be right.
    """
    steps: list[int] = []
    scores: list[float] = []
    for where, step, score in rows:
        try:
            step_number, score_number = number(step), number(score)
        except ValueError:
            raise UserError(
                f"{path} {where} has step {shown(step)} and score {shown(score)}; both must be "
                "numbers"
            ) from None
        if not (math.isfinite(step_number) and math.isfinite(score_number)):
            raise UserError(
                f"{path} {where} is not finite: step {shown(step)}, score {shown(score)}"
            )
        if not step_number.is_integer() or not 0 <= step_number < 2**53:
            raise UserError(f"{path} {where}: step {shown(step)} is no number of environment steps")
        if steps and step_number <= steps[-1]:
            raise UserError(
                f"{path} {where}: step {step_number:.0f} comes after step {steps[-1]}; a run's "
                "evaluations stand in the order of their steps, each once"
            )
        if kind == "success" and not 0.0 <= score_number <= 1.0:
            raise UserError(f"{path} {where}: a success of {score_number:g} is not between 0 and 1")
        if abs(score_number) > LARGEST:
            raise UserError(
                f"{path} {where}: a return of {score_number:g} is beyond {LARGEST:g}, which no "
                "episode pays"
            )
        steps.append(int(step_number))
        scores.append(score_number)
    try:
        seed = whole_number(seed)
    except ValueError:
        raise UserError(
            f"{path} {entry} has seed {shown(seed)}; it must be a whole number"
        ) from None
    for what, name in (("method", method), ("task", task)):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"{path} {entry} has {what} {shown(name)}; it must be a name")
        if len(name) > 100:
            raise UserError(f"{path} {entry} has a {what} of {len(name)} characters; use up to 100")
    return Curve(
        method,
        task_id(task),
        seed,
        np.array(steps, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        kind,
        str(path),
        os.path.getmtime(path),
        f"{path} {entry}".strip(),
        provenance or {},
    )


@dataclass(frozen=True)
class Aligned:
    """Runs of one method on one task at common steps: `steps` (T,), `scores` (seeds, T).

    A run is known between its first and its last evaluation, on straight lines between them; NaN
    elsewhere, because nothing is extrapolated.
    """

    steps: np.ndarray
    scores: np.ndarray

    @property
    def seeds(self) -> np.ndarray:
        """How many runs are known at each step, (T,)."""
        return (~np.isnan(self.scores)).sum(axis=0)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the known runs, (T,)."""
        return np.nansum(self.scores, axis=0) / self.seeds


def align(curves: Sequence[Curve]) -> Aligned:
    """`curves` at every step at which any of them was evaluated."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    return Aligned(steps, np.stack([curve.at(steps) for curve in curves]))


FINALS: dict[str, Any] = {
    "last": lambda scores: scores[-1],
    "last5": lambda scores: scores[-5:].mean(),
    "best": lambda scores: scores.max(),
}
"""Final score of a run, by name. last5, the mean of the last five evaluations, reproduces the
paper's numbers; best is flattering, since it picks its evaluation after the fact."""
