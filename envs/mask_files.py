"""Masks that were made elsewhere, as files, beside the pictures of demonstrations.

    FOLDER[/FILE]/EPISODE[/CAMERA]/FRAME.png      or .npy, .npz: one mask a frame
    FOLDER[/FILE]/EPISODE[/CAMERA].npz            or .npy: all masks of an episode, (T, H, W)

FILE is the demonstration file's name without its ending, and may be left out where there is one
file. EPISODE ends with the episode's number (``demo_3``, ``episode_000003``, ``3``), FRAME with the
row's, from 0 on. CAMERA may be left out where the file has one. What colours or numbers mean is
said by a ``MaskPalette``.
"""

import os
import pathlib
import re
from collections.abc import Callable

import numpy as np

from atomic_file import rename_durably, writing
from envs.demonstration_copy import copy_attributes, copy_episode, reading, stored
from envs.demonstration_writer import PARTIAL, begun, check_room, mask_attributes, storing
from envs.demonstrations import read_header
from envs.environment_config import ORIENTATIONS
from envs.hdf5 import member, open_file, text
from envs.mask_palette import MaskPalette, read_array, read_mask
from envs.picture_fit import FITS, Fit, fitted
from envs.recording_header import Episode, Recording
from errors import UserError

FRAMES = (".png", ".npy", ".npz")
ARRAYS = (".npy", ".npz")


