"""Things that act and learn: agents, their memory, the loops that train them, the run folder.

`agents.load(folder)` is the policy of a run folder (`agents/policy.py`).
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load":
        from agents.policy import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
