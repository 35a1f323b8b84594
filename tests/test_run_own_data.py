"""Own demonstrations as a user meets them: files, training and evaluation without a simulator."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from agents.imitation_loading import load_agent
from envs.demonstrations import read_headers
from envs.episode_choice import choose, hold_out, names
from experiment.checkpoint import load_checkpoint
from run import main
from tests.refusals import refusal

PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"
SMALL = [
    "--task", "none", "--dynamics-steps", "2", "--policy-steps", "2", "--batch", "2",
    "--workers", "0",
]  # fmt: skip
MASK_WORLD_MODEL = [
    "--agent.dynamics.vae.windows", "1", "--agent.dynamics.transformer.layers", "1",
    "--agent.dynamics.transformer.heads", "2", "--agent.dynamics.transformer.head-width", "16",
    "--agent.policy.width", "32", "--agent.policy.num-inference-steps", "1",
    "--agent.precision", "float32",
]  # fmt: skip
MASK2ACT = [
    "--method", "mask2act", "--videos", "0", "--demonstrations", "0",
    "--agent.planner.transformer.width", "32", "--agent.planner.transformer.layers", "1",
    "--agent.planner.transformer.heads", "2", "--agent.executor.transformer.width", "32",
    "--agent.executor.transformer.layers", "1", "--agent.executor.transformer.heads", "2",
    "--agent.planner.image-encoder.width", "8", "--agent.executor.image-encoder.width", "8",
    "--agent.precision", "float32",
]  # fmt: skip
METHODS = {"mask-world-model": MASK_WORLD_MODEL, "mask2act": MASK2ACT}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """The example of the page, run as it stands there."""
    folder = tmp_path_factory.mktemp("demos")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    exec(example.replace('"pick-up', f'"{folder}/pick-up'), {})
    return folder


@pytest.fixture(scope="module", params=METHODS)
def trained(request, demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--data", str(demos), "--logdir", str(folder), *SMALL, *METHODS[request.param]]
    assert main(["imitate", *arguments]) == 0
    return folder


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def test_both_stages_are_measured_on_what_was_held_out(trained):
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    found = set().union(*metrics)
    first, second = ("dynamics", "policy") if "dynamics/loss" in found else ("planner", "executor")
    assert {f"held_out/{stage}/loss" for stage in (first, second)} <= found
    assert {"held_out/action_error", "held_out/action_error_of_mean"} <= found
    assert not [name for name in found if name.startswith("eval/")]
    assert list((trained / "pictures").glob("held-out-*.png"))
    listed = json.loads((trained / "demonstrations.json").read_text())
    (held,) = listed["held out"].values()
    (learned,) = listed[second].values()
    assert len(held) == 1
    assert len(learned) == 3
    assert not set(held) & set(learned)


def test_a_run_without_a_simulator_is_evaluated_on_held_out_or_given_data(
    trained, demos, tmp_path, capsys
):
    assert main(["evaluate", "--logdir", str(trained)]) == 0
    said = capsys.readouterr().out
    assert "1 episodes of held-out demonstrations" in said
    assert "the mean action in its place" in said
    found = json.loads((trained / "held_out.json").read_text())
    held = json.loads((trained / "demonstrations.json").read_text())["held out"]
    assert [episode["episode"] for episode in found["episodes"]] == sum(held.values(), [])
    assert 0 < found["action_error"]["mean"] < 2
    assert len(found["by_dimension"]) == 7
    assert (trained / "pictures" / "held-out-evaluation.png").stat().st_size > 0
    first = (trained / "held_out.json").read_bytes()
    assert main(["evaluate", "--logdir", str(trained)]) == 0
    assert (trained / "held_out.json").read_bytes() == first
    assert main(["evaluate", "--logdir", str(trained), "--data", str(demos)]) == 0
    assert len(json.loads((trained / "held_out.json").read_text())["episodes"]) == 4
    assert "needs a simulator" in refusal(
        capsys, "evaluate", "--logdir", trained, "--shifts", "all"
    )


def test_data_that_changed_is_not_taken_for_what_was_held_out(demos, tmp_path, capsys):
    data, run = tmp_path / "data.hdf5", tmp_path / "run"
    data.write_bytes((demos / "pick-up-the-cup.hdf5").read_bytes())
    arguments = ["--data", data, "--logdir", run, *SMALL, *MASK_WORLD_MODEL, "--target", "pixels"]
    assert main(["imitate", *map(str, arguments)]) == 0
    change(data, lambda file: file["data"].move("demo_3", "demo_9"))
    change(data, lambda file: file["data"].move("demo_2", "demo_8"))
    change(data, lambda file: file["data"].move("demo_1", "demo_7"))
    change(data, lambda file: file["data"].move("demo_0", "demo_6"))
    assert "the data is not what it was" in refusal(capsys, "evaluate", "--logdir", run)


def test_pictures_and_actions_are_enough_and_inspect_says_for_what(demos, tmp_path, capsys):
    path = tmp_path / "pick-up-the-cup.hdf5"
    path.write_bytes((demos / path.name).read_bytes())

    def strip(file):
        del file["data"].attrs["instruction"]
        for demo in file["data"].values():
            del demo["obs/front_mask"], demo["obs/proprio"]

    change(path, strip)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "own/pick-up-the-cup: pick up the cup" in said
    assert re.search(r"mask-world-model --target pixels +yes", said)
    assert re.search(r"mask-world-model --target masks +no: front has no masks", said)
    assert re.search(r"mask2act --plan points +no: ", said)
    assert re.search(r"mask2act --plan features +yes", said)
    run = tmp_path / "run"
    arguments = ["--data", path, "--logdir", run, *SMALL, *MASK_WORLD_MODEL, "--target", "pixels"]
    assert main(["imitate", *map(str, arguments)]) == 0
    assert main(["evaluate", "--logdir", str(run)]) == 0


@pytest.mark.parametrize(
    ("edit", "options", "sentence"),
    [
        (lambda f: f["data"].attrs.update({"action_low": [0.0]}), [], "action_low and action_high"),
        (lambda f: f["data"].attrs.update({"fps": -1}), [], "fps is -1"),
        (lambda f: f["data/demo_0/obs"].pop("front_rgb"), [], "no pictures"),
        (lambda f: f["data/demo_1"].pop("actions"), [], "data/demo_1/actions is missing"),
        (lambda f: f["data/demo_1/obs"].pop("proprio"), [], "demo_1/obs/proprio is missing"),
        (lambda f: None, ["--held-out", "4"], "none would be left to learn from"),
        (lambda f: None, ["--held-out", "0"], "only held-out demonstrations can be evaluated"),
        (lambda f: None, ["--held-out", "1.5"], "a whole number"),
        (lambda f: None, ["--post-training-steps", "5"], "name that one with dynamics_from"),
        (lambda f: None, ["--picture-size", "256"], "has pictures of 32 pixels"),
    ],
)
def test_what_is_wrong_with_data_or_options_is_one_line(
    demos, tmp_path, capsys, edit, options, sentence
):
    path = tmp_path / "copy.hdf5"
    path.write_bytes((demos / "pick-up-the-cup.hdf5").read_bytes())
    change(path, edit)
    run = tmp_path / "run"
    given = ["--data", path, "--logdir", run, *SMALL, *MASK_WORLD_MODEL, *options]
    assert sentence in refusal(capsys, "imitate", *given)
    assert not (run / "checkpoint.pt").exists()


def test_the_preset_paper_takes_pictures_of_256_pixels_alone(demos, tmp_path, capsys):
    given = ["--data", demos, "--task", "none", "--logdir", tmp_path / "run", "--preset", "paper"]
    said = refusal(capsys, "imitate", *given)
    assert "pick-up-the-cup.hdf5 has pictures of 32 pixels" in said
    assert "--environment.size 256" in said


def test_a_world_model_goes_on_learning_on_other_data(demos, tmp_path):
    """Post-training: as many updates as said, from the other run's weights."""
    common = ["--data", str(demos), *SMALL, *MASK_WORLD_MODEL]
    for name, options in {
        "first": [],
        "on": ["--dynamics-from", str(tmp_path / "first"), "--post-training-steps", "1"],
    }.items():
        assert main(["imitate", *common, "--logdir", str(tmp_path / name), *options]) == 0
    left = {n: load_checkpoint(tmp_path / n / "dynamics.pt") for n in ("first", "on")}
    updates = {n: load_checkpoint(tmp_path / n / "checkpoint.pt")["updates"] for n in left}
    assert updates == {"first": 4, "on": 3}
    moved = [
        float((left["on"][name] - value).abs().max())
        for name, value in left["first"].items()
        if value.is_floating_point() and name.startswith("transformer")
    ]
    assert 0 < max(moved) < 0.1  # one update away, not another model


