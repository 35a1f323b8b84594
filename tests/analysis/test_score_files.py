"""Reading score files: every format, and what is refused by file and row."""

import os

import pytest

from analysis.score_files import read
from errors import UserError
from tests.analysis.score_inputs import entry, evaluations, published, run_folder

# ------------------------------------------------------------------------------ what is read


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
    notes = []
    assert [curve.seed for curve in read([going, done], note=notes.append)] == [0]
    assert [going in note for note in notes] == [True]
    with pytest.raises(UserError, match="looked for eval/success .* found train/return"):
        read([going])


def test_csv(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(
        "method,task,seed,step,return\nsac,dmc_walker_walk,0,10,5\nsac,dmc_walker_walk,0,20,7\n"
    )
    (curve,) = read([str(path)])
    assert (curve.method, curve.task, curve.kind) == ("sac", "dmc/walker-walk", "return")
    assert curve.scores.tolist() == [5.0, 7.0]


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


TABLE = """method,task,seed,step,success
m,metaworld/push,0,1000,0.25
m,metaworld/push,0,2000,0.5
m,metaworld/push,1,1000,1
"""


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        ({}, "utf-8"),
        ({}, "utf-8-sig"),
        ({}, "utf-16"),
        ({"\n": "\r\n"}, "utf-8"),
        ({"\n": "\r"}, "utf-8"),
        ({",": "\t"}, "utf-16"),
        ({",": ";"}, "utf-8"),
        ({",": ";", ".": ","}, "utf-8"),
        ({",": ", "}, "utf-8"),
        ({"push,0": "push,0.0", "push,1": "push,1.0"}, "utf-8"),
        ({"push,0,2": "push,0.0,2"}, "utf-8"),  # one seed, whichever way it is written
        ({"metaworld/push,0,2": "metaworld_push,0,2"}, "utf-8"),
        ({",2000": ",2e3"}, "utf-8"),
        ({"000,": "000.0,"}, "utf-8"),
        ({"method": "Method", "seed": "SEED", "success": "Success"}, "utf-8"),
        ({"m,metaworld/push,1": "\n,,,,\nm,metaworld/push,1"}, "utf-8"),
        ({"metaworld/push": '"metaworld/push"'}, "utf-8"),
    ],
    ids=range(17),
)
def test_a_table_is_read_however_a_spreadsheet_wrote_it(tmp_path, change, encoding):
    text = TABLE
    for before, after in change.items():
        text = text.replace(before, after)
    (tmp_path / "scores.csv").write_bytes(text.encode(encoding))
    first, second = read([str(tmp_path / "scores.csv")])
    assert (first.method, first.task, first.seed) == ("m", "metaworld/push", 0)
    assert (first.steps.tolist(), first.scores.tolist()) == ([1000, 2000], [0.25, 0.5])
    assert (second.seed, second.scores.tolist()) == (1, [1.0])


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("success", "score", "lacks the columns return"),
        ("method,", "", "lacks the columns method"),
        ("method", "step", "lacks the columns method"),
        ("seed", "seed,step", "more than one column step"),
        ("0.25", "nan", "line 2 is not finite"),
        ("0.25", "1e999", "line 2 is not finite"),
        ("0.25", "", "line 2 has step '1000' and score ''"),
        ("0.25", "1_0", "line 2 has step '1000' and score '1_0'"),
        ("0.25", "25", "line 2: a success of 25 is not between 0 and 1"),
        ("0.25", "0,25", "line 2 has 6 values, its header 5 columns"),
        (",0.25", "", "line 2 has 4 values"),
        ("2000", "1000", "line 3: step 1000 comes after step 1000"),
        ("2000", "500", "line 3: step 500 comes after step 1000"),
        ("2000", "-1", "line 3: step '-1' is no number of environment steps"),
        ("2000", "2000.5", "line 3: step '2000.5'"),
        ("push,1", "push,first", "has seed 'first'"),
        ("push,1", "push,", "has seed ''"),
        ("push,1", "push,0.5", "has seed '0.5'"),
        ("push,1", f"push,{'9' * 5000}", "has seed '999"),
        ("0.25", '"0.25', "line 4 cannot be read: unexpected end of data"),
        ("0.25", '"' + "x" * 200_000 + '"', "line 2 cannot be read: field larger"),
        ("m,metaworld/push,1", "\x1b[2J,metaworld/push,1", "has method '"),
        (TABLE[TABLE.index("\n") :], "\n", "has no rows"),
        (TABLE, "\n\n", "is empty"),
    ],
    ids=range(24),
)
def test_a_table_that_cannot_be_right_names_file_and_line(tmp_path, before, after, words):
    assert before in TABLE
    (tmp_path / "scores.csv").write_text(TABLE.replace(before, after))
    with pytest.raises(UserError) as refusal:
        read([str(tmp_path / "scores.csv")])
    assert words in str(refusal.value)
    assert str(tmp_path / "scores.csv") in str(refusal.value)
    assert len(str(refusal.value)) < 600


