"""Whole comparisons: the paper's headline from its raw data, and folders of our own."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import envs
from analysis.comparison import Compare, ceiling, compare, difficulty
from analysis.curves import Curve
from analysis.figures import LOOKS, looks
from analysis.record import record
from analysis.report import make_report
from analysis.score_files import read
from envs import dmc
from errors import UserError
from tests.analysis.score_inputs import run_folder
from tests.refusals import refusal

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "published" / "metaworld_scores.json"


EVERYTHING = {"shared": False, "until": "end"}


def write(path, *entries):
    path.write_text(json.dumps(list(entries)))
    return str(path)


def entry(method, task, seed, scores, steps=None, name="success_rates"):
    steps = steps or [10_000 * (i + 1) for i in range(len(scores))]
    return {"method": method, "task": task, "seed": seed, "steps": steps, name: scores}


def test_published_headline(tmp_path):
    options = Compare(inputs=(str(PUBLISHED),), out=tmp_path, repetitions=200)
    comparison = compare(read(options.inputs), options)
    mean = {method: s["mean"][0] for method, s in comparison.statistics.items()}
    assert mean == pytest.approx({"mwm": 0.817, "dreamerv2": 0.679}, abs=0.0005)
    assert {len(methods) for methods in comparison.finals.values()} == {2}
    assert len(comparison.tasks) == 50
    sizes = {group: sizes["mwm"] for group, sizes in comparison.group_sizes.items()}
    assert sizes == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    fractions, means, _ = comparison.efficiency["mwm"]
    assert fractions[0] == pytest.approx(0.02)  # 10,000 of 500,000 steps; none is known before
    assert fractions[-1] <= 0.98
    assert means[-1] > means[0]
    assert list(comparison.improvements) == [("mwm", "dreamerv2")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two methods, one with runs cut short, and a task with returns that only one has."""
    tmp_path = tmp_path_factory.mktemp("inputs")
    easy, hard = "metaworld/window-close", "metaworld/push"
    published = write(
        tmp_path / "published.json",
        *(entry("mwm", task, seed, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
          for task in (easy, hard) for seed in range(3)),
    )  # fmt: skip
    own = write(
        tmp_path / "own.json",
        entry("ours", easy, 0, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        entry("ours", easy, 1, [0.0, 1.0], steps=[5_000, 15_000]),
        entry("ours", hard, 0, [0.1, 0.1]),
        entry("ours", "dmc/walker-walk", 0, [100.0, 300.0], name="returns"),
    )
    return published, own


@pytest.fixture(scope="module")
def reported(inputs, tmp_path_factory):
    """The report of everything: its folder, what is printed, the files that were written."""
    out = tmp_path_factory.mktemp("reported") / "out"
    return out, *make_report(Compare(inputs=inputs, out=out, repetitions=200, **EVERYTHING))


def test_everything_is_written_and_the_report_needs_nothing_else(reported):
    out, summary, written = reported
    assert "mwm" in summary
    assert set(written) == {path for path in out.rglob("*") if path.is_file()}
    for name in ("aggregate", "curves", "groups", "tasks/metaworld-push", "tasks/dmc-walker-walk"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    report = (out / "report.html").read_text()
    assert report.count("<svg") == 6
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", report.replace("xlink:href", "href"))
    ids = re.findall(r'\bid="([^"]+)"', report)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', report)) <= set(ids)
    for text in (report, (out / "scores.md").read_text()):
        assert "own.json" in text
        assert "different tasks" in text


def test_numbers_of_a_small_comparison(reported):
    numbers = json.loads((reported[0] / "scores.json").read_text())
    easy = numbers["tasks"]["metaworld/window-close"]
    assert easy["ours"]["finals"] == pytest.approx([0.9, 0.5])
    assert easy["mwm"]["mean"] == pytest.approx(0.76)
    assert numbers["tasks"]["dmc/walker-walk"]["ours"]["finals"] == [200.0]
    # Normalised: window-close (.9 + .5) / 2, push .1, walker-walk 200 of 1000.
    mean = numbers["aggregates"]["ours"]["mean"]["point"]
    assert mean == pytest.approx((0.7 + 0.1 + 0.2) / 3)
    assert numbers["groups"]["hard"]["ours"]["interval"] is None
    assert any("unequal training" in note for note in numbers["notes"])
    assert any("fewer than five" in note for note in numbers["notes"])


def test_shared_tasks_and_common_steps_are_compared_unless_asked_otherwise(inputs, tmp_path):
    options = Compare(inputs=inputs, out=tmp_path, final="last", repetitions=200)
    comparison = compare(read(inputs), options)
    assert set(comparison.finals) == {"metaworld/window-close", "metaworld/push"}
    # ours ends at step 15,000 of window-close and at 20,000 of push.
    assert comparison.finals["metaworld/window-close"]["mwm"].tolist() == pytest.approx([0.1] * 3)
    assert comparison.finals["metaworld/window-close"]["ours"].tolist() == [0.25, 1.0]
    assert comparison.finals["metaworld/push"]["mwm"].tolist() == [0.2] * 3
    assert comparison.notes[0] == (
        "compared: 2 of 3 tasks (those of all methods), steps to 15,000 to 20,000 of 70,000 (those"
        " of all runs of a task); --no-shared --until end takes everything"
    )


def test_steps_are_compared_up_to_until(inputs, tmp_path):
    options = Compare(inputs=inputs[:1], out=tmp_path, until=45_000, final="last", repetitions=200)
    comparison = compare(read(inputs[:1]), options)
    assert comparison.finals["metaworld/push"]["mwm"].tolist() == pytest.approx([0.7] * 3)
    assert "steps to 45,000 of 70,000" in comparison.notes[0]


def test_methods_without_a_shared_task_are_refused(inputs, tmp_path):
    path = write(tmp_path / "a.json", entry("a", "metaworld/push", 0, [0.0]),
                 entry("b", "metaworld/reach", 0, [0.0]))  # fmt: skip
    with pytest.raises(UserError, match=r"no task is shared by all methods \(a, b\); --no-shared"):
        compare(read([path]), Compare((path,), tmp_path))


def test_seeds_behind_every_point_are_counted(inputs, tmp_path):
    options = Compare(inputs=inputs, out=tmp_path, repetitions=200, **EVERYTHING)
    aligned = compare(read(inputs), options).tasks["metaworld/window-close"]["ours"]
    assert dict(zip(aligned.steps.tolist(), aligned.seeds.tolist(), strict=True)) == {
        5_000: 1, 10_000: 2, 15_000: 2, 20_000: 1, 30_000: 1, 40_000: 1, 50_000: 1, 60_000: 1
    }  # fmt: skip


def test_sample_efficiency_is_shown_only_where_every_task_is_known(inputs, tmp_path):
    few = {"inputs": inputs, "out": tmp_path, "repetitions": 200}
    options = Compare(**few, tasks=("metaworld_window_close",), until="end")
    comparison = compare(read(inputs), options)
    fractions, means, _ = comparison.efficiency["mwm"]
    assert (fractions[0], fractions[-1]) == pytest.approx((0.02, 0.14))
    assert means[fractions == 0.06] == pytest.approx(0.4)
    both = compare(read(inputs), Compare(**few, **EVERYTHING))
    # push has four times the budget: its 10,000 to 70,000 steps are .005 to .035 of it.
    assert both.efficiency["mwm"][0][-1] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tasks": ("metaworld/window-open",)}, "no curve of metaworld/window-open"),
        ({"until": 5}, "nothing is left"),
    ],
)
def test_selection_that_leaves_nothing_is_refused(inputs, tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        compare(read(inputs), Compare(inputs=inputs, out=tmp_path, **changes))


@pytest.mark.parametrize(
    ("task", "group"),
    [
        ("metaworld/window-close", "easy"),
        ("metaworld/hammer", "medium"),
        ("metaworld/pick-place", "hard"),
        ("metaworld/stick-pull", "very hard"),
        ("dmc/walker-walk", None),
    ],
)
def test_difficulty_groups_of_the_paper(task, group):
    assert difficulty(task) == group


def test_returns_are_divided_by_what_an_episode_can_pay():
    most = {task: ceiling(task, "return") for task in envs.tasks("dmc")}
    assert {most[f"dmc/{name}"] for name in dmc.MANIPULATION_TASKS} == {250.0}
    suite = [most[f"dmc/{name}"] for name in dmc.SUITE_TASKS]
    assert set(suite) == {1000.0}
    assert ceiling("dmc/walker-walk", "success") == 1.0
    assert ceiling("metaworld/push", "return") is None


def test_returns_of_unknown_size_are_drawn_but_not_aggregated(tmp_path):
    path = write(
        tmp_path / "scores.json",
        entry("sac", "metaworld/push", 0, [100.0, 3500.0], name="returns"),
    )
    make_report(Compare(inputs=(path,), out=tmp_path / "out", repetitions=200))
    numbers = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert numbers["aggregates"] == {}
    assert any("left out of aggregates" in note for note in numbers["notes"])
    assert (tmp_path / "out" / "tasks" / "metaworld-push.png").exists()


def test_method_looks_the_same_whoever_else_is_shown():
    alone = looks(["masks"])["masks"]
    assert looks(["masks", "mwm", "ours", "dreamerv2"])["masks"] == alone
    crowd = looks(["mwm", "ours", "dreamerv2", "a", "b", "c", "d"])
    assert len({look[0] for look in crowd.values()}) == len(LOOKS)
    assert len({(look[1], look[2]) for look in crowd.values()}) == len(LOOKS)  # in grey
    assert len(set(looks([f"method{i}" for i in range(20)]).values())) == 20


def test_user_errors_are_one_line_and_status_two(tmp_path, capsys):
    said = refusal(capsys, "compare", tmp_path / "none.json", "--out", tmp_path / "out")
    assert said == (
        f"error: there is nothing at {tmp_path}/none.json; name run folders or score files\n"
    )
    assert not (tmp_path / "out").exists()


def test_tasks_that_differ_by_a_dash_have_a_picture_each(tmp_path):
    path = write(
        tmp_path / "scores.json",
        *(entry("ours", task, 0, [score] * 2) for task, score in (("a/b", 0.1), ("a-b", 0.9))),
    )
    out = tmp_path / "out"
    make_report(Compare(inputs=(path,), out=out, repetitions=100))
    assert sorted(os.listdir(out / "tasks")) == ["a-b-2.png", "a-b-2.svg", "a-b.png", "a-b.svg"]
    for name, title in (("a-b", "a-b"), ("a-b-2", "a/b")):
        assert f"<!-- {title} -->" in (out / "tasks" / f"{name}.svg").read_text()
    assert (out / "report.html").read_text().count("<svg") == 4


def test_what_was_left_out_is_said_in_the_report(tmp_path):
    path = write(tmp_path / "a.json", entry("a", "b", 0, [100.0], name="returns"))
    run = run_folder(tmp_path / "run", [{"step": 5, "train/return": 3.0}])
    summary, _ = make_report(Compare((path, run), tmp_path / "out", repetitions=100))
    note = f"{run}/metrics.jsonl has no evaluation and is left out (looked for"
    assert f"note: {note}" in summary
    assert note in (tmp_path / "out" / "scores.md").read_text()


@pytest.mark.parametrize(
    ("score", "said"), [(0.0, False), (1000.0, False), (1e4, True), (-5, True)]
)
def test_returns_that_no_episode_pays_are_said(tmp_path, score, said):
    path = write(tmp_path / "a.json", entry("a", "dmc/walker-walk", 0, [score], name="returns"))
    comparison = compare(read([path]), Compare((path,), tmp_path, repetitions=100))
    assert any("0 to 1000" in note for note in comparison.notes) == said


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([(f"m{i}", "t", 1) for i in range(41)], "41 methods are more than the 40"),
        ([("m", f"t{i}", 1) for i in range(501)], "501 tasks are more than the 500"),
        ([("m", "t", 1_500_000), ("m", "t", 10)], "more than can be compared"),
    ],
)
def test_more_than_can_be_drawn_is_refused_before_anything_is_computed(tmp_path, runs, words):
    curves = [
        Curve(method, task, 0, np.arange(steps), np.zeros(steps), "success", "file", 0.0)
        for method, task, steps in runs
    ]
    with pytest.raises(UserError, match=words):
        compare(curves, Compare((), tmp_path, **EVERYTHING))


