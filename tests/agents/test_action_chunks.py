"""Actions in their units and back, and chunks of them handed out one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.action_chunks import STILL, ActionQueue, Normaliser
from errors import UserError

# -------------------------------------------------------------------------------- normaliser

numbers = st.floats(-100.0, 100.0, width=32)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=5))
def test_normalising_and_back(rows):
    one, other, values = torch.tensor(rows, dtype=torch.float32).T
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    normaliser = Normaliser(low, high)
    normalised = normaliser.normalise(values)
    assert normalised.isfinite().all()
    moving = high - low > STILL
    back = normaliser.denormalise(normalised)
    # A value far outside of narrow percentiles is as exact as their distance allows.
    size = torch.maximum(values.abs(), torch.maximum(low.abs(), high.abs()))
    assert ((back - values).abs()[moving] <= 1e-5 * size[moving] + 1e-30).all()
    assert (normalised[~moving] == 0).all()
    torch.testing.assert_close(back[~moving], low[~moving], atol=1e-6, rtol=0)
    assert torch.equal(back[low == high], low[low == high])
    # The percentiles themselves are exact, both ways.
    assert (normaliser.normalise(low)[moving] == -1).all()
    assert (normaliser.normalise(high)[moving] == 1).all()
    assert torch.equal(normaliser.denormalise(torch.full_like(low, -1.0)), low)
    assert torch.equal(normaliser.denormalise(torch.ones_like(high)), high)


@settings(deadline=None)
@given(st.tuples(numbers, numbers).filter(lambda pair: pair[1] - pair[0] > 1e-3), st.data())
def test_a_gripper_of_two_values_comes_back_exactly(pair, data):
    """However rarely it closes, and whatever interpolation made of its percentiles."""
    closed = data.draw(st.integers(1, 199))
    values = np.where(np.arange(200) < closed, np.float32(pair[0]), np.float32(pair[1]))
    low, high = np.percentile(values, (1, 99))
    normaliser = Normaliser([low], [high], [values.min()], [values.max()])
    gripper = torch.tensor(values)[:, None]
    assert normaliser.normalise(gripper).abs().max() <= 1.0 + 2.0 / 0.1
    back = normaliser.denormalise(normaliser.normalise(gripper))
    torch.testing.assert_close(back, gripper, rtol=1e-5, atol=1e-5)
    if low in pair and high in pair:
        assert torch.equal(back, gripper)


def test_actions_are_clipped_to_their_range_on_the_way_back():
    statistics = {
        "action_low": [-0.5, -1.0], "action_high": [0.5, 1.0],
        "action_min": [-1.0, -1.0], "action_max": [0.9, 1.0],
    }  # fmt: skip
    normaliser = Normaliser.of(statistics, "action", clip=(-1.0, 1.0))
    wild = torch.tensor([[-3.0, -1.5], [1.4, 0.5], [2.5, 7.0]])
    expected = torch.tensor([[-1.0, -1.0], [0.7, 0.5], [1.0, 1.0]])
    torch.testing.assert_close(normaliser.denormalise(wild), expected)
    assert normaliser.normalise(torch.tensor([0.75, 0.0])).tolist() == [1.5, 0.0]


def test_a_range_upside_down_is_refused():
    with pytest.raises(UserError, match="above"):
        Normaliser([1.0], [0.0])


# ------------------------------------------------------------------------------ action queue


def chunks(count, start, length=5):
    """Chunks whose actions are all different: start + 100·row + step."""
    numbers = start + 100.0 * np.arange(count)[:, None] + np.arange(length)
    return numbers[:, :, None].astype(np.float32)


def test_replans_after_n_action_steps_and_not_before():
    queue, first, plans, taken = ActionQueue(1, n_action_steps=3), np.array([True]), 0, []
    for _ in range(7):
        due = queue.due(first)
        if due.any():
            plans += 1
            queue.fill(due, chunks(1, 10.0 * plans))
        taken.append(float(queue.next()[0, 0]))
        first = np.array([False])
    assert taken == [10, 11, 12, 20, 21, 22, 30]


def test_a_new_episode_never_sees_the_rest_of_the_old_chunk():
    queue = ActionQueue(2, n_action_steps=4)
    due = queue.due(np.array([True, True]))
    queue.fill(due, chunks(2, 0.0))
    queue.next()
    due = queue.due(np.array([False, True]))
    assert due.tolist() == [False, True]
    queue.fill(due, chunks(1, 500.0))
    assert queue.next()[:, 0].tolist() == [1.0, 500.0]


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=20))
def test_each_environment_is_served_as_if_it_were_alone(n_action_steps, starts):
    queue, waiting, counter = ActionQueue(3, n_action_steps), [[], [], []], 0.0
    for is_first in starts:
        for environment in range(3):
            if is_first[environment]:
                waiting[environment] = []
        due = queue.due(np.array(is_first))
        assert due.tolist() == [not rest for rest in waiting]
        if due.any():
            counter += 1000.0
            new = chunks(due.sum(), counter)
            queue.fill(due, new)
            for row, environment in enumerate(np.flatnonzero(due)):
                waiting[environment] = list(new[row, :n_action_steps, 0])
        assert queue.next()[:, 0].tolist() == [rest.pop(0) for rest in waiting]


def test_the_queue_keeps_its_own_copy_and_checks_what_it_is_given():
    queue, given = ActionQueue(2, n_action_steps=3), chunks(2, 0.0)
    with pytest.raises(ValueError, match="due a chunk"):
        queue.next()
    due = queue.due(np.array([True, True]))
    with pytest.raises(ValueError, match="2 chunks"):
        queue.fill(due, given[:1])
    with pytest.raises(ValueError, match="at least 3 actions"):
        queue.fill(due, given[:, :2])
    queue.fill(due, given)
    given[:] = 9.0
    action = queue.next()
    action[:] = 9.0
    assert queue.next()[:, 0].tolist() == [1.0, 101.0]
