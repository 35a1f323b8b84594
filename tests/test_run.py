"""The command line as a user meets it: real processes, exit statuses, one line for a mistake."""

import contextlib
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from agents.presets import preset
from experiment.checkpoint import load_checkpoint, save_checkpoint
from experiment.run_folder import RunFolder
from run import COMMANDS, main

ROOT = Path(__file__).parent.parent
WINDOW_CLOSE = ["--task", "metaworld/window-close"]


def command(*arguments):
    return [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]


def run(*arguments, cwd=None):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=600, check=False
    )


def here(*arguments):
    """As `run`, but in this process: one of its own would import PyTorch anew."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def refused(*arguments, cwd=None):
    """The one line on standard error of a command that ends with status 2."""
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return result.stderr


# ------------------------------------------------------------------------- help and tasks


def test_help_names_the_commands_quickly():
    started = time.monotonic()
    result = run("--help")
    assert time.monotonic() - started < 2
    assert result.returncode == 0
    for name in ("train", "evaluate", "tasks"):
        assert name in result.stdout


def test_help_needs_neither_torch_nor_a_simulator():
    modules = {"run", *COMMANDS.values()}
    loaded = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(modules)}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout.split()
    assert "tyro" in loaded
    assert not {"torch", "mujoco", "metaworld", "dm_control", "matplotlib"} & set(loaded)


@functools.cache
def help_of(*arguments):
    """What a command prints when it is asked for help, here in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    return printed.getvalue()


def options_of(text):
    """The options that a help lists; a flag may have two spellings on its line."""
    lines = [line.strip("│ ") for line in text.splitlines()]
    listed = [line for line in lines if line.startswith("--")]
    return {option for line in listed for option in re.findall(r"(?<!\S)--[\w.-]+", line)}


@pytest.mark.parametrize(
    ("name", "some"),
    [
        (
            "train",
            ["--preset", "--logdir", "--task", "--steps", "--seed", "--prefill", "--agent.batch",
             "--environment.quality", "--agent.dynamics.rssm.deterministic"],
        ),
        (
            "imitate",
            ["--preset", "--logdir", "--task", "--data", "--policy-steps", "--agent.policy.width",
             "--agent.dynamics.target"],
        ),
    ],
)  # fmt: skip
def test_the_whole_help_explains_every_field(name, some):
    text = help_of(name, "--help-all")
    assert set(some) <= options_of(text)
    # An option without a docstring shows nothing but its default after its name.
    lines = [line.strip("│ ") for line in text.splitlines()]
    unexplained = [
        line
        for line, following in zip(lines, lines[1:], strict=False)
        if line.startswith("--") and following.startswith("(default")
    ]
    assert unexplained == []


@pytest.mark.parametrize("name", ["train", "imitate"])
def test_the_short_help_is_two_screens_of_options_that_exist(name):
    text = help_of(name, "--help")
    lines = text.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100
    assert {"--task", "--preset", "--logdir", "--seed"} <= options_of(text)
    assert options_of(text) <= options_of(help_of(name, "--help-all"))
    assert lines[-1] == f"Every option: python run.py {name} --help-all"


