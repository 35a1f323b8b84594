"""annotate: add masks to demonstrations."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from commands.command_line import parse
from envs.alignment import Alignment
from envs.environment_config import Quality
from errors import UserError
from experiment.progress import Progress


@dataclass(frozen=True)
class Annotate:
    """Add masks to demonstration files: their states are replayed, pictures and masks drawn
    together; or masks that were made elsewhere are read from files. Stopped, it goes on where it
    was."""

    data: tuple[str, ...]
    """Files, or folders of files."""
    out: str | None = None
    """Folder to write to, under the same names; by default <name>-annotated beside the data."""
    masks: str | None = None
    """Folder of masks made elsewhere, in place of the simulator's: EPISODE/FRAME.png (or .npy,
    .npz) with a folder for each camera where there are several; EPISODE.npz with all frames does as
    well (docs/own_data.md)."""
    palette: str | None = None
    """JSON or YAML file that says which class each number or colour of --masks is; not given, they
    are the toolkit's class ids or colours."""
    in_place: bool = False
    """Replace the files, each when it is finished."""
    quality: Quality | None = None
    """Of the rendering; the file's own when not given (full where it does not say)."""
    size: int | None = None
    """Pixels a side; the file's own when not given."""
    tracks: bool = False
    """Add tracks of points and of the end effector in the first camera's pictures, too, which some
    plans of imitate --method mask2act are learned from."""
    obs_alignment: Alignment | None = None
    """Of files that do not say whether their pictures show what was seen before or after the action
    of their row, and whose states do not tell."""


def annotate(arguments: Sequence[str]) -> None:
    """`run.py annotate`: add masks to demonstrations. Raises UserError."""
    options = parse(Annotate, arguments, "run.py annotate")
    if options.in_place and options.out is not None:
        raise UserError("--in-place and --out exclude each other; give one of them")

    if options.masks is not None:
        _annotate_from_files(options)
        return
    if options.palette is not None:
        raise UserError("--palette says what --masks mean; give a folder of masks, too")

    from envs.annotation import annotate as add_masks

    for path, out in _files(options):
        if out != path and os.path.exists(out):
            print(f"{out} is there already", flush=True)
            continue
        if out == path and _is_annotated(path, options):
            print(f"{path} has masks already", flush=True)
            continue
        with _progress(path.name) as show:
            add_masks(
                path,
                out,
                quality=options.quality,
                size=options.size,
                obs_alignment=options.obs_alignment,
                tracks=options.tracks,
                progress=show,
                apart=True,
            )
        print(out, flush=True)


def _annotate_from_files(options: Annotate) -> None:
    """Add masks out of a folder."""
    for name in ("quality", "size", "tracks", "obs_alignment"):
        if getattr(options, name) not in (None, False):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for masks of the simulator; leave it out with --masks")

    from envs.mask_files import add_masks
    from envs.mask_palette import MaskPalette

    palette = MaskPalette.own() if options.palette is None else MaskPalette.read(options.palette)
    files = _files(options)
    for path, out in files:
        if out != path and os.path.exists(out):
            print(f"{out} is there already", flush=True)
            continue
        with _progress(path.name) as show:
            alone = len(files) == 1
            add_masks(path, out, str(options.masks), palette, only_file=alone, progress=show)
        print(out, flush=True)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A context with a function that takes the episodes done and those there are."""
    with Progress(name, None, "episode", delay=1) as bar:

        def show(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield show


def _files(options: Annotate) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Every file and what it becomes, all of them read through once."""
    from envs.demonstrations import find_files
    from envs.hdf5 import probe

    becoming: dict[pathlib.Path, pathlib.Path] = {}
    for root in (pathlib.Path(path).absolute() for path in options.data):
        for path in find_files([root]):
            out = path
            if options.out is not None:
                out = pathlib.Path(options.out) / (
                    path.relative_to(root) if root.is_dir() else path.name
                )
            elif not options.in_place and root.is_dir():
                out = root.with_name(f"{root.name}-annotated") / path.relative_to(root)
            elif not options.in_place:
                out = path.with_stem(f"{path.stem}-annotated")
            if out in becoming:
                raise UserError(f"two files of --data would become {out}; annotate them apart")
            becoming[out] = path
    probe(list(becoming.values()))
    return [(path, out) for out, path in becoming.items()]


def _is_annotated(path: pathlib.Path, options: Annotate) -> bool:
    """Whether a file has what is asked for."""
    from envs.demonstrations import read_header

    header = read_header(path)
    asked = options.quality or header.quality, options.size or header.size
    tracks = header.tracks or not options.tracks
    return tracks and header.masks == header.cameras and asked == (header.quality, header.size)