def test_a_comma_and_a_point_in_one_table_are_refused(tmp_path):
    """10.000 may be ten, or ten thousand."""
    text = TABLE.replace(",", ";").replace("0.25", "0,25").replace("2000", "10.000")
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UserError, match="numbers with a comma and numbers with a point, line 3"):
        read([str(tmp_path / "scores.csv")])


def test_a_name_with_an_equals_sign_is_a_path_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, rate in enumerate(("0.1", "0.2")):
        run_folder(tmp_path / f"lr={rate}", evaluations((10, 0.1)), seed=seed)
    names = [("ours", 0), ("ours", 1)]
    assert [(c.method, c.seed) for c in read(["lr=*"])] == names
    assert [(c.method, c.seed) for c in read(["lr=0.1", "lr=0.2"])] == names
    assert [(c.method, c.seed) for c in read(["lr=0.1=lr=0.1"])] == [("lr=0.1", 0)]
    assert [(c.method, c.seed) for c in read(["rates=lr=*"])] == [("rates", 0), ("rates", 1)]
    with pytest.raises(UserError, match=r"nothing at lr=0\.3"):
        read(["lr=0.3"])
    run_folder(tmp_path / "[lr]", evaluations((10, 0.1)), seed=2)
    run_folder(tmp_path / "l", evaluations((10, 0.1)), seed=3)
    assert [c.seed for c in read(["[lr]"])] == [2]  # what is there, before what it matches


@pytest.mark.parametrize("kind", ["folder", "pipe", "nowhere", "holes"])
@pytest.mark.parametrize(
    "name", ["a.json", "a.csv", "events.out.tfevents.0", "config.yaml", "metrics.jsonl"]
)
def test_what_is_no_file_is_refused_by_name(tmp_path, kind, name):
    run_folder(tmp_path / "run", evaluations((10, 0.1)))
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "nowhere":
        path.symlink_to("nowhere")
    else:
        path.touch()
        os.truncate(path, 2**40)
    with pytest.raises(UserError) as refusal:
        read([str(tmp_path / "run" if name in ("config.yaml", "metrics.jsonl") else path)])
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("config: {task: metaworld/push}", "says no seed"),
        ("config: {task: [a], seed: 0}", "has task ['a']"),
        ("config: {task: t, seed: 0, agent: {autoencoder: {target: 3}}}", "target 3"),
        ("config: {task: t, seed: 0x" + "f" * 60 + "}", "has seed 1"),
        ("config: {task: t, seed: 0}\nversions: {a: .nan}", "versions is no plain value"),
    ],
)
def test_a_run_whose_configuration_cannot_be_right_is_refused_by_file(tmp_path, config, words):
    path = run_folder(tmp_path / "run", evaluations((10, 0.1)))
    (tmp_path / "run" / "config.yaml").write_text(config)
    with pytest.raises(UserError) as refusal:
        read([path])
    assert words in str(refusal.value)
    assert path in str(refusal.value)


def test_a_configuration_says_nothing_but_where_the_curve_came_from(tmp_path):
    """Whatever else stands in it, the scores are those of metrics.jsonl."""
    path = run_folder(tmp_path / "run", evaluations((10, 0.1)))
    text = "config: {task: t, seed: 0, agent: [1]}\ncommit: abc\nsteps: [7]\nseed: 8\n"
    (tmp_path / "run" / "config.yaml").write_text(text)
    (curve,) = read([path])
    assert curve.provenance == {"commit": "abc"}


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
        (
            "latin.csv",
            b"method,task,seed,step,return\nm\xe9,t,0,1,1\n",
            r"not UTF-8 text \(byte 31",
        ),
        ("half.csv", "method,task".encode("utf-16")[:-1], r"not UTF-16 text \(byte 23"),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("digits.json", "[" + "9" * 5000 + "]", "is not JSON: .*4300"),
        ("numbers.json", "[1, 2]", "entry 1 is not a run"),
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
