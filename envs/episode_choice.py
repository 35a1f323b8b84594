"""Which demonstrations are learned from, and how they end."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from envs.environment_config import ORIENTATIONS
from envs.hdf5 import open_file
from envs.recording_header import Episode, Recording
from errors import UserError


def choose(recordings: Sequence[Recording], count: int, seed: int, option: str) -> list[Recording]:
    """The recordings with `count` successful episodes of each task; those that lose all are left
    out.

    Of one task, the chosen ones of a smaller count are among those of a larger one.

    Args:
        recordings: of any tasks, several files of one task included.
        count: of each task; 0: all of them, whether they succeeded or not.
        seed: chooses.
        option: that said how many, for the error.

    Raises:
        UserError: a task has fewer.
    """
    if not count:
        return list(recordings)
    kept: set[tuple[str, str]] = set()
    for task in dict.fromkeys(recording.task for recording in recordings):
        there = _successful(recordings, task)
        if len(there) < count:
            raise UserError(
                f"--{option} is {count}, and the data has {len(there)} successful demonstrations of"
                f" {task}; record more, or give a smaller number"
            )
        order = _generator(seed, task).permutation(len(there))
        kept |= {there[number] for number in order[:count]}
    return _among(recordings, kept, True)


def hold_out(
    recordings: Sequence[Recording], share: float, seed: int
) -> tuple[list[Recording], list[Recording]]:
    """The recordings without and with those successful episodes of each task that nothing is
    learned from.

    Args:
        recordings: of any tasks.
        share: below 1, of each task's successful episodes, and at least one; from 1 on, how many of
            each; 0: none.
        seed: chooses.

    Raises:
        UserError: a task has no more than are to be held out.
    """
    if not share:
        return list(recordings), []
    held: set[tuple[str, str]] = set()
    for task in dict.fromkeys(recording.task for recording in recordings):
        there = _successful(recordings, task)
        count = int(share) if share >= 1 else max(1, round(share * len(there)))
        if len(there) <= count:
            raise UserError(
                f"{count} of each task's demonstrations are held out (--held-out), and the data has"
                f" {len(there)} successful of {task}, of which none would be left to learn from;"
                " record more, or give --held-out 0"
            )
        order = _generator(seed, task, 1).permutation(len(there))
        held |= {there[number] for number in order[:count]}
    return _among(recordings, held, False), _among(recordings, held, True)


def _successful(recordings: Sequence[Recording], task: str) -> list[tuple[str, str]]:
    """Path and name of the successful episodes of a task."""
    return [
        (str(recording.path), episode.name)
        for recording in recordings
        if recording.task == task
        for episode in recording.episodes
        if episode.success
    ]


def _generator(seed: int, task: str, *more: int) -> np.random.Generator:
    name = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")
    return np.random.default_rng([seed, name, *more])


def _among(
    recordings: Sequence[Recording], chosen: set[tuple[str, str]], wanted: bool
) -> list[Recording]:
    """The recordings with those of their episodes that are among the chosen ones, or are not."""
    found = []
    for recording in recordings:
        episodes = tuple(
            episode
            for episode in recording.episodes
            if ((str(recording.path), episode.name) in chosen) == wanted
        )
        if episodes:
            found.append(dataclasses.replace(recording, episodes=episodes))
    return found


def names(recordings: Sequence[Recording]) -> dict[str, list[str]]:
    """Episodes by task, "file.hdf5 demo_3"."""
    found: dict[str, list[str]] = {}
    for recording in recordings:
        of_task = found.setdefault(recording.task, [])
        of_task += [f"{recording.path.name} {episode.name}" for episode in recording.episodes]
    return found


def last_pictures(recordings: Sequence[Recording], task: str, most: int) -> np.ndarray:
    """What the first camera sees at the ends of successful episodes of a task, upright.

    Returns:
        (K, S, S, 3) uint8, K at most `most`, spread over the episodes.
    """
    there: list[tuple[Recording, Episode]] = [
        (recording, episode)
        for recording in recordings
        if recording.task == task
        for episode in recording.episodes
        if episode.success
    ]
    numbers = np.unique(np.linspace(0, len(there) - 1, min(most, len(there))).astype(int))
    pictures = []
    for recording, episode in (there[number] for number in numbers):
        with open_file(recording.path) as file:
            picture = file[f"data/{episode.name}/obs/{recording.cameras[0]}_rgb"][-1]
        pictures.append(ORIENTATIONS[recording.orientation](picture))
    size = recordings[0].size
    return np.stack(pictures) if pictures else np.zeros((0, size, size, 3), np.uint8)
