"""An autoencoder from another run: taken over whole, frozen, refused where it is another."""

import shutil
from dataclasses import replace

import pytest
import torch

from agents.online_config import OnlineConfig
from agents.online_loading import load_agent
from agents.transfer import take_over
from errors import UserError
from experiment.run_folder import RunFolder
from tests.agents.online_runs import Photographed, checkpoint, differences, lines, run, tiny
from tests.agents.tiny_agent import make

TASK = "metaworld/button-press"


def saved(path, config, agent=None):
    """A run folder with nothing but a configuration and, of an agent, a checkpoint."""
    with RunFolder.create_or_resume(path, config) as folder:
        if agent is not None:
            state = {"agent": agent.state_dict(), "task": config.task, "seconds": 0.0}
            folder.save_checkpoint(state)
    return path


def taking(source, **seeing):
    """The configuration of a run that takes over the autoencoder of `source`."""
    config = tiny()
    autoencoder = replace(config.agent.autoencoder, **seeing)
    agent = replace(config.agent, autoencoder=autoencoder, autoencoder_from=str(source))
    return replace(config, agent=agent)


def weights(agent):
    return {name: value.clone() for name, value in agent.autoencoder.state_dict().items()}


def test_autoencoder_is_taken_over_whole_and_nothing_else(tmp_path):
    config = tiny()
    other = make(config.agent, seed=1)
    source = saved(tmp_path / "other", replace(config, task=TASK), other)
    agent = make(taking(source).agent, seed=2)
    before = {n: p.clone() for n, p in agent.networks.named_parameters()}
    take_over(agent, taking(source))
    assert all(torch.equal(v, weights(other)[n]) for n, v in weights(agent).items())
    for name, parameter in agent.networks.named_parameters():
        assert name.startswith("autoencoder") or torch.equal(parameter, before[name])


def test_a_run_that_names_no_other_takes_over_nothing(tmp_path):
    agent = make(tiny().agent)
    before = weights(agent)
    take_over(agent, tiny())
    assert all(torch.equal(v, before[n]) for n, v in weights(agent).items())


def test_how_the_other_learned_is_free(tmp_path):
    source = saved(tmp_path / "other", tiny(), make(tiny().agent))
    for free in ({"mask": "pixels"}, {"mask_ratio": 0.25}, {"reward_weight": 0.0}):
        config = taking(source, **free)
        take_over(make(config.agent), config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 32), ("encoder_depth", 2), ("kind", "vae"), ("centre_input", True)],
)
def test_another_autoencoder_is_refused_by_the_field_it_differs_in(tmp_path, field, value):
    source = saved(tmp_path / "other", tiny(), make(tiny().agent))
    config = taking(source, **{field: value})
    with pytest.raises(UserError, match=f"has {field} .* the same --agent.autoencoder") as told:
        take_over(make(config.agent), config)
    assert "\n" not in str(told.value)


def test_what_is_no_run_with_an_autoencoder_is_one_sentence(tmp_path):
    config = tiny()
    young = saved(tmp_path / "young", config)
    broken = saved(tmp_path / "broken", config, make(config.agent))
    with RunFolder.create_or_resume(broken, config) as folder:
        folder.save_checkpoint({"agent": {"modules": {}}, "task": config.task})
    for source, word in (
        (young, "no checkpoint yet"),
        (tmp_path / "none", "none"),
        (broken, "another run's checkpoint, or damaged"),
    ):
        with pytest.raises(UserError, match=word) as told:
            take_over(make(config.agent), taking(source))
        assert "\n" not in str(told.value)


@pytest.mark.simulator
def test_run_with_a_foreign_autoencoder_goes_on_without_the_run_it_came_from(tmp_path):
    """Killed and resumed it is the run that nobody stopped, and can be evaluated."""
    source = saved(tmp_path / "other", tiny(task=TASK), make(tiny().agent, seed=1))
    config = taking(source)
    seen = weights(load_weights(source))
    straight = run(tmp_path / "run", config, Photographed)
    shutil.rmtree(source)
    agent, loaded, _ = load_agent(straight, "cpu")
    assert isinstance(loaded, OnlineConfig)
    assert loaded.agent.autoencoder_from == str(source)
    assert all(torch.equal(v, seen[n]) for n, v in weights(agent).items())
    last = lines(straight)[-1]
    assert last["updates/autoencoder"] == 0 < last["updates/dynamics"]
    album = sorted((tmp_path / "run-album").glob("*"))
    middle = next(picture for picture in album if checkpoint(picture)["step"] == 1000)
    killed = shutil.copytree(middle, tmp_path / "killed")
    run(killed, config)
    assert differences(killed, straight) == []


def load_weights(source):
    """An agent with the weights in a folder that `saved` has made."""
    agent = make(tiny().agent)
    agent.load_state_dict(RunFolder.open(source).load_checkpoint()["agent"])
    return agent
