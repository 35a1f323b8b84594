"""Train and evaluate world-model agents.

usage: python run.py COMMAND [OPTIONS]

  train      learn a task online: --task metaworld/window-close
  imitate    learn tasks from demonstrations: --data demos/ --task libero/object
  evaluate   measure a trained agent: --logdir runs/...
  compare    put learning curves beside each other and published ones
  collect    record demonstrations with masks: --task metaworld/mt10 --episodes 50 --out demos/
  annotate   add masks to demonstrations, LIBERO's own for example: --data DIR
  inspect    say and draw what is in a demonstration file
  tasks      list the ids that --task takes

python run.py COMMAND --help explains every option of a command. Training can be stopped at any
moment; the same command goes on from the last checkpoint.
"""

import argparse
import difflib
import io
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NoReturn

import tyro

from envs.simulation import EnvironmentConfig
from errors import UserError

# Environment workers import this module again, and --help should not take as long as PyTorch
# does: whatever learns or simulates is imported inside the command that needs it.


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained agent, and write what was measured to evaluation.json in its run folder."""

    logdir: str
    """Run folder of the agent."""
    task: str | None = None
    """Tasks to measure an agent of imitate on, separated by commas, or a suite; its own when not
    given."""
    episodes: int = 20
    """Number of episodes, of each task; LIBERO has 50 recorded starts."""
    seed: int = 0
    """Seed of the episodes' starts; training and its own evaluations never meet these. Of LIBERO's
    recorded starts, the one to begin with."""
    random: bool = False
    """Measure a uniformly random policy on the same starts, too."""
    shift: str | None = None
    """Evaluate under these visual shifts: lighting:0.5, or several, lighting:0.5+noise:0.2
    (envs/shifts.py lists them)."""
    shifts: str | None = None
    """Evaluate without shift and under each of several, and say how much of the score is left: all,
    all:0.3 (the strength), or some of them, lighting,noise:0.2."""
    token_pruning: str | None = None
    """Of an agent of imitate: also with these shares of its video tokens dropped at random, and
    nPAUC: 0.1,0.4,0.6,0.8,0.9."""
    swap_instructions: bool = False
    """Of an agent of imitate: also with every task's instruction replaced by the next task's, to
    see whether it listens."""
    execute: int | None = None
    """Of an agent of imitate: actions of a chunk that are executed before the next one."""
    video: bool = False
    """Write the first episodes to videos/evaluation.mp4, predictions laid over them where there
    are any."""
    device: str = "auto"
    """torch device of the agent; auto takes CUDA when there is one."""


@dataclass(frozen=True)
class Tasks:
    """List the ids that --task takes, one a line."""

    suite: str | None = None
    """Only this suite: metaworld, dmc or libero."""


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
    quality: Literal["full", "fast"] | None = None
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


def train(arguments: Sequence[str]) -> None:
    from agents import online, presets
    from agents.run_folder import RunFolder

    # A preset is the default of every other option, so it has to be known before they are parsed.
    first = _FirstOptions(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="cpu")
    first.add_argument("--task")
    first.add_argument("--target")
    chosen, _ = first.parse_known_args(arguments)
    if chosen.task is None and not {"-h", "--help"} & set(arguments):
        raise UserError(
            "train needs --task, for example --task metaworld/window-close; "
            "python run.py tasks lists them"
        )
    default = presets.preset(chosen.preset, chosen.task or "metaworld/window-close")
    if chosen.task is None:
        default = replace(default, task=tyro.MISSING)
    if chosen.target is not None:
        seeing = replace(default.agent.autoencoder, target=chosen.target)
        default = replace(default, agent=replace(default.agent, autoencoder=seeing))

    @dataclass(frozen=True)
    class Train:
        """Learn a task online; started again with the same options, go on where it stopped."""

        config: Annotated[online.OnlineConfig, tyro.conf.arg(name="")]
        preset: Literal[presets.PRESETS] = chosen.preset
        """Values of all options that are not given: paper as published, cpu for two cores."""
        target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = chosen.target
        """What the world model predicts, short for --agent.autoencoder.target: pixels, masks,
        package.module:Class, or a weighted sum (pixels:1+masks:0.5)."""
        logdir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
        """Run folder; by default runs/TASK-PRESET[-TARGET]-seedSEED."""

    options = parse(Train, arguments, "run.py train", default=Train(default))
    config = options.config
    target = config.agent.autoencoder.target
    parts = [config.task.replace("/", "-"), options.preset, f"seed{config.seed}"]
    if target != "pixels":
        parts.insert(2, re.sub(r"[^\w.+-]", "-", target))
    name = "-".join(parts)
    with RunFolder.create_or_resume(options.logdir or f"runs/{name}", config) as folder:
        print(f"run folder {folder.path}", flush=True)
        online.train(config, folder)


def imitate(arguments: Sequence[str]) -> None:
    from agents import imitation, imitation_presets
    from agents.run_folder import RunFolder

    first = _FirstOptions(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="cpu")
    first.add_argument("--target")
    first.add_argument("--world-model")
    first.add_argument("--task")
    first.add_argument("--data")
    chosen, _ = first.parse_known_args(arguments)
    missing = [f"--{name}" for name in ("data", "task") if getattr(chosen, name) is None]
    if missing and not {"-h", "--help"} & set(arguments):
        raise UserError(
            f"imitate needs {' and '.join(missing)}, for example --data demos/ --task"
            " libero/object; python run.py collect records demonstrations"
        )
    default = imitation_presets.preset(chosen.preset)
    agent = default.agent
    if chosen.target is not None:
        agent = replace(agent, dynamics=replace(agent.dynamics, target=chosen.target))
    if chosen.world_model is not None:
        if chosen.world_model not in ("video", "none", "blind"):
            raise UserError(f"--world-model is video, none or blind, not {chosen.world_model!r}")
        agent = replace(agent, world_model=chosen.world_model)
    default = replace(default, agent=agent, data=tyro.MISSING, task=tyro.MISSING)

    @dataclass(frozen=True)
    class Imitate:
        """Learn from demonstrations: to predict the future, then to act on what is predicted.
        Started again with the same options, go on where it stopped."""

        config: Annotated[imitation.ImitationConfig, tyro.conf.arg(name="")]
        preset: Literal[imitation_presets.PRESETS] = chosen.preset
        """Values of all options that are not given: paper as published, gpu for one GPU and an
        hour, cpu for two cores."""
        target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = chosen.target
        """What the world model predicts, short for --agent.dynamics.target: masks, pixels, or
        package.module:Class."""
        world_model: Annotated[str | None, tyro.conf.arg(metavar="{video,none,blind}")] = (
            chosen.world_model
        )
        """Short for --agent.world-model: none is the policy on an image encoder, the baseline;
        blind the same on black pictures."""
        logdir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
        """Run folder; by default runs/TASK-imitate-PRESET-TARGET-seedSEED."""

    options = parse(Imitate, arguments, "run.py imitate", default=Imitate(default))
    config = options.config
    predicted = config.agent.dynamics.target
    if config.agent.world_model != "video":
        predicted = config.agent.world_model
    parts = [config.task, "imitate", options.preset, predicted, f"seed{config.seed}"]
    name = re.sub(r"[^\w.+-]", "-", "-".join(parts))
    with RunFolder.create_or_resume(options.logdir or f"runs/{name}", config) as folder:
        print(f"run folder {folder.path}", flush=True)
        imitation.imitate(config, folder)


def evaluate(arguments: Sequence[str]) -> None:
    options = parse(Evaluate, arguments, "run.py evaluate")
    if options.episodes < 1:
        raise UserError(f"--episodes is {options.episodes}; it must be at least 1")
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}; it must be at least 0")

    if options.shift is not None and options.shifts is not None:
        raise UserError("--shift and --shifts exclude each other; give one of them")

    import numpy as np

    from agents import online
    from agents.evaluation import retained, summarise
    from agents.run_folder import RunFolder
    from envs import shifts as visual

    if options.shift:
        visual.parse(options.shift)
    shifts = visual.listed(options.shifts) if options.shifts is not None else []

    folder = RunFolder.open(options.logdir)
    if folder.of_imitation:
        evaluate_imitation(options, folder, shifts)
        return
    for name in ("task", "token_pruning", "execute", "swap_instructions"):
        if getattr(options, name) not in (None, False):
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag} is for agents of imitate; {options.logdir} was trained online"
            )
    agent, config, step = online.load_agent(options.logdir, options.device)
    measured = {
        "agent": online.evaluate(
            agent,
            config,
            options.episodes,
            options.seed,
            options.video,
            "" if shifts else options.shift,  # of several, what is compared with is none
        )
    }
    if options.random:
        measured["random"] = online.evaluate(
            None, config, options.episodes, options.seed, shift=options.shift
        )
    for shift in shifts:
        measured[shift] = online.evaluate(
            agent, config, options.episodes, options.seed, shift=shift
        )
    if options.video:
        frames = [episode["frames"] for episode in measured["agent"][:VIDEO_EPISODES]]
        folder.write_video("evaluation", np.concatenate(frames), fps=30)
    evaluation: dict[str, Any] = {"task": config.task, "step": step, "seed": options.seed}
    for name, episodes in measured.items():
        kept = [{k: v for k, v in episode.items() if k != "frames"} for episode in episodes]
        evaluation[name] = summarise(kept) | {"episodes": kept}
    if options.shift is not None:
        evaluation["shift"] = options.shift
    if shifts:
        under = {shift: measured[shift] for shift in shifts}
        evaluation["shifts"] = shifts
        evaluation["retained"] = retained(measured["agent"], under, options.seed)
    path = folder.write_evaluation(evaluation)

    under = f" under {options.shift}" if options.shift else ""
    print(
        f"{config.task} after {step:,} environment steps{under}: "
        f"{options.episodes} episodes, seed {options.seed}\n"
    )
    width = max(8, *map(len, measured))
    print(f"{'':{width}}  {'success (95 % interval)':28}  return (mean ± std)")
    for name, episodes in measured.items():
        print(
            f"{name:{width}}  {_success(evaluation[name], len(episodes)):28}  "
            f"{_return(evaluation[name])}"
        )
    if shifts:
        print(f"\n{_retained(evaluation['retained'], len(shifts))}")
    print()
    videos = sorted((folder.path / "videos").glob("*.mp4"))
    for written in (path, folder.curve_path, *videos, folder.checkpoint_path):
        if written.exists():
            print(written)


def evaluate_imitation(options: Evaluate, folder, shifts: list[str]) -> None:
    """What `evaluate` does for an agent of `imitate`."""
    import numpy as np

    import envs
    from agents.imitation_evaluation import Evaluation, Row

    ratios = _ratios(options.token_pruning)
    names = envs.expand(options.task) if options.task is not None else None
    evaluation = Evaluation(
        options.logdir, names, options.episodes, options.seed, options.execute, options.device
    )
    plain = "" if shifts else options.shift or ""
    rows = [Row("agent", plain)]
    if options.random:
        rows.append(Row("random", plain, random=True))
    if options.swap_instructions:
        rows.append(Row("swapped", plain, told=evaluation.swapped_instructions()))
    rows += [Row(f"pruned {ratio:g}", plain, ratio) for ratio in ratios]
    rows += [Row(shift, shift) for shift in shifts]

    agent, tasks = evaluation.agent, evaluation.tasks
    under = f" under {options.shift}" if options.shift else ""
    print(
        f"{options.logdir} after {evaluation.updates:,} updates{under}: {options.episodes} episodes"
        f" a task, seed {options.seed}, {agent.execute} of {agent.config.policy.chunk} actions"
        " executed\n"
    )
    width = max(8, *(len(row.name) for row in rows), *map(len, tasks))

    def show(name: str, found: dict[str, Any]) -> None:
        whole = _success(found, options.episodes * len(tasks))
        if found["success"] is None:
            whole = f"return {_return(found)}"
        print(f"{name:{width + 2}}  {whole}", flush=True)
        if len(tasks) > 1:
            for task, success in found["tasks"].items():
                line = _success({"success": success}, options.episodes)
                print(f"  {task:{width}}  {line}", flush=True)

    with evaluation:
        found = evaluation.measure(rows, show)
        frames = evaluation.film(VIDEO_EPISODES, plain) if options.video else []
    if shifts:
        print(f"\n{_retained(found['retained'], len(shifts))}")
    if ratios:
        pruning = found["pruning"]
        grid = ", ".join(f"{ratio:g}" for ratio in ratios)
        relative = pruning["area_over_unpruned"]
        print(f"\nnPAUC {pruning['area']:.3f} over the grid {grid}", end="")
        print(f"; {relative:.3f} of the unpruned success" if relative is not None else "")
    if frames:
        folder.write_video("evaluation", np.stack(frames), fps=20)
    print()
    path = folder.path / "evaluation.json"
    for written in (path, folder.curve_path, *sorted((folder.path / "videos").glob("*.mp4"))):
        if written.exists():
            print(written)


def _ratios(text: str | None) -> list[float]:
    """ "0.1,0.4" → [0.1, 0.4]."""
    if text is None:
        return []
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if len(ratios) < 2 or sorted(set(ratios)) != ratios or not 0 <= ratios[0] <= ratios[-1] < 1:
        raise UserError(
            f"--token-pruning takes two or more ascending shares below 1, such as"
            f" 0.1,0.4,0.6,0.8,0.9, not {text!r}"
        )
    return ratios


def tasks(arguments: Sequence[str]) -> None:
    options = parse(Tasks, arguments, "run.py tasks")

    import envs

    for task in envs.tasks(options.suite):
        print(task)


def collect(arguments: Sequence[str]) -> None:
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
    from agents.online import AgentActor

    return lambda environment: AgentActor(options.policy, environment, options.noise)


def annotate(arguments: Sequence[str]) -> None:
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
    options = parse(Inspect, arguments, "run.py inspect")

    from results import inspection

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


def compare(arguments: Sequence[str]) -> None:
    from results import compare as comparison

    options = parse(comparison.Compare, arguments, "run.py compare", description=comparison.__doc__)
    comparison.main(options)


COMMANDS = {
    "train": train,
    "imitate": imitate,
    "evaluate": evaluate,
    "compare": compare,
    "collect": collect,
    "annotate": annotate,
    "inspect": inspect,
    "tasks": tasks,
}

# Episodes in the evaluation video: enough to see a habit, short enough to watch.
VIDEO_EPISODES = 3


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    name = arguments[0] if arguments else "--help"

    def command() -> None:
        if name in ("-h", "--help"):
            print(__doc__.strip())
        elif name in COMMANDS:
            COMMANDS[name](arguments[1:])
        else:
            nearest = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "see python run.py --help"
            raise UserError(f"unknown command {name!r}; {hint}")

    resumable = name in ("train", "imitate", "collect", "annotate")
    return guarded(command, "; start the same command again to go on" if resumable else "")


def guarded(command: Callable[[], None], stopped: str = "") -> int:
    """Call `command`; the exit status: 2 for a ``UserError``, 130 for Ctrl-C (`stopped` is said
    then)."""
    try:
        command()
        sys.stdout.flush()
        return 0
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` for example, has seen enough; nothing more can be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def script(function: Callable[[Any], None], options: type, program: str) -> int:
    """Call `function` with its `options` from the command line; the exit status."""
    return guarded(lambda: function(parse(options, sys.argv[1:], program)))


def parse(command: type, arguments: Sequence[str], program: str, **default: Any) -> Any:
    """``tyro.cli`` with its box of an error message turned into the one line of a ``UserError``."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(command, prog=program, args=list(arguments), **default)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_one_line(box.getvalue(), program))


