"""Imitators: made fresh, or out of a run folder's checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.action_chunks import EDGES
from agents.agent import Imitator
from agents.data_spec import DataSpec
from agents.device import choose_device
from agents.exported import MOST_TIMES, Acting, is_exported, read_state, state_path
from agents.imitation_config import METHODS, RunConfig, View
from agents.mask2act import Mask2Act
from agents.mask2act_config import Mask2ActConfig
from agents.mask_world_model import MaskWorldModel
from agents.size_limit import limited_by
from agents.training import load_checked
from errors import UserError
from experiment.checkpoint import UNREADABLE, expect, fitting, load_checkpoint
from experiment.config_record import names_loaded
from experiment.config_values import from_plain
from experiment.run_folder import RunFolder
from world_models.mask_dynamics import MaskDynamics

STAGE_1 = "dynamics.pt"
"""File of a run folder with what stage 1 ended with: the world model, or the planner."""


def make_imitator(
    config: RunConfig,
    data_spec: DataSpec,
    statistics: Mapping[str, Sequence[float]],
    device: str,
) -> MaskWorldModel | Mask2Act:
    """A fresh imitator for what the data fixes."""
    if isinstance(config.agent, Mask2ActConfig):
        return Mask2Act(config.agent, data_spec, statistics, choose_device(device))
    return MaskWorldModel(config.agent, data_spec, statistics, choose_device(device))


def read_config(logdir: Path | str, trusted: Collection[str] = ()) -> RunConfig:
    """The configuration of an imitation run, whatever its method.

    Raises:
        UserError: there is none, or it does not fit; it needs something that is not trusted.
    """
    # Runs from before there were methods do not say theirs.
    record = RunFolder.open(logdir).config
    method = record.read()["config"].get("method", "mask-world-model")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(
            f"{record.path} is of method {method!r:.60}, which this version does not know, but"
            f" {' and '.join(METHODS)}; use the commit that it names"
        )
    return RunFolder.read_config(logdir, METHODS[method], trusted)


def load_agent(
    logdir: Path | str, device: str = "auto", trusted: Collection[str] = ()
) -> tuple[MaskWorldModel | Mask2Act, RunConfig, View, int]:
    """The agent of a run folder's checkpoint, its configuration, how it sees, and its updates.

    Args:
        logdir: run folder, or an exported policy's.
        device: torch device.
        trusted: what it may load from outside the toolkit: classes of prediction targets,
            ``package.module:Class``, and weights, by the names that its configuration has.

    Raises:
        UserError: no such folder, no checkpoint in it, one that cannot be read, or whose second
            stage has not begun; the agent needs something that is not trusted.
    """
    config = read_config(logdir, trusted)
    agent, state = load_state(logdir, config, device)
    path = state_path(Path(logdir))
    expect(state, path, stage=str, updates=int, view=dict)
    if state["stage"] != agent.stages[-1]:
        raise UserError(
            f"{logdir} has made {state['updates']} updates of its {agent.stages[0]} and has no"
            f" {agent.stages[-1]} yet; let the same command go on"
        )
    with fitting(path):
        return agent, config, from_plain(state["view"], View), state["updates"]


def load_state(
    logdir: Path | str, config: RunConfig, device: str
) -> tuple[MaskWorldModel | Mask2Act, dict]:
    """The agent of a run folder's checkpoint, and all of the checkpoint.

    Raises:
        UserError: there is none, or it cannot be read or is another run's.
    """
    folder = RunFolder.open(logdir)
    state = read_state(folder.path)
    if state is None:
        raise UserError(f"{logdir} has no checkpoint yet; train longer with the same command")
    path = state_path(folder.path)
    expect(state, path, agent=dict, task=str)
    if (
        not isinstance(state.get("agent"), dict)
        or not {"data_spec", "interface"} & state["agent"].keys()
    ):
        raise UserError(f"{path} is no checkpoint of an imitation run; put its own back")
    kept = state["agent"]
    # Older checkpoints call it `interface`.
    with fitting(path):
        data_spec = from_plain(kept.get("data_spec", kept.get("interface")), DataSpec)
        ranges = {
            name: [float(edge) for edge in edges] for name, edges in kept["statistics"].items()
        }
        for name, size in (("action", data_spec.action_size), ("proprio", data_spec.proprio_size)):
            if {len(ranges[f"{name}_{edge}"]) for edge in EDGES} != {size}:
                raise ValueError(f"the statistics of {name} are not {size} numbers each")
    choose_device(device)  # that there is none is not the files' fault
    exported = is_exported(state)
    times = MOST_TIMES if exported else 1
    with limited_by(kept, config, folder.config.path, path, times):
        agent = make_imitator(config, data_spec, ranges, device)
    load_checked(Acting(agent) if exported else agent, state, config.task, path)
    told = state.get("instructions")  # runs from before 2026-12 do not say them
    known = told.items() if isinstance(told, dict) else ()
    agent.instructions = {str(task): str(words) for task, words in known}
    return agent, state


def load_first_stage(
    agent: Imitator, config: RunConfig, logdir: Path, trusted: Collection[str] = ()
) -> None:
    """Take over what stage 1 of another run ended with.

    Args:
        agent: takes it over.
        config: of the agent.
        logdir: run folder of the other run.
        trusted: what the other run's configuration may load from outside, beside what `config`
            loads.

    Raises:
        UserError: it has not ended, or was made with other options.
    """
    theirs = read_config(logdir, {*trusted, *names_loaded(config)})
    if theirs.method != config.method:
        raise UserError(f"{logdir} is a run of {theirs.method}, not of {config.method}")
    for name in config.agent.FIRST_STAGE:
        if getattr(theirs.agent, name) != getattr(config.agent, name):
            option = f"--agent.{name.replace('_', '-')}"
            raise UserError(f"stage 1 of {logdir} was made with another {option}; give the same")
    _load_stage_1(agent.load_first_stage_state_dict, logdir)


def load_predictor(agent: MaskWorldModel, logdir: Path) -> MaskDynamics | None:
    """The world model as stage 1 left it, where stage 2 has trained it on."""
    config = agent.config
    if config.world_model != "video" or not config.train_backbone or not agent.draws:
        return None
    predictor = copy.deepcopy(agent.ema.dynamics)
    _load_stage_1(predictor.load_state_dict, logdir)
    return predictor


def _load_stage_1(load: Callable[[dict], Any], logdir: Path) -> None:
    """Give `load` the weights that stage 1 of a run ended with.

    Raises:
        UserError: it has not ended, or the file is another model's.
    """
    state = load_checkpoint(logdir / STAGE_1)
    if state is None:
        raise UserError(f"{logdir} has not finished its stage 1; let its own command go on")
    try:
        load(state)
    except UNREADABLE as error:
        raise UserError(
            f"{logdir / STAGE_1} holds no stage 1 of these sizes and cameras; put the run's own"
            " file back"
        ) from error
