"""convert: LeRobot datasets to demonstration files, and back."""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from commands.command_line import parse
from errors import UserError
from experiment.progress import Progress

DEFAULT_SIZE = 128


@dataclass(frozen=True)
class Convert:
    """Make demonstration files of a LeRobot dataset (v3.0), one a task; or one LeRobot dataset of
    demonstration files, where SOURCE is none. Stopped, the way in goes on where it was."""

    source: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folder of a LeRobot dataset; or demonstration files, or folders of them."""
    out: str
    """Folder to write."""
    cameras: str | None = None
    """In: cameras to read, separated by commas, the one that plans are made from first; all when
    not given."""
    size: int | None = None
    """In: edge of the pictures, pixels (128)."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """In: how pictures that are no squares become some: their middle, with black bars, or out of
    proportion."""
    state: str = "observation.state"
    """In: feature that becomes proprioception."""
    action: str = "action"
    """In: feature that becomes actions, brought into [-1, 1] by the range of all episodes where
    they are not."""
    action_range: str | None = None
    """In: demonstration file whose range of actions is taken in place of the dataset's, to learn
    from both."""
    palette: str | None = None
    """In: JSON or YAML file that says which class each colour of CAMERA_mask images is; not given,
    they are the toolkit's colours."""
    fps: float | None = None
    """Out: steps a second, of files that do not say it."""
    masks: Literal["feature", "folder", "none"] = "feature"
    """Out: masks as images beside the videos, as PNG files under masks/, or left out."""


def convert(arguments: Sequence[str]) -> None:
    """`run.py convert`: LeRobot datasets in and out. Raises UserError."""
    options = parse(Convert, arguments, "run.py convert")
    inwards = [path for path in options.source if os.path.isdir(os.path.join(path, "meta"))]
    if not options.source:
        raise UserError("convert needs a LeRobot dataset or demonstration files; see --help")
    if inwards and len(options.source) > 1:
        raise UserError(
            f"{inwards[0]} is a LeRobot dataset; datasets are converted one at a time, each with"
            " an --out of its own"
        )
    names = ("fps",) if inwards else ("cameras", "size", "action_range", "palette")
    for name in names:
        if getattr(options, name) is not None:
            flag, way = name.replace("_", "-"), "to" if inwards else "from"
            raise UserError(f"--{flag} is for the way {way} LeRobot; leave it out here")
    if inwards:
        _in(options)
    else:
        _out(options)


def _in(options: Convert) -> None:
    from envs.environment_config import LARGEST_SIZE
    from envs.lerobot_reading import LeRobotConversion
    from envs.mask_palette import MaskPalette

    size = DEFAULT_SIZE if options.size is None else options.size
    if not 1 <= size <= LARGEST_SIZE:
        raise UserError(f"--size is {size}; it is of 1 to {LARGEST_SIZE} pixels")
    palette = MaskPalette.own() if options.palette is None else MaskPalette.read(options.palette)
    conversion = LeRobotConversion(
        options.source[0],
        [name.strip() for name in options.cameras.split(",")] if options.cameras else (),
        size,
        options.fit,
        options.state,
        options.action,
        options.action_range,
        palette,
    )
    for name, episodes in conversion.tasks().items():
        path = pathlib.Path(options.out) / f"{name}.hdf5"
        if os.path.lexists(path):
            conversion.refuse_others(path, episodes)
            print(f"{path} is there already", flush=True)
            continue
        with Progress(name, len(episodes), "episode", delay=1) as bar:

            def show(done: int, bar=bar) -> None:
                bar.update(done - bar.n)

            conversion.write(path, episodes, show)
        print(path, flush=True)


def _out(options: Convert) -> None:
    from envs.demonstrations import read_headers
    from envs.lerobot_writing import LeRobotWriter

    if options.fps is not None and not 0 < options.fps <= 1000:
        raise UserError(f"--fps is {options.fps:g}; it is of 0 to 1000")
    recordings = read_headers(options.source)
    writer = LeRobotWriter(recordings, options.out, options.fps, options.masks)
    with Progress(options.out, None, "episode", delay=1) as bar:

        def show(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        writer.write(show)
    print(options.out, flush=True)