@pytest.mark.parametrize("repetitions", [99, 100_001])
def test_repetitions_have_bounds(inputs, tmp_path, repetitions):
    with pytest.raises(UserError, match="give 100 to 100,000"):
        make_report(Compare(inputs=inputs, out=tmp_path / "out", repetitions=repetitions))


def test_same_inputs_give_the_same_numbers(inputs, reported, tmp_path):
    make_report(Compare(inputs=inputs, out=tmp_path / "again", repetitions=200, **EVERYTHING))
    texts = [(out / "scores.json").read_text() for out in (reported[0], tmp_path / "again")]
    assert texts[0] == texts[1]
    assert np.isfinite(json.loads(texts[0])["aggregates"]["ours"]["mean"]["point"])


def test_whatever_stands_in_a_file_a_row_of_the_table_is_one_line(tmp_path):
    command = "python run.py train \\\n  --task a|b"
    entries = [
        entry("ours", "metaworld/push", s, [0.1, 0.2]) | {"command": command} for s in (0, 1)
    ]
    make_report(Compare((write(tmp_path / "a.json", *entries),), tmp_path / "out", repetitions=100))
    text = (tmp_path / "out" / "scores.md").read_text()
    rows = [line for line in text.splitlines() if "run.py train" in line]
    assert [row.count(" | ") for row in rows] == [4]
    assert "--task a\\|b" in rows[0]


