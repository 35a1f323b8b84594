"""Aggregate scores with honest intervals (Agarwal et al., 2021, through rliable).

Scores are final scores of runs, ``{task: (seeds,)}`` for one method, in [0, 1]. Intervals are
95 % percentile intervals of the stratified bootstrap: seeds are drawn with replacement within
each task, tasks are kept. rliable wants the same number of seeds for every task. Where that is
not so, the same statistics are computed here with every task weighing the same, whatever its
number of seeds. What is resampled is resampled in parts, so that memory does not grow with seeds,
tasks or evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Scores = Mapping[str, np.ndarray]
Estimate = tuple[float, tuple[float, float] | None]
"""A point and its 95 % interval; None where one seed a task leaves nothing to resample."""

STATISTICS = ("mean", "median", "interquartile mean", "optimality gap")
REPETITIONS = 2000
LEVEL = (2.5, 97.5)
AT_ONCE = 2**23
"""Numbers that are resampled at once."""


def aggregate(scores: Scores, repetitions: int = REPETITIONS, seed: int = 0) -> dict[str, Estimate]:
    """Mean, median, interquartile mean and optimality gap over tasks."""
    if is_rectangular(scores):
        return _aggregate_rliable(scores, repetitions, seed)
    return aggregate_ragged(scores, repetitions, seed)


def is_rectangular(scores: Scores) -> bool:
    """Whether every task has the same number of seeds."""
    return len({len(values) for values in scores.values()}) == 1


def can_resample(scores: Scores) -> bool:
    """Whether any task has more than one seed; without, an interval would be a pretence."""
    return any(len(values) > 1 for values in scores.values())


def matrix(scores: Scores) -> np.ndarray:
    """(seeds, tasks) of rectangular scores, as rliable takes it."""
    return np.stack([scores[task] for task in sorted(scores)], axis=1)


def _aggregate_rliable(scores: Scores, repetitions: int, seed: int) -> dict[str, Estimate]:
    from rliable import library, metrics

    def all_four(table: np.ndarray) -> np.ndarray:
        return np.array(
            [
                metrics.aggregate_mean(table),
                metrics.aggregate_median(table),
                metrics.aggregate_iqm(table),
                metrics.aggregate_optimality_gap(table),
            ]
        )

    table = matrix(scores)
    if not can_resample(scores):
        return {
            name: (float(point), None)
            for name, point in zip(STATISTICS, all_four(table), strict=True)
        }
    # rliable 1.2 draws from NumPy's global generator, whatever random_state it is given.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        points, intervals = library.get_interval_estimates({"": table}, all_four, reps=repetitions)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return {
        name: (float(point), (float(low), float(high)))
        for name, point, (low, high) in zip(STATISTICS, points[""], intervals[""].T, strict=True)
    }


def aggregate_ragged(
    scores: Scores, repetitions: int = REPETITIONS, seed: int = 0
) -> dict[str, Estimate]:
    """As `aggregate`, for any number of seeds per task."""
    names = sorted(scores)
    points = _statistics([scores[name][None] for name in names])[:, 0]
    if not can_resample(scores):
        return {name: (float(point), None) for name, point in zip(STATISTICS, points, strict=True)}
    rng = np.random.default_rng(seed)
    resampled = np.concatenate(
        [
            _statistics([resample(scores[name], part, rng) for name in names])
            for part in _parts(repetitions, 100)
        ],
        axis=1,
    )
    intervals = np.percentile(resampled, LEVEL, axis=1).T
    return {
        name: (float(point), (float(low), float(high)))
        for name, point, (low, high) in zip(STATISTICS, points, intervals, strict=True)
    }


def resample(values: np.ndarray, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """`values` (n,) drawn with replacement, (repetitions, n)."""
    return values[rng.integers(len(values), size=(repetitions, len(values)))]


def drawn_shares(count: int, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` seeds is drawn in a resample, of all draws, (repetitions, count);
    times scores (count, T) they are the resampled means (repetitions, T)."""
    drawn = rng.integers(count, size=(repetitions, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]) / count


def _parts(total: int, most: int) -> list[int]:
    """`total` as a sum of numbers up to `most`."""
    return [min(most, total - done) for done in range(0, total, most)]


