"""Agents of online runs: made fresh, or out of a run folder's checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from agents.agent import OnlineAgent
from agents.device import choose_device
from agents.dreamer import Dreamer
from agents.dreamer_config import DreamerConfig
from agents.exported import MOST_TIMES, Acting, is_exported, read_state, state_path
from agents.masked_world_model import MaskedWorldModel
from agents.online_config import METHODS, RunConfig
from agents.size_limit import limited_by
from agents.training import load_checked
from errors import UserError
from experiment.checkpoint import expect
from experiment.run_folder import RunFolder


def make_agent(
    config: RunConfig, action: int, device: str, proprio: int = 0, discrete: bool = False
) -> MaskedWorldModel | Dreamer:
    """A fresh agent for an action vector of size `action`, one-hot where `discrete`, that sees the
    cameras that `config` names and `proprio` numbers of proprioception."""
    there, views = choose_device(device), config.environment.views
    if isinstance(config.agent, DreamerConfig):
        return Dreamer(config.agent, action, there, proprio, discrete, views)
    return MaskedWorldModel(config.agent, action, there, proprio, discrete, views)


def read_config(logdir: Path | str, trusted: Collection[str] = ()) -> RunConfig:
    """The configuration of an online run, whatever its method.

    Raises:
        UserError: there is none, or it does not fit; it needs something that is not trusted.
    """
    folder = RunFolder.open(logdir)
    if folder.of_imitation:
        raise UserError(f"{logdir} is a run of imitate; name one of train")
    # Runs from before there were methods do not say theirs.
    record = folder.config
    method = record.read()["config"].get("method", "masked-world-model")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(
            f"{record.path} is of method {method!r:.60}, which this version does not know, but"
            f" {' and '.join(METHODS)}; use the commit that it names"
        )
    return RunFolder.read_config(logdir, METHODS[method], trusted)


def load_agent(
    logdir: Path | str, device: str = "auto", trusted: Collection[str] = ()
) -> tuple[OnlineAgent, RunConfig, int]:
    """The agent of a run folder's checkpoint, its configuration, and its environment steps.

    Args:
        logdir: run folder, or an exported policy's.
        device: torch device.
        trusted: classes of prediction targets, ``package.module:Class``, that it may import.

    Raises:
        UserError: no such folder, no checkpoint in it, one that cannot be read, or the agent needs
            a class that is not trusted.
    """
    folder = RunFolder.open(logdir)
    config = read_config(logdir, trusted)
    state, path = read_state(folder.path), state_path(folder.path)
    if state is None:
        raise UserError(f"{logdir} has no checkpoint yet; train longer with the same command")
    expect(state, path, agent=dict, task=str, step=int)
    if not isinstance(state.get("action"), int):
        raise UserError(f"{path} is no checkpoint of an online run; put its own back")
    proprio = state.get("proprio", 0)  # earlier agents saw none
    if not isinstance(proprio, int):
        raise UserError(f"{path} has no number of proprioception; put it back")
    discrete, exported = state.get("discrete") is True, is_exported(state)
    choose_device(device)  # that there is none is not the files' fault
    times = MOST_TIMES if exported else 1
    with limited_by(state, config, folder.config.path, path, times):
        agent = make_agent(config, state["action"], device, proprio, discrete)
    load_checked(Acting(agent) if exported else agent, state, config.task, path)
    return agent, config, state["step"]
