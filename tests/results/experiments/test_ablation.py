"""The ablation's runs: options that exist, one change each, and a comparison at the end."""

import json
import shutil
from dataclasses import replace

import pytest

import run
from agents.presets import preset
from errors import UserError
from experiment.config_record import flat, plain
from results.experiments import ablation
from results.experiments.ablation import Ablation

TASK = "dmc/cartpole-swingup"
QUICK = (
    "--prefill 250 --agent.autoencoder-pretraining 2 --agent.joint-pretraining 1 "
    "--update-every 200 --evaluate-first 500 --evaluate-every 500 --evaluate-episodes 1"
)


def test_every_default_variant_is_one_choice_changed(tmp_path, monkeypatch):
    trained = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.online.train", lambda config, *_: trained.append(config))
    options = Ablation(TASK, tmp_path, evaluate="", seeds=(0,))
    for planned in ablation.runs(options):
        assert run.main(planned.command[2:]) == 0
    base = flat(plain(replace(preset("cpu", TASK), steps=20_000, threads=1)))
    changed = [
        {name for name, value in flat(plain(config)).items() if base[name] != value}
        for config in trained
    ]
    assert changed[0] == set()
    assert [len(names) for names in changed[1:]] == [1] * len(ablation.VARIANTS)
    assert len({tuple(names) for names in changed}) == len(changed)


@pytest.mark.simulator
def test_runs_are_trained_recorded_and_compared(tmp_path):
    options = Ablation(
        "dmc/point_mass-easy", tmp_path / "out", variants=("other=--agent.dynamics.free-nats 1.0",),
        steps=1000, seeds=(0,), evaluate=QUICK, runs=tmp_path / "runs",
    )  # fmt: skip
    ablation.main(options)
    curves = sorted(path.name for path in (tmp_path / "out" / "curves").glob("*.json"))
    assert curves == [f"{name}-dmc-point_mass-easy-seed0.json" for name in ("other", "preset")]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores["tasks"]["dmc/point_mass-easy"]) == {"preset", "other"}
    times = [path.stat().st_mtime_ns for path in (tmp_path / "out" / "curves").iterdir()]
    shutil.rmtree(options.runs)
    ablation.train(options)  # what is recorded is not made again, its folder there or not
    assert list(options.runs.iterdir()) == []
    assert times == [path.stat().st_mtime_ns for path in (tmp_path / "out" / "curves").iterdir()]
    with pytest.raises(UserError, match=r"was made by `.* 1000 .*`, not by `.* 1500 .*--out"):
        ablation.train(replace(options, steps=1500))
    (tmp_path / "out" / "curves" / curves[0]).write_text("[]")
    with pytest.raises(UserError, match="not a recorded curve"):
        ablation.train(options)


@pytest.mark.parametrize(
    "variant",
    [
        'x=--foo "',
        "x=--logdir here",
        "no options",
        "=--seed 1",
        "preset=--seed 1",
        "a b=--seed 1",
        "../x=--seed 1",
    ],
)
def test_variants_that_are_not_named(tmp_path, variant):
    with pytest.raises(UserError, match="NAME=OPTIONS|cannot be read|--runs"):
        ablation.variants(Ablation(TASK, tmp_path, variants=(variant,)))


@pytest.mark.parametrize("wrong", [{"options": 'x "'}, {"evaluate": "--logdir here"}])
def test_options_of_every_run_that_cannot_be_used(tmp_path, wrong):
    with pytest.raises(UserError, match="--options: .* cannot be read|--evaluate has a --logdir"):
        ablation.variants(Ablation(TASK, tmp_path, **wrong))


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"seeds": ()}, {"seeds": (0, 0)}])
def test_options_that_train_nothing(tmp_path, wrong):
    with pytest.raises(UserError, match="at least"):
        ablation.main(Ablation(TASK, tmp_path, **wrong))


@pytest.mark.simulator
def test_a_run_that_fails_is_named(tmp_path):
    options = Ablation(
        TASK, tmp_path / "out", variants=("wrong=--no-such-option",), seeds=(0,),
        evaluate=QUICK + " --steps 200", runs=tmp_path / "runs", jobs=2,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"wrong-seed0\.log says why"):
        ablation.train(options)
    assert (
        "--no-such-option"
        in (tmp_path / "runs" / "dmc-cartpole-swingup-wrong-seed0.log").read_text()
    )
