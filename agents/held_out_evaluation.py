"""What `run.py evaluate` does without a simulator: an imitator's losses, action errors and
predictions on demonstrations that nothing was learned from, or on others."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from agents.held_out import HeldOut
from agents.imitation_config import RunConfig, View
from agents.imitation_loading import load_agent, load_predictor
from agents.imitation_run import HELD_OUT_EPISODES
from agents.mask2act import Mask2Act
from agents.mask_world_model import MaskWorldModel
from atomic_file import atomic_file
from envs.demonstrations import read_headers
from envs.episode_choice import choose, hold_out, names
from envs.recording_header import Recording
from errors import UserError
from experiment.run_folder import RunFolder

MEASURED = ("action_error", "action_error_first", "action_error_of_mean")


def evaluate_held_out(
    logdir: str,
    data: Sequence[str] = (),
    episodes: int = 0,
    seed: int = 0,
    device: str = "auto",
    trusted: Collection[str] = (),
) -> dict[str, Any]:
    """Measure an imitator on demonstrations, and write ``held_out.json`` and
    ``pictures/held-out-evaluation.png`` into its run folder.

    Args:
        logdir: run folder.
        data: demonstration files or folders; none: what the run has held out.
        episodes: of each task at most, chosen by the seed; 0: all.
        seed: of the noise.
        device: torch device.
        trusted: what the run's configuration may load from outside (`load_agent`).

    Returns:
        ``updates``, ``seed``, ``data``, ``losses`` (by ``{stage}/{name}``, with the scalars of the
        picture under ``report/``), ``action_error``, ``action_error_first``,
        ``action_error_of_mean`` (means over episodes, each with ``mean`` and ``std``), ``tasks``
        (``action_error`` of each), ``by_dimension`` (A,), ``in_units`` (A,) where the
        demonstrations say the units of actions, and ``episodes``.

    Raises:
        UserError: the run cannot be evaluated; it has held out nothing, or its data has changed;
            the demonstrations do not fit the agent.
    """
    folder = RunFolder.open(logdir)
    agent, config, view, updates = load_agent(logdir, device, trusted)
    recordings = _recordings(folder, config, data)
    recordings = _fewer(recordings, episodes, seed)
    if isinstance(agent, MaskWorldModel):
        agent.predictor = load_predictor(agent, folder.path)
    predicts = config.agent.predicts
    stages = agent.stages if predicts else agent.stages[1:]
    goals = agent.goals if isinstance(agent, Mask2Act) else {}
    known = {task: pictures.numpy() for task, pictures in goals.items()}
    held = HeldOut(agent, recordings, stages, config.micro_batch or config.batch, known)
    measured: list[dict[str, Any]] = held.by_episode(seed)
    losses: dict[str, float] = {}
    for stage in stages:
        found = held.measure(stage, seed)
        losses |= {name: value for name, value in found.items() if "/" in name}
    if predicts:
        picture, scalars = held.picture(seed)
        folder.write_picture("held-out-evaluation", picture)
        losses |= {f"report/{name}": value for name, value in scalars.items()}
    result = {
        "updates": updates,
        "seed": seed,
        "data": [str(path) for path in data] or HELD_OUT_EPISODES,
        "losses": losses,
        **{name: _mean([episode[name] for episode in measured]) for name in MEASURED},
        "tasks": {
            task: _mean([e["action_error"] for e in measured if e["task"] == task])
            for task in dict.fromkeys(episode["task"] for episode in measured)
        },
        **_by_dimension(measured, view),
        "episodes": measured,
    }
    with atomic_file(folder.path / "held_out.json") as file:
        file.write(json.dumps(result, indent=1).encode() + b"\n")
    return result


def _recordings(folder: RunFolder, config: RunConfig, data: Sequence[str]) -> list[Recording]:
    """Those of `data`, or what the run has held out."""
    if data:
        return read_headers(data, config.filter_key, config.obs_alignment)
    if not config.held_out_share:
        raise UserError(
            f"{folder.path} has held out no demonstrations (--held-out); name some with --data, or"
            " a simulator's task with --task"
        )
    everything = read_headers(config.data, config.filter_key, config.obs_alignment)
    _, held = hold_out(everything, config.held_out_share, config.seed)
    try:
        written = json.loads(folder.demonstrations_path.read_bytes())[HELD_OUT_EPISODES]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder.demonstrations_path} does not say what was held out; name demonstrations with"
            " --data"
        ) from error
    if written != names(held):
        raise UserError(
            f"the data is not what it was when {folder.path} began: other demonstrations would be"
            f" held out than {folder.demonstrations_path.name} lists; put it back, or name"
            " demonstrations with --data"
        )
    return held


def _fewer(recordings: list[Recording], episodes: int, seed: int) -> list[Recording]:
    """At most `episodes` successful ones of each task."""
    if not episodes:
        return recordings
    chosen: list[Recording] = []
    for task in dict.fromkeys(recording.task for recording in recordings):
        of_task = [recording for recording in recordings if recording.task == task]
        there = sum(episode.success for each in of_task for episode in each.episodes)
        chosen += choose(of_task, min(episodes, there), seed, "episodes") if there else []
    return chosen or recordings  # without a successful one, windows say what is wrong


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def _by_dimension(measured: Sequence[dict[str, Any]], view: View) -> dict[str, list[float]]:
    """Errors of each number of an action, in [−1, 1] and in the units of who recorded them."""
    error = np.mean([episode["by_dimension"] for episode in measured], 0)
    found = {"by_dimension": error.tolist()}
    if view.action_low:
        half = (np.array(view.action_high) - np.array(view.action_low)) / 2
        found["in_units"] = (error * half).tolist()
    return found
