"""What faults are put into: one of each kind of input, made by the real commands.

    online/       a finished run of `train`, of a tiny agent, and its evaluation
    imitation/    a finished run of `imitate`, and its evaluation
    demos/        two demonstrations of closing a drawer, with masks
    plain.hdf5    the same without masks, as annotate takes them
    scores.json, scores.csv, events/    the same two curves three times
    closes-windows/, closes-drawers/    exported policies: examples/policies/window-close and, after
                  `imitate`, imitation/
    reach-set/, reach-files/    tests/data/lerobot_tiny, and what `convert` makes of it
    cup/cup.hdf5  demonstrations that somebody has written, without masks

Everything but the exported example is tiny: an episode is 25 steps of the agent, a network some
thousand weights.
"""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from results.experiments.roundtrip import strip_masks

ONLINE_TASK, IMITATION_TASK = "metaworld/window-close", "metaworld/drawer-close"
TINY = [
    "--threads=1", "--environment.size=32", "--environment.action-repeat=20",
    "--agent.autoencoder.image-size=32", "--agent.autoencoder.width=16",
    "--agent.autoencoder.encoder-depth=1", "--agent.autoencoder.decoder-depth=1",
    "--agent.autoencoder.heads=2", "--agent.dynamics.head-layers=1",
    "--agent.dynamics.head-units=16", "--agent.dynamics.encoder.width=8",
    "--agent.dynamics.encoder.depth=1", "--agent.dynamics.encoder.heads=2",
    "--agent.dynamics.decoder.width=8", "--agent.dynamics.decoder.depth=1",
    "--agent.dynamics.decoder.heads=2", "--agent.dynamics.rssm.deterministic=12",
    "--agent.dynamics.rssm.hidden=12", "--agent.dynamics.rssm.variables=4",
    "--agent.dynamics.rssm.classes=4", "--agent.behaviour.horizon=4",
    "--agent.behaviour.start-states=8", "--agent.behaviour.layers=1",
    "--agent.behaviour.units=16", "--agent.autoencoder-batch=4", "--agent.batch=2",
    "--agent.window=8", "--agent.autoencoder-pretraining=2", "--agent.joint-pretraining=1",
]  # fmt: skip
ONLINE = [
    "--task", ONLINE_TASK, *TINY, "--prefill=25", "--update-every=4", "--replay-capacity=500",
    "--episode-steps=0", "--evaluate-every=500", "--evaluate-first=500", "--evaluate-episodes=1",
    "--evaluate-envs=1",
]  # fmt: skip
"""Options of `train`, without --steps and --logdir."""
IMITATION = [
    "--task", IMITATION_TASK, "--world-model", "video", "--batch", "2", "--workers", "0",
    "--threads", "1", "--evaluate-episodes", "1", "--evaluate-envs", "1",
    "--agent.dynamics.vae.windows", "1", "--agent.dynamics.transformer.layers", "1",
    "--agent.policy.width", "32", "--agent.policy.num-inference-steps", "1",
    "--agent.policy.n-action-steps", "16", "--agent.precision", "float32",
]  # fmt: skip
"""Options of `imitate`, without --data, its lengths and --logdir."""
COLLECT = ["--task", IMITATION_TASK, "--environment.size", "64"]
"""Options of `collect`, without --episodes and --out."""
STEPS, UPDATES, DEMONSTRATIONS = 1000, 2, 2
ROOT = Path(__file__).parents[2]
EXAMPLE, DATASET = ROOT / "examples/policies/window-close", ROOT / "tests/data/lerobot_tiny"
OWN_SIZE, OWN_STEPS, OWN_EPISODES = 32, 6, 3
"""Pixels, steps and episodes of own demonstrations."""


def train(folder: Path, steps: int = STEPS) -> list[str]:
    """The command that makes, or resumes, the online run `folder`."""
    return ["train", *ONLINE, f"--steps={steps}", "--logdir", str(folder)]


def imitate(folder: Path, data: Path, updates: int = UPDATES) -> list[str]:
    """The command that makes, or resumes, the imitation run `folder`."""
    lengths = ["--dynamics-steps", str(UPDATES), "--policy-steps", str(updates)]
    return ["imitate", "--data", str(data), *IMITATION, *lengths, "--logdir", str(folder)]


