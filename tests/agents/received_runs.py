"""Run folders as somebody else may have made them, finished runs of tiny agents included."""

from dataclasses import replace

from agents.data_spec import DataSpec
from agents.imitation_config import ImitationConfig, View
from agents.imitation_loading import STAGE_1, make_imitator
from agents.online_config import DreamerRunConfig, OnlineConfig
from agents.online_loading import make_agent
from envs import EnvironmentConfig
from experiment.checkpoint import save_checkpoint
from experiment.run_folder import RunFolder
from tests.agents.tiny_agent import SIZE, TINY_DREAMER
from tests.agents.tiny_agent import TINY as TINY_ONLINE
from tests.agents.tiny_imitation import TINY as TINY_IMITATION

TASK = "metaworld/drawer-close"
SPEC = DataSpec(cameras=1, size=32, action_size=4, proprio_size=4)
VIEW = View("corner2", 32, "fast", 2)


def statistics(spec=SPEC):
    """Ranges of actions and proprioception."""
    return {
        f"{name}_{edge}": [value] * size
        for name, size in (("action", spec.action_size), ("proprio", spec.proprio_size))
        for edge, value in (("min", -1.0), ("low", -0.5), ("high", 0.5), ("max", 1.0))
    }


def online(target="pixels"):
    seen = EnvironmentConfig(size=SIZE, quality="fast")
    agent = replace(TINY_ONLINE, autoencoder=replace(TINY_ONLINE.autoencoder, target="pixels"))
    config = OnlineConfig(TASK, environment=seen, agent=agent, replay_capacity=100)
    return set_field(config, "target", target)


def dreamer(target="pixels"):
    seen = EnvironmentConfig(size=SIZE, quality="fast")
    agent = replace(TINY_DREAMER)  # a copy: its target is set
    config = DreamerRunConfig(TASK, environment=seen, agent=agent, replay_capacity=100)
    return set_field(config, "target", target)


def imitation(target="pixels", language="words"):
    dynamics = replace(TINY_IMITATION.dynamics, target="pixels")
    config = ImitationConfig(("a.hdf5",), TASK, agent=replace(TINY_IMITATION, dynamics=dynamics))
    return set_field(set_field(config, "target", target), "language", language)


def set_field(config, name, value):
    """A configuration as a record holds it, with something that need not be there here."""
    part = config.agent
    if name == "target" and not isinstance(config, DreamerRunConfig):
        part = part.autoencoder if isinstance(config, OnlineConfig) else part.dynamics
    object.__setattr__(part, name, value)
    return config


def received_online(folder, target="pixels"):
    RunFolder.create_or_resume(folder, online(target)).close()
    return folder


def received_dreamer(folder, target="pixels"):
    RunFolder.create_or_resume(folder, dreamer(target)).close()
    return folder


def received_imitation(folder, target="pixels", language="words"):
    RunFolder.create_or_resume(folder, imitation(target, language)).close()
    return folder


def with_weights(folder, view=VIEW, spec=SPEC):
    """What `evaluate` and `--dynamics-from` need beside the configuration."""
    if RunFolder.open(folder).of_imitation:
        agent = make_imitator(imitation(), spec, statistics(spec), "cpu")
        state = {"stage": "policy", "updates": 3, "view": view.plain()}
        save_checkpoint(folder / STAGE_1, agent.first_stage_state_dict())
    else:
        method = RunFolder.open(folder).config.read()["config"]["method"]
        agent = make_agent(dreamer() if method == "dreamer" else online(), 4, "cpu")
        state = {"action": 4, "step": 7}
    state |= {"agent": agent.state_dict(), "task": TASK}
    save_checkpoint(folder / "checkpoint.pt", state)
    return folder
