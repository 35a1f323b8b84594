"""evaluate: how well a trained agent does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands.command_line import parse
from commands.run_options import Trust
from envs.environment_config import EnvironmentConfig
from errors import UserError
from experiment.seed import check_seed

# Episodes in the evaluation video: enough to see a habit, short enough to watch.
VIDEO_EPISODES = 3


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained agent, or whatever policy a server offers, and write what was measured to
    evaluation.json in its run folder."""

    logdir: str | None = None
    """Run folder of the agent, or an exported policy's. With --policy: the folder to write to,
    runs/policies/HOST-PORT when not given; another policy at the same address gets another."""
    policy: str | None = None
    """Measure the policy that is served at ws://HOST:PORT by the protocol of openpi's policy server
    (docs/acting.md); needs --task."""
    task: str | None = None
    """Tasks to measure an agent of imitate or a --policy on, separated by commas, or a suite; the
    agent's own when not given."""
    data: tuple[str, ...] = ()
    """Demonstration files, or folders, to measure an agent of imitate on without a simulator:
    losses, action error, predictions. Not given, an agent of imitate --task none is measured on the
    demonstrations it has held out."""
    episodes: int = 20
    """Number of episodes, of each task; LIBERO has 50 recorded starts. Of demonstrations: at
    most."""
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
    n_action_steps: int | None = None
    """Of an agent of imitate or a --policy: actions of a chunk that are executed before the next
    one."""
    goals: tuple[str, ...] = ()
    """Of an agent of mask2act: demonstration files whose last pictures show it what is to be done,
    in place of those it learned from."""
    video: bool = False
    """Write the first episodes to videos/evaluation.mp4, predictions laid over them where there
    are any."""
    device: str = "auto"
    """torch device of the agent; auto takes CUDA when there is one."""
    keys: str | None = None
    """Of a --policy: what it calls the entries of its messages,
    image/0=observation/image,image/1=observation/wrist_image,proprio=observation/state."""
    token: str | None = None
    """Of a --policy: secret that is sent to it, as "Authorization: Api-Key TOKEN"."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """Of a --policy: how tasks are shown to it. One of run.py serve says so itself."""
    trust: Trust = ()
    """What the agent's configuration may load from outside the toolkit, once for each: a class of
    yours, package.module:Class, or weights by the name they have there."""


def evaluate(arguments: Sequence[str]) -> None:
    """`run.py evaluate`: episodes of a trained agent, and what came out. Raises UserError."""
    options = parse(Evaluate, arguments, "run.py evaluate")
    if options.episodes < 1:
        raise UserError(f"--episodes is {options.episodes}; it must be at least 1")
    check_seed(options.seed, "--seed")

    if options.shift is not None and options.shifts is not None:
        raise UserError("--shift and --shifts exclude each other; give one of them")

    from envs import shifts as visual
    from experiment.run_folder import RunFolder

    if options.shift:
        visual.parse(options.shift)
    shifts = visual.listed(options.shifts) if options.shifts is not None else []

    if options.policy is not None:
        evaluate_policy(options, shifts)
        return
    if options.logdir is None:
        raise UserError("evaluate needs --logdir, a run folder, or --policy, a server's address")
    for name in ("keys", "token"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is for a --policy")
    if options.environment != EnvironmentConfig():
        raise UserError("--environment is for a --policy; a run says how its task is seen")
    folder = RunFolder.open(options.logdir)
    if options.video:
        folder.check_videos()
    if folder.of_imitation:
        evaluate_imitation(options, folder, shifts)
        return
    for name in ("task", "data", "token_pruning", "n_action_steps", "swap_instructions", "goals"):
        if getattr(options, name) not in (None, False, ()):
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag} is for agents of imitate; {options.logdir} was trained online"
            )
    evaluate_online(options, folder, shifts)


def evaluate_policy(options: Evaluate, shifts: list[str]) -> None:
    """What `evaluate` does for a policy behind a websocket."""
    import numpy as np

    import envs
    from agents.imitation_evaluation import Row
    from agents.policy_evaluation import PolicyEvaluation, folder_name
    from agents.policy_wire import renamed

    assert options.policy is not None
    if options.task is None:
        raise UserError("--policy needs --task, what to measure it on; run.py tasks lists them")
    for name in ("token_pruning", "swap_instructions", "goals"):
        if getattr(options, name) not in (None, False, ()):
            raise UserError(f"--{name.replace('_', '-')} is not for a --policy")
    tasks, keys = envs.expand(options.task), renamed(options.keys)
    folder = Path(options.logdir or f"runs/policies/{folder_name(options.policy)}")
    plain = "" if shifts else options.shift or ""
    rows = [Row("agent", plain)]
    if options.random:
        rows.append(Row("random", plain, random=True))
    rows += [Row(shift, shift) for shift in shifts]
    evaluation = PolicyEvaluation(
        options.policy, tasks, options.episodes, options.seed, folder, options.environment, keys,
        options.token, options.n_action_steps,
    )  # fmt: skip
    with evaluation:
        said = evaluation.description.get("policy")
        called = f" ({said!s:.60})" if said else ""
        under = f" under {options.shift}" if options.shift else ""
        print(
            f"{options.policy}{called}{under}: {options.episodes} episodes a task, seed"
            f" {options.seed}\n"
        )
        show, known = _table(rows, tasks, options.episodes)
        found = evaluation.measure(rows, show)
        frames = evaluation.film(VIDEO_EPISODES, plain) if options.video else []
    if shifts:
        print(f"\n{_retained(found['retained'], len(shifts))}")
    _say_known(known, evaluation.record)
    _finish(evaluation.folder, evaluation.record, [np.stack(frames)] if frames else [], fps=20)


def evaluate_online(options: Evaluate, folder: Any, shifts: list[str]) -> None:
    """What `evaluate` does for an agent of `train`."""
    import numpy as np

    import envs
    from agents import online_evaluation as online
    from agents.evaluation import Keep, measure, retained, summarise
    from agents.online_loading import load_agent
    from experiment.checkpoint import fingerprint
    from experiment.config_record import plain as plain_values
    from experiment.evaluation_record import EvaluationRecord, Start

    agent, config, step = load_agent(folder.path, options.device, options.trust)
    for asked in [options.shift or "", *shifts]:
        envs.check_shift(config.task, asked)
    # What shifts are compared with has none; otherwise the run's own shift is left.
    plain = "" if shifts else options.shift
    seeds = online.final_seeds(options.seed, options.episodes)
    starts = [Start(config.task, seed) for seed in seeds]
    conditions = {
        "task": config.task,
        "step": step,
        "seed": options.seed,
        "shift": (config.environment.shift if plain is None else plain) or None,
        # Somebody may have changed how the run's folder says that the task is seen.
        "weights": fingerprint([agent.state_dict(), _as_seen(plain_values(config.environment))]),
    }
    record = EvaluationRecord(folder.evaluation_path, conditions)
    record.check_room()
    rows = {"agent": (agent, plain)} | ({"random": (None, plain)} if options.random else {})
    rows |= {shift: (agent, shift) for shift in shifts}

    under = f" under {options.shift}" if options.shift else ""
    unit = "updates on recorded data" if config.offline else "environment steps"
    print(
        f"{config.task} after {step:,} {unit}{under}: "
        f"{options.episodes} episodes, seed {options.seed}\n"
    )
    width = max(8, *map(len, rows))
    print(f"{'':{width}}  {'success (95 % interval)':28}  return (mean ± std)", flush=True)
    measured, known = {}, {}
    for name, (actor, shift) in rows.items():

        def play(left: Sequence[Start], keep: Keep, actor=actor, shift=shift) -> None:
            left_seeds = [start.seed for start in left]
            online.evaluate(actor, config, left_seeds, options.seed, shift=shift, ended=keep)

        known[name] = len(record.known(name).keys() & set(starts))
        measured[name] = measure(record, name, starts, play)
        found = summarise(measured[name])
        record.finish(name, found | {"episodes": measured[name]})
        print(f"{name:{width}}  {_success(found, len(starts)):28}  {_return(found)}", flush=True)
    if shifts:
        under_shifts = {shift: measured[shift] for shift in shifts}
        left = retained(measured["agent"], under_shifts, options.seed)
        record.note(shifts=shifts, retained=left)
        print(f"\n{_retained(left, len(shifts))}")
    _say_known(known, record)
    film = []
    if options.video:
        episodes = online.evaluate(
            agent, config, seeds[:VIDEO_EPISODES], options.seed, record=True, shift=plain
        )
        film = [np.concatenate([episode["frames"] for episode in episodes])]
    _finish(folder, record, film, fps=30)


def _as_seen(environment: dict[str, Any]) -> dict[str, Any]:
    """What decides an episode, of how a task is seen; without a time limit as when there was
    none."""
    left_out = {"name", "score_bounds"} | (
        {"time_limit"} if environment["time_limit"] is None else set()
    )
    return {name: value for name, value in environment.items() if name not in left_out}


def evaluate_imitation(options: Evaluate, folder: Any, shifts: list[str]) -> None:
    """What `evaluate` does for an agent of `imitate`."""
    import numpy as np

    import envs
    from agents.imitation_config import NO_TASK
    from agents.imitation_evaluation import Evaluation, Row

    ratios = _ratios(options.token_pruning)
    own = folder.config.read()["config"].get("task")
    if options.data or (options.task is None and own == NO_TASK):
        from commands.evaluate_held_out import evaluate_held_out

        evaluate_held_out(options)
        return
    names = envs.expand(options.task) if options.task is not None else None
    evaluation = Evaluation(
        str(folder.path),
        names,
        options.episodes,
        options.seed,
        options.n_action_steps,
        options.device,
        options.trust,
        options.goals,
    )
    for task in evaluation.tasks:
        for asked in [options.shift or "", *shifts]:
            envs.check_shift(task, asked)
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
        f" a task, seed {options.seed}, {agent.n_action_steps} of {agent.chunk} actions executed\n"
    )
    show, known = _table(rows, tasks, options.episodes)
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
    _say_known(known, evaluation.record)
    _finish(folder, evaluation.record, [np.stack(frames)] if frames else [], fps=20)


def _table(
    rows: Sequence[Any], tasks: Sequence[str], episodes: int
) -> tuple[Callable[[str, dict[str, Any], int], None], dict[str, int]]:
    """A function that prints a row of the table, and the count of episodes of each row that were
    known before, which it fills."""
    width = max(8, *(len(row.name) for row in rows), *map(len, tasks))
    known: dict[str, int] = {}

    def show(name: str, found: dict[str, Any], known_episodes: int) -> None:
        known[name] = known_episodes
        whole = _success(found, episodes * len(tasks))
        if found["success"] is None:
            whole = f"return {_return(found)}"
        print(f"{name:{width + 2}}  {whole}", flush=True)
        if len(tasks) > 1:
            for task, success in found["tasks"].items():
                line = _success({"success": success}, episodes)
                print(f"  {task:{width}}  {line}", flush=True)

    return show, known


def _say_known(known: Mapping[str, int], record: Any) -> None:
    """Say which episodes were not played, since they had been measured before."""
    rows = ", ".join(f"{count} of {name}" for name, count in known.items() if count)
    if rows:
        print(f"\nepisodes measured before: {rows}; to measure them again, move {record.path} away")


def _finish(folder: Any, record: Any, film: Sequence[Any], fps: int) -> None:
    """Write the video, list the files, and say if something could not be written.

    Args:
        folder: of the run, a ``RunFolder``.
        record: what was measured and printed, an ``EvaluationRecord``.
        film: frames of the video (T, H, W, 3), if there is to be one.
        fps: of the video.

    Raises:
        UserError: the measurements or the video could not be written.
    """
    problems = [record.problem] if record.problem else []
    for frames in film:
        try:
            folder.write_video("evaluation", frames, fps)
        except UserError as error:
            problems.append(error)
    print(flush=True)
    videos = sorted((folder.path / "videos").glob("*.mp4"))
    for path in (folder.evaluation_path, folder.curve_path, *videos, folder.checkpoint_path):
        if path.exists():
            print(path, flush=True)
    if problems:
        missing = "what was measured is only printed" if record.problem else "there is no video"
        raise UserError(f"{missing}: {'; '.join(map(str, problems))}")


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
