"""All numbers of a comparison of learning curves, with proper statistics."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

import envs
from analysis import aggregates
from analysis.aggregates import Estimate
from analysis.curves import FINALS, Aligned, Curve, Kind, align, task_id
from envs.metaworld import BUDGETS
from errors import UserError

MOST_METHODS, MOST_TASKS, MOST_SCORES = 40, 500, 2_000_000
"""What fits a figure; the last counts the runs of a method on a task times the steps at which any
of them was evaluated."""
GROUPS = ("easy", "medium", "hard", "very hard")
"""Difficulty of Meta-World tasks (paper F), by budget from the smallest."""
FRACTIONS = np.linspace(0.0, 1.0, 101)
THRESHOLDS = np.linspace(0.0, 0.99, 100)


@dataclass(frozen=True)
class Compare:
    """Compare learning curves with each other and with published ones."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, folders of them, globs, .json, .csv or event files; METHOD=PATH names a
    method."""
    out: Path
    """Folder to write to; created when missing."""
    final: Literal["last5", "last", "best"] = "last5"
    """Final score of a run: mean of its last five evaluations (the paper's), its last, or its
    best one."""
    until: int | Literal["common", "end"] = "common"
    """Up to which environment step evaluations count. common: on each task, up to the end of its
    shortest run, so that training is equal; a number: no further than that either; end: all of
    them."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; all by default."""
    shared: bool = True
    """Only tasks that every method has; otherwise every method is summed up over its own."""
    keep: Literal["latest"] | None = None
    """Of runs with the same method, task and seed keep the one written last; by default they are
    refused."""
    repetitions: int = aggregates.REPETITIONS
    """Resamples of the bootstrap of every aggregate."""


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown, computed once."""

    curves: list[Curve]
    methods: list[str]
    tasks: dict[str, dict[str, Aligned]]
    """task → method → aligned runs."""
    kinds: dict[str, Kind]
    finals: dict[str, dict[str, np.ndarray]]
    """task → method → final score of every seed (seeds,), in the units of the task."""
    statistics: dict[str, dict[str, Estimate]]
    """method → statistic → estimate over the tasks it has, of normalised scores."""
    groups: dict[str, dict[str, Estimate]]
    """difficulty → method → mean."""
    group_sizes: dict[str, dict[str, int]]
    improvements: dict[tuple[str, str], Estimate]
    efficiency: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    profiles: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    notes: list[str]


def ceiling(task: str, kind: Kind) -> float | None:
    """What a final score is divided by for the aggregates; None where nobody knows.

    A success is one already. Of a return, the task's suite knows it, or nobody.
    """
    return 1.0 if kind == "success" else envs.highest_return(task)


def bounds(task: str, curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Lowest and highest score of a task, between which the aggregates put it: those that the runs
    record, else 0 and its ceiling; None where nobody knows.

    Raises:
        UserError: runs of the task record different ones.
    """
    kind = curves[0].kind
    said = {curve.bounds: curve.where or curve.source for curve in curves if curve.bounds}
    if kind == "return" and len(said) > 1:
        (one, here), (other, there), *_ = said.items()
        raise UserError(
            f"{task} has the score bounds {one} in {here} and {other} in {there}; give all of its"
            " runs the same --environment.score-bounds"
        )
    if kind == "return" and said:
        return next(iter(said))
    most = ceiling(task, kind)
    return None if most is None else (0.0, most)


def normalised(scores: np.ndarray, between: tuple[float, float]) -> np.ndarray:
    """Scores as shares of the way from the lowest to the highest."""
    lowest, highest = between
    return (scores - lowest) / (highest - lowest)


def difficulty(task: str) -> str | None:
    """The paper's group of a Meta-World task; None for others."""
    if not task.startswith("metaworld/"):
        return None
    budgets = [0, *sorted(BUDGETS)]
    budget = envs.published_budget(task)
    return GROUPS[budgets.index(budget) if budget in budgets else 0]


def compare(curves: Sequence[Curve], options: Compare, said: Sequence[str] = ()) -> Comparison:
    """All numbers of a comparison, and `notes` on them, with what was `said` of the inputs first.

    Raises:
        UserError: nothing is left to compare, or more than can be drawn.
    """
    curves, notes = _select(curves, options)
    notes = [*said, *notes]
    methods = sorted({curve.method for curve in curves})
    names = sorted({curve.task for curve in curves})
    kinds = {curve.task: curve.kind for curve in curves}
    by_task: dict[str, dict[str, list[Curve]]] = {
        task: {
            method: runs
            for method in methods
            if (runs := [c for c in curves if (c.task, c.method) == (task, method)])
        }
        for task in names
    }
    _refuse_too_many(methods, by_task)
    final = FINALS[options.final]
    finals = {
        task: {m: np.array([final(c.scores) for c in runs]) for m, runs in present.items()}
        for task, present in by_task.items()
    }
    known = {
        task: between
        for task in names
        if (between := bounds(task, [c for c in curves if c.task == task]))
    }
    normal = {
        method: {
            task: normalised(finals[task][method], between)
            for task, between in known.items()
            if method in finals[task]
        }
        for method in methods
    }
    normal = {method: scores for method, scores in normal.items() if scores}
    if left_out := [task for task in names if task not in known]:
        notes.append(
            f"{', '.join(left_out)}: what a return is at most is not known; left out of aggregates"
        )
    for task, present in finals.items():
        reached = [score for scores in present.values() for score in scores]
        least, most = known.get(task, (-np.inf, np.inf))
        if not least <= min(reached) <= max(reached) <= most:
            notes.append(
                f"{task}: final scores of {min(reached):g} to {max(reached):g} are not what an "
                f"episode pays, {least:g} to {most:g}; aggregates take them as they are"
            )
    single = sum(len(s) == 1 for scores in normal.values() for s in scores.values())
    if single:
        notes.append(
            f"{single} {'curve is' if single == 1 else 'curves are'} of one seed; "
            "intervals do not hold what other seeds would do"
        )
    repetitions = options.repetitions
    groups: dict[str, dict[str, Estimate]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for group in GROUPS:
        for method in normal:
            members = {t: s for t, s in normal[method].items() if difficulty(t) == group}
            if members:
                estimate = aggregates.aggregate(members, repetitions)["mean"]
                groups.setdefault(group, {})[method] = estimate
                sizes.setdefault(group, {})[method] = len(members)
    improvements = _improvements(normal, repetitions)
    profiles = {
        method: (
            THRESHOLDS,
            *aggregates.performance_profile(scores, THRESHOLDS, repetitions),
        )
        for method, scores in normal.items()
    }
    counts = {m: len(s) for m, s in normal.items()}
    if len(set(counts.values())) > 1 or len({frozenset(s) for s in normal.values()}) > 1:
        listed = ", ".join(f"{m} {n}" for m, n in counts.items())
        notes.append(
            f"methods have different tasks ({listed}); aggregates are over each one's own, the "
            "probability of improvement over shared ones"
        )
    return Comparison(
        curves=list(curves),
        methods=methods,
        tasks={
            t: {m: align(runs) for m, runs in present.items()} for t, present in by_task.items()
        },
        kinds=kinds,
        finals=finals,
        statistics={m: aggregates.aggregate(s, repetitions) for m, s in normal.items()},
        groups=groups,
        group_sizes=sizes,
        improvements=improvements,
        efficiency=_efficiency(by_task, methods, known, repetitions),
        profiles=profiles,
        notes=notes,
    )


def _refuse_too_many(
    methods: Sequence[str], by_task: Mapping[str, Mapping[str, Sequence[Curve]]]
) -> None:
    """Raises UserError where a figure would be too large to be drawn or its intervals to be
    computed."""
    for count, most, what, option in (
        (len(methods), MOST_METHODS, "methods", "name fewer inputs"),
        (len(by_task), MOST_TASKS, "tasks", "choose with --tasks"),
    ):
        if count > most:
            raise UserError(f"{count} {what} are more than the {most} of a comparison; {option}")
    for task, present in by_task.items():
        for method, runs in present.items():
            steps = len(np.unique(np.concatenate([run.steps for run in runs])))
            if steps * len(runs) > MOST_SCORES:
                raise UserError(
                    f"{method} on {task} has {len(runs)} runs with {steps:,} different steps, more "
                    "than can be compared; evaluate less often, or choose with --until"
                )


def _improvements(
    normal: Mapping[str, aggregates.Scores], repetitions: int
) -> dict[tuple[str, str], Estimate]:
    """Of every two methods with shared tasks, the one that is rather better against the other."""
    result = {}
    for left, right in itertools.combinations(normal, 2):
        if set(normal[left]) & set(normal[right]):
            pair = (left, right)
            estimate = aggregates.probability_of_improvement(
                normal[left], normal[right], repetitions
            )
            if estimate[0] < 0.5:
                pair = (right, left)
                estimate = aggregates.probability_of_improvement(
                    normal[right], normal[left], repetitions
                )
            result[pair] = estimate
    return result


def _select(curves: Sequence[Curve], options: Compare) -> tuple[list[Curve], list[str]]:
    """The curves that are asked for, and what has to be said about them."""
    notes = []
    if options.tasks:
        wanted = {task_id(task) for task in options.tasks}
        if missing := sorted(wanted - {curve.task for curve in curves}):
            raise UserError(f"no curve of {', '.join(missing)} is among the inputs")
        curves = [curve for curve in curves if curve.task in wanted]
    curves, cut = _common(curves, options)
    if cut:
        notes.append(cut)
    if options.until != "end":
        last = {task: _end(curves, task, options.until) for task in {c.task for c in curves}}
        short = [curve.until(last[curve.task]) for curve in curves]
        notes += [
            f"{c.source}: nothing evaluated by step {last[c.task]:,}, left out"
            for c, kept in zip(curves, short, strict=True)
            if kept is None
        ]
        curves = [curve for curve in short if curve is not None]
    if not curves:
        raise UserError("nothing is left to compare; give other inputs, --tasks or --until")
    for task in sorted({curve.task for curve in curves}):
        ends = [int(c.steps[-1]) for c in curves if c.task == task]
        if min(ends) < 0.9 * max(ends):
            notes.append(
                f"{task}: runs end between step {min(ends):,} and {max(ends):,}; final scores are "
                "of unequal training"
            )
    by_run: dict[tuple[str, str], set[str]] = {}
    for curve in curves:
        commit = json.dumps(curve.provenance.get("commit"))
        by_run.setdefault((curve.method, curve.task), set()).add(commit)
    for (method, task), commits in by_run.items():
        if len(commits) > 1:
            notes.append(f"{method} on {task}: runs of {len(commits)} commits are taken together")
    few = sum(len(curve.scores) < 5 for curve in curves)
    if options.final == "last5" and few:
        notes.append(
            f"{few} runs have fewer than five evaluations; last5 is the mean of what they have"
        )
    return list(curves), notes


def _end(curves: Sequence[Curve], task: str, until: int | str) -> int:
    """The last step that counts on a task: where its shortest run ends, or `until` if earlier."""
    common = min(int(curve.steps[-1]) for curve in curves if curve.task == task)
    return min(common, until) if isinstance(until, int) else common


def _common(curves: Sequence[Curve], options: Compare) -> tuple[list[Curve], str]:
    """The curves of the tasks that are compared, and a line on what is cut of tasks and steps.

    Raises:
        UserError: no task is shared.
    """
    methods = sorted({curve.method for curve in curves})
    has = {(curve.task, curve.method) for curve in curves}
    tasks = sorted({curve.task for curve in curves})
    kept = [t for t in tasks if not options.shared or all((t, m) in has for m in methods)]
    if tasks and not kept:
        raise UserError(
            f"no task is shared by all methods ({', '.join(methods)}); --no-shared sums each up "
            "over its own tasks, --tasks and other inputs choose"
        )
    cut, how = [], []
    if len(kept) < len(tasks):
        cut.append(f"{len(kept)} of {len(tasks)} tasks (those of all methods)")
        how.append("--no-shared")
    curves = [curve for curve in curves if curve.task in kept]
    longest = max((int(curve.steps[-1]) for curve in curves), default=0)
    ends = [_end(curves, task, options.until) for task in kept] if options.until != "end" else []
    if ends and min(ends) < longest:
        span = f"{max(ends):,}" if min(ends) == max(ends) else f"{min(ends):,} to {max(ends):,}"
        cut.append(f"steps to {span} of {longest:,} (those of all runs of a task)")
        how.append("--until end")
    if not cut:
        return curves, ""
    return curves, f"compared: {', '.join(cut)}; {' '.join(how)} takes everything"


def _efficiency(
    by_task: Mapping[str, Mapping[str, list[Curve]]],
    methods: Sequence[str],
    known: Mapping[str, tuple[float, float]],
    repetitions: int,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mean score over tasks at every fraction of each task's budget (paper figure 4a) at which
    every run of a method is known, with its stratified bootstrap interval."""
    rng = np.random.default_rng(0)
    result = {}
    for method in methods:
        tasks, total = 0, np.zeros(FRACTIONS.shape)
        resampled = np.zeros((repetitions, *FRACTIONS.shape))
        for task, present in by_task.items():
            if method not in present or task not in known:
                continue
            steps = FRACTIONS * envs.published_budget(task)
            scores = np.stack([c.at(steps) for c in present[method]])
            scores = normalised(scores, known[task])
            tasks += 1
            total += scores.mean(0)
            resampled += aggregates.drawn_shares(len(scores), repetitions, rng) @ scores
        shown = ~np.isnan(total)
        if tasks and shown.any():
            interval = np.percentile(resampled[:, shown] / tasks, aggregates.LEVEL, axis=0)
            result[method] = (FRACTIONS[shown], total[shown] / tasks, interval)
    return result
