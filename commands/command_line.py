"""Reading options: what every command and every script of results/ shares."""

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from typing import Any, NoReturn

import tyro

from commands.ending import guarded
from errors import UserError

HELP = {"-h", "--help", "--help-all"}
"""Options that ask for help."""


def script(function: Callable[[Any], None], options: type, module: str) -> int:
    """Call `function` with its `options` from the command line of ``python -m module``; the exit
    status."""
    return guarded(lambda: function(parse(options, sys.argv[1:], f"-m {module}")))


def parse(
    command: type,
    arguments: Sequence[str],
    program: str,
    short_help: Callable[[], str] | None = None,
    **default: Any,
) -> Any:
    """``tyro.cli`` with its box of an error message turned into the one line of a ``UserError``.

    Args:
        command: a dataclass of the options.
        arguments: of the command line.
        program: ``run.py train``, or ``-m`` and a module.
        short_help: what ``--help`` prints; ``--help-all`` then has every option.
        default: ``default=`` of tyro, and what else it takes.
    """
    if short_help is not None:
        if {"-h", "--help"} & set(arguments):
            print(short_help(), flush=True)
            raise SystemExit(0)
        arguments = ["--help" if each == "--help-all" else each for each in arguments]
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            shown = f"python {program}" if program.startswith("-m ") else program
            return tyro.cli(command, prog=shown, args=list(arguments), **default)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_one_line(box.getvalue(), program))


def _one_line(box: str, program: str) -> str:
    """What tyro's box says first, the unknown options, and the option it would have expected."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # Without the frame, the title is the first row and an empty row parts the paragraphs.
    rows = [row.strip("│╭╮╰╯─ ") for row in text.splitlines()]
    paragraphs = [part.splitlines() for part in "\n".join(rows[1:]).strip().split("\n\n")]
    problem, hint = " ".join(paragraphs[0]).rstrip("."), ""
    if missing := re.match(r"Missing value for argument '(--[\w.-]+)", problem):
        option = missing[1]
        problem = f"{option} needs a value; one that begins with a dash is written {option}=VALUE"
    for heading, *items in paragraphs:
        options = [item.split()[0].rstrip(",") for item in items if item.startswith("--")]
        if heading.startswith("Missing from"):
            problem = f"{program.removeprefix('-m ')} needs {', '.join(options)}"
        elif heading == "Unrecognized options:":
            problem += f" and does not know {', '.join(options)}"
        elif heading.startswith("Perhaps you meant") and options:
            hint = f"did you mean {options[0]}? "
    return f"{problem}; {hint}see python {program} --help"


class FirstOptions(argparse.ArgumentParser):
    """Options that have to be known before the others can be parsed."""

    def parse_known_args(self, args=None, namespace=None):
        # As everywhere else, --world_model is --world-model.
        named = [re.sub(r"^--[^=]*", lambda name: name[0].replace("_", "-"), a) for a in args or ()]
        return super().parse_known_args(named, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python {self.prog} --help")
