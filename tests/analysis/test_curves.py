"""A curve: what its numbers and names may be, and alignment by step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.curves import FINALS, Curve, align, number, shown, task_id, whole_number


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("metaworld_window_close", "metaworld/window-close"),
        ("metaworld/window-close", "metaworld/window-close"),
        ("metaworld/window-close-v3", "metaworld/window-close"),
        ("metaworld_pick_out_of_hole", "metaworld/pick-out-of-hole"),
        ("dmc_walker_walk", "dmc/walker-walk"),
        ("dmc/reach_duplo", "dmc/reach_duplo"),
        ("rlbench_reach_target", "rlbench/reach_target"),
        ("atari_pong", "atari_pong"),
    ],
)
def test_task_names_of_all_sources_meet(name, task):
    assert task_id(name) == task


@pytest.mark.parametrize(
    ("value", "found"),
    [(3, 3), (3.0, 3), ("3", 3), ("0.0", 0), (" 1e3 ", 1000), (2**63 - 1, 2**63 - 1), ("-1", -1)],
)
def test_a_whole_number_may_be_written_as_tables_write_it(value, found):
    assert whole_number(value) == found


@pytest.mark.parametrize(
    "value", [True, None, "", "1_0", "0x1", "٣", "9" * 5000, 0.5, "nan", [1], 10**400]
)
def test_what_is_no_whole_number_is_none(value):
    with pytest.raises(ValueError, match="no "):
        whole_number(value)


def test_numbers_beyond_all_measure_are_infinite_and_never_a_crash():
    assert number("-1e999") == -np.inf
    assert number(10**400) == np.inf
    assert len(shown(int("f" * 5000, 16))) < 60
    assert len(shown("x" * 10**6)) < 80


# --------------------------------------------------------------------------------- alignment


def curve(steps, scores, seed=0):
    steps, scores = np.array(steps), np.array(scores, dtype=float)
    return Curve("m", "t", seed, steps, scores, "success", "file", 0.0)


def test_curves_are_aligned_by_step_and_never_extrapolated():
    aligned = align([curve([10, 30, 50], [0.0, 0.4, 0.8]), curve([20, 30], [0.5, 0.6], seed=1)])
    assert aligned.steps.tolist() == [10, 20, 30, 50]
    np.testing.assert_allclose(aligned.scores, [[0.0, 0.2, 0.4, 0.8], [np.nan, 0.5, 0.6, np.nan]])
    assert aligned.seeds.tolist() == [1, 2, 2, 1]
    np.testing.assert_allclose(aligned.mean, [0.0, 0.35, 0.5, 0.8])


runs = st.lists(
    st.dictionaries(st.integers(0, 1000), st.floats(0, 1), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


@given(runs)
def test_alignment_keeps_every_evaluation_and_invents_nothing(points):
    curves = [
        curve(sorted(run), [run[step] for step in sorted(run)], seed)
        for seed, run in enumerate(points)
    ]
    aligned = align(curves)
    assert set(aligned.steps) == {step for run in points for step in run}
    assert (np.diff(aligned.steps) > 0).all()
    assert aligned.seeds.min() >= 1
    for run, row in zip(points, aligned.scores, strict=True):
        for step, score in zip(aligned.steps, row, strict=True):
            if step in run:
                assert score == pytest.approx(run[step], abs=1e-12)
            elif min(run) < step < max(run):
                assert min(run.values()) - 1e-12 <= score <= max(run.values()) + 1e-12
            else:
                assert np.isnan(score)


@given(runs, st.randoms(use_true_random=False))
def test_order_of_the_runs_does_not_matter(points, random):
    curves = [
        curve(sorted(run), [run[step] for step in sorted(run)], seed)
        for seed, run in enumerate(points)
    ]
    shuffled = random.sample(curves, len(curves))
    np.testing.assert_allclose(align(curves).mean, align(shuffled).mean, atol=1e-12)


@pytest.mark.parametrize(("name", "expected"), [("last", 0.1), ("last5", 0.34), ("best", 0.9)])
def test_final_scores(name, expected):
    scores = np.array([0.9, 0.2, 0.3, 0.4, 0.7, 0.1])
    assert FINALS[name](scores) == pytest.approx(expected)


def test_short_run_has_the_mean_of_what_there_is():
    assert FINALS["last5"](np.array([0.2, 0.4])) == pytest.approx(0.3)
