"""Ids of environments that belong to no suite: ``gym:ENV_ID`` and ``package.module:callable``."""

import re

GYM = "gym:"
"""Before the id of an environment that is registered with Gymnasium."""
_REGISTERED = re.compile(r"gym:(?:(?P<module>[\w.]+):)?[\w./-]+")
_CALLABLE = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+")


def kind_of(task: str) -> str | None:
    """How an id names an environment without a suite, "gym" or "own"; None: it does not. Nothing is
    imported."""
    if task.startswith(GYM):
        return "gym" if _REGISTERED.fullmatch(task) else None
    return "own" if _CALLABLE.fullmatch(task) else None


def imported_by(tasks: str) -> tuple[str, ...]:
    """Which of some ids, separated by commas, name code to import: all but those of suites and of
    environments that are registered already."""
    found = []
    for task in (part.strip() for part in tasks.split(",")):
        registered = _REGISTERED.fullmatch(task)
        if kind_of(task) == "own" or (registered and registered["module"]):
            found.append(task)
    return tuple(found)
