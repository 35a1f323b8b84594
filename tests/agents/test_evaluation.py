"""Summaries of evaluation episodes against values worked out by hand or found in tables."""

import pytest

from agents.evaluation import measure, noise_seed, retained, summarise
from experiment.evaluation_record import EvaluationRecord, Start


def episodes(returns, successes=None):
    successes = successes or [None] * len(returns)
    return [{"return": r, "success": s} for r, s in zip(returns, successes, strict=True)]


def test_wilson_interval_of_eighteen_in_twenty():
    summary = summarise(episodes([0.0] * 20, [True] * 18 + [False] * 2))
    assert summary["success"]["count"] == 18
    assert summary["success"]["mean"] == 0.9
    assert summary["success"]["interval"] == pytest.approx([0.699, 0.972], abs=5e-4)


def test_no_success_in_twenty_does_not_mean_zero():
    low, high = summarise(episodes([0.0] * 20, [False] * 20))["success"]["interval"]
    assert low == 0.0
    assert high == pytest.approx(0.161, abs=5e-4)


def test_return_has_student_interval():
    summary = summarise(episodes([1.0, 2.0, 3.0]))["return"]
    assert summary["mean"] == 2.0
    assert summary["std"] == 1.0
    # t(0.975, 2) = 4.303; 4.303 / sqrt(3) = 2.484
    assert summary["interval"] == pytest.approx([-0.484, 4.484], abs=1e-3)


def test_one_episode_has_no_interval_of_its_return():
    assert summarise(episodes([7.0]))["return"] == {"mean": 7.0, "std": None, "interval": None}


def test_suites_without_success_report_none():
    assert summarise(episodes([1.0, 2.0]))["success"] is None


def test_what_is_retained_under_shifts_by_hand():
    plain = episodes([0.0] * 4, [True, True, True, False])
    shifted = {
        "noise:1": episodes([0.0] * 4, [True, False, False, False]),
        "robot:1": episodes([0.0] * 4, [True, True, False, False]),
    }
    left = retained(plain, shifted)
    assert left["score"] == "success"
    assert (left["id"], left["ood"]) == (0.75, 0.375)
    assert left["retain"] == 0.5
    low, high = left["interval"]
    assert 0.0 <= low < 0.5 < high <= 1.0


def test_returns_are_retained_where_there_is_no_success():
    left = retained(episodes([10.0, 20.0]), {"noise:1": episodes([5.0, 10.0])})
    assert left["score"] == "return"
    assert left["retain"] == 0.5
    assert left["interval"] == [0.5, 0.5]  # every start keeps half of its return


def test_nothing_can_be_retained_of_nothing():
    plain = episodes([0.0, 0.0], [False, False])
    left = retained(plain, {"noise:1": episodes([0.0, 0.0], [True, False])})
    assert left["retain"] is left["interval"] is None
    assert left["ood"] == 0.5


def test_a_row_is_played_once_and_comes_in_the_order_of_its_starts(tmp_path):
    starts = [Start("metaworld/reach", seed) for seed in (5, 3, 9)]
    played = []

    def play(left, keep):
        for start in reversed(left):
            played.append(start.seed)
            keep({"seed": start.seed, "return": 0.0, "success": None, "length": 1})

    for some in (starts[:1], starts, starts):
        record = EvaluationRecord(
            tmp_path / "evaluation.json", {"task": "metaworld/reach", "seed": 0}
        )
        found = measure(record, "agent", some, play)
        assert [episode["seed"] for episode in found] == [start.seed for start in some]
    assert played == [5, 9, 3]


def test_an_evaluation_that_goes_on_draws_other_noise_than_it_began_with():
    seeds = [11, 12, 13]
    assert noise_seed(0, seeds, 11) == 0
    assert noise_seed(0, seeds[1:], 11) == 12
