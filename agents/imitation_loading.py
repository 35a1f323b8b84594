"""Agents and world models out of the folders of imitation runs, and what can be wrong there."""

from __future__ import annotations

import copy
from pathlib import Path

from agents.device import choose_device
from agents.imitation_config import ImitationConfig, View
from agents.mask_world_model import ImitationAgent
from agents.mask_world_model_config import Interface
from errors import UserError
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from world_models.mask_dynamics import MaskDynamics

DYNAMICS = "dynamics.pt"
"""File of a run folder with the world model that stage 1 ended with."""


def load_agent(
    logdir: Path | str, device: str = "auto"
) -> tuple[ImitationAgent, ImitationConfig, View, int]:
    """The agent of a run folder's checkpoint, its configuration, how it sees, and its updates.

    Raises:
        UserError: no such folder, no checkpoint in it, one that cannot be read, or whose second
            stage has not begun.
    """
    config = RunFolder.read_config(logdir, ImitationConfig)
    agent, state = load_state(logdir, config, device)
    if state["stage"] != "policy":
        raise UserError(
            f"{logdir} has made {state['updates']} updates of its world model and has no policy"
            " yet; let the same command go on"
        )
    return agent, config, View(**state["view"]), state["updates"]


def load_state(
    logdir: Path | str, config: ImitationConfig, device: str
) -> tuple[ImitationAgent, dict]:
    """The agent of a run folder's checkpoint, and all of the checkpoint.

    Raises:
        UserError: there is none, or it cannot be read or is another run's.
    """
    folder = RunFolder.open(logdir)
    state = folder.load_checkpoint("cpu")
    if state is None:
        raise UserError(f"{logdir} has no checkpoint yet; train longer with the same command")
    if not isinstance(state.get("agent"), dict) or "interface" not in state["agent"]:
        raise UserError(
            f"{folder.checkpoint_path} is no checkpoint of an imitation run; put its own back"
        )
    kept = state["agent"]
    agent = ImitationAgent(
        config.agent, Interface(**kept["interface"]), kept["statistics"], choose_device(device)
    )
    load_checked(agent, state, config, folder.checkpoint_path)
    return agent, state


def load_world_model(world_model: MaskDynamics, logdir: Path) -> None:
    """Take the weights that stage 1 of a run ended with.

    Raises:
        UserError: it has not ended, or the file is another model's.
    """
    state = load_checkpoint(logdir / DYNAMICS)
    if state is None:
        raise UserError(f"{logdir} has not finished its stage 1; let its own command go on")
    try:
        world_model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{logdir / DYNAMICS} is no world model of these sizes and cameras; put the run's own"
            " file back"
        ) from error


def load_predictor(agent: ImitationAgent, logdir: Path) -> MaskDynamics | None:
    """The world model as stage 1 left it, where stage 2 has trained it on."""
    config = agent.config
    if config.world_model != "video" or not config.train_backbone:
        return None
    predictor = copy.deepcopy(agent.averaged.world_model)
    load_world_model(predictor, logdir)
    return predictor


def load_checked(agent: ImitationAgent, state: dict, config: ImitationConfig, path: Path) -> None:
    """Load a checkpoint's agent. Raises UserError when it is another run's."""
    try:
        if state["task"] != config.task:
            raise KeyError
        agent.load_state_dict(state["agent"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} belongs to another run (task {state.get('task')}); nothing was changed: put"
            " this run's own checkpoint back, or use another --logdir"
        ) from error
