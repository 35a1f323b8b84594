"""What a handful of evaluation episodes says, and how surely."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats


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
