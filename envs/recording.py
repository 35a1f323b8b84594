"""Making demonstrations: recording a policy, and adding masks to recordings others have made."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import h5py
import numpy as np

import envs
from atomic_file import rename_durably
from envs.demonstrations import (
    AFTER,
    BEFORE,
    PARTIAL,
    SHORT_CAMERA_NAMES,
    DemonstrationWriter,
    Episode,
    Recording,
    check_room,
    mask_attributes,
    open_file,
    proprio_of,
    read_header,
    short_name,
    write_dataset,
)
from envs.environment_config import EnvironmentConfig, Quality
from envs.experts import expert
from envs.libero import Libero
from envs.simulation import MujocoEnvironment
from errors import UserError
from versions import installed_versions

PACKAGES = ("numpy", "mujoco", "metaworld", "dm_control", "hf-libero", "robosuite")
DEMONSTRATIONS = 3  # a stream of episode seeds of its own, beside those of agents/rollout.py
NOISE = 1  # keeps what is added to actions apart from what the task draws
PATIENCE = 20
"""Failed episodes in a row after which recording gives up."""
PROPRIO_TOLERANCE = {BEFORE: 1e-4, AFTER: 0.02}
"""Largest difference of a replayed proprioception from the recorded one, radians or metres: our
own files replay exactly, LIBERO's were recorded by other versions."""


class Actor(Protocol):
    """What records: ``begin(seed)`` after a reset, then ``action(observation)``, (A,) in [-1, 1].

    What it draws at random in an episode is a function of that episode's seed.
    """

    def begin(self, seed: int) -> None: ...

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray: ...


class ScriptedActor:
    """The scripted expert of a task (``envs/experts.py``), which looks at the simulator instead.

    Args:
        environment: of a task that has one.
        noise: standard deviation of what is added to its actions.

    Raises:
        UserError: the task has no expert.
    """

    def __init__(self, environment: MujocoEnvironment, noise: float = 0.0):
        self._rng = np.random.default_rng()
        self._expert = expert(environment, noise, self._rng)

    def begin(self, seed: int) -> None:
        """Start an episode; its noise is a function of `seed`."""
        self._rng.bit_generator.state = np.random.default_rng([seed, NOISE]).bit_generator.state
        self._expert.begin()

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """(A,) float32 in [-1, 1]; the observation is not read."""
        return self._expert.action()


def demonstration_seed(seed: int, attempt: int) -> int:
    """The environment seed of an episode that is to be recorded."""
    return int(np.random.SeedSequence([seed, DEMONSTRATIONS, attempt]).generate_state(1)[0])


def collect(
    task: str,
    episodes: int,
    path: str | os.PathLike,
    make_actor: Callable[[MujocoEnvironment], Actor],
    config: EnvironmentConfig,
    *,
    seed: int = 0,
    after_success: int = 5,
    made_by: str = "scripted expert",
    progress: Callable[[int, int], None] = lambda kept, attempts: None,
) -> None:
    """Record successful episodes of a policy, masks included; all of them where the suite knows no
    success.

    Started again after being stopped, it goes on behind the last episode kept.

    Args:
        task: id.
        episodes: how many successful ones to keep.
        path: of the file, ``.hdf5``.
        make_actor: the policy, given the environment it acts in.
        config: how the task is seen; masks and proprioception are recorded whatever it says.
        seed: episode k starts from ``demonstration_seed(seed, k)``.
        after_success: steps recorded behind the first successful one, unless the episode ends.
        made_by: noted in the file.
        progress: called after every episode with those kept and those tried.

    Raises:
        UserError: the file exists; ``PATIENCE`` episodes in a row fail; what ``make`` raises.
    """
    options = {field: getattr(config, field) for field in config.__dataclass_fields__}
    options |= {"masks": True, "proprio": True, "orientation": "upright"}
    environment = envs.make(task, **options)
    try:
        actor = make_actor(environment)
        attributes = _attributes(task, environment, seed, after_success, made_by)
        with DemonstrationWriter(path, attributes) as writer:
            attempts, failures = writer.attempts, 0
            while writer.episodes < episodes:
                start = demonstration_seed(seed, attempts)
                recorded, success = _record(environment, actor, start, after_success)
                attempts += 1
                failures = failures + 1 if success is False else 0
                if success is not False:
                    note = {"seed": start, "init_state": recorded["states"][0]}
                    note |= {} if success is None else {"success": success}
                    note |= {k: recorded.pop(k) for k in ("model_file",) if k in recorded}
                    writer.add(recorded, note, attempts)
                else:
                    writer.tried(attempts)
                progress(writer.episodes, attempts)
                if failures >= PATIENCE:
                    raise UserError(
                        f"{task}: the last {failures} of {attempts} episodes failed; there are"
                        f" {writer.episodes} successful ones in {writer.partial}"
                    )
    finally:
        environment.close()


