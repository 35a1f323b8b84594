"""Overfit on purpose: can the models learn a tiny replay of real frames by heart?

    python -m results.experiments.overfit --task metaworld/window-close --out results/overfit

A model that cannot is wrong or too small, whatever its losses say. Measured on the frames it
learned from: how sharp the autoencoder's pictures are, on the whole frame and where the robot and
the task's objects are; how much of the reward is explained; and whether 20 steps imagined from the
actions alone are closer to the truth than the last frame seen. Writes a JSON file and a picture,
both named after the task.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

import envs
from agents.masked_world_model import MaskedWorldModel
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.presets import preset
from agents.replay import Replay, entries_for
from agents.rollout import RandomAgent, episode_seed
from commands.command_line import script
from experiment.hardware import hardware
from experiment.provenance import provenance
from mask_classes import HAND, OBJECT, ROBOT, SECOND
from world_models.layers import symlog

CONTEXT, HORIZON = 5, 20
MOVES = torch.tensor([ROBOT, HAND, OBJECT, SECOND], dtype=torch.uint8)
SHOWN = (0, 4, 5, 8, 12, 16, 20, 24)


@dataclass(frozen=True)
class Overfit:
    """Learn a tiny replay by heart and measure how well."""

    out: Path
    """Folder to write to."""
    task: str = "metaworld/window-close"
    """Task the frames are from."""
    preset: str = "cpu"
    """Preset of the models."""
    episodes: int = 2
    """Episodes of held random actions."""
    autoencoder_updates: int = 4000
    """Updates of the autoencoder, before the dynamics model sees anything."""
    dynamics_updates: int = 3000
    """Updates of the dynamics model."""
    seed: int = 0
    """Seed of everything."""


def collect(folder: Path, task: str, episodes: int, seed: int, hold: int = 8) -> Replay:
    """Episodes of extreme actions, each held for `hold` steps, with the masks of every frame."""
    env = envs.make(task, quality="fast", masks=True)
    try:
        replay = Replay(
            folder, entries_for(env.observation_space, env.action_space), 100_000, seed=seed
        )
        agent = RandomAgent(env.action_space, seed, extreme=True)
        for number in range(episodes):
            observation, _ = env.reset(seed=episode_seed(seed, 0, number))
            action = np.zeros(env.action_space.shape, np.float32)
            frames = [{**observation, "action": action, "reward": 0.0, "is_terminal": False}]
            ended, env_steps = False, 0
            while not ended:
                if (len(frames) - 1) % hold == 0:
                    action = agent.policy({"is_first": np.zeros(1)}, None, True)[0][0]
                observation, reward, terminated, truncated, info = env.step(action)
                env_steps += info["env_steps"]
                ended = terminated or truncated
                frames.append(
                    {**observation, "action": action, "reward": reward, "is_terminal": terminated}
                )
            episode = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
            episode["is_first"] = np.arange(len(frames)) == 0
            replay.add_episode(episode, env_steps=env_steps)
        return replay
    finally:
        env.close()


def learn(
    config: MaskedWorldModelConfig, replay: Replay, autoencoder: int, dynamics: int, seed: int
) -> MaskedWorldModel:
    """A model trained on `replay` and nothing else, without shifts; its behaviour is left
    untrained."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    action = replay.entries["action"].shape[0]
    model = MaskedWorldModel(replace(config, random_shift=0), action, device)
    for _ in trange(autoencoder, desc="autoencoder", disable=None):
        model.update_autoencoder(replay)
    for _ in trange(dynamics, desc="dynamics", disable=None):
        model.update_dynamics(model.sample(replay))
    return model


