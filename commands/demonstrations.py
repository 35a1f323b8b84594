"""collect, annotate, inspect and tasks: demonstrations, and what there is to demonstrate."""

import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from commands.command_line import parse
from envs.environment_config import EnvironmentConfig, Quality
from errors import UserError


@dataclass(frozen=True)
class Collect:
    """Record demonstrations of a scripted expert, or of a trained agent, in LIBERO's HDF5 layout
    with masks. Only successful episodes are kept; stopped, it goes on where it was."""

    task: str
    """Task id, several separated by commas, or a suite: metaworld/mt10, libero/object."""
    episodes: int
    """Successful episodes to record of each task."""
    out: str
    """File to write (FILE.hdf5), or a folder for one file a task."""
    policy: str | None = None
    """Run folder of a trained agent to record in place of the scripted expert."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the actions (of 1), for diversity; never on the
    gripper."""
    seed: int = 0
    """Seed of the episodes' starts."""
    after_success: int = 5
    """Steps recorded after the first successful one."""
    environment: EnvironmentConfig = field(
        default_factory=lambda: EnvironmentConfig(size=128, quality="fast")
    )
    """How the task is seen."""


@dataclass(frozen=True)
class Annotate:
    """Add masks to demonstration files: their states are replayed, pictures and masks drawn
    together. Stopped, it goes on where it was."""

    data: tuple[str, ...]
    """Files, or folders of files."""
    out: str | None = None
    """Folder to write to, under the same names; by default <name>-annotated beside the data."""
    in_place: bool = False
    """Replace the files, each when it is finished."""
    quality: Quality | None = None
    """Of the rendering; the file's own when not given (full where it does not say)."""
    size: int | None = None
    """Pixels a side; the file's own when not given."""


@dataclass(frozen=True)
class Inspect:
    """Say what is in a demonstration file, and draw some of it."""

    file: Annotated[str, tyro.conf.Positional]
    """The file."""
    picture: str | None = None
    """Write a contact sheet (PNG): pictures above masks of some episodes."""
    video: str | None = None
    """Write a video (MP4) of the first episodes."""


def collect(arguments: Sequence[str]) -> None:
    """`run.py collect`: record demonstrations. Raises UserError."""
    options = parse(Collect, arguments, "run.py collect")
    if options.episodes < 1:
        raise UserError(f"--episodes is {options.episodes}; it must be at least 1")
    if options.seed < 0 or options.after_success < 0 or not 0 <= options.noise < math.inf:
        raise UserError("--seed, --noise and --after-success must be numbers of at least 0")

    import envs
    from envs.demonstrations import SUFFIXES
    from envs.recording import collect as record

    names = envs.expand(options.task)
    single = pathlib.Path(options.out)
    if single.suffix in SUFFIXES and len(names) > 1:
        raise UserError(f"{options.task} is {len(names)} tasks; give a folder as --out")
    made_by = f"scripted expert, noise {options.noise:g}"
    if options.policy is not None:
        made_by = f"agent of {pathlib.Path(options.policy).name}, noise {options.noise:g}"
    for task in names:
        path = single
        if single.suffix not in SUFFIXES:
            path = single / f"{task.replace('/', '-')}.hdf5"
            if path.exists():
                print(f"{task}: {path} is there already", flush=True)
                continue
        with _progress(task, options.episodes) as bar:

            def show(kept: int, attempts: int, bar=bar) -> None:
                bar.update(kept - bar.n)
                bar.set_postfix_str(f"{kept}/{attempts} succeeded")

            record(
                task,
                options.episodes,
                path,
                _actor_maker(options),
                options.environment,
                seed=options.seed,
                after_success=options.after_success,
                made_by=made_by,
                progress=show,
            )
        print(path, flush=True)


def _actor_maker(options: Collect) -> Callable:
    if options.policy is None:
        from envs.recording import ScriptedActor

        return lambda environment: ScriptedActor(environment, options.noise)
    from agents.online_evaluation import AgentActor

    return lambda environment: AgentActor(options.policy, environment, options.noise)


def annotate(arguments: Sequence[str]) -> None:
    """`run.py annotate`: add masks to demonstrations. Raises UserError."""
    options = parse(Annotate, arguments, "run.py annotate")
    if options.in_place and options.out is not None:
        raise UserError("--in-place and --out exclude each other; give one of them")

    from envs.demonstrations import find_files, read_header
    from envs.recording import annotate as add_masks

    written: set[pathlib.Path] = set()
    for root in (pathlib.Path(path).resolve() for path in options.data):
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
            if out in written:
                raise UserError(f"two files of --data would become {out}; annotate them apart")
            written.add(out)
            if out != path and out.exists():
                print(f"{out} is there already", flush=True)
                continue
            if out == path:
                header = read_header(path)
                asked = options.quality or header.quality, options.size or header.size
                if header.masks == header.cameras and asked == (header.quality, header.size):
                    print(f"{path} has masks already", flush=True)
                    continue
            with _progress(path.name, None) as bar:

                def show(done: int, of: int, bar=bar) -> None:
                    bar.total = of
                    bar.update(done - bar.n)

                add_masks(path, out, quality=options.quality, size=options.size, progress=show)
            print(out, flush=True)


def inspect(arguments: Sequence[str]) -> None:
    """`run.py inspect`: say and draw what is in a demonstration file. Raises UserError."""
    options = parse(Inspect, arguments, "run.py inspect")

    from analysis import inspection

    print(inspection.describe(options.file))
    if options.picture is not None:
        inspection.contact_sheet(options.file, pathlib.Path(options.picture))
        print(f"\n{options.picture}")
    if options.video is not None:
        inspection.video(options.file, pathlib.Path(options.video))
        print(f"\n{options.video}")


def _progress(name: str, total: int | None):
    from tqdm import tqdm

    # None: silent where standard error is no terminal.
    return tqdm(total=total, desc=name, unit="episode", dynamic_ncols=True, disable=None, delay=1)


@dataclass(frozen=True)
class Tasks:
    """List the ids that --task takes, one a line."""

    suite: str | None = None
    """Only this suite: metaworld, dmc or libero."""


def tasks(arguments: Sequence[str]) -> None:
    """`run.py tasks`: the ids that --task takes. Raises UserError."""
    options = parse(Tasks, arguments, "run.py tasks")

    import envs

    for task in envs.tasks(options.suite):
        print(task)
