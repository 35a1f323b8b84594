"""Reading score files: every format, what is refused, and alignment by step."""

import json
import os

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from analysis.curves import FINALS, Curve, align, read, task_id
from errors import UserError


def entry(**changes):
    """One run in the published format."""
    return {
        "task": "metaworld_window_close",
        "seed": 0,
        "method": "mwm",
        "steps": [10, 30, 50],
        "success_rates": [0.0, 0.5, 1.0],
    } | changes


def published(path, *entries):
    path.write_text(json.dumps(list(entries)))
    return str(path)


def run_folder(path, lines, task="metaworld/window-close", seed=0, target="pixels"):
    """What training leaves behind, as far as a comparison reads it."""
    path.mkdir(parents=True)
    config = {"task": task, "seed": seed, "agent": {"autoencoder": {"target": target}}}
    (path / "config.yaml").write_text(yaml.safe_dump({"config": config, "commit": "abc"}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def evaluations(*points, name="success"):
    return [{"step": step, f"eval/{name}": score} for step, score in points]


# ------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("metaworld_window_close", "metaworld/window-close"),
        ("metaworld/window-close", "metaworld/window-close"),
        ("metaworld/window-close-v3", "metaworld/window-close"),
        ("metaworld_pick_out_of_hole", "metaworld/pick-out-of-hole"),
        ("dmc_walker_walk", "dmc/walker-walk"),
        ("dmc/reach_duplo", "dmc/reach_duplo"),
        ("rlbench_reach_target", "rlbench_reach_target"),
    ],
)
def test_task_names_of_all_sources_meet(name, task):
    assert task_id(name) == task


def test_published_format(tmp_path):
    path = published(tmp_path / "scores.json", entry(), entry(seed=1, commit="abc"))
    first, second = read([path])
    assert (first.method, first.task, first.seed) == ("mwm", "metaworld/window-close", 0)
    assert (first.kind, first.source) == ("success", path)
    assert first.steps.tolist() == [10, 30, 50]
    assert first.scores.tolist() == [0.0, 0.5, 1.0]
    assert second.provenance == {"commit": "abc"}


def test_run_folder_with_training_lines_and_a_line_being_written(tmp_path):
    lines = [{"step": 5, "train/return": 3.0}, *evaluations((10, 0.2), (15, 0.4))]
    path = run_folder(tmp_path / "run", lines, seed=7)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "eval/succ')
    (curve,) = read([path])
    assert (curve.method, curve.seed, curve.steps.tolist()) == ("ours", 7, [10, 15])
    assert curve.provenance["commit"] == "abc"


def test_return_counts_where_no_success_is_known(tmp_path):
    lines = evaluations((10, 120.0), (20, 300.0), name="return")
    (curve,) = read([run_folder(tmp_path / "run", lines, task="dmc/walker-walk")])
    assert (curve.kind, curve.scores.tolist()) == ("return", [120.0, 300.0])


def test_run_that_evaluated_the_same_step_twice_counts_the_last_one(tmp_path):
    lines = evaluations((10, 0.2), (20, 0.4), (20, 0.6))
    (curve,) = read([run_folder(tmp_path / "run", lines)])
    assert curve.scores.tolist() == [0.2, 0.6]


def test_globs_folders_of_runs_and_names_for_methods(tmp_path):
    for seed in (0, 1):
        run_folder(tmp_path / "runs" / f"seed{seed}", evaluations((10, 0.1)), seed=seed)
    for given_as in (f"{tmp_path}/runs", f"{tmp_path}/runs/seed*", f"{tmp_path}/runs/*/*.jsonl"):
        assert [curve.seed for curve in read([given_as])] == [0, 1]
    both = read([f"{tmp_path}/runs", f"big={tmp_path}/runs"])
    assert [(c.method, c.seed) for c in both] == [("big", 0), ("big", 1), ("ours", 0), ("ours", 1)]


def test_folder_of_recorded_curves(tmp_path):
    for seed in (0, 1):
        published(tmp_path / f"{seed}.json", entry(seed=seed))
    assert [curve.seed for curve in read([str(tmp_path)])] == [0, 1]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="neither run folders nor"):
        read([f"{tmp_path}/nothing"])


