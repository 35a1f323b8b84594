"""Batches of the replay and random shifts of them: what moves, and who learns from what."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.batch_reader import DYNAMICS_ENTRIES, BatchReader, translated
from errors import UserError
from tests.agents.tiny_agent import SIZE, TINY, make, make_replay, observation


@pytest.fixture
def replay(tmp_path):
    return make_replay(tmp_path / "replay")


def test_shift_moves_pictures_and_their_masks_down_and_right_and_nothing_else():
    rng = np.random.default_rng(0)
    batch = {
        "image": torch.as_tensor(rng.integers(0, 256, (3, 2, 8, 10, 3)), dtype=torch.uint8),
        "mask": torch.as_tensor(rng.integers(0, 9, (3, 2, 8, 10)), dtype=torch.uint8),
        "action": torch.randn(3, 2, 8),
        "reward": torch.randn(3, 2),
    }
    shift = np.array([[0, 0], [2, -1], [-3, 4]])
    moved = translated(batch, shift)
    for name in ("action", "reward"):
        assert moved[name] is batch[name]
    for name in ("image", "mask"):
        for row, (down, right) in enumerate(shift):
            before = np.pad(  # room on every side, filled with the nearest pixel
                batch[name][row].numpy(), [(0, 0), (4, 4), (4, 4), (0, 0)][: batch[name].ndim - 1],
                mode="edge",
            )  # fmt: skip
            wanted = before[:, 4 - down : 12 - down, 4 - right : 14 - right]
            assert np.array_equal(moved[name][row].numpy(), wanted)
    assert translated(batch, np.zeros((3, 2), int)) is batch


@pytest.mark.parametrize("most", [0, 3])
def test_frames_and_windows_have_their_number_length_and_entries(replay, most):
    reader = BatchReader(7, 4, 5, torch.device("cpu"), most)
    frames, windows = reader.frames(replay), reader.windows(replay)
    assert {name: value.shape[:1] for name, value in frames.items()} == dict.fromkeys(frames, (7,))
    assert {"image", "reward"} <= frames.keys()
    assert frames["image"].shape == (7, SIZE, SIZE, 3)
    assert windows.keys() == set(DYNAMICS_ENTRIES)
    assert {value.shape[:2] for value in windows.values()} == {(4, 5)}
    assert frames["image"].dtype == windows["image"].dtype == torch.uint8
    stored = [episode for episode, _ in replay.episodes()]
    for window in range(4):  # consecutive, and of one episode
        action = windows["action"][window].numpy()
        assert any(
            np.array_equal(action, episode["action"][start : start + 5])
            for episode in stored
            for start in range(len(episode["action"]) - 4)
        )


def test_frames_are_drawn_and_shifted_anew_every_time(replay):
    reader = BatchReader(200, 4, 5, torch.device("cpu"), 2)
    first, second = reader.frames(replay), reader.frames(replay)
    assert not torch.equal(first["reward"], second["reward"])
    # Independent frames of a small replay come twice in a batch, and then with shifts of their own.
    pictures = {}
    for reward, image in zip(first["reward"].tolist(), first["image"], strict=True):
        if reward:
            pictures.setdefault(reward, set()).add(image.numpy().tobytes())
    assert max(len(seen) for seen in pictures.values()) > 1


class Shifts:
    """Tells by how much pictures of a replay were shifted, by comparing with all there could be."""

    def __init__(self, replay, most):
        stored = np.concatenate([episode["image"] for episode, _ in replay.episodes()])
        stored = {"image": torch.as_tensor(stored)[:, None]}
        self.pictures = {}
        for down in range(-most, most + 1):
            for right in range(-most, most + 1):
                shift = np.tile([down, right], (len(stored["image"]), 1))
                moved = translated(stored, shift)["image"][:, 0].numpy()
                self.pictures[down, right] = {picture.tobytes() for picture in moved}

    def of(self, pictures):
        """The one shift of `pictures` (n, H, W, 3)."""
        these = {picture.tobytes() for picture in pictures.numpy()}
        (shift,) = (shift for shift, there in self.pictures.items() if these <= there)
        return shift


def learned_from(agent, replay, updates):
    """Pictures of the autoencoder's updates (B, H, W, 3), pretraining included, and windows of the
    dynamics' (B, T, H, W, 3)."""
    frames, windows = [], []
    loss, encode = agent.autoencoder.loss, agent._encode
    agent.autoencoder.loss = lambda batch: frames.append(batch["image"]) or loss(batch)
    agent._encode = lambda image: windows.append(image) or encode(image)
    list(agent.pretrain(replay))
    for _ in range(updates):
        agent.update(replay)
    return frames, windows


@pytest.mark.parametrize("most", [0, 2])
def test_autoencoder_learns_from_shifted_pictures_and_the_dynamics_do_not(replay, most):
    agent = make(replace(TINY, random_shift=most))
    frames, windows = learned_from(agent, replay, 40)
    shifts = Shifts(replay, most)
    of_frames = {shifts.of(frame) for batch in frames for frame in batch.split(1)}
    of_windows = {shifts.of(window) for batch in windows for window in batch}
    assert of_windows == {(0, 0)}
    if not most:
        assert of_frames == {(0, 0)}
    assert len(of_frames) > 0.8 * (2 * most + 1) ** 2


def test_what_the_agent_acts_on_is_not_shifted():
    seen, acting = observation(2), make(replace(TINY, random_shift=2))
    encode, given = acting.autoencoder.encode, []
    acting.autoencoder.encode = lambda image: given.append(image) or encode(image)
    for _ in range(5):
        acting.policy(seen, None, explore=True)
    assert all(np.array_equal(image.numpy(), seen["image"]) for image in given)
    assert len(given) == 5


def test_shift_as_wide_as_the_picture_is_refused():
    for shift in (-1, SIZE):
        with pytest.raises(UserError, match=f"random_shift must be from 0 to {SIZE - 1} pixels"):
            replace(TINY, random_shift=shift)
