"""imitate: learn tasks from demonstrations."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from commands.command_line import HELP, FirstOptions, parse
from commands.help import short_help
from commands.run_options import Trust, default_logdir
from errors import UserError

USAGE = """python run.py imitate --data FILES --task TASKS [OPTIONS]

Learn from demonstrations: to predict the future, then to act on what is predicted. Started again
with the same options, go on where it stopped."""
WORDS = {
    "method": (
        "{mask-world-model,mask2act}",
        "What learns: a video model of future masks and a diffusion policy on its features, or a"
        " planner that foretells object masks and an executor (default: mask-world-model)",
    ),
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
    "plan": (
        "PLAN",
        "What plans foretell: masks, none, features, trajectory, points, video, or"
        " package.module:Class (default: masks)",
    ),
    "logdir": (
        "FOLDER",
        "Run folder (default: runs/TASK-imitate-PRESET-PREDICTED-seedSEED; with --task none the"
        " name of the data in place of TASK)",
    ),
}
"""Options that are no fields of the configuration, or short for one."""
HOW_LONG = {
    "how long": ("dynamics_steps", "policy_steps", "batch", "micro_batch", "workers"),
    "when": ("evaluate_every", "evaluate_episodes", "report_every", "checkpoint_seconds"),
}
THE_RUN = ("data", "task", "method", "preset", "seed", "logdir", "device", "threads")
GROUPS = {
    "mask-world-model": {
        "the run": THE_RUN,
        "what is learned": (
            "target", "world_model", "videos", "demonstrations", "held_out", "dynamics_from",
            "post_training_steps",
            "agent.n_obs_steps", "agent.stride", "agent.language", "agent.train_backbone",
            "agent.policy.chunk", "agent.policy.n_action_steps",
        ),
        **HOW_LONG,
    },
    "mask2act": {
        "the run": THE_RUN,
        "what is learned": (
            "plan", "videos", "demonstrations", "held_out", "dynamics_from",
            "post_training_steps", "agent.n_obs_steps",
            "agent.stride", "agent.ahead", "agent.objects", "agent.most_objects",
            "agent.planner.task", "agent.executor.own_view",
        ),
        **HOW_LONG,
    },
}  # fmt: skip
"""What `--help` shows, by method."""


def imitate(arguments: Sequence[str]) -> None:
    """`run.py imitate`: both stages of imitation. Raises UserError."""
    from agents.imitation import imitate as learn
    from agents.imitation_config import NO_TASK
    from experiment.run_folder import RunFolder

    options = configured(arguments)
    config = options.config
    named = config.task
    if named == NO_TASK:  # the data names such a run
        named = "-".join(os.path.basename(os.path.abspath(path)) for path in config.data)
    parts = [named, "imitate", options.preset, _predicted(config), f"seed{config.seed}"]
    with RunFolder.create_or_resume(options.logdir or default_logdir(parts), config) as folder:
        print(f"run folder {folder.path}", flush=True)
        learn(config, folder, options.trust)


def configured(arguments: Sequence[str]) -> Any:
    """The options of `run.py imitate`; its `config` is the run's. Raises UserError."""
    from agents import imitation_presets
    from agents.imitation_config import METHODS

    first = FirstOptions(prog="run.py imitate", add_help=False, allow_abbrev=False)
    first.add_argument("--method", default="mask-world-model")
    first.add_argument("--preset", default="cpu")
    for option in ("target", "world-model", "plan", "task", "data"):
        first.add_argument(f"--{option}")
    chosen, _ = first.parse_known_args(arguments)
    missing = [f"--{name}" for name in ("data", "task") if getattr(chosen, name) is None]
    if missing and not HELP & set(arguments):
        raise UserError(
            f"imitate needs {' and '.join(missing)}, for example --data demos/ --task"
            " libero/object (--task none where there is no simulator); python run.py collect"
            " records demonstrations"
        )
    default = imitation_presets.preset(chosen.preset, chosen.method)
    agent = _with_short_options(default.agent, chosen)
    default = replace(default, agent=agent, data=tyro.MISSING, task=tyro.MISSING)
    config_class = METHODS[chosen.method]

    @dataclass(frozen=True)
    class Imitate:
        """Learn from demonstrations: to predict the future, then to act on what is predicted.
        Started again with the same options, go on where it stopped."""

        config: Annotated[config_class, tyro.conf.arg(name="")]  # type: ignore[valid-type]  # chosen above
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
        plan: Annotated[str | None, tyro.conf.arg(metavar="PLAN")] = chosen.plan
        """What plans of mask2act foretell, short for --agent.plan: masks, none, features,
        trajectory, points, video, or package.module:Class."""
        logdir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
        """Run folder; by default runs/TASK-imitate-PRESET-PREDICTED-seedSEED, with --task none the
        name of the data in place of TASK."""
        trust: Trust = ()
        """What the configuration of --dynamics-from may load from outside the toolkit, beside what
        this command names itself; once for each."""

    def helping() -> str:
        return short_help("run.py imitate", USAGE, default, GROUPS[chosen.method], WORDS)

    return parse(Imitate, arguments, "run.py imitate", helping, default=Imitate(default))


def _with_short_options(agent: Any, chosen: Any) -> Any:
    """An agent's configuration with what --target, --world-model and --plan say."""
    of_method = ("plan",) if chosen.method == "mask2act" else ("target", "world_model")
    for name in ("target", "world_model", "plan"):
        if getattr(chosen, name) is not None and name not in of_method:
            raise UserError(
                f"--{name.replace('_', '-')} is no option of --method {chosen.method}; see python"
                f" run.py imitate --method {chosen.method} --help"
            )
    if chosen.target is not None:
        agent = replace(agent, dynamics=replace(agent.dynamics, target=chosen.target))
    if chosen.world_model is not None:
        if chosen.world_model not in ("video", "none", "blind"):
            raise UserError(f"--world-model is video, none or blind, not {chosen.world_model!r}")
        agent = replace(agent, world_model=chosen.world_model)
    return agent if chosen.plan is None else replace(agent, plan=chosen.plan)


def _predicted(config: Any) -> str:
    """What a run predicts, for the name of its folder."""
    if config.method == "mask2act":
        return f"mask2act-{config.agent.plan}"
    return config.agent.dynamics.target if config.agent.predicts else config.agent.world_model
