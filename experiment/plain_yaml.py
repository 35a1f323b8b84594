"""YAML that somebody else may have written, read as plain data.

What comes out is text, numbers, booleans and None, in lists and in dicts with text keys. YAML has
more: tags name classes, aliases let a short file mean a huge value, a later key replaces an earlier
one. All that is refused where it stands, before anything is made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from errors import UserError
from regular_file import read_text

MOST_BYTES = 2**20
"""Of a file; the record of a run takes 5 kB, and the names of its demonstration files."""
DEEPEST = 32
"""Levels of lists and dicts in each other."""
LONGEST_NUMBER = 64
"""Characters of a number."""

NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
PLAIN = NUMBERS | {"tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"}
"""What a word without quotes may be; a date, for example, is text."""


def read_plain_yaml(path: Path) -> Any:
    """The content of the file ``path``.

    Raises:
        UserError: it cannot be read, or holds something else than plain data; says in which line.
    """
    text = read_text(path, MOST_BYTES)
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error


class _PlainLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if event.anchor is not None:
            _refuse("an anchor or alias (& or *) stands for other data; write it out", event)
        if event.tag is not None:
            _refuse("a tag (!) names a type; leave it out", event)
        self.depth += 1
        if self.depth > DEEPEST:
            _refuse(f"there are more than {DEEPEST} levels", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            _refuse(f"a number has {len(node.value):,} digits", node)
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != self.DEFAULT_SCALAR_TAG:
                _refuse("a name is no text", key)
            if key.value in seen:
                _refuse(f"{key.value!r} stands there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except ValueError:  # of int(): YAML takes "0b_" for a number
            _refuse(f"{node.value!r} is no number", node)


def _refuse(problem: str, where: yaml.Event | yaml.Node) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _reason(error: yaml.YAMLError) -> str:
    """One line of what PyYAML says, with the number of the line in the file."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is no YAML"
    mark = getattr(error, "problem_mark", None)
    return problem if mark is None else f"line {mark.line + 1}: {problem}"