def test_the_short_help_imports_nothing_that_the_whole_one_does_not():
    """Beside the presets, whose values both show: they are imported once, before the processes part
    that are asked for help."""
    script = """
import contextlib, os, sys
import agents.imitation_presets, agents.presets
from run import main
for option in ("--help", "--help-all"):
    if not os.fork():
        for name in ("train", "imitate"):
            with contextlib.suppress(SystemExit):  # a command that has helped ends by it
                main([name, option])
        print(*sys.modules, flush=True)
        os._exit(0)
    os.wait()"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = [set(line.split()) for line in result.stdout.splitlines()]
    short, whole = (line for line in lines if "commands.imitate" in line)
    assert "commands.help" in short
    assert short <= whole


@pytest.mark.parametrize(
    ("help_option", "option", "metaworld", "dmc"),
    [("--help-all", "--agent.batch", "50", "16"), ("--help", "--evaluate-episodes", "10", "5")],
)
def test_the_preset_and_the_suite_choose_the_defaults(help_option, option, metaworld, dmc):
    def default(*arguments):
        text = help_of("train", help_option, "--preset=paper", *arguments).replace("│", " ")
        explained = " ".join(text.split()).split(f"{option} INT")[1]
        return explained.split("(default: ")[1].split(")")[0]

    assert default(*WINDOW_CLOSE) == metaworld
    assert default("--task", "dmc/cartpole-swingup") == dmc


def test_tasks_are_listed_one_a_line():
    result = run("tasks", "--suite", "metaworld")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 50
    assert "metaworld/window-close" in lines
    assert set(lines) < set(run("tasks").stdout.splitlines())


def test_a_reader_that_stops_early_is_no_error():
    listing = " ".join(command("tasks"))
    result = subprocess.run(
        ["bash", "-c", f"{listing} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "train"]),
        (["train"], ["--task"]),
        (["train", "--task"], ["--task"]),
        (["train", "--task", "metaworld/window-clos"], ["metaworld/window-close"]),
        (["train", "--task=metaworld/window-clos"], ["metaworld/window-close"]),
        (["train", *WINDOW_CLOSE, "--preset", "papper"], ["papper", "paper", "cpu"]),
        (["train", *WINDOW_CLOSE, "--stepz", "3"], ["--stepz", "--steps"]),
        (["train", *WINDOW_CLOSE, "--agent.bach", "3"], ["--agent.bach", "--agent.batch"]),
        (["train", *WINDOW_CLOSE, "--steps", "many"], ["--steps", "many"]),
        (["train", *WINDOW_CLOSE, "--environment.quality", "best"], ["quality", "best", "fast"]),
        (["train", *WINDOW_CLOSE, "extra"], ["extra"]),
        (["train", *WINDOW_CLOSE, "--seed", "-1"], ["seed", "-1"]),
        (["train", *WINDOW_CLOSE, "--environment.size", "96"], ["image_size", "96", "64"]),
        (["train", *WINDOW_CLOSE, "--agent.behaviour.target-every", "0"], ["target_every"]),
        (["train", *WINDOW_CLOSE, "--agent.autoencoder.mask-ratio", "1"], ["mask_ratio", "1"]),
        (["train", *WINDOW_CLOSE, "--target", "mask"], ["'mask'", "masks", "package.module:Class"]),
        (["train", *WINDOW_CLOSE, "--target", "nowhere:Depth"], ["'nowhere:Depth'", "nowhere"]),
        (["train", *WINDOW_CLOSE, "--target", "math:pi"], ["'math:pi'"]),
        (["train", *WINDOW_CLOSE, "--target", "pathlib:Path"], ["lacks channels, loss, to_image"]),
        (["evaluate"], ["--logdir"]),
        (["evaluate", "--logdor", "x"], ["--logdor", "--logdir"]),
        (["evaluate", "--logdir", "nowhere"], ["nowhere"]),
        (["evaluate", "--logdir", "nowhere", "--episodes", "0"], ["--episodes", "0"]),
        (["evaluate", "--logdir", "nowhere", "--seed", "-1"], ["--seed", "-1"]),
        (["evaluate", "--logdir", "nowhere", "--shift", "fog"], ["'fog'", "lighting"]),
        (["evaluate", "--logdir", "nowhere", "--shifts", "all:3"], ["0 to 1"]),
        (["evaluate", "--logdir", "x", "--shifts", "all", "--shift", "noise"], ["--shifts"]),
        (["train", *WINDOW_CLOSE, "--environment.shift", "fog"], ["'fog'", "lighting"]),
        (["tasks", "--suite", "atari"], ["atari", "metaworld"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments, words, tmp_path, monkeypatch, capsys):
    """In this process: thirty of their own would import PyTorch thirty times."""
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--logdir"], "--logdir needs a value"),
        (["evaluate", "--logdir", "--folder"], "--logdir=VALUE"),
    ],
)
def test_a_missing_value_is_one_line_too(arguments, words, tmp_path):
    """In a process of its own: what the parser says depends on the terminal's encoding."""
    assert words in refused(*arguments, cwd=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "target", "name"),
    [
        ([], "pixels", "cpu-seed0"),
        (["--target", "masks"], "masks", "cpu-masks-seed0"),
        (["--target=pixels:1+masks:0.5"], "pixels:1+masks:0.5", "cpu-pixels-1+masks-0.5-seed0"),
        (["--target", "masks", "--seed", "3"], "masks", "cpu-masks-seed3"),
    ],
)
def test_what_is_predicted_is_one_option(arguments, target, name, tmp_path, monkeypatch):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.online.train", lambda *run: started.append(run))
    assert main(["train", *WINDOW_CLOSE, *arguments]) == 0
    ((config, folder, trusted),) = started
    assert trusted == ()
    assert config.agent.target == target
    assert folder.path.name == f"metaworld-window-close-{name}"


