"""Try RLBench on a machine that has it: ``make rlbench-check``, ``python -m tests.rlbench_check``.

No machine that made this repository had CoppeliaSim, so nothing here was ever run. It goes through
resets, steps, masks, ten demonstrations and 2,000 training steps by the toolkit's own commands, and
writes what came of it, with a picture to look at. It stops at the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import envs
from envs.demonstrations import read_header
from envs.rlbench_package import require, shut_down
from errors import UserError
from mask_classes import BACKGROUND, GOAL, HAND, OBJECT, ROBOT, colorize
from versions import installed_versions

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("reach_target", "push_button")
PACKAGES = ("rlbench", "pyrep", "numpy", "torch")
DEMONSTRATIONS, TRAINING_STEPS = 10, 2_000
EXPECTED = {"reach_target": {ROBOT, HAND, GOAL}, "push_button": {ROBOT, HAND, OBJECT}}
"""Classes that some picture of an episode shows, beside the background."""


def expect(holds: bool, sentence: str) -> None:
    """Stop with a sentence unless something holds. Raises SystemExit."""
    if not holds:
        raise SystemExit(f"rlbench-check: {sentence}")


def episodes(task: str, out: Path) -> dict[str, object]:
    """Resets, steps and masks of one task, in this process."""
    environment = envs.make(
        f"rlbench/{task}", camera="front,wrist", masks=True, proprio=True, seed=0
    )
    try:
        first, info = environment.reset(seed=1)
        again, _ = environment.reset(seed=1)
        other, _ = environment.reset(seed=2)
        space = environment.observation_space
        expect(space.contains(first), f"{task}: an observation is not in its space")
        expect(first["image"].std() > 1, f"{task}: the picture shows nothing")
        joints = np.abs(first["proprio"] - again["proprio"]).max()
        expect(joints < 1e-3, f"{task}: one seed began in two poses, {joints} apart")
        shown = np.abs(first["image"].astype(int) - again["image"]).mean()
        moved = np.abs(first["image"].astype(int) - other["image"]).mean()
        expect(shown < moved, f"{task}: one seed looks as different as two")

        rng = np.random.default_rng(0)
        classes, frames, started, steps, lengths = set(), [], time.perf_counter(), 0, []
        for seed in range(5):
            seen, _ = environment.reset(seed=seed)
            length, over = 0, False
            while not over:
                classes |= set(np.unique(seen["mask"]).tolist())
                if len(frames) < 16 and length % 20 == 0:
                    frames.append(np.concatenate([*seen["image"], *colorize(seen["mask"])], 1))
                action = rng.uniform(-1, 1, 8).astype(np.float32)
                seen, reward, terminated, truncated, step = environment.step(action)
                expect(np.isfinite(reward), f"{task}: a reward is {reward}")
                expect(space.contains(seen), f"{task}: an observation is not in its space")
                length += step["env_steps"]
                over = terminated or truncated
                expect(not (truncated and length != 200), f"{task}: time was up after {length}")
            steps += length
            lengths.append(length)
        seconds = (time.perf_counter() - started) / steps
        lacking = EXPECTED[task] | {BACKGROUND}
        expect(not lacking - classes, f"{task}: no mask shows the classes {lacking - classes}")
    finally:
        environment.close()
    Image.fromarray(np.concatenate(frames)).save(out / f"{task}.png")
    return {
        "instruction": info["instruction"],
        "classes": sorted(classes),
        "episode lengths": lengths,
        "milliseconds a control step, two cameras with masks": round(1000 * seconds, 1),
        "same seed, mean difference of 255": round(float(shown), 3),
        "other seed, mean difference of 255": round(float(moved), 3),
    }


def command(*arguments: str) -> None:
    """One of the toolkit's commands. Raises SystemExit where it fails."""
    print("python run.py", *arguments, flush=True)
    done = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT)
    expect(done.returncode == 0, f"run.py {arguments[0]} ended with status {done.returncode}")


def demonstrations(out: Path) -> dict[str, object]:
    """Ten demonstrations of a task, read back."""
    path = out / "demonstrations.hdf5"
    command(
        "collect", "--task", "rlbench/reach_target", "--episodes", str(DEMONSTRATIONS),
        "--environment.size", "64", "--out", str(path),
    )  # fmt: skip
    header = read_header(path)
    expect(len(header.episodes) == DEMONSTRATIONS, "demonstrations are missing")
    expect(all(episode.success for episode in header.episodes), "a demonstration failed")
    return {"steps": [episode.steps for episode in header.episodes]}


def training(out: Path) -> dict[str, object]:
    """A short run with the preset for two cores; a result it is not."""
    run = out / "run"
    command(
        "train", "--task", "rlbench/reach_target", "--steps", str(TRAINING_STEPS),
        "--prefill", "500", "--agent.autoencoder-pretraining", "50",
        "--agent.joint-pretraining", "10", "--evaluate-episodes", "2", "--evaluate-envs", "2",
        "--logdir", str(run),
    )  # fmt: skip
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    expect(last["step"] >= TRAINING_STEPS, f"training ended at step {last['step']}")
    return {"last step": last["step"]}


def main() -> None:
    """All of it, in order; raises SystemExit at the first fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "rlbench-check")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    try:
        require()
    except UserError as error:
        raise SystemExit(f"rlbench-check: {error}") from error
    found: dict[str, object] = {"versions": installed_versions(PACKAGES)}
    for task in TASKS:
        found[task] = episodes(task, out)
    shut_down()
    parts: dict[str, Callable[[Path], dict[str, object]]] = {
        "demonstrations": demonstrations,
        "training": training,
    }
    for name, part in parts.items():
        found[name] = part(out)
    (out / "check.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))
    print(f"look at {', '.join(str(out / f'{task}.png') for task in TASKS)}")


if __name__ == "__main__":
    main()
