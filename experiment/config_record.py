"""``config.yaml`` of a run folder: the whole configuration, and where the run came from.

A configuration is a dataclass, which may say more about its fields by class attributes:

    MAY_GROW      the one field that a resumed run may be given a larger value of
    MAY_CHANGE    dotted names of fields that change no result, so that a resumed run may differ
    RENAMED       {name in older files: name now}
    REMOVED       {name in older files: the values that meant what the toolkit does now}, or ANY
    LOADS         {name of a text field: function that lists what such a text makes the toolkit load
                  from outside, a class to import or weights}

A record may be somebody else's. What it would load from outside is loaded when the user has named
it, too (``trusted``), and never because the record names it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from atomic_file import atomic_file
from errors import UserError
from experiment.config_values import from_plain, shown
from experiment.hardware import hardware
from experiment.plain_yaml import read_plain_yaml
from experiment.provenance import provenance
from regular_file import read_bytes

Config = TypeVar("Config")

LONGEST_NAME = 1000
"""Characters of a class or a folder of weights that an error repeats."""
ANY = object()
"""In ``REMOVED``: whatever the value was, it changed no result."""


class ConfigRecord:
    """The configuration of a run, on disk.

    Args:
        path: of ``config.yaml``.
    """

    def __init__(self, path: Path):
        self.path = path
        self._before: bytes | None = None

    @property
    def exists(self) -> bool:
        """Whether something has this name, be it a record of a run or not."""
        return os.path.lexists(self.path)

    def read(self) -> dict[str, Any]:
        """The file's content: ``config``, ``command``, ``commit``, ``versions``, ``hardware``.

        Raises:
            UserError: it cannot be read, or is no record of a run.
        """
        try:
            record = read_plain_yaml(self.path)
        except UserError as error:
            raise UserError(f"{error}; restore it or choose another --logdir") from error
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise UserError(
                f"{self.path} is not the configuration of a run (no `config:` in it); "
                "restore it or choose another --logdir"
            )
        return record

    def load(self, config_class: type[Config], trusted: Collection[str] = ()) -> Config:
        """The configuration as a ``config_class``.

        A field that is younger than the run takes its default, which must mean "as it was before".

        Args:
            config_class: a dataclass.
            trusted: names of what it may load from outside the toolkit.

        Raises:
            UserError: the file cannot be read, does not fit ``config_class``, or would load what is
                not ``trusted``, of which nothing has been loaded then.
        """
        recorded = self._in_current_names(config_class)
        try:
            foreign = {n: field for field, n in loads(recorded, config_class) if n not in trusted}
            if not foreign:
                return from_plain(recorded, config_class)
        except UserError as error:
            raise self._misfit(str(error)) from error
        raise self._untrusted(foreign)

    def create(self, config: Any) -> None:
        """Write the record of a new run."""
        found = hardware(getattr(config, "device", "auto"))
        self._write({"config": plain(config), **provenance(), "hardware": found})

    def add_renderer(self, name: str) -> None:
        """Record what draws the run's pictures, by OpenGL's name of it; what is known only once
        something has been drawn."""
        record = self.read()
        found = record.get("hardware")
        record["hardware"] = {**(found if isinstance(found, dict) else {}), "renderer": name}
        self._write(record)

    def resume(self, config: Any) -> None:
        """Go on with the recorded run, whose record takes over what may differ.

        Raises:
            UserError: ``config`` differs from the record in anything else; nothing is changed.
        """
        record, wanted = self.read(), plain(config)
        recorded = with_defaults(self._in_current_names(type(config)), type(config))
        self._refuse_differences(flat(recorded), flat(wanted), config)
        if record["config"] == wanted:
            return
        self._before = read_bytes(self.path)
        record["config"] = wanted
        record["command"] = provenance()["command"]  # the one that gives the whole run
        self._write(record)

    def put_back(self) -> None:
        """Take back what `resume` has changed."""
        if self._before is not None:
            with atomic_file(self.path) as file:
                file.write(self._before)
            self._before = None

    def _write(self, record: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=100)
        with atomic_file(self.path) as file:
            file.write(text.encode())

    def _in_current_names(self, config_class: type) -> dict[str, Any]:
        current, lost = current_names(self.read()["config"], config_class)
        if lost:
            options = ", ".join(f"{name} = {shown(value)}" for name, value in lost.items())
            raise self._misfit(f"the run has {options}, which this version no longer offers")
        return current

    def _misfit(self, reason: str) -> UserError:
        return UserError(
            f"{self.path} does not fit this version of the toolkit: {reason}; restore the file, "
            "use the commit it names, or start another --logdir"
        )

    def _untrusted(self, foreign: Mapping[str, str]) -> UserError:
        """The error that names would be loaded, by which fields, and how to allow it."""
        named = {shown(name, LONGEST_NAME): field for name, field in foreign.items()}
        asked = " and ".join(f"{name} ({field})" for name, field in named.items())
        options = " ".join(f"--trust {shlex.quote(name)}" for name in named)
        return UserError(
            f"{self.path} asks to load {asked}, which is not part of the toolkit and may run code "
            f"of whoever made the folder: read that code, then name it, in Python by "
            f"trusted={list(named)}, on the command line add {options}"
        )

    def _refuse_differences(self, recorded: dict, wanted: dict, config: Any) -> None:
        growing = getattr(config, "MAY_GROW", "steps")
        free: Collection[str] = getattr(config, "MAY_CHANGE", frozenset())
        folder = self.path.parent
        differences = [
            name
            for name in wanted | recorded
            if name != growing
            and name not in free
            # An absent field and one that is None are not the same.
            and (name in recorded, recorded.get(name)) != (name in wanted, wanted.get(name))
        ]
        if differences:
            name = differences[0]
            before = f"without {name}"
            if name in recorded:
                before = f"with {name} = {shown(recorded[name])}"
            now = f"is {shown(wanted[name])}" if name in wanted else "does not exist"
            others = f" ({len(differences) - 1} more differ)" if differences[1:] else ""
            raise UserError(
                f"{folder} was started {before}, which now {now}{others}; "
                "choose another --logdir, or give the fields as they were"
            )
        if type(recorded.get(growing)) is not int:
            raise self._misfit(f"{growing} is {shown(recorded.get(growing))}, no whole number")
        if wanted[growing] < recorded[growing]:
            raise UserError(
                f"{folder} is a run of {growing} = {recorded[growing]}, more than the "
                f"{wanted[growing]} asked for; give --{growing.replace('_', '-')} "
                f"{recorded[growing]} or more, or choose another --logdir"
            )


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as YAML gives it back: nested dicts, lists for tuples."""
    return _plain_value(asdict(config))


