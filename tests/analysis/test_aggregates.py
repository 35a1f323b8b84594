"""Aggregates against numbers worked out by hand, and against rliable where it applies."""

import numpy as np
import pytest
from rliable import metrics

from analysis import aggregates
from analysis.aggregates import (
    aggregate,
    aggregate_ragged,
    band,
    is_rectangular,
    matrix,
    performance_profile,
    probability_of_improvement,
)


def scores(seeds, tasks, seed=0):
    rng = np.random.default_rng(seed)
    return {f"task{i}": rng.random(seeds).round(1) for i in range(tasks)}


def points(estimates):
    return {name: point for name, (point, _) in estimates.items()}


@pytest.mark.parametrize("compute", [aggregate, aggregate_ragged])
def test_aggregates_worked_out_by_hand(compute):
    table = {"a": np.array([0.0, 0.2]), "b": np.array([0.4, 0.6]), "c": np.array([0.8, 1.0])}
    # Task means .1 .5 .9. Of six runs the quarter at each end is one: (.2 + .4 + .6 + .8) / 4.
    assert points(compute(table, 100)) == pytest.approx(
        {"mean": 0.5, "median": 0.5, "interquartile mean": 0.5, "optimality gap": 0.5}
    )
    table["c"] = np.array([0.6, 0.6])
    assert points(compute(table, 100)) == pytest.approx(
        {
            "mean": (0.1 + 0.5 + 0.6) / 3,
            "median": 0.5,
            "interquartile mean": (0.2 + 0.4 + 0.6 + 0.6) / 4,
            "optimality gap": 1 - 2.4 / 6,
        }
    )


@pytest.mark.parametrize("compute", [aggregate, aggregate_ragged])
def test_nothing_above_1_makes_up_for_a_gap(compute):
    table = {"a": np.array([0.0, 2.0]), "b": np.array([0.5, 1.5])}
    assert points(compute(table, 100))["optimality gap"] == pytest.approx((1.0 + 0.5) / 4)


def test_every_task_weighs_the_same_whatever_its_number_of_seeds():
    table = {"a": np.array([1.0, 1.0, 1.0, 1.0]), "b": np.array([0.0])}
    assert not is_rectangular(table)
    estimates = aggregate(table, 100)
    assert points(estimates)["mean"] == 0.5
    assert points(estimates)["optimality gap"] == 0.5
    assert points(estimates)["interquartile mean"] == 0.5


def test_ragged_points_are_those_of_repeated_seeds():
    table = {"a": np.array([0.1, 0.5, 0.9]), "b": np.array([0.2, 0.6])}
    repeated = {"a": np.repeat(table["a"], 2), "b": np.repeat(table["b"], 3)}
    assert points(aggregate(table, 100)) == pytest.approx(points(aggregate(repeated, 100)))


def test_ragged_memory_does_not_grow_with_the_common_multiple_of_seeds():
    """Of 11 to 29 seeds it is 232,792,560; the interquartile mean is exact all the same."""
    rng = np.random.default_rng(0)
    table = {f"{n}": rng.random(n).round(1) for n in (11, 13, 16, 17, 19, 23, 27, 29)}
    everything = sorted((v, 1 / len(s) / len(table)) for s in table.values() for v in s)
    below, kept = 0.0, []
    for value, weight in everything:
        kept.append((value, max(0.0, min(below + weight, 0.75) - max(below, 0.25))))
        below += weight
    expected = sum(v * w for v, w in kept) / sum(w for _, w in kept)
    estimates = aggregate_ragged(table, 200)
    assert estimates["interquartile mean"][0] == pytest.approx(expected, abs=1e-6)
    low, high = estimates["interquartile mean"][1]
    assert low < expected < high


@pytest.mark.parametrize(("seeds", "tasks"), [(5, 50), (2, 3), (3, 7)])
def test_our_points_are_those_of_rliable(seeds, tasks):
    table = scores(seeds, tasks)
    assert points(aggregate_ragged(table, 100)) == pytest.approx(
        points(aggregate(table, 100)), abs=1e-12
    )


