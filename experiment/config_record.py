"""``config.yaml`` of a run folder: the whole configuration, and where the run came from.

A configuration is a dataclass, which may say more about its fields by class attributes:

    MAY_GROW      the one field that a resumed run may be given a larger value of
    MAY_CHANGE    dotted names of fields that change no result, so that a resumed run may differ
    RENAMED       {name in older files: name now}
    REMOVED       {name in older files: the values that meant what the toolkit does now}, or ANY
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import dacite
import yaml

from atomic_file import atomic_file
from errors import UserError
from experiment.hardware import hardware
from experiment.provenance import provenance

Config = TypeVar("Config")

ANY = object()
"""In ``REMOVED``: whatever the value was, it changed no result."""


class ConfigRecord:
    """The configuration of a run, on disk.

    Args:
        path: of ``config.yaml``.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.path.is_file()

    def read(self) -> dict[str, Any]:
        """The file's content: ``config``, ``command``, ``commit``, ``versions``, ``hardware``.

        Raises:
            UserError: it cannot be read, or is no record of a run.
        """
        try:
            record = yaml.safe_load(self.path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.path} cannot be read; restore it or choose another --logdir"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise UserError(
                f"{self.path} is not the configuration of a run (no `config:` in it); "
                "restore it or choose another --logdir"
            )
        return record

    def load(self, config_class: type[Config]) -> Config:
        """The configuration as a ``config_class``.

        A field that is younger than the run takes its default, which must mean "as it was before".

        Raises:
            UserError: the file cannot be read, or does not fit ``config_class``.
        """
        recorded = self._in_current_names(config_class)
        try:
            config = dacite.from_dict(
                config_class,
                recorded,
                # YAML has no tuples, writes 1e-4 as text and a whole float by hand as an integer.
                dacite.Config(cast=[tuple], type_hooks={float: _to_float}),
            )
        except (dacite.DaciteError, ValueError, TypeError) as error:
            raise self._misfit(str(error)) from error
        unknown = set(flat(recorded)) - set(flat(plain(config)))
        if unknown:
            raise self._misfit(f"unknown {', '.join(sorted(unknown))}")
        return config

    def create(self, config: Any) -> None:
        """Write the record of a new run."""
        self._write({"config": plain(config), **provenance(), "hardware": hardware()})

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
        record["config"] = wanted
        record["command"] = provenance()["command"]  # the one that gives the whole run
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=100)
        with atomic_file(self.path) as file:
            file.write(text.encode())

    def _in_current_names(self, config_class: type) -> dict[str, Any]:
        current, lost = current_names(self.read()["config"], config_class)
        if lost:
            options = ", ".join(f"{name} = {value}" for name, value in lost.items())
            raise self._misfit(f"the run has {options}, which this version no longer offers")
        return current

    def _misfit(self, reason: str) -> UserError:
        return UserError(
            f"{self.path} does not fit this version of the toolkit: {reason}; use the commit the "
            "file names, or start another --logdir"
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
            before = f"with {name} = {recorded[name]}" if name in recorded else f"without {name}"
            now = f"is {wanted[name]}" if name in wanted else "does not exist"
            others = f" ({len(differences) - 1} more differ)" if differences[1:] else ""
            raise UserError(
                f"{folder} was started {before}, which now {now}{others}; "
                "choose another --logdir, or give the fields as they were"
            )
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


def _to_float(value: Any) -> Any:
    return float(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else value