def own_run(folder, seed, scores, **seen):
    """A run of an environment of the user's own, with what its configuration says of it."""
    points = [
        {"step": 1000 * (i + 1), "eval/return": score, "time": 1.0}
        for i, score in enumerate(scores)
    ]
    path = run_folder(folder, points, "package.module:Dot", seed)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    written["config"]["environment"] = seen
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    return path


def test_a_run_of_an_own_environment_says_its_name_and_what_an_episode_pays(tmp_path):
    inputs = tuple(
        own_run(tmp_path / f"run{seed}", seed, scores, name="dot", score_bounds=[-50.0, 150.0])
        for seed, scores in enumerate([[0.0, 50.0], [50.0, 150.0]])
    )
    options = Compare(inputs=inputs, out=tmp_path / "out", repetitions=200, final="last")
    comparison = compare(read(inputs), options)
    assert list(comparison.tasks) == ["dot"]
    assert comparison.finals["dot"]["ours"].tolist() == [50.0, 150.0]
    (statistics,) = comparison.statistics.values()
    assert statistics["mean"][0] == pytest.approx((0.5 + 1.0) / 2)
    make_report(options)
    assert (tmp_path / "out" / "tasks" / "dot.png").exists()
    # A file that keeps the curve keeps the bounds.
    (kept, *_) = record(inputs, tmp_path / "curves", print)
    (again,) = read((str(kept),))
    assert (again.task, again.bounds) == ("dot", (-50.0, 150.0))


