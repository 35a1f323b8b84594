"""Demonstrations recorded, stripped of their masks, annotated again, and compared.

    python -m results.experiments.roundtrip --out results/demonstrations

Records demonstrations of every task, takes their masks away, lets `annotate` draw them again, and
counts the pixels that differ; LIBERO's also from a copy in the alignment and orientation of its own
files. Writes a table of what was recorded and what came back, and a page of frames beside masks.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

import envs
from analysis.inspection import contact_sheet
from commands.command_line import script
from envs.annotation import annotate
from envs.demonstrations import read_header
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from experiment.hardware import hardware
from experiment.provenance import provenance

TASKS = ",".join(
    ["metaworld/mt10", *(f"libero/object/{k}" for k in (0, 3, 6)), "libero/spatial/0",
     "libero/spatial/2"]
)  # fmt: skip


@dataclass(frozen=True)
class RoundTrip:
    """Record, strip, annotate, compare."""

    out: Path
    """Folder for demonstrations.md, demonstrations.json and one contact sheet a task."""
    tasks: str = TASKS
    """Task ids separated by commas, or suites."""
    episodes: int = 2
    """Successful episodes of each task."""
    size: int = 128
    """Edge of the pictures, pixels."""
    seed: int = 0
    """Of the episodes' starts."""


def strip_masks(path: Path) -> None:
    """Take all masks out of a file."""
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for name in [name for name in demo["obs"] if name.endswith("_mask")]:
                del demo["obs"][name]


def to_after_action(path: Path) -> None:
    """Make of a file what LIBERO would have written: obs[j] after actions[j], upside down."""
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["obs_alignment"], file["data"].attrs["task"]
        file["data"].attrs["macros_image_convention"] = "opengl"
        for demo in file["data"].values():
            for name in list(demo["obs"]):
                values = demo["obs"][name][1:]
                del demo["obs"][name]
                demo["obs"][name] = values[:, ::-1] if values.ndim > 2 else values
            for name in [name for name in demo if isinstance(demo[name], h5py.Dataset)]:
                values = demo[name][:-1]
                del demo[name]
                demo[name] = values
            demo.attrs["num_samples"] = len(demo["actions"])


def differing(one: Path, other: Path) -> dict[str, float]:
    """Share of the values that differ between two files' pictures and masks, by kind."""
    counts = {"rgb": [0, 0], "mask": [0, 0]}
    with h5py.File(one) as a, h5py.File(other) as b:
        for demo in a["data"]:
            for name in a[f"data/{demo}/obs"]:
                kind = name.rpartition("_")[2]
                if kind in counts:
                    values = a[f"data/{demo}/obs/{name}"][()], b[f"data/{demo}/obs/{name}"][()]
                    counts[kind][0] += int(np.count_nonzero(values[0] != values[1]))
                    counts[kind][1] += values[0].size
    return {kind: differ / of for kind, (differ, of) in counts.items()}


def measure(task: str, options: RoundTrip, folder: Path) -> dict:
    """One task's row."""
    recorded, stripped = folder / "recorded.hdf5", folder / "stripped.hdf5"
    seen = EnvironmentConfig(size=options.size, quality="fast")
    attempts = []
    collect(
        task, options.episodes, recorded, ScriptedActor, seen, seed=options.seed,
        progress=lambda kept, tried: attempts.append(tried),
    )  # fmt: skip
    header = read_header(recorded)
    found = {
        "task": task,
        "instruction": header.instruction,
        "episodes": len(header.episodes),
        "attempts": attempts[-1],
        "steps": [episode.steps for episode in header.episodes],
        "cameras": header.cameras,
    }
    contact_sheet(header, options.out / f"{task.replace('/', '-')}.png")
    shutil.copy(recorded, stripped)
    strip_masks(stripped)
    annotate(stripped, folder / "annotated.hdf5")
    found["annotated"] = differing(recorded, folder / "annotated.hdf5")
    if envs.suite(task) == "libero":
        truth, official = folder / "truth.hdf5", folder / "official.hdf5"
        shutil.copy(recorded, truth)
        to_after_action(truth)
        shutil.copy(truth, official)
        strip_masks(official)
        annotate(official, folder / "official-annotated.hdf5")
        found["official"] = differing(truth, folder / "official-annotated.hdf5")
    return found


def markdown(result: dict) -> str:
    """The table."""
    lines = [
        "# Demonstrations: recorded, stripped of their masks, annotated again",
        "",
        f"`{result['command']}` at {result['commit'][:12]}. Shares of values that differ from what"
        " was recorded; `official`: from a copy shifted to LIBERO's own alignment and turned upside"
        " down.",
        "",
        "| task | instruction | kept of tried | steps | masks | pictures | official: masks |"
        " pictures |",
        "|---" * 8 + "|",
    ]
    for row in result["rows"]:
        official = row.get("official")
        cells = [
            row["task"], row["instruction"], f"{row['episodes']} of {row['attempts']}",
            ", ".join(map(str, row["steps"])),
            f"{row['annotated']['mask']:g}", f"{row['annotated']['rgb']:g}",
            f"{official['mask']:g}" if official else "", f"{official['rgb']:g}" if official else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: RoundTrip) -> None:
    """Measure, print, write."""
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in envs.expand(options.tasks):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(task, options, Path(folder)))
        print(rows[-1], flush=True)
    settings = json.loads(json.dumps(asdict(options), default=str))
    result = {**provenance(), "hardware": hardware(), "options": settings, "rows": rows}
    (options.out / "demonstrations.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    (options.out / "demonstrations.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    sys.exit(script(main, RoundTrip, "results.experiments.roundtrip"))
