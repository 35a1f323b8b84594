"""README.md of an exported policy: a model card, as the Hugging Face hub shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from agents.policy import Trained

METHODS = {
    "masked-world-model": (
        "Masked World Models (Seo et al., CoRL 2022)", "online, by reinforcement learning",
        "reinforcement-learning",
    ),
    "dreamer": (
        "DreamerV2 (Hafner et al., 2021)", "online, by reinforcement learning",
        "reinforcement-learning",
    ),
    "mask-world-model": (
        "Mask World Model (Lou et al., 2026)", "demonstrations, by imitation", "imitation-learning",
    ),
    "mask2act": ("Mask2Act", "demonstrations, by imitation", "imitation-learning"),
}  # fmt: skip
"""By method: its name and source, what it learns from, and a tag."""
SHOWN = 40
"""Characters of a value of a file that the card repeats."""


class Card(NamedTuple):
    """What a card says."""

    trained: Trained
    record: Mapping[str, Any]
    """Of ``config.yaml``."""
    evaluation: Mapping[str, Any] | None
    """``evaluation.json``'s latest record."""
    licence: str
    parameters: int
    size: int
    """Of the weights' file, bytes."""
    kind: str
    """float16 or float32."""
    difference: float
    """Largest distance of an action to that of the run's own weights."""
    onnx: float | None
    """The same for the ONNX graph; None without one."""


def card(card: Card) -> str:
    """The text of README.md."""
    trained = card.trained
    name, source, tag = METHODS[trained.method]
    tasks = ", ".join(f"`{task}`" for task in trained.tasks)
    suites = sorted({task.partition("/")[0] for task in trained.tasks})
    front = {
        "license": card.licence,
        "library_name": "mask-world-models",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "world-model", tag, *suites],
    }
    unit = "environment steps" if trained.view is None else "updates"
    reads = "\n".join(f"- `{n}`: {entry}" for n, entry in trained.observation.items())
    values = {"image": "picture", "proprio": "robot_state"}
    given = ", ".join(f'"{n}": {values.get(n, n)}' for n in trained.observation)
    first = "" if len(trained.tasks) == 1 else f', task="{trained.tasks[0]}"'
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}: {tasks}",
        f"A robot policy that learned from pixels: {source}, {trained.position:,} {unit},"
        f" seed {card.record['config'].get('seed')}.",
        "## Use",
        "```python\nimport agents\n\n"
        f'policy = agents.load("THIS_FOLDER"{first})\n'
        "policy.reset()\n"
        f"action = policy.act({{{given}}})\n```",
        f"An observation holds\n\n{reads}\n\nand an action is ({trained.action_size},) float32."
        f" {_chunks(card)}",
        "    python run.py evaluate --logdir THIS_FOLDER --video\n"
        "    python run.py serve --logdir THIS_FOLDER --port 8000",
        f"## Figures\n\n{_figures(card.evaluation)}",
        f"## Weights\n\n{_weights(card)}",
        f"## Configuration\n\n{_configuration(card)}",
        "## Limits\n\nTrained in simulation, on the tasks named above and as they are shown there"
        f" ({_shown(trained)}). Nothing is known of other tasks, cameras, light or robots.",
        f"## Licence\n\nWeights: {card.licence}. Toolkit: MIT.",
    ]
    return "\n\n".join(parts) + "\n"


def _chunks(card: Card) -> str:
    agent = card.trained.agent
    size, steps = getattr(agent, "chunk", 1), getattr(agent, "n_action_steps", 1)
    if size == 1:
        return "One action is predicted at a time."
    return f"{size} actions are predicted at a time, of which {steps} are taken."


def _figures(evaluation: Mapping[str, Any] | None) -> str:
    """A table of rows of ``evaluation.json``, or that there are none."""
    if evaluation is None:
        return "Not measured: the run has no `evaluation.json`."
    lines = ["| | episodes | success (95 % interval) | return |", "|---|---|---|---|"]
    for name, row in evaluation.items():
        if not isinstance(row, Mapping) or "episodes" not in row:
            continue
        success = "not defined"
        if row.get("success"):
            low, high = row["success"]["interval"]
            success = f"{row['success']['mean']:.2f} ({low:.2f} to {high:.2f})"
        mean = row["return"]["mean"]
        lines.append(f"| {name} | {len(row['episodes'])} | {success} | {mean:.1f} |")
    where = f"Starts of seed {evaluation.get('seed')}, which training never meets"
    shift = f", under {evaluation['shift']}" if evaluation.get("shift") else ""
    commit = f" Commit {str(evaluation.get('commit'))[:12]}."
    command = f"`{str(evaluation.get('command'))}`"
    return "\n".join(lines) + (
        f"\n\n{where}{shift}; measured with the run's own weights by {command}.{commit}"
    )


def _weights(card: Card) -> str:
    text = (
        f"`model.safetensors`: {card.parameters:,} numbers as {card.kind},"
        f" {card.size / 1e6:.1f} MB; only what acting needs. First actions differ from those of"
        f" the run's own weights by at most {card.difference:.2g} on 32 random pictures (actions"
        " are in [−1, 1])."
    )
    if card.onnx is not None:
        text += (
            f" `policy.onnx`: the same as float32; its actions in onnxruntime differ by at most"
            f" {card.onnx:.2g}."
        )
    return text


def _configuration(card: Card) -> str:
    record = card.record
    versions = record.get("versions")
    torch = versions.get("torch") if isinstance(versions, Mapping) else None
    command = str(record.get("command")).replace("\n", " ")
    return (
        f"`config.yaml` holds every option. Trained with `{command}` at commit"
        f" {str(record.get('commit'))[:12]}, torch {torch!s:.{SHOWN}}."
    )


def _shown(trained: Trained) -> str:
    seen = trained.environment
    camera = seen.get("camera") or "the suite's own"
    return f"camera {camera}, {seen['size']} pixels, quality {seen['quality']}"
