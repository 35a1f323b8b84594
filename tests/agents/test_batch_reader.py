"""Random shifts: what moves, what does not, and what an agent learns from and acts on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.batch_reader import shifted
from errors import UserError
from tests.agents.tiny_agent import SIZE, TINY, make, make_replay


@pytest.fixture
def replay(tmp_path):
    return make_replay(tmp_path / "replay")


def test_shift_moves_pictures_and_their_masks_down_and_right_and_nothing_else():
    rng = np.random.default_rng(0)
    batch = {
        "image": torch.as_tensor(rng.integers(0, 256, (3, 2, 8, 8, 3)), dtype=torch.uint8),
        "mask": torch.as_tensor(rng.integers(0, 9, (3, 2, 8, 8)), dtype=torch.uint8),
        "action": torch.randn(3, 2, 8),
        "reward": torch.randn(3, 2),
    }
    shift = np.array([[0, 0], [2, -1], [-3, 4]])
    moved = shifted(batch, shift)
    for name in ("action", "reward"):
        assert moved[name] is batch[name]
    for name in ("image", "mask"):
        for row, (down, right) in enumerate(shift):
            before = np.pad(  # room on every side, filled with the nearest pixel
                batch[name][row].numpy(), [(0, 0), (4, 4), (4, 4), (0, 0)][: batch[name].ndim - 1],
                mode="edge",
            )  # fmt: skip
            wanted = before[:, 4 - down : 12 - down, 4 - right : 12 - right]
            assert np.array_equal(moved[name][row].numpy(), wanted)
    assert shifted(batch, None) is batch


def learned_from(agent, replay, updates):
    """Shifts that pictures of the autoencoder and of windows came with; those of a window alike."""
    stored = np.concatenate([episode["image"] for episode, _ in replay.episodes()])
    seen = []
    loss, encode = agent.autoencoder.loss, agent._encode
    agent.autoencoder.loss = lambda batch, keep: seen.append(batch["image"]) or loss(batch, keep)
    agent._encode = lambda image: seen.append(image) or encode(image)
    for _ in range(updates):
        agent.update(replay)
    return stored, seen


@pytest.mark.parametrize("most", [0, 2])
def test_agent_learns_from_shifted_pictures_a_window_as_a_whole(replay, most):
    agent = make(replace(TINY, random_shift=most))
    stored, seen = learned_from(agent, replay, 10)
    originals = {
        (down, right): {
            x.tobytes()
            for x in shifted(
                {"image": torch.as_tensor(stored)[:, None]},
                np.tile([down, right], (len(stored), 1)),
            )["image"][:, 0].numpy()
        }
        for down in range(-most, most + 1)
        for right in range(-most, most + 1)
    }

    def shifts(pictures):
        """What moves all of these where they are."""
        these = {x.tobytes() for x in pictures.numpy()}
        return {shift for shift, there in originals.items() if these <= there}

    found = set()
    for pictures in seen:
        for together in pictures if pictures.ndim == 5 else pictures[:, None]:
            assert len(shifts(together)) == 1
            found |= shifts(together)
    assert len(found) > 0.8 * (2 * most + 1) ** 2
    assert {pictures.ndim for pictures in seen} == {4, 5}


def test_shift_wider_than_the_picture_is_refused():
    for shift in (-1, SIZE):
        with pytest.raises(UserError, match=f"random_shift must be from 0 to {SIZE - 1} pixels"):
            replace(TINY, random_shift=shift)
