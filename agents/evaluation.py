"""What a handful of evaluation episodes says, and how surely."""

from collections.abc import Sequence
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