def test_a_lerobot_dataset_is_converted_learned_from_and_evaluated(tmp_path, capsys):
    """From a dataset that LeRobot's library made to errors in the robot's own units."""
    dataset = PAGE.parents[1] / "tests" / "data" / "lerobot_tiny"
    into = ["convert", str(dataset), "--out", str(tmp_path / "demos"), "--size", "32"]
    assert main([*into, "--cameras", "front"]) == 0
    assert main([*into, "--cameras", "front"]) == 0
    assert "is there already" in capsys.readouterr().out
    data, run = tmp_path / "demos" / "reach-the-red-block.hdf5", tmp_path / "run"
    given = ["--data", str(data), "--logdir", str(run), *SMALL, *MASK_WORLD_MODEL]
    assert main(["imitate", *given, "--target", "masks"]) == 0
    assert main(["evaluate", "--logdir", str(run)]) == 0
    assert "in the units of the recording" in capsys.readouterr().out
    found = json.loads((run / "held_out.json").read_text())
    with h5py.File(data) as file:
        low, high = (file["data"].attrs[f"action_{edge}"] for edge in ("low", "high"))
    expected = np.array(found["by_dimension"]) * (high - low) / 2
    np.testing.assert_allclose(found["in_units"], expected)
    view = load_agent(run)[2]
    assert view.fps == 10
    np.testing.assert_allclose(view.in_units(np.array([[-1.0, 1.0]])), [[low[0], high[1]]])
    change(data, lambda file: file["data"].attrs.update({"made_by": "somebody else"}))
    assert "give another --out" in refusal(capsys, *into)
    assert main(["convert", str(data), "--out", str(tmp_path / "back"), "--masks", "folder"]) == 0
    assert len(list((tmp_path / "back" / "masks").rglob("*.png"))) == 14
    assert "already" in refusal(capsys, "convert", data, "--out", tmp_path / "back")
    assert "--size is for the way from" in refusal(capsys, *into[:1], data, *into[2:])
    assert "--fps is for the way to" in refusal(capsys, *into, "--fps", "3")