def collect(out: Path, episodes: int = DEMONSTRATIONS) -> list[str]:
    """The command that records demonstrations."""
    return ["collect", *COLLECT, "--episodes", str(episodes), "--out", str(out)]


def evaluate(folder: Path) -> list[str]:
    """The command that measures an agent."""
    return ["evaluate", "--logdir", str(folder), "--episodes", "1"]


def export(run: Path, out: Path) -> list[str]:
    """The command that keeps what acts of a run or of an exported policy."""
    return ["export", "--logdir", str(run), "--out", str(out)]


def convert(data: Path, out: Path) -> list[str]:
    """The command that makes demonstration files of a LeRobot dataset, or the other way round."""
    return ["convert", str(data), "--out", str(out), "--size", str(OWN_SIZE)]


def commands(folder: Path, imitation: bool) -> list[list[list[str]]]:
    """Commands that make the originals for which a simulator is needed: two chains of them, which
    may run at the same time."""
    online, imitator, demos = (folder / name for name in ("online", "imitation", "demos"))
    recorded = [collect(demos / "drawer.hdf5")]
    if imitation:
        recorded += [imitate(imitator, demos), evaluate(imitator)]
        recorded += [export(imitator, folder / "closes-drawers")]
    learned = [train(online), evaluate(online), export(EXAMPLE, folder / "closes-windows")]
    shutil.copytree(DATASET, folder / "reach-set")
    return [[*learned, convert(folder / "reach-set", folder / "reach-files")], recorded]


def finish(folder: Path) -> None:
    """Make the other originals in `folder`, after its `commands` have run."""
    shutil.copy(folder / "demos" / "drawer.hdf5", folder / "plain.hdf5")
    strip_masks(folder / "plain.hdf5")
    write_scores(folder)
    write_own(folder / "cup")


def write_own(folder: Path) -> None:
    """Write demonstrations as docs/own_data.md says."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with h5py.File(folder / "cup.hdf5", "w") as file:
        file.create_group("data").attrs.update({"instruction": "lift the cup", "fps": 10.0})
        for number in range(OWN_EPISODES):
            demo = file.create_group(f"data/demo_{number}")
            pictures = (OWN_STEPS, OWN_SIZE, OWN_SIZE, 3)
            demo["actions"] = rng.uniform(-1, 1, (OWN_STEPS, 3))
            demo["obs/front_rgb"] = rng.integers(0, 256, pictures, np.uint8)
            demo["obs/proprio"] = rng.normal(size=(OWN_STEPS, 4)).astype(np.float32)


CURVES = {0: (0.0, 0.25, 0.5, 0.75), 1: (0.125, 0.375, 0.625, 1.0)}
"""Success by seed at 1000, 2000, ... environment steps; exact in every number format."""


def write_scores(folder: Path) -> None:
    """Write the curves `CURVES` as JSON, as CSV and as event files of a run folder each."""
    entries = [
        {"task": ONLINE_TASK, "seed": seed, "method": "theirs", "steps": _steps(scores),
         "success_rates": list(scores), "command": "python train.py"}
        for seed, scores in CURVES.items()
    ]  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(entries, indent=1))
    with open(folder / "scores.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["method", "task", "seed", "step", "success"])
        for seed, scores in CURVES.items():
            for step, score in zip(_steps(scores), scores, strict=True):
                table.writerow(["theirs", ONLINE_TASK, seed, step, score])
    events = folder / "events"
    events.mkdir()
    config = {"config": {"task": ONLINE_TASK, "seed": 0}, "commit": "abc"}
    (events / "config.yaml").write_text(yaml.safe_dump(config))
    writer = SummaryWriter(str(events))
    for step, score in zip(_steps(CURVES[0]), CURVES[0], strict=True):
        writer.add_scalar("eval/success", score, step)
        writer.add_scalar("train/loss", 1.0 / step, step)
    writer.close()


def _steps(scores: Sequence[float]) -> list[int]:
    return [1000 * (i + 1) for i in range(len(scores))]