def _one_line(box: str, program: str) -> str:
    """What tyro's box says first, the unknown options, and the option it would have expected."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # Without the frame, the title is the first row and an empty row parts the paragraphs.
    rows = [row.strip("│╭╮╰╯─ ") for row in text.splitlines()]
    paragraphs = [part.splitlines() for part in "\n".join(rows[1:]).strip().split("\n\n")]
    problem, hint = " ".join(paragraphs[0]).rstrip("."), ""
    for heading, *items in paragraphs:
        options = [item.split()[0].rstrip(",") for item in items if item.startswith("--")]
        if heading.startswith("Missing from"):
            problem = f"{program} needs {', '.join(options)}"
        elif heading == "Unrecognized options:":
            problem += f" and does not know {', '.join(options)}"
        elif heading.startswith("Perhaps you meant") and options:
            hint = f"did you mean {options[0]}? "
    return f"{problem}; {hint}see python {program} --help"


class _FirstOptions(argparse.ArgumentParser):
    """Options that have to be known before the others can be parsed."""

    def parse_known_args(self, args=None, namespace=None):
        # As everywhere else, --world_model is --world-model.
        named = [re.sub(r"^--[^=]*", lambda name: name[0].replace("_", "-"), a) for a in args or ()]
        return super().parse_known_args(named, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python run.py train --help")


def _success(summary: dict[str, Any], episodes: int) -> str:
    success = summary["success"]
    if success is None:
        return "not defined"
    low, high = success["interval"]
    return f"{success['count']}/{episodes} = {success['mean']:.2f} ({low:.2f} to {high:.2f})"


def _retained(left: dict[str, Any], shifts: int) -> str:
    """The sentence under a table of shifts."""
    text = f"mean {left['score']} {left['id']:.3g} without shift, {left['ood']:.3g} under {shifts} "
    text += "shifts: "
    if left["retain"] is None:
        return text + "nothing to retain"
    low, high = left["interval"]
    return text + f"Retain {left['retain']:.2f} ({low:.2f} to {high:.2f})"


def _return(summary: dict[str, Any]) -> str:
    mean, std = summary["return"]["mean"], summary["return"]["std"]
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
