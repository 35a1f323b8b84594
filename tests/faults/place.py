"""A try before it is made: the folder it is made in, what was harmed there, and the command."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.faults.process import Ended

PAYLOAD = """import pathlib
pathlib.Path({executed!r}).mkdir()
class Payload:
    channels, reads = 3, ()
"""
"""A module that a received run folder might want to have imported."""


class Place:
    """The folder of one try.

    Args:
        folder: empty; the command runs in it.
        originals: `originals.commands` and `originals.finish` have made them.
    """

    def __init__(self, folder: Path, originals: Path):
        self.folder, self.originals = folder, originals
        self.outside = folder.parent / f"{folder.name}-outside"
        self.outside.mkdir()
        (self.outside / "mine").write_bytes(b"mine" * 1000)
        shutil.copy(originals / "demos" / "drawer.hdf5", self.outside / "other.hdf5")

    @property
    def runs(self) -> list[str]:
        """The run folders among the originals."""
        return [name for name in ("online", "imitation") if (self.originals / name).exists()]

    @property
    def exports(self) -> list[str]:
        """The exported policies among the originals."""
        names = ("closes-windows", "closes-drawers")
        return [name for name in names if (self.originals / name).exists()]

    def copy(self, name: str) -> Path:
        """An original of its own."""
        source, target = self.originals / name, self.folder / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    def payload(self, folder: Path) -> None:
        """Modules that say so when they are imported, beside the data and where one works."""
        text = PAYLOAD.format(executed=str(self.outside / "executed"))
        for path in (folder, self.folder):
            (path / "payload.py").write_text(text)


Right = Callable[[Ended], str | None]
"""What is wrong with a result that was given; None where nothing is."""


@dataclass(frozen=True)
class Fault:
    """One try: a command that meets something that is not as it should be."""

    what: str
    """What was done."""
    command: list
    """Of `run.py`."""
    subject: Path | None
    """What a refusal has to name; None where that may be several things."""
    expect: Literal["either", "refused"] = "either"
    """refused: a result would be a wrong one."""
    right: Right = field(default=lambda ended: None)
    privileged: bool = True


def change(rng: random.Random, path: Path, *changes: Callable) -> str:
    """Change the bytes of a file by one of `changes`."""
    content, what = rng.choice(changes)(rng, path.read_bytes())
    path.write_bytes(content)
    return what
