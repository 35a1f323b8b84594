"""What a handful of evaluation episodes says, and how surely."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiment.evaluation_record import EvaluationRecord, Start
from experiment.progress import Progress

Keep = Callable[[dict[str, Any]], None]
"""Takes an episode that has ended."""


def measure(
    record: EvaluationRecord,
    row: str,
    starts: Sequence[Start],
    play: Callable[[Sequence[Start], Keep], None],
) -> list[dict[str, Any]]:
    """The episodes of a row, in the order of their starts: those that the record has, and the
    others, which are played now and kept one by one.

    Args:
        record: of the run folder.
        row: name.
        starts: of all episodes.
        play: plays episodes from some starts.
    """
    left = [start for start in starts if start not in record.known(row)]
    if left:
        known = len(starts) - len(left)
        with Progress(row, len(starts), "episode", known, leave=False, delay=1) as bar:

            def keep(episode: dict[str, Any]) -> None:
                record.add(row, episode)
                bar.update()

            play(left, keep)
    measured = record.known(row)
    return [measured[start] for start in starts]


def measure_tasks(
    record: EvaluationRecord,
    row: str,
    starts: Sequence[Start],
    tasks: Sequence[str],
    play: Callable[[str, Sequence[int], Keep], object],
) -> dict[str, Any]:
    """A row of several tasks: what `summarise` says of all episodes, ``tasks`` (success of each)
    and ``episodes``; the record has it, too.

    Args:
        record, row, starts: as of `measure`.
        tasks: all of them.
        play: plays episodes of one task from some seeds.
    """

    def all_tasks(left: Sequence[Start], keep: Keep) -> None:
        for task in dict.fromkeys(start.task for start in left):
            seeds = [start.seed for start in left if start.task == task]

            def ended(episode: dict[str, Any], task: str = task) -> None:
                keep({"task": task, **episode})

            play(task, seeds, ended)

    episodes = measure(record, row, starts, all_tasks)
    by_task = {
        task: summarise([e for e in episodes if e.get("task", task) == task])["success"]
        for task in tasks
    }
    found = summarise(episodes) | {"tasks": by_task, "episodes": episodes}
    record.finish(row, found)
    return found


def noise_seed(seed: int, seeds: Sequence[int], first: int) -> int:
    """What the noise of an agent starts from: the seed of the evaluation; where an evaluation goes
    on, the seed of its next episode, since noise that was met before is no other sample.

    Args:
        seed: of the evaluation.
        seeds: of the episodes that are played now.
        first: the seed of the evaluation's first episode.
    """
    return seed if first in seeds else seeds[0]


def summarise(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success and return of independent episodes, each with its 95 % interval.

    Args:
        episodes: dicts with ``return`` (sum of rewards) and ``success`` (bool, or None where the
            suite knows no success).

    Returns:
        ``{"success": None | {"count", "mean", "interval"}, "return": {"mean", "std",
        "interval"}}``: Wilson's interval for a success rate, Student's t for a mean return. One
        episode has neither a standard deviation nor an interval of its return.
    """
    returns = np.array([episode["return"] for episode in episodes], dtype=np.float64)
    summary: dict[str, Any] = {
        "success": None,
        "return": {"mean": float(returns.mean()), "std": None, "interval": None},
    }
    if len(returns) > 1:
        deviation = float(returns.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(returns) - 1)) * deviation / len(returns) ** 0.5
        mean = summary["return"]["mean"]
        summary["return"] |= {"std": deviation, "interval": [mean - half, mean + half]}
    successes = [episode["success"] for episode in episodes if episode["success"] is not None]
    if successes:
        count = int(np.sum(successes))
        interval = stats.binomtest(count, len(successes)).proportion_ci(method="wilson")
        summary["success"] = {
            "count": count,
            "mean": count / len(successes),
            "interval": [float(interval.low), float(interval.high)],
        }
    return summary


def pruning_area(ratios: Sequence[float], success: Sequence[float]) -> float:
    """nPAUC: the area under success over the share of tokens pruned, by the trapezoid rule.

    Divided by the width of the grid, so that a policy that always succeeds has 1 (Mask World Model;
    its own figures come from a denser grid than it publishes).

    Args:
        ratios: at least two shares, ascending; the paper's grid is .1, .4, .6, .8, .9.
        success: rates at these.
    """
    shares, rates = np.asarray(ratios, float), np.asarray(success, float)
    return float(np.trapezoid(rates, shares) / (shares[-1] - shares[0]))


RESAMPLES = 5000


def retained(
    episodes: Sequence[dict[str, Any]],
    shifted: Mapping[str, Sequence[dict[str, Any]]],
    seed: int = 0,
) -> dict[str, Any]:
    """How much of a score is left under visual shifts: Retain = OOD / ID.

    OOD is the mean over shifts of the mean score under each, ID the mean score without; the score
    is success where the suite has it, else the return.

    Args:
        episodes: without a shift, as for `summarise`.
        shifted: under each shift, by its name; the same starts in the same order.
        seed: of the bootstrap, which draws starts, each with its episodes under all shifts.

    Returns:
        ``{"score": "success" | "return", "id", "ood", "retain", "interval"}``; what is retained of
        a mean score that is not above 0 is None, and a resample with such a score tells nothing.
    """
    score = "return" if episodes[0]["success"] is None else "success"
    plain = np.array([episode[score] for episode in episodes], dtype=np.float64)
    under = np.array(
        [[episode[score] for episode in many] for many in shifted.values()], dtype=np.float64
    )
    result: dict[str, Any] = {
        "score": score,
        "id": float(plain.mean()),
        "ood": float(under.mean()),
        "retain": None,
        "interval": None,
    }
    if result["id"] > 0:
        result["retain"] = result["ood"] / result["id"]
        drawn = np.random.default_rng(seed).integers(len(plain), size=(RESAMPLES, len(plain)))
        below, above = plain[drawn].mean(1), under.mean(0)[drawn].mean(1)
        ratios = above[below > 0] / below[below > 0]
        result["interval"] = np.percentile(ratios, [2.5, 97.5]).tolist()
    return result
