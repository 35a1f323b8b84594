"""collect: record demonstrations."""

import math
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from commands.command_line import parse
from commands.run_options import Trust, as_name
from envs.environment_config import EnvironmentConfig
from errors import UserError
from experiment.progress import Progress
from experiment.seed import check_seed


@dataclass(frozen=True)
class Collect:
    """Record demonstrations of a scripted expert, a trained agent or (rlbench) the suite's planner,
    in LIBERO's HDF5 layout with masks. Only successful episodes are kept; stopped, it goes on where
    it was."""

    task: str
    """Task id, several separated by commas, or a suite: metaworld/mt10, libero/object; an
    environment of your own, gym:ENV_ID or package.module:callable, with --policy."""
    episodes: int
    """Successful episodes to record of each task."""
    out: str
    """File to write (FILE.hdf5), or a folder for one file a task."""
    policy: str | None = None
    """Run folder of an agent of train or imitate to record in place of the scripted expert."""
    trust: Trust = ()
    """What the agent's configuration may load from outside the toolkit, once for each: a class of
    yours, package.module:Class, or weights by the name they have there."""
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


def collect(arguments: Sequence[str]) -> None:
    """`run.py collect`: record demonstrations. Raises UserError."""
    options = parse(Collect, arguments, "run.py collect")
    import envs
    from envs.demonstrations import MOST_EPISODES, SUFFIXES
    from envs.recording import collect as record

    if not 1 <= options.episodes <= MOST_EPISODES:
        raise UserError(
            f"--episodes is {options.episodes}; it must be at least 1, and {MOST_EPISODES} at most"
        )
    check_seed(options.seed, "--seed")
    if options.after_success < 0 or not 0 <= options.noise < math.inf:
        raise UserError("--noise and --after-success must be numbers of at least 0")

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
            path = single / f"{as_name(task)}.hdf5"
        if os.path.exists(path):
            _check_finished(path, task, options.episodes)
            print(f"{task}: {path} is there already", flush=True)
            continue
        with Progress(task, options.episodes, "episode", delay=1) as bar:

            def show(kept: int, attempts: int, bar=bar) -> None:
                bar.update(kept - bar.n)
                bar.set_postfix_str(f"{kept}/{attempts} succeeded")

            if envs.suite(task) == "rlbench":
                _record_planner(options, task, path, show)
            else:
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


def _check_finished(path: pathlib.Path, task: str, episodes: int) -> None:
    """Refuse a file in the place of the one asked for that has not what was asked for."""
    from envs.demonstration_writer import PARTIAL
    from envs.demonstrations import read_header

    found = read_header(path)
    if found.task != task:
        raise UserError(f"{path} holds {found.task}, not {task}; give another --out")
    if len(found.episodes) < episodes:
        raise UserError(
            f"{path} is finished and has {len(found.episodes)} of the {episodes} episodes asked"
            f" for; rename it to {path.name}{PARTIAL} and start the same command again to add the"
            " others, or give another --out"
        )


def _record_planner(
    options: Collect, task: str, path: pathlib.Path, show: Callable[[int, int], None]
) -> None:
    """Record what RLBench's planner does, which takes no noise and ends with success."""
    from envs.rlbench_demonstrations import collect as record

    if options.policy is not None or options.noise:
        raise UserError(
            f"of {task} RLBench's own planner is recorded as it is; leave --policy and --noise out"
        )
    record(task, options.episodes, path, options.environment, seed=options.seed, progress=show)


def _actor_maker(options: Collect) -> Callable:
    policy = options.policy
    if policy is None:
        from envs.recording import ScriptedActor

        return lambda environment: ScriptedActor(environment, options.noise)
    from agents.demonstrator import Demonstrator

    return lambda environment: Demonstrator(policy, environment, options.noise, options.trust)