def test_foreign_folder_is_refused_and_untouched(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["train", *WINDOW_CLOSE, "--logdir", str(tmp_path)]) == 2
    assert "thesis" not in capsys.readouterr().err
    assert main(["evaluate", "--logdir", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.simulator
@pytest.mark.parametrize(
    "mistake", [["--environment.camera", "corner9"], ["--agent.autoencoder.heads", "0"]]
)
def test_a_run_that_could_not_begin_leaves_its_folder_free(mistake, tmp_path):
    logdir = tmp_path / "run"
    refused_after_start("train", *WINDOW_CLOSE, *mistake, "--logdir", logdir)
    RunFolder.create_or_resume(logdir, preset("cpu", "metaworld/window-close")).close()


# ------------------------------------------------------------------------- a whole run

# As small as a run can be: a random episode, one with updates, an evaluation of one episode.
SMALL = [
    *WINDOW_CLOSE,
    "--steps=1000", "--prefill=250", "--update-every=100", "--threads=1",
    "--agent.autoencoder-pretraining=1", "--agent.joint-pretraining=1",
    "--agent.autoencoder-batch=4", "--agent.batch=2", "--agent.window=8",
    "--evaluate-episodes=1", "--evaluate-envs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("runs") / "small"
    result = run("train", *SMALL, "--logdir", logdir)
    assert result.returncode == 0, result.stderr
    return logdir


@pytest.mark.simulator
def test_training_leaves_a_complete_run_folder(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())["config"]
    assert config["task"] == "metaworld/window-close"
    assert config["agent"]["window"] == 8
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert steps[-1] == 1000
    assert any("eval/success" in line for line in lines)
    for name in ("checkpoint.pt", "curve.png"):
        assert (trained / name).stat().st_size > 0


@pytest.mark.simulator
def test_a_finished_run_started_again_has_nothing_left_to_do(trained):
    before = (trained / "metrics.jsonl").read_bytes()
    result = here("train", *SMALL, "--logdir", trained)
    assert result.returncode == 0, result.stderr
    assert (trained / "metrics.jsonl").read_bytes() == before


@pytest.mark.simulator
def test_another_configuration_is_refused_by_field(trained):
    line = refused_after_start("train", *SMALL, "--agent.behaviour.horizon=3", "--logdir", trained)
    assert "agent.behaviour.horizon = 20" in line
    assert "3" in line
    assert "--logdir" in line
    line = refused_after_start("train", *SMALL, "--steps=900", "--logdir", trained)
    assert "1000" in line
    assert "900" in line


@pytest.mark.simulator
def test_evaluation_is_printed_and_recorded_beside_a_random_policy(trained):
    result = run("evaluate", "--logdir", trained, "--episodes", 2, "--random", "--video")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "/2 = " in rows["agent"]
    assert "/2 = " in rows["random"]
    for name in ("evaluation.json", "curve.png", "checkpoint.pt", "videos/evaluation.mp4"):
        assert str(trained / name) in rows
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["step"] == 1000
    for policy in ("agent", "random"):
        assert len(evaluation[policy]["episodes"]) == 2
    seeds = [
        [episode["seed"] for episode in evaluation[policy]["episodes"]]
        for policy in ("agent", "random")
    ]
    assert seeds[0] == seeds[1]
    assert evaluation["command"].startswith("python run.py evaluate")


@pytest.mark.simulator
def test_a_trained_agent_can_record_demonstrations(trained, tmp_path, capsys, monkeypatch):
    """This one never succeeds, so its episodes are given up; in another view it cannot act."""
    import envs.recording

    monkeypatch.setattr(envs.recording, "PATIENCE", 1)
    out = tmp_path / "demos.hdf5"
    task = ["--task", "metaworld/window-close", "--episodes", "1", "--out", str(out)]
    policy = ["--policy", str(trained), "--environment.size"]
    assert main(["collect", *task, *policy, "64"]) == 2
    assert "the last 1 of 1 episodes failed" in capsys.readouterr().err
    assert main(["collect", *task, *policy, "32"]) == 2
    assert "was trained with size 64, not 32" in capsys.readouterr().err


@pytest.mark.simulator
def test_evaluation_under_shifts_says_what_is_retained(trained):
    result = here("evaluate", "--logdir", trained, "--episodes", 2, "--shifts", "noise:1,lighting")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert all("/2 = " in rows[name] for name in ("agent", "noise:1", "lighting:0.5"))
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["shifts"] == ["noise:1", "lighting:0.5"]
    assert evaluation["retained"]["ood"] == np.mean(
        [evaluation[name]["success"]["mean"] for name in evaluation["shifts"]]
    )
    assert evaluation["noise:1"]["return"]["mean"] != evaluation["agent"]["return"]["mean"]
    result = here("evaluate", "--logdir", trained, "--episodes", 1, "--shift", "noise:1")
    assert result.returncode == 0, result.stderr
    assert "under noise:1" in result.stdout


@pytest.mark.simulator
@pytest.mark.parametrize("kind", ["truncated", "foreign", "another task's", "another size's"])
def test_a_checkpoint_that_cannot_be_used_is_one_line(trained, kind, capsys):
    checkpoint = trained / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    try:
        if kind == "truncated":
            checkpoint.write_bytes(whole[: len(whole) // 2])
        elif kind == "foreign":
            torch.save({"model": torch.zeros(3)}, checkpoint)
        else:
            state = load_checkpoint(checkpoint)
            if kind == "another task's":
                state["task"] = "metaworld/window-open"
            else:
                weights = state["agent"]["modules"]
                weights["behaviour.critic.0.weight"] = torch.zeros(3, 3)
            save_checkpoint(checkpoint, state)
        spoilt = checkpoint.read_bytes()
        assert main(["evaluate", "--logdir", str(trained)]) == 2
        evaluating = capsys.readouterr().err.splitlines()[-1]
        training = refused_after_start("train", *SMALL, "--steps=1500", "--logdir", trained)
        for line in (evaluating, training):
            assert str(checkpoint) in line
            assert "nothing was changed" in line
            assert checkpoint.read_bytes() == spoilt
    finally:
        checkpoint.write_bytes(whole)


def refused_after_start(*arguments):
    result = here(*arguments)
    assert result.returncode == 2, result.stderr
    return result.stderr.splitlines()[-1]


def workers_of(leader):
    """The worker processes in the group of a process, by number."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            spawned = b"spawn_main" in (process / "cmdline").read_bytes()
            if spawned and group == str(leader) and state != "Z":
                found.append(int(process.name))
    return found


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("ending", "status", "last"),
    [
        (lambda run: os.killpg(run, signal.SIGINT), 130, "stopped; start the same command again"),
        (lambda run: os.killpg(run, signal.SIGTERM), 143, "stopped; start the same command again"),
        (lambda run: os.kill(workers_of(run)[0], signal.SIGKILL), 2,
         "error: environment 0 of metaworld/window-close, process "),
    ],
    ids=["Ctrl-C", "SIGTERM", "a dead worker"],
)  # fmt: skip
def test_a_run_that_is_ended_says_how_to_go_on(ending, status, last, tmp_path):
    """Signals reach the whole group, as those of terminals and clusters do."""
    process = subprocess.Popen(
        command("train", *SMALL, "--steps=100000", "--prefill=50000", "--logdir", tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run started in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline().startswith("run folder")
        # The first episode is over: the environment has a process of its own.
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ending(process.pid)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert errors.startswith(last)
    assert errors.count("\n") == 1
    assert workers_of(process.pid) == []
    assert status != 143 or (tmp_path / "run" / "checkpoint.pt").exists()
