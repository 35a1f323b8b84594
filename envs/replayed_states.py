"""Replaying the states of recorded demonstrations: pictures and masks, and where the robot was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np

import envs
from envs.alignment import Alignment, told_by_joints
from envs.demonstration_values import fault_of_actions, fault_of_table, refuse
from envs.environment_config import Quality
from envs.hdf5 import member, text
from envs.libero import Libero
from envs.recording import observed, tracks
from envs.recording_header import (
    SHORT_CAMERA_NAMES,
    Episode,
    Recording,
    proprio_of,
    unknown_alignment,
)
from envs.simulation import MujocoEnvironment
from envs.tracks import Tracker
from errors import UserError

EXACT, TOLERANCE = 1e-4, 0.02
"""Largest difference of a replayed proprioception from the recorded one, radians or metres: our own
files replay exactly, others were recorded by other versions."""
LARGEST = 2**32
"""Bytes of an episode's pictures and masks, or of its states, which are held in memory."""
REPLAYED = 3, 40
"""Episodes, and steps of each, that are replayed to find out the alignment."""


def refuse_what_cannot_be_replayed(recording: Recording) -> None:
    """Refuse a file whose states do not hold what its pictures show.

    Raises:
        UserError: it was recorded under a shift, or its task is unknown or replays no states.
    """
    path, shift = recording.path, recording.shift
    if shift:
        raise UserError(
            f"{path} was recorded under the shift {shift}, which its states do not hold; record it"
            " again"
        )
    try:
        suite = envs.suite(recording.task)
    except UserError as error:
        raise UserError(
            f"{path} is of no simulator that draws masks ({error}); give masks from files as"
            " --masks FOLDER"
        ) from error
    if suite in ("dmc", "rlbench", "gym", "own"):
        raise UserError(
            f"{path} is of {recording.task}, whose observations cannot be had from a state; record"
            " it again, run.py collect draws masks"
        )


def make_environment(recording: Recording, size: int, quality: Quality) -> MujocoEnvironment:
    """The task of a file as its cameras see it, with masks and proprioception.

    Raises:
        UserError: as ``envs.make``; its proprioception is of another size than the recorded one.
    """
    full = {short: name for name, short in SHORT_CAMERA_NAMES.items()}
    try:
        environment = envs.make(
            recording.task,
            camera=",".join(full.get(camera, camera) for camera in recording.cameras),
            size=size,
            action_repeat=recording.action_repeat,
            quality=quality,
            masks=True,
            proprio=True,
            orientation=recording.orientation,
        )
    except UserError as error:
        raise UserError(f"{recording.path}: {error}") from error
    assert isinstance(environment, MujocoEnvironment)  # others were refused
    expected = environment.observation_space["proprio"].shape
    if expected != (recording.proprio_size,):
        environment.close()
        raise UserError(
            f"{recording.path} has {recording.proprio_size} numbers of proprioception,"
            f" {recording.task} {expected}: its replay cannot be compared with them"
        )
    return environment


