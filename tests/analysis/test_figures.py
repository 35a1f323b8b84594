"""What the figures of a comparison show can be read."""

from itertools import combinations, pairwise

import numpy as np
from matplotlib import pyplot

from analysis.aggregates import STATISTICS
from analysis.curves import Aligned
from analysis.figures import aggregate_figure, looks, page


def runs(early: int, late: int) -> Aligned:
    """`early` runs of two evaluations, of which `late` have both."""
    scores = np.full((early, 2), 0.5)
    scores[late:, 1] = np.nan
    return Aligned(np.array([10_000, 20_000]), scores)


def test_numbers_of_seeds_stand_beside_each_other():
    methods = {"dreamerv2": runs(15, 12), "mwm": runs(5, 5), "ours": runs(12, 10)}
    tasks = {"metaworld/push": methods, "metaworld/reach": {"ours": runs(2, 1)}}
    kinds = dict.fromkeys(tasks, "success")
    figure = page(tasks, looks(methods), kinds)
    figure.draw_without_rendering()
    left, right = figure.axes[:2]
    assert [text.get_text() for text in left.texts] == ["12–10", "5", "15–12"]
    assert [text.get_text() for text in right.texts] == ["2–1"]
    boxes = [text.get_window_extent() for text in left.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(left.bbox.contains(*box.p0) and left.bbox.contains(*box.p1) for box in boxes)
    pyplot.close(figure)


def test_sample_efficiency_is_drawn_as_far_as_it_is_known():
    point = (0.5, np.array([0.4, 0.6]))
    means = np.array([0.1, 0.2])
    known = {"mwm": 0.4, "ours": 0.2}
    efficiency = {
        name: (np.array([0.1, end]), means, np.stack([means, means])) for name, end in known.items()
    }
    figure = aggregate_figure(
        {name: dict.fromkeys(STATISTICS, point) for name in known},
        efficiency,
        {name: (np.array([0.0, 1.0]), means, None) for name in known},
        {("mwm", "ours"): point},
        looks(known),
        "last",
    )
    (axes,) = (a for a in figure.axes if "sample efficiency" in a.get_title(loc="left"))
    assert axes.get_xlim() == (0, 0.4)
    pyplot.close(figure)


def test_long_names_leave_room_for_the_panels_above_them():
    point = (0.5, np.array([0.4, 0.6]))
    names = ["correlated-frames", "kl-by-step-free-nats-1", "reward-from-last-patch"]
    figure = aggregate_figure(
        {name: dict.fromkeys(STATISTICS, point) for name in names},
        {},
        {},
        dict.fromkeys(combinations(names, 2), point),
        looks(names),
        "last",
    )
    figure.draw_without_rendering()
    (axes,) = (a for a in figure.axes if "aggregates" in a.get_title(loc="left"))
    labels = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(labels) == len(STATISTICS)
    letter = labels[0].width / len(STATISTICS[0])
    assert all(right.x0 - left.x1 > letter for left, right in pairwise(labels))
    pyplot.close(figure)
