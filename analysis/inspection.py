"""What is in a demonstration file: python run.py inspect FILE."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from envs.demonstration_values import fault_of_actions, fault_of_masks, fault_of_table
from envs.demonstrations import read_headers
from envs.environment_config import ORIENTATIONS
from envs.hdf5 import DAMAGED, member, open_file, text
from envs.recording_header import Episode, Recording, proprio_of
from errors import UserError
from experiment.video import write_video
from mask_classes import NAMES, UNLABELLED, colorize

READ_AT_ONCE = 64
"""Masks of an episode that are read together."""
SHEET_EPISODES, SHEET_FRAMES = 4, 8
VIDEO_FRAMES = 4000
"""Frames of a video at most."""
NEEDS: dict[str, dict[str, str]] = {
    "mask-world-model --target masks": {"all": "mask"},
    "mask-world-model --target pixels": {},
    "mask2act --plan masks": {"first": "mask"},
    "mask2act --plan points": {"first": "tracks visible"},
    "mask2act --plan trajectory": {"first": "effector"},
    "mask2act --plan features": {},
    "mask2act --plan video": {},
    "mask2act --plan none": {},
}
"""What of `obs` each method and target needs beside pictures, of all cameras or of the first."""
WORDS = {"mask": "masks", "tracks": "tracks", "visible": "visibility of tracks",
         "effector": "tracks of the effector"}  # fmt: skip
PUBLISHED_SIZE = 256
"""Picture edge of Mask World Model's preset `paper`, pixels."""
FAULTS = 10
"""Faults that are listed; the others are counted."""