class StateReplay:
    """One recorded episode in a simulator.

    Args:
        recording, episode: which.
        environment: of its task (``make_environment``).
        file: the open file.

    Raises:
        UserError: what replaying needs is missing, malformed or another task's.
    """

    def __init__(
        self,
        recording: Recording,
        episode: Episode,
        environment: MujocoEnvironment,
        file: h5py.File,
    ):
        self._where = f"{recording.path}: data/{episode.name}"
        self._recording, self._steps = recording, episode.steps
        self._environment, self._demo = environment, file[f"data/{episode.name}"]
        self._states = self._recorded_states()
        self.proprio = proprio_of(self._demo)
        """As recorded, (T, D)."""
        with self._named():
            environment.restore(self._recorded_model())

    def proprio_of_states(self, steps: int) -> np.ndarray:
        """Where the robot is in the first states, (steps, D)."""
        return np.stack([self._show(step)["proprio"] for step in range(min(steps, self._steps))])

    def frames(self, with_tracks: bool = False) -> dict[str, np.ndarray]:
        """Pictures and masks of all steps, by dataset; `with_tracks` also tracks
        (``envs/tracks.py``).

        Raises:
            UserError: the robot is elsewhere than it was recorded, by how much.
        """
        environment, lag = self._environment, self._recording.lag
        if self._steps * len(environment.cameras) * environment.config.size**2 * 4 > LARGEST:
            raise UserError(f"{self._where} has {self._steps:,} steps, too many to be drawn")
        # Ours hold what was seen when the action was chosen, and replay exactly.
        ours = lag == 0 and "made_by" in self._demo.parent.attrs
        tolerance = EXACT if ours else TOLERANCE
        tracker = Tracker(environment, self._recording.orientation) if with_tracks else None
        frames: dict[str, list] = {}
        # obs[j] shows states[j + lag]; of the last one of LIBERO's files only the action before it
        # is known, so that step is simulated.
        for step in range(self._steps):
            last = step + lag == self._steps
            observation = self._simulate_last() if last else self._show(step + lag)
            error = np.abs(observation["proprio"] - self.proprio[step]).max()
            if not error <= tolerance:
                raise UserError(
                    f"{self._where}: replayed, the robot at step {step} is {error:.3g} (radians or"
                    f" metres) from where it was recorded, more than {tolerance}; the file was made"
                    " by another simulator, or its obs_alignment is wrong"
                )
            for name, value in observed(environment, observation).items():
                if name.endswith(("_rgb", "_mask")):
                    frames.setdefault(f"obs/{name}", []).append(value)
            if tracker is not None:
                tracker.observe()
        drawn = {name: np.stack(values) for name, values in frames.items()}
        return drawn if tracker is None else drawn | tracks(environment, tracker, drawn)

    def _show(self, step: int) -> dict[str, np.ndarray]:
        with self._named():
            return self._environment.show({n: values[step] for n, values in self._states.items()})

    def _simulate_last(self) -> dict[str, np.ndarray]:
        """What the last action led to, the robot put where it was recorded to be."""
        if not isinstance(self._environment, Libero):
            raise UserError(
                f"{self._where}: obs_alignment after_action is LIBERO's; other tasks' files have"
                " before_action"
            )
        robot = {
            name: self._values(self._demo, f"obs/{name}")[-1]
            for name in ("joint_states", "gripper_states")
        }
        actions = self._values(self._demo, "actions")
        refuse(fault_of_actions(actions, self._recording.task), f"{self._where}/actions")
        with self._named():
            return self._environment.show_after(self._states["states"], actions, robot)

    def _recorded_model(self) -> dict[str, np.ndarray | str]:
        if model_file := text(self._demo, "model_file"):
            return {"model_file": model_file}
        if isinstance(edits := member(self._demo, "model"), h5py.Group):
            return {name: self._values(edits, name) for name in edits}
        raise UserError(f"{self._where} has no model_file; its states cannot be replayed")

    def _recorded_states(self) -> dict[str, np.ndarray]:
        drawn = member(self._demo, "drawn")
        names = [f"drawn/{name}" for name in drawn] if isinstance(drawn, h5py.Group) else []
        found = {name: self._values(self._demo, name) for name in ("states", *names)}
        for name, values in found.items():
            if values.ndim == 0 or len(values) != self._steps:
                raise UserError(f"{self._where}/{name} has not {self._steps} rows")
        refuse(fault_of_table(found["states"]), f"{self._where}/states")
        return found

    def _values(self, group: h5py.Group, name: str) -> np.ndarray:
        """A whole dataset, of numbers."""
        found, where = member(group, name), f"{self._recording.path}: {group.name[1:]}/{name}"
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise UserError(f"{where} is missing; the states cannot be replayed without it")
        if found.dtype.kind != "f" or found.nbytes > LARGEST:
            size = f"{found.nbytes / 2**20:,.0f} MiB of {found.dtype}"
            raise UserError(f"{where} is {size}, not floating-point numbers that fit into memory")
        return np.asarray(found[()])

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What the simulator refuses names the episode."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._where}: {error}") from error


def told_by_replay(
    recording: Recording, environment: MujocoEnvironment, file: h5py.File
) -> Alignment:
    """Which instant the observations show, from where the replayed robot is.

    Raises:
        UserError: that does not tell either.
    """
    episodes, steps = REPLAYED
    replayed = []
    for episode in recording.episodes[:episodes]:
        replay = StateReplay(recording, episode, environment, file)
        replayed.append((replay.proprio[:steps], replay.proprio_of_states(steps)))
    told = told_by_joints(replayed)
    if told is None:
        raise unknown_alignment(recording.path)
    return told