def test_our_intervals_are_those_of_rliable_up_to_their_own_noise():
    table = scores(5, 10)
    ours, theirs = aggregate_ragged(table, 5000, seed=1), aggregate(table, 5000, seed=2)
    for name in aggregates.STATISTICS:
        (low, high), (other_low, other_high) = ours[name][1], theirs[name][1]
        tolerance = 0.12 * (other_high - other_low)
        assert low == pytest.approx(other_low, abs=tolerance)
        assert high == pytest.approx(other_high, abs=tolerance)


def test_rliable_is_repeatable_and_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = aggregate(scores(3, 4), 200), aggregate(scores(3, 4), 200)
    assert first == second
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert first != aggregate(scores(3, 4), 200, seed=1)


def test_interval_narrows_with_seeds_and_is_absent_with_one():
    few, many = (aggregate(scores(n, 6), 2000)["mean"][1] for n in (2, 40))
    assert few[1] - few[0] > 2 * (many[1] - many[0])
    assert all(interval is None for _, interval in aggregate(scores(1, 6), 100).values())
    assert all(interval is None for _, interval in aggregate_ragged(scores(1, 6), 100).values())


def test_probability_of_improvement_worked_out_by_hand():
    left = {"a": np.array([1.0, 0.5]), "b": np.array([0.2, 0.2])}
    right = {"a": np.array([0.5, 0.0]), "b": np.array([0.2, 0.4]), "c": np.array([0.0, 0.0])}
    # a: 1 beats both, .5 ties once and wins once: 3.5 of 4. b: two ties, two losses: 1 of 4.
    assert probability_of_improvement(left, right)[0] == pytest.approx((3.5 / 4 + 1 / 4) / 2)
    assert probability_of_improvement(right, left)[0] == pytest.approx(1 - (3.5 / 4 + 1 / 4) / 2)


def test_probability_of_improvement_is_that_of_rliable():
    left, right = scores(5, 12), scores(4, 12, seed=1)
    expected = metrics.probability_of_improvement(matrix(left), matrix(right))
    point, (low, high) = probability_of_improvement(left, right)
    assert point == pytest.approx(expected)
    assert low < point < high


def test_performance_profile_counts_runs_above_a_threshold():
    table = {"a": np.array([0.0, 1.0]), "b": np.array([0.5])}
    share, interval = performance_profile(table, np.array([0.0, 0.25, 0.5, 0.99]))
    assert share.tolist() == [(0.5 + 1) / 2, (0.5 + 1) / 2, 0.25, 0.25]
    assert interval.shape == (2, 4)
    assert (interval[0] <= share).all()
    assert (share <= interval[1]).all()


def test_band_covers_the_mean_and_is_absent_where_one_run_is_left():
    nan = np.nan
    curves = np.array([[0.0, 0.2, 0.4], [0.2, 0.4, nan], [0.4, 0.6, nan]])
    low, high = band(curves)
    assert low[0] < 0.2 < high[0]
    assert low[0] >= 0.0
    assert high[0] <= 0.4 + 1e-9
    assert np.isnan([low[2], high[2]]).all()


def test_resampling_in_parts_is_resampling_at_once(monkeypatch):
    left, right = scores(5, 3), scores(4, 3, seed=1)
    curves = np.random.default_rng(0).random((4, 30))
    curves[1:, 20:] = np.nan
    whole = probability_of_improvement(left, right, 300), band(curves, 300)
    monkeypatch.setattr(aggregates, "AT_ONCE", 1000)
    assert probability_of_improvement(left, right, 300) == whole[0]
    np.testing.assert_allclose(band(curves, 300), whole[1], rtol=1e-12)


def test_coverage_of_the_interval_is_about_what_it_says():
    """Percentile intervals of few seeds are known to be narrow: 5 seeds on 20 tasks cover less."""
    rng = np.random.default_rng(0)
    truth, inside = 0.5, 0
    for trial in range(200):
        table = {f"{i}": rng.binomial(50, truth, 5) / 50 for i in range(20)}
        low, high = aggregate_ragged(table, 400, seed=trial)["mean"][1]
        inside += low <= truth <= high
    assert 0.82 < inside / 200 < 0.98