def _statistics(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """The four statistics of scores (R, seeds) of every task, (4, R)."""
    by_task = np.stack([scores.mean(axis=1) for scores in tasks], axis=1)
    capped = np.stack([np.minimum(scores, 1.0).mean(axis=1) for scores in tasks], axis=1)
    return np.stack(
        [
            by_task.mean(axis=1),
            np.median(by_task, axis=1),
            _interquartile_mean(tasks),
            1.0 - capped.mean(axis=1),
        ]
    )


def _interquartile_mean(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the middle half of scores (R, seeds) of all tasks, (R,), a task weighing as much as
    another: what comes out when the seeds of each are repeated up to a common number."""
    seeds = [scores.shape[1] for scores in tasks]
    repeated = math.lcm(*seeds) * len(tasks)
    cut = (repeated // 4) / repeated  # the share that a trimmed mean of whole scores cuts off
    scores = np.concatenate(tasks, axis=1)
    order = np.argsort(scores, axis=1)
    weights = np.concatenate([np.full(count, 1.0 / count / len(tasks)) for count in seeds])[order]
    above = np.cumsum(weights, axis=1)
    kept = np.clip(np.minimum(above, 1.0 - cut) - np.maximum(above - weights, cut), 0.0, None)
    return (np.take_along_axis(scores, order, axis=1) * kept).sum(axis=1) / kept.sum(axis=1)


def probability_of_improvement(
    left: Scores, right: Scores, repetitions: int = REPETITIONS, seed: int = 0
) -> Estimate:
    """P(left > right) + P(equal) / 2 of two random runs on a task, averaged over shared tasks.

    The Mann-Whitney statistic of rliable, computed for all resamples at once: one call of rliable
    takes a minute for 50 tasks.
    """
    tasks = sorted(set(left) & set(right))
    left, right = ({t: side[t] for t in tasks} for side in (left, right))
    point = float(np.mean([_wins(left[t][None], right[t][None])[0] for t in tasks]))
    if not (can_resample(left) or can_resample(right)):
        return point, None
    rng = np.random.default_rng(seed)
    wins = np.mean(
        [
            _wins(resample(left[t], repetitions, rng), resample(right[t], repetitions, rng))
            for t in tasks
        ],
        axis=0,
    )
    low, high = np.percentile(wins, LEVEL)
    return point, (float(low), float(high))


def _wins(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Per row of (R, n) and (R, m), the share of pairs that left wins; a tie is half a win."""
    shares, done = [], 0
    for part in _parts(len(left), max(1, AT_ONCE // (left.shape[1] * right.shape[1]))):
        rows = slice(done, done := done + part)
        pairs = left[rows, :, None] - right[rows, None, :]
        shares.append(((pairs > 0) + 0.5 * (pairs == 0)).mean(axis=(1, 2)))
    return np.concatenate(shares)


def performance_profile(
    scores: Scores, thresholds: np.ndarray, repetitions: int = REPETITIONS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Share of runs with a score above each threshold, tasks weighing the same.

    Returns:
        (T,) and its pointwise 95 % interval (2, T), or None as in `Estimate`.
    """
    names = sorted(scores)

    def profile(draw: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(repetitions, T)"""
        return sum((_above(draw(scores[n]), thresholds) for n in names), np.zeros(1)) / len(names)

    point = profile(lambda values: values[None])[0]
    if not can_resample(scores):
        return point, None
    rng = np.random.default_rng(seed)
    drawn = profile(lambda values: resample(values, repetitions, rng))
    return point, np.percentile(drawn, LEVEL, axis=0)


def _above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of `scores` (R, n) above each of `thresholds` (T,), (R, T)."""
    return np.stack([(scores > threshold).mean(axis=1) for threshold in thresholds], axis=1)


def band(scores: np.ndarray, repetitions: int = REPETITIONS, seed: int = 0) -> np.ndarray:
    """Bootstrap 95 % interval (2, T) of the mean of curves (seeds, T) on a common grid.

    NaN marks points a curve does not reach; where fewer than two curves do, the interval is NaN.
    """
    shares = drawn_shares(len(scores), repetitions, np.random.default_rng(seed))
    known = ~np.isnan(scores)
    total = np.where(known, scores, 0.0)
    interval = np.full((2, scores.shape[1]), np.nan)
    columns, done = np.flatnonzero(known.sum(axis=0) > 1), 0
    for part in _parts(len(columns), max(1, AT_ONCE // repetitions)):
        enough = columns[done : (done := done + part)]
        share = shares @ known[:, enough]
        means = np.divide(
            shares @ total[:, enough], share, out=np.full(share.shape, np.nan), where=share > 0
        )
        interval[:, enough] = np.nanpercentile(means, LEVEL, axis=0)
    return interval
