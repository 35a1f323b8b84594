"""train: learn a task online."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

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
    "method": (
        "{masked-world-model,dreamer}",
        "What learns: Masked World Models, or the baseline DreamerV2 (default: masked-world-model)",
    ),
    "logdir": (
        "FOLDER",
        "Run folder (default: runs/TASK[-METHOD]-PRESET[-TARGET]-seedSEED, without the default"
        " method)",
    ),
}
"""Options that are no fields of the configuration."""
THE_RUN = ("task", "method", "preset", "steps", "seed", "logdir", "device", "threads")
WHAT_IT_SEES = (
    "environment.camera", "environment.size", "environment.quality", "environment.shift",
    "num_envs", "recorded", "offline",
)  # fmt: skip
BEHAVIOUR = ("agent.behaviour.horizon", "agent.behaviour.entropy", "agent.compile")
WHEN = {
    "when": (
        "prefill", "update_every", "evaluate_every", "evaluate_episodes", "checkpoint_seconds",
    ),
}  # fmt: skip
GROUPS = {
    "masked-world-model": {
        "the run": THE_RUN,
        "what the agent sees": WHAT_IT_SEES,
        "what it learns": (
            "target", "agent.autoencoder.kind", "agent.autoencoder.mask",
            "agent.autoencoder.mask_ratio", "agent.autoencoder.reward_weight", "autoencoder_from",
            *BEHAVIOUR,
        ),
        **WHEN,
    },
    "dreamer": {
        "the run": THE_RUN,
        "what the agent sees": WHAT_IT_SEES,
        "what it learns": ("target", "agent.encoder", "agent.representation", *BEHAVIOUR),
        **WHEN,
    },
}  # fmt: skip
"""What `--help` shows, by method."""


def train(arguments: Sequence[str]) -> None:
    """`run.py train`: the whole of online learning. Raises UserError."""
    from agents import online
    from experiment.run_folder import RunFolder

    options = configured(arguments)
    config = options.config
    parts = [config.task, *_of_method(config), options.preset, f"seed{config.seed}"]
    if config.agent.target != "pixels":
        parts.insert(-1, config.agent.target)
    with RunFolder.create_or_resume(options.logdir or default_logdir(parts), config) as folder:
        print(f"run folder {folder.path}", flush=True)
        learn = online.train_offline if config.offline else online.train
        learn(config, folder, options.trust)


def configured(arguments: Sequence[str]) -> Any:
    """The options of `run.py train`; its `config` is the run's. Raises UserError."""
    from agents import presets
    from agents.online_config import METHODS

    # A method decides what options there are, and a preset is the default of every other one.
    first = FirstOptions(prog="run.py train", add_help=False, allow_abbrev=False)
    first.add_argument("--method", default="masked-world-model")
    first.add_argument("--preset", default="cpu")
    first.add_argument("--task")
    first.add_argument("--target")
    first.add_argument("--autoencoder-from")
    chosen, _ = first.parse_known_args(arguments)
    if chosen.task is None and not HELP & set(arguments):
        raise UserError(
            "train needs --task, for example --task metaworld/window-close; "
            "python run.py tasks lists them, and an environment of your own is gym:ENV_ID or "
            "package.module:callable"
        )
    task = chosen.task or "metaworld/window-close"
    default = presets.preset(chosen.preset, task, chosen.method)
    if chosen.task is None:
        default = replace(default, task=tyro.MISSING)
    if chosen.target is not None:
        default = replace(default, agent=default.agent.predicting(chosen.target))
    config_class = METHODS[chosen.method]

    if chosen.autoencoder_from is not None:
        if chosen.method != "masked-world-model":
            raise UserError(f"--autoencoder-from: {chosen.method} has no autoencoder; leave it out")
        taking = replace(default.agent, autoencoder_from=chosen.autoencoder_from)
        default = replace(default, agent=taking)

    @dataclass(frozen=True)
    class Train:
        """Learn a task online; started again with the same options, go on where it stopped."""

        config: Annotated[config_class, tyro.conf.arg(name="")]  # type: ignore[valid-type]  # chosen above
        preset: Literal[presets.PRESETS] = chosen.preset  # type: ignore[valid-type]  # it is constant
        """Values of all options that are not given: paper as published, cpu for two cores."""
        target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = chosen.target
        """What the world model predicts, short for --agent.autoencoder.target, or of dreamer
        --agent.target: pixels, masks, package.module:Class, or a weighted sum
        (pixels:1+masks:0.5)."""
        autoencoder_from: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = (
            chosen.autoencoder_from
        )
        """Run folder whose autoencoder sees for this run, frozen, short for
        --agent.autoencoder-from; of masked-world-model."""
        logdir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
        """Run folder; by default runs/TASK[-METHOD]-PRESET[-TARGET]-seedSEED, without the default
        method."""
        trust: Trust = ()
        """Class of a prediction target, package.module:Class, that a run folder among --recorded
        may name, beside the one of --target; once for each."""

    def helping() -> str:
        return short_help("run.py train", USAGE, default, GROUPS[chosen.method], WORDS)

    return parse(Train, arguments, "run.py train", helping, default=Train(default))


def _of_method(config: Any) -> list[str]:
    """What the name of a run's folder says of its method; nothing of the default one."""
    if config.method != "dreamer":
        return []
    usual = type(config.agent)()
    chosen = (config.agent.encoder, config.agent.representation)
    return ["dreamer", *(c for c in chosen if c not in (usual.encoder, usual.representation))]
