"""What demonstrations fix of an agent.

In a file of its own: the contracts in `agents/agent.py` need it, and online agents would otherwise
wait for the library of video models, which the configurations of imitators import.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSpec:
    """What the demonstrations fix of an agent: number of cameras, picture edge in pixels, sizes of
    action and proprioception."""

    cameras: int
    size: int
    action_size: int
    proprio_size: int
