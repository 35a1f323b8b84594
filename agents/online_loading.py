"""Agents of online runs: made fresh, or out of a run folder's checkpoint."""

from __future__ import annotations

from pathlib import Path

from agents.device import choose_device
from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from errors import UserError
from experiment.run_folder import RunFolder


def make_agent(config: OnlineConfig, action: int, device: str) -> MaskedWorldModel:
    """A fresh agent for an action vector of size `action`."""
    return MaskedWorldModel(config.agent, action, choose_device(device))


def load_agent(
    logdir: Path | str, device: str = "auto"
) -> tuple[MaskedWorldModel, OnlineConfig, int]:
    """The agent of a run folder's checkpoint, its configuration, and its environment steps.

    Raises:
        UserError: no such folder, no checkpoint in it, or one that cannot be read.
    """
    config = RunFolder.read_config(logdir, OnlineConfig)
    state = RunFolder.open(logdir).load_checkpoint("cpu")
    if state is None:
        raise UserError(f"{logdir} has no checkpoint yet; train longer with the same command")
    agent = make_agent(config, state["action"], device)
    load_checked(agent, state, config, RunFolder.open(logdir).checkpoint_path)
    return agent, config, state["step"]


def load_checked(agent: MaskedWorldModel, state: dict, config: OnlineConfig, path: Path) -> None:
    """Load a checkpoint's agent. Raises UserError when it is another task's or another agent's."""
    foreign = UserError(
        f"{path} belongs to another run (task {state.get('task')}); nothing was changed: put this "
        "run's own checkpoint back, or use another --logdir"
    )
    if state.get("task") != config.task:
        raise foreign
    try:
        agent.load(state["agent"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise foreign from error