def test_another_target_is_another_method(tmp_path):
    path = run_folder(tmp_path / "run", evaluations((10, 0.1)), target="masks")
    assert read([path])[0].method == "ours-masks"


def test_run_without_an_evaluation_is_left_out(tmp_path):
    going = run_folder(tmp_path / "going", [{"step": 5, "train/return": 3.0}], seed=1)
    done = run_folder(tmp_path / "done", evaluations((10, 0.1)))
    assert [curve.seed for curve in read([going, done])] == [0]
    with pytest.raises(UserError, match="evaluated yet"):
        read([going])


def test_csv(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(
        "method,task,seed,step,return\nsac,dmc_walker_walk,0,10,5\nsac,dmc_walker_walk,0,20,7\n"
    )
    (curve,) = read([str(path)])
    assert (curve.method, curve.task, curve.kind) == ("sac", "dmc/walker-walk", "return")
    assert curve.scores.tolist() == [5.0, 7.0]


def test_tensorboard_events_of_a_run_that_was_resumed(tmp_path):
    run_folder(tmp_path / "run", [])
    writer = SummaryWriter(str(tmp_path / "run" / "tensorboard"))
    for step, score in ((10, 0.1), (20, 0.2), (30, 0.3), (20, 0.7)):
        writer.add_scalar("eval/success", score, step)
        writer.add_scalar("eval/return", 100 * score, step)
    writer.close()
    (curve,) = read([f"{tmp_path}/run/tensorboard/events*"])
    assert curve.steps.tolist() == [10, 20]
    np.testing.assert_allclose(curve.scores, [0.1, 0.7], rtol=1e-6)


def test_event_files_of_one_run_are_one_curve_across_resumes(tmp_path):
    run_folder(tmp_path / "run", [])
    for number, points in enumerate([((10, 0.1), (20, 0.2), (30, 0.3)), ((20, 0.7), (40, 0.9))]):
        folder = tmp_path / "run" / "tensorboard"
        writer = SummaryWriter(str(tmp_path / f"writer{number}"))
        for step, score in points:
            writer.add_scalar("eval/success", score, step)
        writer.close()
        folder.mkdir(exist_ok=True)
        (file,) = (tmp_path / f"writer{number}").iterdir()
        file.rename(folder / f"events.out.tfevents.{number}")
    (curve,) = read([f"{tmp_path}/run/tensorboard/events*"])
    assert curve.steps.tolist() == [10, 20, 40]
    np.testing.assert_allclose(curve.scores, [0.1, 0.7, 0.9], rtol=1e-6)


def test_globs_pass_over_logs_and_runs_that_just_started(tmp_path):
    run_folder(tmp_path / "runs" / "a", evaluations((10, 0.1)))
    (tmp_path / "runs" / "a.log").write_text("step 10")
    started = tmp_path / "runs" / "b"
    run_folder(started, [], seed=1)
    (started / "metrics.jsonl").unlink()
    assert [curve.seed for curve in read([f"{tmp_path}/runs/*"])] == [0]
    (tmp_path / "runs" / "b.log").write_text("step 10")
    with pytest.raises(UserError, match="names neither"):
        read([f"{tmp_path}/runs/*.log"])


def test_same_folder_named_twice_is_one_run(tmp_path, monkeypatch):
    path = run_folder(tmp_path / "run", evaluations((10, 0.1)))
    monkeypatch.chdir(tmp_path)
    assert len(read([path, "run", "./run/metrics.jsonl"])) == 1


def test_run_folder_of_an_older_version_counts_as_pixels(tmp_path):
    path = tmp_path / "run"
    run_folder(path, evaluations((10, 0.1)))
    (path / "config.yaml").write_text("config: {task: metaworld/push, seed: 1}\n")
    assert read([str(path)])[0].method == "ours"


def test_table_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_bytes(b"\xef\xbb\xbfmethod,task,seed,step,success\nm,t,0,1,0.5\n")
    assert read([str(path)])[0].scores.tolist() == [0.5]


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"success_rates": [0.0, float("nan"), 1.0]}, ["entry 2, evaluation 2", "finite"]),
        ({"success_rates": [0.0, 0.5, 1.5]}, ["entry 2, evaluation 3", "between 0 and 1"]),
        ({"steps": [10, 50, 30]}, ["entry 2, evaluation 3", "step 30 comes after step 50"]),
        ({"steps": [10, 30]}, ["entry 2", "2 steps and 3 scores"]),
        ({"steps": [], "success_rates": []}, ["entry 2", "0 steps"]),
        ({"seed": "first"}, ["seed 'first'"]),
        ({"success_rates": [0.0, None, 1.0]}, ["entry 2, evaluation 2", "None"]),
        ({"steps": [10.2, 10.7, 50]}, ["entry 2, evaluation 1", "no number of environment steps"]),
        ({"steps": "123"}, ["entry 2", "must be lists"]),
        ({"success_rates": 1.0}, ["entry 2", "must be lists"]),
        ({"returns": [1, 2, 3]}, ["entry 2", "one of success_rates and returns"]),
        ({"seed": float("inf")}, ["entry 2", "whole number"]),
        ({"seed": 0.7}, ["entry 2", "whole number"]),
        ({"task": None}, ["entry 2", "task None"]),
        ({"task": "a" * 300}, ["entry 2", "300 characters"]),
        ({"method": ["mwm"]}, ["entry 2", "method ['mwm']"]),
        ({"steps": [10, 30, 1e300]}, ["entry 2, evaluation 3", "environment steps"]),
    ],
)
def test_published_format_that_cannot_be_right_names_file_and_row(tmp_path, changes, words):
    path = published(tmp_path / "scores.json", entry(seed=5), entry(**changes))
    with pytest.raises(UserError) as refusal:
        read([path])
    assert all(word in str(refusal.value) for word in [path, *words])


