"""train: learn a task online."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from commands.command_line import HELP, FirstOptions, parse
from commands.help import short_help
from commands.run_options import Trust, default_logdir
from errors import UserError

USAGE = """python run.py train --task TASK [OPTIONS]

Learn a task online; started again with the same options, go on where it stopped."""
WORDS = {
    "preset": (
        "{cpu,paper}",
        "Values of all options that are not given: paper as published, cpu for two cores"
        " (default: cpu)",
    ),
    "autoencoder_from": (
        "RUN",
        "Run folder whose autoencoder sees for this run, frozen; it may be of another task",
    ),
    "target": (
        "TARGET",
        "What the world model predicts: pixels, masks, package.module:Class, or a"
        " weighted sum (pixels:1+masks:0.5)",
    ),
    "logdir": ("FOLDER", "Run folder (default: runs/TASK-PRESET[-TARGET]-seedSEED)"),
}
"""Options that are no fields of the configuration."""
GROUPS = {
    "the run": ("task", "preset", "steps", "seed", "logdir", "device", "threads"),
    "what the agent sees": (
        "environment.camera", "environment.size", "environment.quality", "environment.shift",
        "num_envs", "recorded",
    ),
    "what it learns": (
        "target", "agent.autoencoder.kind", "agent.autoencoder.mask",
        "agent.autoencoder.mask_ratio", "agent.autoencoder.reward_weight", "autoencoder_from",
        "agent.behaviour.horizon", "agent.behaviour.entropy", "agent.compile",
    ),
    "when": (
        "prefill", "update_every", "evaluate_every", "evaluate_episodes", "checkpoint_seconds",
    ),
}  # fmt: skip
"""What `--help` shows."""


def train(arguments: Sequence[str]) -> None:
    """`run.py train`: the whole of online learning. Raises UserError."""
    from agents import presets
    from agents.online import train as learn
    from agents.online_config import OnlineConfig
    from experiment.run_folder import RunFolder

    # A preset is the default of every other option, so it has to be known before they are parsed.
    first = FirstOptions(prog="run.py train", add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="cpu")
    first.add_argument("--task")
    first.add_argument("--target")
    first.add_argument("--autoencoder-from")
    chosen, _ = first.parse_known_args(arguments)
    if chosen.task is None and not HELP & set(arguments):
        raise UserError(
            "train needs --task, for example --task metaworld/window-close; "
            "python run.py tasks lists them"
        )
    default = presets.preset(chosen.preset, chosen.task or "metaworld/window-close")
    if chosen.task is None:
        default = replace(default, task=tyro.MISSING)
    if chosen.target is not None:
        seeing = replace(default.agent.autoencoder, target=chosen.target)
        default = replace(default, agent=replace(default.agent, autoencoder=seeing))

    if chosen.autoencoder_from is not None:
        taking = replace(default.agent, autoencoder_from=chosen.autoencoder_from)
        default = replace(default, agent=taking)

    @dataclass(frozen=True)
    class Train:
        """Learn a task online; started again with the same options, go on where it stopped."""

        config: Annotated[OnlineConfig, tyro.conf.arg(name="")]
        preset: Literal[presets.PRESETS] = chosen.preset  # type: ignore[valid-type]  # it is constant
        """Values of all options that are not given: paper as published, cpu for two cores."""
        target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = chosen.target
        """What the world model predicts, short for --agent.autoencoder.target: pixels, masks,
        package.module:Class, or a weighted sum (pixels:1+masks:0.5)."""
        autoencoder_from: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = (
            chosen.autoencoder_from
        )
        """Run folder whose autoencoder sees for this run, frozen, short for
        --agent.autoencoder-from."""
        logdir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
        """Run folder; by default runs/TASK-PRESET[-TARGET]-seedSEED."""
        trust: Trust = ()
        """Class of a prediction target, package.module:Class, that a run folder among --recorded
        may name, beside the one of --target; once for each."""

    def helping() -> str:
        return short_help("run.py train", USAGE, default, GROUPS, WORDS)

    options = parse(Train, arguments, "run.py train", helping, default=Train(default))
    config = options.config
    target = config.agent.autoencoder.target
    parts = [config.task, options.preset, f"seed{config.seed}"]
    if target != "pixels":
        parts.insert(2, target)
    with RunFolder.create_or_resume(options.logdir or default_logdir(parts), config) as folder:
        print(f"run folder {folder.path}", flush=True)
        learn(config, folder, options.trust)