def test_without_name_and_bounds_it_is_called_by_its_id_and_not_aggregated(tmp_path):
    path = own_run(tmp_path / "run", 0, [1.0, 2.0])
    make_report(Compare(inputs=(path,), out=tmp_path / "out", repetitions=200))
    numbers = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert numbers["aggregates"] == {}
    assert any("package.module:Dot: what a return is at most" in n for n in numbers["notes"])
    names = [path.name for path in (tmp_path / "out" / "tasks").iterdir()]
    assert names
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


@pytest.mark.parametrize(
    ("bounds", "others", "sentence"),
    [
        ([0, 1], [0, 2], "Dot has the score bounds .* give all of its runs the same"),
        ([1, 0], None, "config.yaml has score_bounds"),
        ("ab", None, "config.yaml has score_bounds"),
        (7, None, "config.yaml has score_bounds"),
    ],
)
def test_bounds_that_make_no_sense_are_one_line(tmp_path, bounds, others, sentence):
    inputs = tuple(
        own_run(tmp_path / f"run{seed}", seed, [0.0, 0.5], score_bounds=said)
        for seed, said in enumerate([bounds, others])
    )
    with pytest.raises(UserError, match=sentence):
        compare(read(inputs), Compare(inputs=inputs, out=tmp_path / "out"))