def psnr(predicted: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in decibels of uint8 pictures (..., H, W, 3), on the pixels
    `where` (..., H, W) if given."""
    error = (predicted.float() - truth.float()).square().mean(-1)
    error = error.mean() if where is None else error[where].mean()
    return float(10.0 * torch.log10(255.0**2 / error))


@torch.no_grad()
def measure(model: MaskedWorldModel, replay: Replay, windows: int = 48) -> dict[str, float]:
    """How well `model` knows `replay`; decibels for pictures, squared symlog for rewards."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batch = replay.sample_windows(windows, CONTEXT + HORIZON, rng)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    image, moving = batch["image"], torch.isin(batch["mask"], MOVES.to(model.device))
    to_image = model.autoencoder.target.to_image

    first = image[:, 0]
    masked = to_image(model.autoencoder.reconstruct(first))
    features = model.features(image)
    seen, reward = model.autoencoder.predict(features.flatten(0, 1))
    seen = to_image(seen).unflatten(0, image.shape[:2])
    true_reward = symlog(batch["reward"])
    state, _ = model.dynamics.observe({**batch, "feature": features})
    known = symlog(model.dynamics.reward(state.feature)).T
    mean = image.float().mean((0, 1)).expand_as(image)

    imagined = to_image(model.open_loop(batch, CONTEXT))[:, CONTEXT:]
    truth, where = image[:, CONTEXT:], moving[:, CONTEXT:]
    copy = image[:, CONTEXT - 1 : CONTEXT].expand_as(truth)
    return {
        "psnr": psnr(seen, image),
        "psnr_of_what_moves": psnr(seen, image, moving),
        "psnr_masked": psnr(masked, first),
        "psnr_of_the_mean_picture": psnr(mean, image),
        "psnr_of_the_mean_picture_where_it_moves": psnr(mean, image, moving),
        "reward_error_autoencoder": float((reward - true_reward.flatten()).square().mean()),
        "reward_error_dynamics": float((known - true_reward).square().mean()),
        "reward_variance": float(true_reward.var()),
        "open_loop_psnr": psnr(imagined, truth),
        "copy_psnr": psnr(copy, truth),
        "open_loop_psnr_of_what_moves": psnr(imagined, truth, where),
        "copy_psnr_of_what_moves": psnr(copy, truth, where),
        "open_loop_psnr_last_step": psnr(imagined[:, -1], truth[:, -1]),
        "copy_psnr_last_step": psnr(copy[:, -1], truth[:, -1]),
    }


def draw(model: MaskedWorldModel, replay: Replay, title: str, path: Path) -> None:
    """Truth, masked reconstruction and open-loop prediction of one window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    video = model.report(replay, rows=2, length=CONTEXT + HORIZON)["prediction"]
    size = video.shape[1] // 2
    names = ("truth", "masked\nreconstruction", "open-loop\nprediction")
    figure, axes = pyplot.subplots(6, len(SHOWN), figsize=(1.2 * len(SHOWN), 7.2))
    for column, t in enumerate(SHOWN):
        for row in range(6):
            window, part = divmod(row, 3)
            axis = axes[row, column]
            axis.imshow(
                video[t, window * size : (window + 1) * size, part * size : (part + 1) * size],
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(names[part])
        axes[0, column].set_title(f"t = {t}\n{'seen' if t < CONTEXT else 'imagined'}", fontsize=9)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(options: Overfit) -> None:
    """Collect, learn, measure, write. Raises UserError for a task or preset that is not there."""
    config = preset(options.preset, options.task).agent
    origin = provenance()  # of the tree as it is before anything is written to it
    schedule = replace(config.autoencoder_optimizer, anneal=options.autoencoder_updates)
    config = replace(config, autoencoder_optimizer=schedule)
    with tempfile.TemporaryDirectory() as folder:
        replay = collect(Path(folder), options.task, options.episodes, options.seed)
        model = learn(
            config, replay, options.autoencoder_updates, options.dynamics_updates, options.seed
        )
        measured = measure(model, replay)
        options.out.mkdir(parents=True, exist_ok=True)
        name = options.task.replace("/", "-")
        draw(model, replay, f"{options.task}, learned by heart", options.out / f"{name}.png")
    written = {
        "task": options.task,
        "frames": replay.frames,
        "updates": [options.autoencoder_updates, options.dynamics_updates],
        **measured,
        **origin,
        "hardware": hardware(),
    }
    (options.out / f"{name}.json").write_text(
        json.dumps(written, indent=1) + "\n", encoding="utf-8"
    )
    for key, value in measured.items():
        print(f"{key:42} {value:8.3f}")
    print(options.out / f"{name}.png")
    print(options.out / f"{name}.json")


if __name__ == "__main__":
    sys.exit(script(main, Overfit, "results.experiments.overfit"))
