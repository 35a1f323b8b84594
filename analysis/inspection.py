"""What is in a demonstration file: python run.py inspect FILE."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from envs.demonstrations import Recording, open_file, read_header
from envs.environment_config import ORIENTATIONS
from errors import UserError
from experiment.video import write_video
from mask_classes import NAMES, UNLABELLED, colorize

COVERAGE_FRAMES = 8
"""Frames of each episode that class coverage is counted on."""
SHEET_EPISODES, SHEET_FRAMES = 4, 8


def describe(path: Path | str) -> str:
    """A page of text: task, episodes, lengths, success, cameras, masks, action ranges.

    Raises:
        UserError: as ``read_header``.
    """
    recording = read_header(path)
    lengths = np.array([episode.steps for episode in recording.episodes])
    succeeded = sum(episode.success for episode in recording.episodes)
    with open_file(path) as file:
        made_by = file["data"].attrs.get("made_by", "not said")
        actions = np.concatenate([file[f"data/{e.name}/actions"][()] for e in recording.episodes])
        coverage = _coverage(recording, file)
    lines = [
        f"{recording.path}",
        f"task         {recording.task}: {recording.instruction}",
        f"made by      {made_by}",
        f"episodes     {len(lengths)}, {succeeded} successful",
        f"steps        {lengths.sum()} in all; {lengths.min()} to {lengths.max()} an episode,"
        f" median {int(np.median(lengths))}; action repeat {recording.action_repeat}",
        f"cameras      {', '.join(recording.cameras)}; {recording.size} x {recording.size} pixels,"
        f" quality {recording.quality}, stored {recording.orientation}",
        f"observation  {recording.alignment}: seen "
        + ("after the action of its row" if recording.lag else "when the action was chosen"),
        f"proprio      {recording.proprio_size} numbers",
        "",
        f"actions      {'lowest':>8} {'1 %':>8} {'median':>8} {'99 %':>8} {'highest':>8}",
    ]
    for number, column in enumerate(actions.T):
        values = np.percentile(column, [0, 1, 50, 99, 100])
        lines.append(f"  {number:<11}" + " ".join(f"{value:8.3f}" for value in values))
    lines.append("")
    if not recording.masks:
        return "\n".join([*lines, f"masks        none; python run.py annotate --data {path}"])
    lines.append("masks        " + "".join(f"{camera:>16}" for camera in recording.masks))
    for number, name in [*enumerate(NAMES), (UNLABELLED, "unlabelled")]:
        shares = [coverage[camera][number] for camera in recording.masks]
        if any(shares):
            row = "".join(f"{100 * share:14.2f} %" for share in shares)
            lines.append(f"  {number:>3} {name:14}{row[7:]}")
    return "\n".join(lines)


def _coverage(recording: Recording, file) -> dict[str, np.ndarray]:
    """Share of the pixels that each class id covers, (256,) by camera."""
    counts = {camera: np.zeros(256) for camera in recording.masks}
    for episode in recording.episodes:
        rows = np.unique(np.linspace(0, episode.steps - 1, COVERAGE_FRAMES).astype(int))
        for camera in recording.masks:
            masks = file[f"data/{episode.name}/obs/{camera}_mask"][rows]
            counts[camera] += np.bincount(masks.reshape(-1), minlength=256)
    return {camera: count / count.sum() for camera, count in counts.items()}


def contact_sheet(path: Path | str, out: Path) -> None:
    """Some frames of some episodes, pictures above masks, every camera a row: a PNG.

    Raises:
        UserError: as ``read_header``; ``out`` cannot be written.
    """
    from PIL import Image

    recording = read_header(path)
    count = len(recording.episodes)
    chosen = np.unique(np.linspace(0, count - 1, min(count, SHEET_EPISODES)).astype(int))
    rows = []
    with open_file(path) as file:
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


def video(path: Path | str, out: Path) -> None:
    """The first episodes from beginning to end, pictures above masks: an MP4.

    Raises:
        UserError: as ``read_header``; ``out`` cannot be written.
    """
    recording = read_header(path)
    with open_file(path) as file:
        frames = []
        for episode in recording.episodes[:SHEET_EPISODES]:
            draw = pictures(recording, file, episode.name)
            frames += [draw(step) for step in range(episode.steps)]
    try:
        write_video(out, np.stack(frames), fps=20)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error


def pictures(recording: Recording, file, episode: str):
    """A function of a step: all cameras side by side, upright, masks below the pictures."""
    turn = ORIENTATIONS[recording.orientation]
    group = file[f"data/{episode}/obs"]

    def draw(step: int) -> np.ndarray:
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
