"""imitate: learn tasks from demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from commands.command_line import HELP, FirstOptions, parse
from commands.help import short_help
from commands.run_options import Trust, default_logdir
from errors import UserError

USAGE = """python run.py imitate --data FILES --task TASKS [OPTIONS]

Learn from demonstrations: to predict the future, then to act on what is predicted. Started again
with the same options, go on where it stopped."""
WORDS = {
    "preset": (
        "{cpu,gpu,paper}",
        "Values of all options that are not given: paper as published,"
        " gpu for one GPU and an hour, cpu for two cores (default: cpu)",
    ),
    "target": (
        "TARGET",
        "What the world model predicts: masks, pixels, or package.module:Class (default: masks)",
    ),
    "world_model": (
        "{video,none,blind}",
        "none is the policy on an image encoder, the baseline;"
        " blind the same on black pictures (default: video)",
    ),
    "logdir": ("FOLDER", "Run folder (default: runs/TASK-imitate-PRESET-TARGET-seedSEED)"),
}
"""Options that are no fields of the configuration, or short for one."""
GROUPS = {
    "the run": ("data", "task", "preset", "seed", "logdir", "device", "threads"),
    "what is learned": (
        "target", "world_model", "dynamics_from", "agent.n_obs_steps", "agent.stride",
        "agent.language", "agent.train_backbone", "agent.policy.chunk",
        "agent.policy.n_action_steps",
    ),
    "how long": ("dynamics_steps", "policy_steps", "batch", "micro_batch", "workers"),
    "when": ("evaluate_every", "evaluate_episodes", "report_every", "checkpoint_seconds"),
}  # fmt: skip
"""What `--help` shows."""


def imitate(arguments: Sequence[str]) -> None:
    """`run.py imitate`: both stages of imitation. Raises UserError."""
    from agents import imitation_presets
    from agents.imitation import imitate as learn
    from agents.imitation_config import ImitationConfig
    from experiment.run_folder import RunFolder

    first = FirstOptions(prog="run.py imitate", add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="cpu")
    first.add_argument("--target")
    first.add_argument("--world-model")
    first.add_argument("--task")
    first.add_argument("--data")
    chosen, _ = first.parse_known_args(arguments)
    missing = [f"--{name}" for name in ("data", "task") if getattr(chosen, name) is None]
    if missing and not HELP & set(arguments):
        raise UserError(
            f"imitate needs {' and '.join(missing)}, for example --data demos/ --task"
            " libero/object; python run.py collect records demonstrations"
        )
    default = imitation_presets.preset(chosen.preset)
    agent = default.agent
    if chosen.target is not None:
        agent = replace(agent, dynamics=replace(agent.dynamics, target=chosen.target))
    if chosen.world_model is not None:
        if chosen.world_model not in ("video", "none", "blind"):
            raise UserError(f"--world-model is video, none or blind, not {chosen.world_model!r}")
        agent = replace(agent, world_model=chosen.world_model)
    default = replace(default, agent=agent, data=tyro.MISSING, task=tyro.MISSING)

    @dataclass(frozen=True)
    class Imitate:
        """Learn from demonstrations: to predict the future, then to act on what is predicted.
        Started again with the same options, go on where it stopped."""

        config: Annotated[ImitationConfig, tyro.conf.arg(name="")]
        preset: Literal[imitation_presets.PRESETS] = chosen.preset  # type: ignore[valid-type]  # it is constant
        """Values of all options that are not given: paper as published, gpu for one GPU and an
        hour, cpu for two cores."""
        target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = chosen.target
        """What the world model predicts, short for --agent.dynamics.target: masks, pixels, or
        package.module:Class."""
        world_model: Annotated[str | None, tyro.conf.arg(metavar="{video,none,blind}")] = (
            chosen.world_model
        )
        """Short for --agent.world-model: none is the policy on an image encoder, the baseline;
        blind the same on black pictures."""
        logdir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
        """Run folder; by default runs/TASK-imitate-PRESET-TARGET-seedSEED."""
        trust: Trust = ()
        """What the configuration of --dynamics-from may load from outside the toolkit, beside what
        this command names itself; once for each."""

    def helping() -> str:
        return short_help("run.py imitate", USAGE, default, GROUPS, WORDS)

    options = parse(Imitate, arguments, "run.py imitate", helping, default=Imitate(default))
    config = options.config
    predicted = config.agent.dynamics.target
    if config.agent.world_model != "video":
        predicted = config.agent.world_model
    parts = [config.task, "imitate", options.preset, predicted, f"seed{config.seed}"]
    with RunFolder.create_or_resume(options.logdir or default_logdir(parts), config) as folder:
        print(f"run folder {folder.path}", flush=True)
        learn(config, folder, options.trust)