def test_mask_world_model_learns_from_as_many_demonstrations_as_said(demos, tmp_path):
    """Among those of a larger number, beside the same held-out ones: a data-scale curve."""
    given = ["--data", str(demos), "--logdir", str(tmp_path / "run"), *SMALL, *MASK_WORLD_MODEL]
    given += ["--videos", "2", "--demonstrations", "1", "--seed", "5"]
    assert main(["imitate", *given, "--dynamics-steps", "1", "--policy-steps", "1"]) == 0
    listed = json.loads((tmp_path / "run" / "demonstrations.json").read_text())
    kept, held = hold_out(read_headers([demos]), 0.1, seed=5)
    assert listed["held out"] == names(held)
    for stage, count in (("dynamics", 2), ("policy", 1)):
        assert listed[stage] == names(choose(kept, count, 5, "videos"))
    (more,), (few,) = listed["dynamics"].values(), listed["policy"].values()
    assert set(few) < set(more)


def test_what_is_held_out_is_a_function_of_the_seed(demos):
    recordings = read_headers([demos])
    chosen = []
    for seed in range(8):
        kept, held = hold_out(recordings, 0.5, seed)
        assert names(hold_out(recordings, 0.5, seed)[1]) == names(held)
        (left,), (out,) = names(kept).values(), names(held).values()
        assert len(out) == 2
        assert len(np.unique([*left, *out])) == 4
        chosen.append(tuple(out))
    assert len(set(chosen)) > 1
