"""inspect: say and draw what is in a demonstration file."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from commands.command_line import parse


@dataclass(frozen=True)
class Inspect:
    """Say what is in a demonstration file, and draw some of it."""

    file: Annotated[str, tyro.conf.Positional]
    """The file."""
    filter_key: str | None = None
    """One of the file's own lists of demonstrations (robomimic's mask/train, for example): only
    those."""
    picture: str | None = None
    """Write a contact sheet (PNG): pictures above masks of some episodes."""
    video: str | None = None
    """Write a video (MP4) of the first episodes."""


def inspect(arguments: Sequence[str]) -> None:
    """`run.py inspect`: say and draw what is in a demonstration file. Raises UserError."""
    options = parse(Inspect, arguments, "run.py inspect")

    from analysis import inspection

    recording = inspection.header(options.file, options.filter_key)
    print(inspection.describe(recording))
    if options.picture is not None:
        inspection.contact_sheet(recording, pathlib.Path(options.picture))
        print(f"\n{options.picture}")
    if options.video is not None:
        inspection.video(recording, pathlib.Path(options.video))
        print(f"\n{options.video}")
