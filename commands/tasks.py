"""tasks: list the ids that --task takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from commands.command_line import parse


@dataclass(frozen=True)
class Tasks:
    """List the ids that --task takes, one a line. It also takes package.module:callable, which
    returns an environment of your own."""

    suite: str | None = None
    """Only this suite: metaworld, dmc, libero, panda, rlbench, one that an installed package
    brings, gym: what is registered with Gymnasium, or gym:PACKAGE: what a package registers there,
    which imports it."""


def tasks(arguments: Sequence[str]) -> None:
    """`run.py tasks`: the ids that --task takes. Raises UserError."""
    options = parse(Tasks, arguments, "run.py tasks")

    import envs

    for task in envs.tasks(options.suite):
        print(task)
