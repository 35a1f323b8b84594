"""`run.py export`: a run folder becomes a folder that acts, small and plain.

config.yaml          as in the run folder
model.safetensors    the weights that act (`agents/exported.py`)
README.md            the model card (`agents/model_card.py`)
policy.onnx          on request (`agents/onnx_export.py`)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents import onnx_export
from agents.exported import GOALS, WEIGHTS, acting_weights, save_policy
from agents.model_card import Card, card
from agents.onnx_export import Exported
from agents.policy import Policy, Trained, load_trained
from agents.world_model_agent import WorldModelAgent
from atomic_file import atomic_file, writing
from errors import UserError
from experiment.evaluation_record import read_evaluation
from experiment.run_folder import RunFolder
from regular_file import read_bytes

PROBES = 16
"""Observations on which actions are compared."""
FILES = {
    "config.yaml", WEIGHTS, "README.md", onnx_export.NAME, "evaluation.json", "evaluation.lock",
    "videos",
}  # fmt: skip
"""What an exported policy's folder may hold, to be exported into again; also names that begin with
a dot, as git's do."""
LARGEST_HALF = 65504.0
"""The largest number that float16 has."""


class Report(NamedTuple):
    """What came of an export."""

    files: list[Path]
    size: int
    """Of the weights' file, bytes."""
    parameters: int
    """Numbers in it."""
    difference: float
    """Largest distance of an action to that of the run's own weights."""
    onnx: Exported | None


def export(
    logdir: Path | str,
    out: Path | str,
    half: bool = True,
    onnx: bool = False,
    licence: str = "mit",
    task: str | None = None,
    trusted: Collection[str] = (),
) -> Report:
    """Write what acts of a run into a folder of its own.

    Args:
        logdir: run folder.
        out: folder to make; one of an earlier export is replaced.
        half: keep weights as float16, half as large; running statistics stay float32.
        onnx: also as an ONNX graph.
        licence: of the weights, by its name on the Hugging Face hub.
        task: which task the ONNX graph does, where it was told several.
        trusted: what the run's configuration may load from outside (`agents.load`).

    Raises:
        UserError: the run cannot be loaded, or not be exported so; the folder holds other files.
    """
    source, target = RunFolder.open(logdir), Path(out)
    if target.resolve() == source.path.resolve():
        raise UserError(f"{out} is the run folder itself; give another folder as --out")
    _refuse_other_files(target)
    trained = load_trained(logdir, "cpu", trusted)
    learned = {name for name, _ in trained.agent.acting.named_parameters()} if half else set()
    weights = {
        name: _halved(part) if name in learned else part
        for name, part in acting_weights(trained.agent).items()
    }
    graph = onnx_export.build(Policy(trained, task)) if onnx else None
    before = actions(trained)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        with atomic_file(target / "config.yaml") as file:
            file.write(read_bytes(source.config.path))
    path = target / WEIGHTS
    size = save_policy(path, {**weights, **_goals(trained)}, _state(trained))
    difference = float(np.abs(actions(load_trained(target, "cpu", trusted)) - before).max())
    parameters = sum(part.numel() for part in weights.values())
    kind = "float16" if half else "float32"
    written = [target / "config.yaml", path]
    described = Card(
        trained, source.config.read(), read_evaluation(source.evaluation_path), licence,
        parameters, size, kind, difference, None if graph is None else graph.difference,
    )  # fmt: skip
    with writing(target):
        if graph is not None:
            written.append(target / onnx_export.NAME)
            with atomic_file(written[-1]) as file:
                file.write(graph.model)
        else:
            (target / onnx_export.NAME).unlink(missing_ok=True)
        with atomic_file(target / "README.md") as file:
            file.write(card(described).encode())
    written.append(target / "README.md")
    return Report(written, size, parameters, difference, graph)


def actions(trained: Trained) -> np.ndarray:
    """First actions of episodes that begin with pictures drawn at random, (PROBES, A), with the
    same noise every time."""
    rng = np.random.default_rng(0)
    found = []
    with torch.random.fork_rng([]):
        for _ in range(PROBES):
            torch.manual_seed(0)
            found.append(first_action(trained, probe(trained, rng)))
    return np.stack(found)


def probe(trained: Trained, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """An observation: smooth random pictures, and proprioception where demonstrations have it."""
    seen = {}
    for name, entry in trained.observation.items():
        if name == "image":
            *cameras, size, _, _ = entry.shape
            coarse = rng.integers(0, 256, (*cameras, 8, 8, 3), np.uint8)
            places = np.arange(size) * 8 // size
            seen[name] = coarse[..., places, :, :][..., places, :]
        else:
            low, high = _usual(trained.agent)
            seen[name] = (low + (high - low) * rng.random(entry.shape)).astype(np.float32)
    return seen


def _usual(agent: Any) -> tuple[np.ndarray, np.ndarray]:
    """The usual range of each number of proprioception."""
    if not isinstance(agent, WorldModelAgent):
        low, high = (np.array(agent.statistics[f"proprio_{edge}"]) for edge in ("low", "high"))
        return low, high
    assert agent.dynamics.proprioception is not None  # or there was nothing to read
    scale = agent.dynamics.proprioception.scale
    mean, deviation = scale.mean.cpu().numpy(), scale.variance.sqrt().cpu().numpy()
    return mean - deviation, mean + deviation


def first_action(trained: Trained, observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """The action (A,) at the beginning of an episode of the first task."""
    policy = Policy(trained, trained.tasks[0])
    policy.reset()
    return policy.act(observation)


def _halved(part: Tensor) -> Tensor:
    """A weight as float16, unless float16 cannot hold it."""
    fits = part.is_floating_point() and float(part.abs().max()) < LARGEST_HALF
    return part.to(torch.float16) if fits else part


def _goals(trained: Trained) -> dict[str, Tensor]:
    """Pictures of tasks done."""
    goals = getattr(trained.agent, "goals", {})
    return {f"{GOALS}{task}": pictures for task, pictures in goals.items()}


def _state(trained: Trained) -> dict[str, Any]:
    """What a checkpoint has beside the weights, as the loaders read it."""
    agent = trained.agent
    if trained.view is None:
        return {
            "task": trained.tasks[0], "step": trained.position, "action": trained.action_size,
            "proprio": agent.proprio_size, "discrete": agent.discrete, "agent": {},
        }  # fmt: skip
    policy = Policy(trained)
    told = {task: policy.told(task) for task in trained.tasks}
    return {
        "task": trained.task,
        "updates": trained.position,
        "stage": agent.stages[-1],
        "view": trained.view.plain(),
        "instructions": told,
        "agent": {
            "data_spec": vars(agent.data_spec),
            "statistics": {name: list(edges) for name, edges in agent.statistics.items()},
        },
    }


def _refuse_other_files(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a folder as --out")
    names = {entry.name for entry in target.iterdir()} if target.exists() else set()
    others = {name for name in names - FILES if not name.startswith(".")}
    if others:
        raise UserError(
            f"{target} holds other files ({min(others)}); give a new folder as --out, or that of an"
            " earlier export"
        )