def add_masks(
    path: str | os.PathLike,
    out: str | os.PathLike,
    folder: str | os.PathLike,
    palette: MaskPalette,
    *,
    only_file: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write a copy of a demonstration file with masks out of a folder.

    Everything is looked for before anything is written, and the copy gets its name when it is
    complete. ``out`` may be ``path``, which is then replaced.

    Args:
        path: of the demonstration file.
        out: of the copy.
        folder: of the masks.
        palette: what their numbers or colours mean.
        only_file: whether the folder may hold the episodes of this file without its name.
        progress: called after every episode with those done and those there are.

    Raises:
        UserError: names the file and frame that is missing, too many, cannot be read, has another
            shape than the pictures, or holds what the palette does not know.
    """
    path, out = pathlib.Path(path), pathlib.Path(out)
    recording = read_header(path)
    masks = MaskFolder(pathlib.Path(folder), recording, palette, only_file)
    if os.path.exists(out) and not out.samefile(path):
        raise UserError(f"{out} exists already; give another name or delete it")
    partial = out.with_name(out.name + PARTIAL)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    begun(partial)  # a link in its place is refused
    try:
        with storing(partial), reading(path) as source:
            partial.unlink(missing_ok=True)
            with open_file(partial, "x") as target:
                group = target.create_group("data")
                copy_attributes(source, target)
                copy_attributes(source["data"], group)
                for name, value in mask_attributes().items():
                    group.attrs[name] = value
                for number, episode in enumerate(recording.episodes):
                    frames = masks.of(episode)
                    demo = source[f"data/{episode.name}"]
                    needed = stored(demo) + sum(each.nbytes for each in frames.values())
                    check_room(partial, needed, "nothing is kept")
                    copy_episode(demo, group, frames)
                    progress(number + 1, len(recording.episodes))
                for other in set(source) - {"data"}:  # robomimic's filters
                    if (found := member(source, other)) is not None:
                        source.copy(found, target, other)
        with writing(out):
            rename_durably(partial, out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class MaskFolder:
    """The masks of one demonstration file, all of whose files are there.

    Args:
        folder: of the masks.
        recording: of the demonstration file.
        palette: what numbers or colours mean.
        only_file: whether `folder` may hold the episodes without the file's name.

    Raises:
        UserError: an episode or frame is missing, or there is one too many.
    """

    def __init__(
        self, folder: pathlib.Path, recording: Recording, palette: MaskPalette, only_file: bool
    ):
        self._recording, self._palette = recording, palette
        self._fit: Fit | None
        self._cameras: list[str]
        self._frames: dict[tuple[str, str], list[pathlib.Path] | pathlib.Path] = {}
        try:
            self._look(folder, only_file)
        except OSError as error:  # of a folder that may not be looked into
            place = error.filename or folder
            raise UserError(f"{place} cannot be read ({error.strerror})") from error

    def _look(self, folder: pathlib.Path, only_file: bool) -> None:
        """Find the files of all masks."""
        recording = self._recording
        root = folder / recording.path.stem
        if not root.is_dir():
            root = folder
            if not only_file:
                raise UserError(
                    f"{folder} has no folder {recording.path.stem}, for the masks of"
                    f" {recording.path}"
                )
        if not root.is_dir():
            raise UserError(f"there is no folder {root}")
        with reading(recording.path) as file:
            fit = text(file["data"], "fit", "")
        self._fit = fit if fit in FITS else None  # type: ignore[assignment]  # one of them
        there = _numbered(root, "episode")
        found = {
            (episode.name, camera): self._place(root, there, episode, camera)
            for episode in recording.episodes
            for camera in recording.cameras
        }
        cameras = [
            c for c in recording.cameras if any(found[e.name, c] for e in recording.episodes)
        ]
        if not cameras:
            first = recording.episodes[0].name
            raise UserError(
                f"{root} has no masks of {recording.path}: {first} is missing"
                if _number(first) not in there
                else f"{there[_number(first) or 0]} has no folder of a camera,"
                f" {' or '.join(recording.cameras)}"
            )
        for episode in recording.episodes:
            for camera in cameras:
                place = found[episode.name, camera]
                if place is None:
                    raise UserError(f"{root} has no masks of {episode.name} for camera {camera}")
                self._frames[episode.name, camera] = self._listed(place, episode)
        self._cameras = cameras

    def _place(
        self, root: pathlib.Path, there: dict[int, pathlib.Path], episode: Episode, camera: str
    ) -> pathlib.Path | None:
        """Where the masks of a camera in an episode are; None: nowhere."""
        number = _number(episode.name)
        entry = there.get(-1 if number is None else number)
        if entry is None:
            return None
        if entry.is_dir():
            for place in (entry / camera, *(entry / f"{camera}{ending}" for ending in ARRAYS)):
                if place.exists():
                    return place
        alone = len(self._recording.cameras) == 1
        nested = entry.is_dir() and any(child.is_dir() for child in entry.iterdir())
        return entry if alone and not nested else None

    def _listed(self, place: pathlib.Path, episode: Episode) -> list[pathlib.Path] | pathlib.Path:
        """The files of an episode's frames, in order; or the one of all of them."""
        if place.is_file():
            return place
        frames = _numbered(place, "frame")
        for row in range(episode.steps):
            if row not in frames:
                later = " (frames are counted from 0)" if episode.steps in frames else ""
                raise UserError(
                    f"{place}: frame {row} of {episode.name} is missing, which has {episode.steps}"
                    f" (0 to {episode.steps - 1}){later}"
                )
        if beyond := set(frames) - set(range(episode.steps)):
            raise UserError(
                f"{frames[min(beyond)]} is beyond the last frame of {episode.name},"
                f" {episode.steps - 1}"
            )
        return [frames[row] for row in range(episode.steps)]

    def of(self, episode: Episode) -> dict[str, np.ndarray]:
        """Masks (T, S, S) uint8 of an episode by dataset, as the file stores its pictures.

        Raises:
            UserError: names the file and the frame.
        """
        turn = ORIENTATIONS[self._recording.orientation]
        masks = {}
        for camera in self._cameras:
            place = self._frames[episode.name, camera]
            if isinstance(place, pathlib.Path):
                frames = self._of_array(place, episode, camera)
            else:
                frames = [self._square(read_mask(path, self._palette), str(path)) for path in place]
            masks[f"obs/{camera}_mask"] = np.stack([turn(frame) for frame in frames])
        return masks

    def _of_array(self, path: pathlib.Path, episode: Episode, camera: str) -> list[np.ndarray]:
        found = read_array(path, camera)
        if found.ndim != 3 or len(found) != episode.steps:
            raise UserError(
                f"{path} has shape {found.shape}, not ({episode.steps}, height, width), a mask for"
                f" each step of {episode.name}"
            )
        frames = []
        for row, mask in enumerate(found):
            where = f"{path}, frame {row}"
            frames.append(self._square(self._palette.ids(mask, where), where))
        return frames

    def _square(self, mask: np.ndarray, where: str) -> np.ndarray:
        """A mask as its picture was brought into its shape."""
        size = self._recording.size
        height, width = mask.shape
        if height != width and self._fit is None:
            raise UserError(
                f"{where} has {width} x {height} pixels, its picture is a square of {size}; crop"
                " masks as the pictures were cropped"
            )
        return fitted(mask, size, self._fit or "stretch")


def _number(name: str) -> int | None:
    """The number at the end of a name."""
    digits = re.search(r"(\d{1,15})$", name)
    return int(digits[1]) if digits else None


def _numbered(folder: pathlib.Path, what: str) -> dict[int, pathlib.Path]:
    """What is in a folder by the number that its name ends with.

    Raises:
        UserError: two have the same number; the folder cannot be read.
    """
    found: dict[int, pathlib.Path] = {}
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    for path in inside:
        if path.name.startswith(".") or not (path.is_dir() or path.suffix in FRAMES):
            continue
        number = _number(path.stem if path.suffix in FRAMES else path.name)
        if number is None or (what == "frame" and path.is_dir()):
            continue
        if number in found:
            raise UserError(f"{found[number]} and {path} are both of {what} {number}")
        found[number] = path
    return found
