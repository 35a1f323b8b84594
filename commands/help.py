"""The short help of a command with many options: the ones people use first, in groups."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

WIDTH = 96
"""Characters a line."""
COLUMN = 34
"""Characters before an option's explanation."""


def short_help(
    program: str,
    usage: str,
    defaults: Any,
    groups: Mapping[str, Sequence[str]],
    words: Mapping[str, tuple[str, str]],
) -> str:
    """Help on some of the options of a configuration.

    Args:
        program: ``run.py train``.
        usage: one line, and after it what the command does.
        defaults: the configuration, a dataclass, whose values are the defaults.
        groups: by heading, dotted names of its fields, ``agent.autoencoder.mask_ratio``.
        words: of options that are no field of it: value and explanation.
    """
    lines = [f"usage: {usage}", ""]
    for heading, names in groups.items():
        lines.append(f"{heading}:")
        for name in names:
            if name in words:
                option, text = f"--{name.replace('_', '-')} {words[name][0]}", words[name][1]
            else:
                option, text = _described(defaults, name)
            option = f"  {option}".rstrip()
            paragraph = textwrap.wrap(text, WIDTH - COLUMN) or [""]
            if len(option) >= COLUMN - 1:
                lines.append(option)
            else:
                lines.append(f"{option:{COLUMN}}{paragraph.pop(0)}".rstrip())
            lines += [" " * COLUMN + line for line in paragraph]
        lines.append("")
    lines.append(f"Every option: python {program} --help-all")
    return "\n".join(lines)


def _described(config: Any, name: str) -> tuple[str, str]:
    """A field's option, and the first sentence of its docstring with its default."""
    *path, last = name.split(".")
    for part in path:
        config = getattr(config, part)
    kind = get_type_hints(type(config))[last]
    text = first_sentence(field_docstrings(type(config))[last])
    default = getattr(config, last)
    negated = f"no_{last}" if default is True else last
    option = f"--{'.'.join([*path, negated])} {_metavar(kind)}".replace("_", "-")
    if default is tyro.MISSING or default is False or default in (None, "", ()):
        return option, text
    if default is True:
        return option, f"{text}; so by default, unless this is given"
    return option, f"{text} (default: {default})"


def _metavar(kind: Any) -> str:
    """What stands for a value of a type: ``INT``, ``{a,b}``, nothing for a flag."""
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    inner = [part for part in get_args(kind) if part not in (type(None), ...)]
    if get_origin(kind) is tuple:
        return f"{_metavar(inner[0])} ..."
    if inner:
        return "|".join(_metavar(part) for part in inner)
    return kind.__name__.upper()


def field_docstrings(config_class: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, those it inherits too, as one line each."""
    found: dict[str, str] = {}
    for base in config_class.__bases__:
        if is_dataclass(base):
            found |= field_docstrings(base)
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def first_sentence(text: str) -> str:
    """A text up to the full stop of its first sentence."""
    return re.split(r"\.(?: (?=[A-Z])|$)", text, maxsplit=1)[0]
