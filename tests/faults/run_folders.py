"""Faults in a run folder: its configuration, metrics, checkpoints, replay and evaluation."""

import json
import random
from pathlib import Path

import yaml

from tests.agents.config_mutations import mutated
from tests.faults import originals as made
from tests.faults import structures
from tests.faults.mutations import (
    changed_bytes,
    changed_json,
    changed_json_line,
    changed_text,
    replaced,
)
from tests.faults.place import Fault, Place, change
from tests.faults.process import Ended


def _reader(rng: random.Random, place: Place, run: Path, name: str) -> list:
    """A command that reads a whole run folder."""
    out = place.folder / "out"
    kind = rng.choice(
        ("compare", "compare", "record", "evaluate", "resume", "collect", "take over")
    )
    if kind == "compare":
        return ["compare", run, "--out", out, "--repetitions", "100"]
    if kind == "record":
        return ["record", run, "--out", out]
    if kind == "evaluate":
        return made.evaluate(run)
    if kind == "collect":
        return _collect(place, run, name)
    return _resume(place, run, name) if kind == "resume" else _take_over(place, run, name)


def _resume(place: Place, run: Path, name: str) -> list:
    """The command that goes on with a finished run."""
    if name == "online":
        return made.train(run, made.STEPS)
    return made.imitate(run, place.originals / "demos", made.UPDATES)


def _collect(place: Place, run: Path, name: str) -> list:
    """The command that records an episode of a run's agent."""
    task, view = made.IMITATION_TASK, ["--environment.size", "64"]
    if name == "online":
        view = ["--environment.size", "32", "--environment.action-repeat", "20"]
        task = made.ONLINE_TASK
    out = place.folder / "a.hdf5"
    return ["collect", "--task", task, "--episodes", "1", "--out", out, "--policy", run, *view]


def _take_over(place: Place, run: Path, name: str) -> list:
    """The command that makes another run out of this one."""
    if name == "online":
        return [*made.train(place.folder / "new", 500), "--recorded", run]
    data = place.originals / "demos"
    return [*made.imitate(place.folder / "new", data), "--dynamics-from", run]


def config(rng: random.Random, place: Place) -> Fault:
    """config.yaml"""
    name = rng.choice(place.runs)
    run = place.copy(name)
    path = run / "config.yaml"
    place.payload(run)
    content = yaml.safe_load(path.read_text())
    kind = rng.choice(("mutated", "mutated", "text", "foreign"))
    if kind == "mutated":
        path.write_bytes(mutated(rng, content["config"]))
        what = "as tests/agents/config_mutations.py"
    elif kind == "text":
        what = change(rng, path, changed_text)
    else:
        agent = content["config"]["agent"]
        part = agent["autoencoder" if name == "online" else "dynamics"]
        owner, key = rng.choice(((part, "target"), (agent, "language"), (part, "language")))
        value = rng.choice(
            ("payload:Payload", "os:abort", "subprocess:Popen", "http.server:test", "t5:nowhere",
             "t5", "pixels+payload:Payload", "online.payload:Payload", "builtins:exec", "t5:.")
        )  # fmt: skip
        owner[key] = value
        path.write_text(yaml.safe_dump(content))
        what = f"{key} is {value}"
    return Fault(what, _reader(rng, place, run, name), run)


def metrics(rng: random.Random, place: Place) -> Fault:
    """metrics.jsonl"""
    run = place.copy("online")
    path = run / "metrics.jsonl"
    what = change(rng, path, changed_text, changed_json_line, changed_json_line)
    out = place.folder / "out"
    command = rng.choice(
        (["record", run, "--out", out], ["record", run, "--out", out],
         ["compare", run, "--out", out, "--repetitions", "100"], made.train(run))
    )  # fmt: skip

    def right(ended: Ended) -> str | None:
        if command[0] != "record":
            return None
        whole = path.read_bytes().split(b"\n")[:-1]
        points = {}
        for row in map(json.loads, whole):
            if "eval/success" in row:
                points.pop(row["step"], None)
                points[row["step"]] = row["eval/success"]
        (found,) = (json.loads(file.read_text()) for file in out.glob("*.json"))
        if "success_rates" not in found[0]:
            return "recorded returns, and there are successes" if points else None
        recorded = dict(zip(found[0]["steps"], found[0]["success_rates"], strict=True))
        return None if recorded == points else f"recorded {recorded}, and there is {points}"

    return Fault(what, command, path, right=right)


def checkpoint(rng: random.Random, place: Place) -> Fault:
    """checkpoint.pt"""
    name = rng.choice(place.runs)
    run = place.copy(name)
    path = run / "checkpoint.pt"
    if name == "imitation" and rng.random() < 0.3:
        path = run / "dynamics.pt"
    before = _measured(run)
    harmed_bytes = rng.random() < 0.5
    if harmed_bytes:
        what = change(rng, path, changed_bytes)
    else:
        what = structures.changed_checkpoint(rng, path, place.outside)
    kind = rng.choice(("evaluate", "evaluate", "resume", "take over", "collect"))
    command = made.evaluate(run)
    if path.name == "dynamics.pt" or kind == "take over":
        command = _take_over(place, run, name)
    elif kind == "resume":
        command = _resume(place, run, name)
    elif kind == "collect":
        command = _collect(place, run, name)

    def right(ended: Ended) -> str | None:
        if command[0] != "evaluate" or not harmed_bytes or _measured(run) == before:
            return None
        return "other weights were evaluated without a word"

    subject = None if command[0] == "train" and kind == "take over" else path
    return Fault(what, command, subject, right=right)


def _measured(run: Path) -> list:
    """The episodes of the agent that evaluation.json holds."""
    return json.loads((run / "evaluation.json").read_text())["agent"]["episodes"]


def replay(rng: random.Random, place: Place) -> Fault:
    """replay/"""
    run = place.copy("online")
    path = rng.choice(sorted((run / "replay").iterdir()))
    size = path.stat().st_size
    if path.name == "episodes.jsonl":
        what = change(rng, path, changed_text, changed_json_line, changed_json_line)
    elif path.name == "layout.json":
        what = change(rng, path, changed_text, changed_json, changed_json)
    else:
        what = change(rng, path, changed_bytes)
    other_size = path.suffix == ".bin" and path.stat().st_size < size
    # A run that has 500 steps to go.
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("\n  steps: 1000\n", "\n  steps: 1500\n"))
    command = rng.choice((made.train(run, 1500), _take_over(place, run, "online")))
    return Fault(what, command, path, "refused" if other_size else "either")


def evaluation(rng: random.Random, place: Place) -> Fault:
    """evaluation.json"""
    name = rng.choice(place.runs)
    run = place.copy(name)
    path = run / "evaluation.json"
    what = change(rng, path, changed_text, changed_json, changed_json)
    out = place.folder / "out"
    command = rng.choice((made.evaluate(run), ["record", run, "--out", out]))
    return Fault(what, command, path)


def folder(rng: random.Random, place: Place) -> Fault:
    """files of a run folder replaced"""
    name = rng.choice(place.runs)
    run = place.copy(name)
    entries = [path for path in run.rglob("*") if path.name != "curve.png"]
    path = rng.choice(sorted(entries))
    what = f"{path.relative_to(run)}: {replaced(rng, path, place.outside)}"
    return Fault(what, _reader(rng, place, run, name), None, privileged=False)