def test_entry_without_steps_is_refused(tmp_path):
    broken = entry()
    del broken["steps"]
    with pytest.raises(UserError, match="entry 1 lacks steps"):
        read([published(tmp_path / "scores.json", broken)])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (evaluations((10, 0.1), (30, 0.2), (20, 0.3)), ["line 3", "step 20 comes after step 30"]),
        (evaluations((10, 0.1), (30, 1.2)), ["line 2", "between 0 and 1"]),
        (evaluations((10, 0.1), (30, float("nan"))), ["line 2", "finite"]),
        ([*evaluations((10, 0.1)), 5], ["line 2", "no step"]),
        ([*evaluations((10, 0.1)), {"eval/success": 0.5}], ["line 2", "no step"]),
    ],
)
def test_run_folder_that_cannot_be_right_names_file_and_line(tmp_path, lines, words):
    path = run_folder(tmp_path / "run", lines)
    with pytest.raises(UserError) as refusal:
        read([path])
    assert all(word in str(refusal.value) for word in [f"{path}/metrics.jsonl", *words])


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("missing.json", None, "nothing at"),
        ("empty.json", "", "not JSON"),
        ("none.json", "[]", "empty"),
        ("scores.txt", "1 2 3", "no score file"),
        ("scores.csv", "task,seed,step\n", "lacks the columns method, return"),
        ("latin.csv", b"method,task,seed,step,return\nm\xe9,t,0,1,1\n", "cannot be read"),
        ("deep.json", "[" * 100_000, "cannot be read"),
        ("numbers.json", "[1, 2]", "entry 1 is not a run"),
        ("events.out.tfevents.1", "garbage", "config.yaml"),
    ],
)
def test_file_that_cannot_be_used_is_refused(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=word):
        read([str(tmp_path / name)])


def test_run_that_is_there_twice_is_refused_or_the_latest_kept(tmp_path):
    old = published(tmp_path / "old.json", entry())
    new = published(tmp_path / "new.json", entry(success_rates=[0.1, 0.2, 0.3]))
    os.utime(old, (1, 1))
    with pytest.raises(UserError) as refusal:
        read([old, new])
    for word in (old, new, "mwm", "metaworld/window-close", "seed 0"):
        assert word in str(refusal.value)
    for order in ([old, new], [new, old]):
        (curve,) = read(order, keep="latest")
        assert curve.source == new


def test_success_and_return_of_one_task_do_not_mix(tmp_path):
    rates = published(tmp_path / "rates.json", entry())
    returns = entry(seed=1, returns=[1, 2, 3])
    del returns["success_rates"]
    with pytest.raises(UserError, match="compare one or the other"):
        read([rates, published(tmp_path / "returns.json", returns)])


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