def _plain_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"agent": {"depth": 2}}`` as ``{"agent.depth": 2}``."""
    flattened: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[prefix + key] = value
    return flattened


def current_names(
    recorded: Mapping[str, Any], config_class: type, prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``recorded`` under the names of ``config_class`` now, without options that have left.

    Returns:
        The configuration, and by dotted name those options that have left and whose value meant
        something else than what the toolkit does now.
    """
    renamed = getattr(config_class, "RENAMED", {})
    removed = getattr(config_class, "REMOVED", {})
    nested = dict(_nested(config_class))
    current: dict[str, Any] = {}
    lost: dict[str, Any] = {}
    for old, value in recorded.items():
        if old in removed:
            if removed[old] is not ANY and value not in removed[old]:
                lost[prefix + old] = value
            continue
        name = renamed.get(old, old)
        if name in nested and isinstance(value, Mapping):
            value, below = current_names(value, nested[name], f"{prefix}{name}.")
            lost |= below
        current[name] = value
    return current, lost


def with_defaults(recorded: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """``recorded`` with the defaults of fields that are younger than it, as ``plain`` gives
    them."""
    filled = dict(recorded)
    for field in fields(config_class):
        if field.name not in recorded:
            if field.default is not MISSING:
                filled[field.name] = _plain_value(field.default)
            elif field.default_factory is not MISSING:
                filled[field.name] = _plain_value(field.default_factory())
    for name, nested_class in _nested(config_class):
        if isinstance(recorded.get(name), Mapping):
            filled[name] = with_defaults(recorded[name], nested_class)
    return filled


def _nested(config_class: type) -> Iterator[tuple[str, type]]:
    """Fields that are dataclasses themselves, with their classes."""
    types = get_type_hints(config_class)
    for field in fields(config_class):
        if is_dataclass(types[field.name]):
            yield field.name, types[field.name]


def loads(recorded: Mapping[str, Any], config_class: type, prefix: str = "") -> Iterator[tuple]:
    """What a configuration would load from outside: (dotted field, name) of each.

    Raises:
        UserError: a name that nothing can be loaded by.
    """
    for field, named in getattr(config_class, "LOADS", {}).items():
        if isinstance(value := recorded.get(field), str):
            yield from ((prefix + field, name) for name in named(value))
    types = get_type_hints(config_class)
    for field, section in recorded.items():
        if isinstance(section, Mapping) and field in types:
            for each in (types[field], *get_args(types[field])):  # of a union, every class
                if isinstance(each, type) and is_dataclass(each):
                    yield from loads(section, each, f"{prefix}{field}.")


def names_loaded(config: Any) -> set[str]:
    """What a configuration of the user's own loads from outside: by asking they have named it."""
    return {name for _, name in loads(plain(config), type(config))}
