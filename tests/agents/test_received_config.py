"""A configuration that somebody else wrote, or that was damaged, is refused in one sentence."""

import os
import random
import re
from dataclasses import replace

import pytest
import yaml

from agents.imitation_config import ImitationConfig
from agents.imitation_loading import load_agent as load_imitator
from agents.online_config import OnlineConfig
from agents.online_loading import load_agent
from errors import UserError
from experiment.run_folder import RunFolder
from experiment.seed import LARGEST_SEED
from tests.agents.config_mutations import mutated, written
from tests.agents.received_runs import (
    online,
    received_dreamer,
    received_imitation,
    received_online,
    with_weights,
)

LOADERS = {"online": load_agent, "dreamer": load_agent, "imitation": load_imitator}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind."""
    folder = tmp_path_factory.mktemp("received")
    return {
        "online": with_weights(received_online(folder / "online")),
        "dreamer": with_weights(received_dreamer(folder / "dreamer")),
        "imitation": with_weights(received_imitation(folder / "imitation")),
    }


@pytest.fixture(params=LOADERS)
def run(request, runs):
    """The loader of a finished run, its config.yaml, and what is in it; put back afterwards."""
    path = runs[request.param] / "config.yaml"
    whole = path.read_bytes()
    load = LOADERS[request.param]
    yield lambda: load(path.parent, "cpu"), path, yaml.safe_load(whole)["config"]
    path.unlink()
    path.write_bytes(whole)


def refusal(load, path):
    with pytest.raises(UserError) as refused:
        load()
    said = str(refused.value)
    assert str(path) in said
    assert said.isprintable()
    assert len(said) < 1000
    return said


def test_whatever_happens_to_a_configuration_it_loads_or_is_refused_by_name(run):
    load, path, config = run
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        path.write_bytes(mutated(rng, config))
        try:
            load()
            continue
        except UserError as error:
            said = str(error)
        refused += 1
        assert str(path.parent) in said
        assert said.isprintable()
        assert len(said) < 1000
    assert refused > 40


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is a pipe or a device"),
        (os.mkdir, "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device"),
        (lambda path: path.symlink_to("gone"), "No such file"),
        (lambda path: (path.touch(), os.truncate(path, 2**40)), "longer than"),
        (lambda path: path.write_text(""), "no `config:` in it"),
        (lambda path: path.write_text("config: []"), "no `config:` in it"),
        (lambda path: path.write_text("config: {}"), "task is missing|data is missing"),
    ],
)
def test_what_is_no_file_of_a_configuration_is_refused_and_left_alone(run, make, words):
    load, path, _ = run
    path.unlink()
    make(path)
    try:
        assert re.search(words, refusal(load, path))
        with pytest.raises(UserError, match=str(path.parent)):
            RunFolder.create_or_resume(path.parent, online())
        assert os.path.lexists(path)
    finally:
        if path.is_dir():
            path.rmdir()
            path.touch()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("online", "dynamics.rssm.deterministic", 10**7),
        ("online", "dynamics.rssm.deterministic", 10**15),
        ("online", "dynamics.head_layers", 10**9),
        ("online", "autoencoder.encoder_depth", 10**9),
        ("online", "autoencoder.width", 8 * 10**6),
        ("online", "behaviour.layers", 10**9),
        ("imitation", "dynamics.transformer.layers", 10**9),
        ("imitation", "dynamics.transformer.head_width", 10**6),
        ("imitation", "dynamics.vae.latent_channels", 10**8),
        ("imitation", "dynamics.vae.patch", 10**6),
        ("imitation", "policy.width", 4 * 10**8),
        ("imitation", "policy.chunk", 10**9),
        ("imitation", "policy.num_inference_steps", 10**9),
        ("imitation", "dynamics.future_frames", 10**9 + 1),
        ("imitation", "n_obs_steps", 10**9),
        ("imitation", "stride", 10**9),
    ],
)
def test_an_agent_that_no_machine_can_hold_is_refused_at_once(runs, kind, name, value):
    path = runs[kind] / "config.yaml"
    whole = path.read_bytes()
    config = yaml.safe_load(whole)["config"]
    section = config["agent"]
    *sections, last = name.split(".")
    for each in sections:
        section = section[each]
    assert last in section
    section[last] = value
    path.write_bytes(written(config))
    try:
        refusal(lambda: LOADERS[kind](path.parent, "cpu"), path)
    finally:
        path.write_bytes(whole)


def test_seeds_are_what_generators_take():
    assert replace(online(), seed=LARGEST_SEED).seed == 2**63 - 1
    for wrong in (-1, 2**63, 2**64, 10**5000):
        for make in (OnlineConfig, lambda **given: ImitationConfig(("a.hdf5",), **given)):
            with pytest.raises(UserError, match="seed must be a whole number from 0 to 92233720"):
                make(task="metaworld/reach", seed=wrong)


def test_numbers_that_are_not_finite_are_refused_when_a_run_begins():
    with pytest.raises(UserError, match="checkpoint_seconds is inf; it must be a finite number"):
        replace(online(), checkpoint_seconds=float("inf"))