def _record(
    environment: MujocoEnvironment, actor: Actor, seed: int, after_success: int
) -> tuple[dict[str, Any], bool | None]:
    """One episode, as arrays (T, ...) by dataset, and whether it succeeded (None: nobody says)."""
    observation, _ = environment.reset(seed=seed)
    actor.begin(seed)
    model = environment.recorded_model()
    steps: dict[str, list] = {}
    succeeded_for, over = 0, False
    while not over and succeeded_for <= after_success:
        for name, value in environment.recorded_state().items():
            steps.setdefault(name, []).append(value)
        for name, value in _observed(environment, observation).items():
            steps.setdefault(f"obs/{name}", []).append(value)
        space = environment.action_space
        action = np.clip(actor.action(observation), space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, info = environment.step(action)
        over = terminated or truncated
        succeeded_for += bool(succeeded_for or info.get("success", False))
        steps.setdefault("actions", []).append(action.astype(np.float64))
        steps.setdefault("rewards", []).append(np.float32(reward))
        steps.setdefault("dones", []).append(np.uint8(over))
    recorded: dict[str, Any] = {name: np.stack(values) for name, values in steps.items()}
    recorded["dones"][-1] = 1
    if "obs/robot_states" in recorded:
        recorded["robot_states"] = recorded.pop("obs/robot_states")
    for name, part in model.items():
        recorded[name if isinstance(part, str) else f"model/{name}"] = part
    return recorded, succeeded_for > 0 if "success" in info else None


def _observed(environment: MujocoEnvironment, observation: dict) -> dict[str, np.ndarray]:
    """An observation by the names of the datasets below ``obs/``."""
    found = {"proprio": observation["proprio"]}
    several = len(environment.cameras) > 1
    for number, camera in enumerate(environment.cameras):
        for name, kind in (("image", "rgb"), ("mask", "mask")):
            view = observation[name][number] if several else observation[name]
            found[f"{short_name(camera)}_{kind}"] = view
    if isinstance(environment, Libero):
        found |= environment.robot_state()
    return found


def _attributes(
    task: str, environment: MujocoEnvironment, seed: int, after_success: int, made_by: str
) -> dict[str, Any]:
    config = environment.config
    cameras = ",".join(environment.cameras)
    if isinstance(environment, Libero):
        problem, bddl = environment.problem(), environment.bddl_file
        file_name = f"{bddl.parent.name}/{bddl.name}"
    else:
        problem = {"problem_name": task, "language_instruction": environment.instruction}
        file_name = ""
    kwargs = {
        "camera_names": list(environment.cameras),
        "camera_heights": config.size,
        "camera_widths": config.size,
    }
    env_args = {
        "type": 1,  # robomimic's number of robosuite environments, as in LIBERO's files
        "env_name": problem["problem_name"],
        "problem_name": problem["problem_name"],
        "bddl_file": file_name,
        "env_kwargs": kwargs,
    }
    return {
        "task": task,
        "problem_info": json.dumps(problem),
        "bddl_file_name": file_name,
        "env_args": json.dumps(env_args),
        "macros_image_convention": "opencv",
        "obs_alignment": BEFORE,
        "camera": cameras,
        "size": config.size,
        "quality": config.quality,
        "shift": config.shift,
        "action_repeat": environment.action_repeat,
        "seed": seed,
        "after_success": after_success,
        "made_by": made_by,
        "versions": json.dumps(installed_versions(PACKAGES)),
    } | mask_attributes()


# --------------------------------------------------------------------------- adding masks


def annotate(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    quality: Quality | None = None,
    size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Add masks to a demonstration file by replaying its states in the simulator.

    Pictures and masks are drawn together, so that they agree to the pixel whatever drew the
    recorded pictures; everything else is copied. Started again after being stopped, it goes on
    with the next episode. ``out`` may be ``path``, which is then replaced at the end.

    Args:
        path: of the file.
        out: of the file with masks.
        quality: of the rendering; None is the file's own (full where it does not say).
        size: edge of the pictures, pixels; None is the file's own.
        progress: called after every episode with those done and those there are.

    Raises:
        UserError: what cannot be read or written; the replay is elsewhere than the recorded
            proprioception, by how much; the file does not hold what replaying needs.
    """
    path, out = pathlib.Path(path), pathlib.Path(out)
    recording = read_header(path)
    quality = quality or recording.quality
    size = recording.size if size is None else size
    with open_file(path) as file:
        shift = str(file["data"].attrs.get("shift", ""))
    if shift:
        raise UserError(
            f"{path} was recorded under the shift {shift}, which its states do not hold; record it"
            " again"
        )
    if envs.suite(recording.task) == "dmc":
        raise UserError(
            f"{path} is of {recording.task}, whose observations cannot be had from a state; record"
            " it again, run.py collect draws masks"
        )
    if out.exists() and not (path.exists() and out.samefile(path)):
        raise UserError(f"{out} exists already; give another name or delete it")
    try:
        environment = envs.make(
            recording.task,
            camera=",".join(_full_names(recording)),
            size=size,
            action_repeat=recording.action_repeat,
            quality=quality,
            masks=True,
            proprio=True,
            orientation=recording.orientation,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + PARTIAL)
        settings = f"{path.stat().st_size} {path.stat().st_mtime_ns} {quality} {size}"
        with open_file(path) as source, _annotated_file(partial, settings) as target:
            _copy_attributes(source, target)
            group = target.require_group("data")
            _copy_attributes(source["data"], group)
            changed = {"quality": quality, "size": size} | _resized(group.attrs, size)
            for name, value in (mask_attributes() | changed).items():
                group.attrs[name] = value
            for number, episode in enumerate(recording.episodes):
                if "annotated" not in getattr(group.get(episode.name), "attrs", {}):
                    if episode.name in group:
                        del group[episode.name]
                    _annotate(recording, episode, environment, source, group)
                    group[episode.name].attrs["annotated"] = True  # last: what has it is complete
                    target.flush()
                progress(number + 1, len(recording.episodes))
            for episode in recording.episodes:
                del group[episode.name].attrs["annotated"]
            for other in set(source) - {"data"}:  # robomimic's filters
                if other not in target:
                    source.copy(other, target)
            del target.attrs["annotating"]
        rename_durably(partial, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        environment.close()


def _resized(attributes: Mapping[str, Any], size: int) -> dict[str, str]:
    """``env_args``, where robomimic reads the size of the pictures from, with that size."""
    try:
        env_args = json.loads(attributes["env_args"])
        kwargs = env_args["env_kwargs"]
        kwargs["camera_heights"] = kwargs["camera_widths"] = size
    except (KeyError, TypeError, ValueError):
        return {}
    return {"env_args": json.dumps(env_args)}


def _annotated_file(partial: pathlib.Path, settings: str):
    """The file being written: the one begun with the same settings, if it can be read."""
    if partial.exists():
        try:
            with open_file(partial) as file:
                if file.attrs.get("annotating") == settings:
                    return open_file(partial, "r+")
        except UserError as error:
            if "another process" in str(error):
                raise
    context = open_file(partial, "w")

    class Begun:
        def __enter__(self):
            file = context.__enter__()
            file.attrs["annotating"] = settings
            return file

        def __exit__(self, *arguments):
            return context.__exit__(*arguments)

    return Begun()


def _annotate(
    recording: Recording,
    episode: Episode,
    environment: MujocoEnvironment,
    source: h5py.File,
    target: h5py.Group,
) -> None:
    """Write one episode with pictures and masks drawn from its states."""
    demo = source[f"data/{episode.name}"]
    where = f"{recording.path}: data/{episode.name}"
    try:
        environment.restore(_recorded_model(demo, where))
        frames = _frames(recording, episode, environment, demo, where)
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from error
    check_room(pathlib.Path(target.file.filename), frames, "the episodes annotated so far are kept")
    copy = target.create_group(episode.name)
    _copy_attributes(demo, copy)
    copy.attrs.pop("annotated", None)
    for name in demo:
        if name != "obs":
            demo.copy(name, copy)
    for name in demo["obs"]:
        if f"obs/{name}" not in frames:
            demo["obs"].copy(name, copy.require_group("obs"))
    for name, values in frames.items():
        write_dataset(copy, name, values)


def _frames(
    recording: Recording,
    episode: Episode,
    environment: MujocoEnvironment,
    demo: h5py.Group,
    where: str,
) -> dict[str, np.ndarray]:
    """Pictures and masks of an episode's states, by dataset."""
    states = _recorded_states(demo, where, episode.steps)
    recorded = proprio_of(demo)
    frames: dict[str, list] = {}
    # obs[j] shows states[j + lag]; of the last one of LIBERO's files only the action before it is
    # known, so that step is simulated.
    for step in range(episode.steps):
        if step + recording.lag < episode.steps:
            observation = environment.show({k: v[step + recording.lag] for k, v in states.items()})
        else:
            observation = _simulate_last(environment, demo, states)
        error = np.abs(observation["proprio"] - recorded[step]).max()
        tolerance = PROPRIO_TOLERANCE[recording.alignment]
        if not error <= tolerance:
            raise UserError(
                f"{where}: replayed, the robot at step {step} is {error:.3g} (radians or metres)"
                f" from where it was recorded, more than {tolerance}; the file was made by"
                " another simulator, or its obs_alignment is wrong"
            )
        for name, value in _observed(environment, observation).items():
            if name.endswith(("_rgb", "_mask")):
                frames.setdefault(f"obs/{name}", []).append(value)
    return {name: np.stack(values) for name, values in frames.items()}


def _simulate_last(environment: MujocoEnvironment, demo: h5py.Group, states: dict) -> dict:
    """What the last action of an episode led to, the robot put where it was recorded to be."""
    if not isinstance(environment, Libero):
        raise UserError("obs_alignment after_action is LIBERO's; other tasks' files have before")
    robot = {name: demo[f"obs/{name}"][-1] for name in ("joint_states", "gripper_states")}
    return environment.show_after(states["states"], demo["actions"][()], robot)


def _recorded_model(demo: h5py.Group, where: str) -> dict[str, np.ndarray | str]:
    if "model_file" in demo.attrs:
        return {"model_file": str(demo.attrs["model_file"])}
    if isinstance(demo.get("model"), h5py.Group):
        return {name: demo["model"][name][()] for name in demo["model"]}
    raise UserError(f"{where} has no model_file; its states cannot be replayed")


def _recorded_states(demo: h5py.Group, where: str, steps: int) -> dict[str, np.ndarray]:
    names = ["states", *(f"drawn/{name}" for name in demo.get("drawn", ()))]
    found = {}
    for name in names:
        if not isinstance(demo.get(name), h5py.Dataset) or len(demo[name]) != steps:
            raise UserError(f"{where}/{name} is missing or has not {steps} rows")
        found[name] = demo[name][()]
    return found


def _full_names(recording: Recording) -> list[str]:
    """The simulator's names of the cameras in a file."""
    full = {short: name for name, short in SHORT_CAMERA_NAMES.items()}
    return [full.get(camera, camera) for camera in recording.cameras]


def _copy_attributes(source, target) -> None:
    for name, value in source.attrs.items():
        target.attrs[name] = value
