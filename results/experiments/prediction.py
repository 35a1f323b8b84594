"""Draw what a trained world model predicts, as one picture.

    python -m results.experiments.prediction --logdir RUN --out prediction.png

Top to bottom: the truth, the reconstruction (of Masked World Models the autoencoder's, from masked
features), and the open-loop prediction, which sees the first 5 frames and from then on only the
actions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from agents.masked_world_model import MaskedWorldModel
from agents.online_loading import load_agent
from agents.replay import Replay
from agents.world_model_agent import WorldModelAgent
from commands.command_line import script
from commands.run_options import Trust

FRAMES = (0, 4, 5, 7, 10, 15, 20, 30, 40)
"""Agent steps that are shown."""


@dataclass(frozen=True)
class Prediction:
    """Draw what a trained world model predicts on an episode of its replay."""

    logdir: Path
    """Run folder of `run.py train`."""
    out: Path
    """PNG to write."""
    device: str = "auto"
    """torch device of the agent."""
    trust: Trust = ()
    """What the run may load from outside the toolkit, package.module:name; once for each."""


def main(options: Prediction) -> None:
    """Write the picture. Raises UserError when the run folder cannot be used."""
    matplotlib.use("Agg")
    agent, config, step = load_agent(options.logdir, options.device, options.trust)
    replay = Replay.at(options.logdir / "replay")
    video = agent.report(replay, rows=1, length=max(FRAMES) + 1)["prediction"]
    size = video.shape[1]
    # The picture, then of each target what is true, reconstructed, predicted; where the target is
    # the picture itself, the truth is not repeated.
    count = video.shape[2] // size
    masked = isinstance(agent, MaskedWorldModel)
    seen = "masked\nreconstruction" if masked else "reconstruction"
    kinds = ["truth", seen, "open-loop\nprediction"]
    rows = kinds
    if count > len(kinds):
        rows = ["picture", *(kind for kind in kinds for _ in range((count - 1) // len(kinds)))]
    figure, axes = pyplot.subplots(
        len(rows), len(FRAMES), figsize=(1.2 * len(FRAMES), 1.3 * len(rows)), squeeze=False
    )
    for column, t in enumerate(FRAMES):
        for row, name in enumerate(rows):
            axis = axes[row, column]
            axis.imshow(video[t, :, row * size : (row + 1) * size], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(name)
        known = "seen" if t < WorldModelAgent.context else "imagined"
        axes[0, column].set_title(f"t = {t}\n{known}", fontsize=9)
    figure.suptitle(f"{config.task}, seed {config.seed}, after {step:,} environment steps")
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    sys.exit(script(main, Prediction, "results.experiments.prediction"))