def header(path: Path | str, filter_key: str | None = None) -> Recording:
    """What a file holds, read through in another process first.

    Raises:
        UserError: as ``read_headers``.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; name one of its files")
    return read_headers([path], filter_key)[0]


def describe(recording: Recording) -> str:
    """A page of text: task, episodes, lengths, success, cameras, masks, action ranges, and what
    nothing can be learned from.

    Raises:
        UserError: a part of the file cannot be read.
    """
    path = recording.path
    lengths = np.array([episode.steps for episode in recording.episodes])
    succeeded = sum(episode.success for episode in recording.episodes)
    faults: list[str] = []
    counts = {camera: np.zeros(256, np.int64) for camera in recording.masks}
    actions = []
    with open_file(path) as file:
        made_by = text(file["data"], "made_by", "not said")
        for episode in recording.episodes:
            try:
                actions.append(file[f"data/{episode.name}/actions"][()])
                faults += _look_through(recording, episode, file[f"data/{episode.name}"], counts)
            except (OSError, *DAMAGED) as error:
                raise UserError(f"{path}: data/{episode.name} cannot be read: {error}") from error
    lines = [
        f"{path}",
        f"task         {recording.task}: {recording.instruction}",
        f"made by      {made_by}",
        f"episodes     {len(lengths)}, {succeeded} successful" + _filtered(recording),
        f"steps        {lengths.sum()} in all; {lengths.min()} to {lengths.max()} an episode,"
        f" median {int(np.median(lengths))}; action repeat {recording.action_repeat}",
        f"cameras      {', '.join(recording.cameras)}; {recording.size} x {recording.size} pixels,"
        f" quality {recording.quality}, stored {recording.orientation}",
        f"observation  {_alignment(recording)}",
        f"proprio      {recording.proprio_size or 'no'} numbers",
        *([f"rate         {recording.fps:g} steps a second"] if recording.fps else []),
        "",
        f"actions      {'lowest':>8} {'1 %':>8} {'median':>8} {'99 %':>8} {'highest':>8}",
    ]
    for number, column in enumerate(np.concatenate(actions).T):
        with np.errstate(invalid="ignore"):  # infinite ones are among the faults
            values = np.percentile(column, [0, 1, 50, 99, 100])
        lines.append(f"  {number:<11}" + " ".join(f"{value:8.3f}" for value in values))
    lines += ["", *_coverage(recording, counts)]
    lines += ["", *learnable(recording)]
    if faults:
        lines += ["", f"faults       {len(faults)}; nothing is learned from such a file"]
        lines += [f"  {fault}" for fault in faults[:FAULTS]]
        lines += [f"  and {len(faults) - FAULTS} more"] if len(faults) > FAULTS else []
    # The words are the file's: none may move the cursor of a terminal.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _filtered(recording: Recording) -> str:
    if not recording.filter_keys:
        return ""
    keys = ", ".join(recording.filter_keys)
    return f", of filter key {recording.filter_key or 'none'} (there are {keys})"


def _alignment(recording: Recording) -> str:
    if recording.alignment is None:
        return "not said: seen before or after the action of its row; --obs-alignment says which"
    seen = "after the action of its row" if recording.lag else "when the action was chosen"
    by = "assumed" if recording.aligned_by == "default" else f"as {recording.aligned_by} tells"
    return f"{recording.alignment}: seen {seen}, {by}"


def learnable(recording: Recording) -> list[str]:
    """Lines that say which methods and targets a file is enough for, what is missing for the
    others, and what is assumed.

    Raises:
        UserError: a part of the file cannot be read.
    """
    width = max(map(len, NEEDS))
    lines = ["enough for"]
    everything = _missing_for_all(recording)
    with open_file(recording.path) as file:
        for method, needs in NEEDS.items():
            missing = everything + _missing(recording, file, needs)
            lines.append(
                f"  {method:{width}}  " + (f"no: {'; '.join(missing)}" if missing else "yes")
            )
    if recording.size != PUBLISHED_SIZE:
        lines.append(
            f"  mask-world-model --preset paper takes {PUBLISHED_SIZE} pixels, these are"
            f" {recording.size}"
        )
    successful = sum(episode.success for episode in recording.episodes)
    if successful == 1:
        lines.append("  --task none needs a second successful episode, which is held out")
    if not recording.proprio_size:
        lines.append("  policies see pictures alone: there is no obs/proprio")
    if recording.assumed:
        lines += [
            "assumed, since data has no such attribute",
            *(f"  {a}" for a in recording.assumed),
        ]
    return lines


def _missing_for_all(recording: Recording) -> list[str]:
    missing = []
    if not any(episode.success for episode in recording.episodes):
        missing.append("no episode is successful")
    if recording.alignment is None:
        missing.append("obs_alignment is not said")
    return missing


def _missing(recording: Recording, file, needs: dict[str, str]) -> list[str]:
    """What an episode lacks of what is needed, of each camera the first such episode."""
    missing = []
    for which, kinds in needs.items():
        for camera in recording.cameras if which == "all" else recording.cameras[:1]:
            for kind in kinds.split():
                lacking = [
                    episode.name
                    for episode in recording.episodes
                    if episode.success
                    and member(file, f"data/{episode.name}/obs/{camera}_{kind}") is None
                ]
                if lacking:
                    where = f" in {lacking[0]}" if len(lacking) < len(recording.episodes) else ""
                    missing.append(f"{camera} has no {WORDS[kind]}{where} (obs/{camera}_{kind})")
    return missing


def _look_through(
    recording: Recording, episode: Episode, demo, counts: dict[str, np.ndarray]
) -> list[str]:
    """Faults of an episode; its masks are added to the `counts` of class ids, (256,) by camera."""
    place = f"data/{episode.name}"
    found = {
        f"{place}/actions": fault_of_actions(demo["actions"][()], recording.task),
        f"{place}, proprioception": fault_of_table(proprio_of(demo)),
    }
    for camera in recording.masks:
        name = f"obs/{camera}_mask"
        rows = max(READ_AT_ONCE, (demo[name].chunks or (0,))[0])  # a chunk is unpacked as a whole
        for row in range(0, episode.steps, rows):
            masks = demo[name][row : row + rows]
            counts[camera] += np.bincount(masks.reshape(-1), minlength=256)
            if fault := fault_of_masks(masks, row):
                found.setdefault(f"{place}/{name}", fault)
    return [f"{where}: {fault}" for where, fault in found.items() if fault]


def _coverage(recording: Recording, counts: dict[str, np.ndarray]) -> list[str]:
    """Lines with the share of the pixels that each id covers, those that are no class too."""
    if not recording.masks:
        return [
            f"masks        none; python run.py annotate --data {recording.path} [--masks FOLDER]"
        ]
    lines = ["masks        " + "".join(f"{camera:>16}" for camera in recording.masks)]
    names = dict(enumerate(NAMES)) | {UNLABELLED: "unlabelled"}
    for number in range(256):
        shares = [counts[camera][number] / counts[camera].sum() for camera in recording.masks]
        if any(shares):
            row = "".join(f"{100 * share:14.2f} %" for share in shares)
            lines.append(f"  {number:>3} {names.get(number, 'no class'):14}{row[7:]}")
    return lines


def contact_sheet(recording: Recording, out: Path) -> None:
    """Some frames of some episodes, pictures above masks, every camera a row: a PNG.

    Raises:
        UserError: a picture cannot be read; ``out`` cannot be written.
    """
    from PIL import Image

    count = len(recording.episodes)
    chosen = np.unique(np.linspace(0, count - 1, min(count, SHEET_EPISODES)).astype(int))
    rows = []
    with open_file(recording.path) as file:
        for number in chosen:
            episode = recording.episodes[number]
            steps = np.linspace(0, episode.steps - 1, SHEET_FRAMES).astype(int)
            frames = pictures(recording, file, episode.name)
            rows.append(np.concatenate([frames(step) for step in steps], 1))
    page = np.concatenate(rows)
    enlarge = max(1, round(128 / recording.size))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(page.repeat(enlarge, 0).repeat(enlarge, 1)).save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error


def video(recording: Recording, out: Path) -> None:
    """The first episodes from beginning to end, pictures above masks: an MP4.

    Raises:
        UserError: a picture cannot be read; ``out`` cannot be written.
    """
    with open_file(recording.path) as file:
        frames: list[np.ndarray] = []
        for episode in recording.episodes[:SHEET_EPISODES]:
            draw = pictures(recording, file, episode.name)
            frames += [draw(step) for step in range(min(episode.steps, VIDEO_FRAMES - len(frames)))]
    write_video(out, np.stack(frames), fps=20)


def pictures(recording: Recording, file, episode: str):
    """A function of a step: all cameras side by side, upright, masks below the pictures."""
    turn = ORIENTATIONS[recording.orientation]
    group = file[f"data/{episode}/obs"]

    def draw(step: int) -> np.ndarray:
        try:
            return joined(step)
        except (OSError, *DAMAGED) as error:
            raise UserError(f"{recording.path}: data/{episode} cannot be read: {error}") from error

    def joined(step: int) -> np.ndarray:
        columns = []
        for camera in recording.cameras:
            column = [turn(group[f"{camera}_rgb"][step])]
            if recording.masks:
                shape = column[0].shape[:2]
                labelled = camera in recording.masks
                mask = group[f"{camera}_mask"][step] if labelled else np.full(shape, UNLABELLED)
                column.append(colorize(turn(mask)))
            columns.append(np.concatenate(column))
        return np.concatenate(columns, 1)

    return draw
