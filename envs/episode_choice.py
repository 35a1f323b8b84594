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
        there = [
            (str(recording.path), episode.name)
            for recording in recordings
            if recording.task == task
            for episode in recording.episodes
            if episode.success
        ]
        if len(there) < count:
            raise UserError(
                f"--{option} is {count}, and the data has {len(there)} successful demonstrations of"
                f" {task}; record more, or give a smaller number"
            )
        name = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")
        order = np.random.default_rng([seed, name]).permutation(len(there))
        kept |= {there[number] for number in order[:count]}
    chosen = []
    for recording in recordings:
        episodes = tuple(e for e in recording.episodes if (str(recording.path), e.name) in kept)
        if episodes:
            chosen.append(dataclasses.replace(recording, episodes=episodes))
    return chosen


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
