"""The replay: what a window may hold, how it is drawn, and what a kill leaves behind."""

import json
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents.replay import Entry, Replay, entries_for, stretches
from errors import UserError

ENTRIES = {
    "number": Entry((), "int64"),  # of the frame, among all frames ever stored
    "image": Entry((2, 2, 3), "uint8"),
    "action": Entry((2,), "float32"),
    "reward": Entry((), "float32"),
    "is_first": Entry((), "bool"),
    "is_terminal": Entry((), "bool"),
}


def episode(frames, first=0):
    number = np.arange(first, first + frames)
    action = np.stack([number, -number], -1).astype(np.float32)
    action[0] = 0.0
    return {
        "number": number,
        "image": (number % 251)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
        "action": action,
        "reward": number.astype(np.float32) / 8,
        "is_first": np.arange(frames) == 0,
        "is_terminal": np.zeros(frames, bool),
    }


def fill(replay, lengths, first=0):
    """Add episodes of so many frames; return the episode of each frame number."""
    owner = {}
    for index, frames in enumerate(lengths):
        replay.add_episode(episode(frames, first), env_steps=2 * (frames - 1))
        owner |= dict.fromkeys(range(first, first + frames), index)
        first += frames
    return owner


def kept_numbers(lengths, capacity):
    """Frame numbers of the newest whole episodes that fit the capacity together."""
    end, first = sum(lengths), sum(lengths)
    for frames in reversed(lengths):
        if end - (first - frames) > capacity:
            break
        first -= frames
    return set(range(first, end))


def equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


# --------------------------------------------------------------------------------- windows

LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=25)


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    capacity=st.integers(12, 60),
    window=st.integers(1, 15),
    prioritise=st.booleans(),
    reopen=st.booleans(),
)
def test_window_never_crosses_an_episode_unmarked(lengths, capacity, window, prioritise, reopen):
    """Also after eviction and wraparound, and also when it was opened again."""
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder), ENTRIES, capacity, prioritise_ends=prioritise)
        owner = fill(replay, lengths)
        if reopen:
            replay = Replay(Path(folder), ENTRIES, capacity, prioritise_ends=prioritise)
        kept = kept_numbers(lengths, capacity)
        assert replay.frames == len(kept)
        batch = replay.sample_windows(20, window)
        assert batch["number"].shape == (20, window)
        assert batch["image"].shape == (20, window, 2, 2, 3)
        numbers, is_first = batch["number"].tolist(), batch["is_first"].tolist()
        for row, firsts in zip(numbers, is_first, strict=True):
            assert set(row) <= kept
            for t in range(1, window):
                goes_on = row[t] == row[t - 1] + 1 and owner[row[t]] == owner[row[t - 1]]
                assert goes_on != firsts[t]
            # A window that fits into the episode it starts in does not leave it.
            if lengths[owner[row[0]]] >= window:
                assert owner[row[-1]] == owner[row[0]]
        number = batch["number"].float()
        assert torch.equal(batch["reward"], number / 8)
        led_here = torch.where(batch["is_first"], torch.zeros(()), number)
        assert torch.equal(batch["action"], torch.stack([led_here, -led_here], -1))


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(12, 60))
def test_sampled_frames_are_kept_frames(lengths, capacity):
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder), ENTRIES, capacity)
        fill(replay, lengths)
        batch = replay.sample_frames(50)
        assert set(batch["number"].tolist()) <= kept_numbers(lengths, capacity)
        assert torch.equal(batch["reward"], batch["number"].float() / 8)
        assert torch.equal(batch["image"][:, 1, 1, 2].long(), batch["number"] % 251)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([7], [(7, 1)]),
        ([3, 4, 5, 4, 9, 0, 1], [(3, 3), (4, 1), (9, 1), (0, 2)]),
    ],
)
def test_stretches_of_consecutive_frames(places, expected):
    assert stretches(np.array(places, np.int64)) == expected


def test_frames_larger_than_a_page_come_back_from_every_place_of_the_ring(tmp_path):
    """The disk is asked for those beforehand; 5,043 bytes start anywhere in a page."""
    replay = Replay(tmp_path, ENTRIES | {"image": Entry((41, 41, 3), "uint8")}, 20)
    for first in (0, 9, 18):  # the third goes on at the ring's beginning
        large = episode(9, first)
        large["image"] = np.random.default_rng(first).integers(0, 256, (9, 41, 41, 3), np.uint8)
        replay.add_episode(large, env_steps=16)
    for index in (np.arange(18, 27), np.array([[19, 20, 21], [24, 25, 26]])):
        batch = replay.windows(index)
        assert torch.equal(batch["number"], torch.from_numpy(index))
        assert np.array_equal(batch["image"], large["image"][index - 18])


def test_frames_are_drawn_uniformly_and_not_as_windows(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 60)
    fill(replay, [40, 3, 7, 20, 10, 3])  # the first is evicted
    draws = 20_000
    numbers = replay.sample_frames(draws)["number"].numpy()
    counts = np.bincount(numbers - 40, minlength=43)
    assert len(counts) == 43
    deviation = ((counts - draws / 43) ** 2 / (draws / 43)).sum()
    assert deviation < stats.chi2.ppf(1 - 1e-6, 42)
    follows = (np.diff(numbers) == 1).mean()
    assert follows < 0.05  # independent draws: 1 in 43


@pytest.mark.parametrize(
    ("prioritise", "share"),
    # 251 frames hold 202 windows of 50; prioritised, 50 more draws fall on the last one.
    [(True, 51 / 252), (False, 1 / 202)],
)
def test_how_often_a_window_is_the_episodes_last(tmp_path, prioritise, share):
    replay = Replay(tmp_path, ENTRIES, 1000, prioritise_ends=prioritise)
    owner = fill(replay, [251, 251])
    draws = 6000
    last = replay.sample_windows(draws, 50)["number"][:, -1].tolist()
    assert set(owner) == set(range(502))
    measured = np.mean([number in (250, 501) for number in last])
    assert measured == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / draws))


def test_every_other_start_is_equally_likely(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 100)
    fill(replay, [20, 20])
    draws = 20_000
    starts = replay.sample_windows(draws, 5)["number"][:, 0].numpy()
    counts = np.bincount(starts, minlength=40)[[*range(16), *range(20, 36)]]
    assert counts.sum() == draws
    deviation = ((counts - draws / 32) ** 2 / (draws / 32)).sum()
    assert deviation < stats.chi2.ppf(1 - 1e-6, 31)


# ------------------------------------------------------------------------------- on the disk


def test_everything_stored_comes_back_after_a_restart(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 100, seed=3)
    fill(replay, [5, 9])
    again = Replay(tmp_path, ENTRIES, 100, seed=3)
    assert again.records == replay.records
    assert (again.frames, again.agent_steps, again.env_steps) == (14, 12, 24)
    assert equal(again.sample_windows(30, 4), replay.sample_windows(30, 4))


@pytest.mark.parametrize("kept_bytes", [1, 20, -1])
def test_episode_whose_index_line_was_cut_off_is_as_if_it_never_was(tmp_path, kept_bytes):
    replay = Replay(tmp_path, ENTRIES, 100)
    fill(replay, [5, 9])
    index = tmp_path / "episodes.jsonl"
    whole = index.read_bytes()
    torn = whole[whole[:-1].rfind(b"\n") + 1 :][:kept_bytes]
    index.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1] + torn)

    again = Replay(tmp_path, ENTRIES, 100)
    assert again.frames == 5
    fill(again, [4, 6], first=5)
    last = Replay(tmp_path, ENTRIES, 100)
    assert [record["frames"] for record in last.records] == [5, 4, 6]
    assert set(last.sample_frames(500)["number"].tolist()) == set(range(15))


def test_kill_while_the_ring_is_overwritten_loses_only_what_was_dropped(tmp_path):
    """The dropped episodes are named before their frames are overwritten."""
    replay = Replay(tmp_path, ENTRIES, 20)
    fill(replay, [8, 8])
    # The state of the disk when the process dies after half of the third episode's frames.
    fill(replay, [8], first=16)
    index = tmp_path / "episodes.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["frames"] == 8
    index.write_bytes(b"".join(lines[:-1]))
    again = Replay(tmp_path, ENTRIES, 20)
    assert set(again.sample_frames(300)["number"].tolist()) == set(range(8, 16))


def test_counters_remember_evicted_episodes(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 12)
    fill(replay, [6] * 10)
    for same in (replay, Replay(tmp_path, ENTRIES, 12)):
        assert (same.frames, same.agent_steps, same.env_steps) == (12, 50, 100)
        assert len(same.records) == 10


def test_the_newest_episodes_can_be_asked_for_alone(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 16)
    fill(replay, [6, 5, 7, 3])  # the first has been dropped
    for newest, lengths in ((0, []), (1, [3]), (2, [7, 3]), (3, [5, 7, 3]), (9, [5, 7, 3])):
        asked = list(replay.episodes(newest=newest))
        assert [len(arrays["number"]) for arrays, _ in asked] == lengths
        assert [record["frames"] for _, record in asked] == lengths
        assert not asked or asked[-1][0]["number"].tolist() == [18, 19, 20]


def test_episode_that_fills_the_ring_replaces_everything(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 12)
    fill(replay, [5, 4, 12])
    assert set(replay.sample_frames(300)["number"].tolist()) == set(range(9, 21))


def test_episode_longer_than_the_ring_is_refused(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 12)
    fill(replay, [5])
    with pytest.raises(UserError, match="13 frames"):
        replay.add_episode(episode(13), env_steps=24)
    assert replay.frames == 5


@pytest.mark.parametrize(
    ("entries", "capacity"),
    [
        (ENTRIES, 101),
        (ENTRIES | {"image": Entry((4, 4, 3), "uint8")}, 100),
        (ENTRIES | {"reward": Entry((), "float64")}, 100),
        ({name: entry for name, entry in ENTRIES.items() if name != "number"}, 100),
    ],
)
def test_folder_of_another_layout_is_refused(tmp_path, entries, capacity):
    fill(Replay(tmp_path, ENTRIES, 100), [5])
    with pytest.raises(UserError, match="--logdir"):
        Replay(tmp_path, entries, capacity)


def test_a_copy_in_memory_gives_the_same_samples(tmp_path):
    """Taken over when it is made, kept up with after that, through eviction too."""
    disk = Replay(tmp_path / "disk", ENTRIES, 40)
    memory = Replay(tmp_path / "memory", ENTRIES, 40)
    for replay in (disk, memory):
        fill(replay, [9, 7])
    assert memory.device is None
    memory.keep_on(torch.device("cpu"))
    assert memory.device == torch.device("cpu")
    for count in range(6):
        for sample in (lambda r: r.sample_windows(30, 4), lambda r: r.sample_frames(50)):
            assert equal(sample(memory), sample(disk))
        for replay in (disk, memory):
            fill(replay, [11], first=20 * count)
    memory._arrays["image"][:] = 0  # the files are not read any more
    assert equal(memory.sample_frames(20), disk.sample_frames(20))


def test_the_size_of_a_full_replay_is_that_of_its_files(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 40)
    assert replay.bytes_when_full == sum(p.stat().st_size for p in tmp_path.glob("*.bin"))


def test_a_replay_that_the_memory_cannot_hold_stays_on_the_disk(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 10**11)  # the files are sparse
    with pytest.raises(
        UserError, match=r"100,000,000,000 frames takes .* \(--replay-memory disk\)"
    ):
        replay.keep_on(torch.device("cpu"))
    assert replay.device is None


# ----------------------------------------------------------------------------- determinism


def test_seed_decides_the_samples(tmp_path):
    fill(Replay(tmp_path, ENTRIES, 100), [30, 30])
    one, same, other = (Replay(tmp_path, ENTRIES, 100, seed=seed) for seed in (1, 1, 2))
    left = one.sample_windows(20, 5)
    assert equal(left, same.sample_windows(20, 5))
    assert not equal(left, other.sample_windows(20, 5))


def test_restored_replay_draws_what_would_have_come_next(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 100, prioritise_ends=True)
    fill(replay, [30, 30])
    replay.sample_windows(7, 5)
    replay.sample_frames(3)
    state = json.loads(json.dumps(replay.state_dict()))  # plain values only
    again = Replay(tmp_path, ENTRIES, 100, prioritise_ends=True)
    again.load_state_dict(state)
    assert equal(again.sample_windows(20, 5), replay.sample_windows(20, 5))
    assert equal(again.sample_frames(20), replay.sample_frames(20))


def test_sampling_with_another_generator_leaves_the_replays_own_alone(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 100)
    fill(replay, [30])
    before = replay.state_dict()
    replay.sample_windows(5, 5, np.random.default_rng(0))
    replay.sample_frames(5, np.random.default_rng(0))
    assert replay.state_dict() == before


def test_replay_that_lost_episodes_is_refused(tmp_path):
    replay = Replay(tmp_path / "whole", ENTRIES, 100)
    fill(replay, [5, 5])
    state = replay.state_dict()
    fewer = Replay(tmp_path / "fewer", ENTRIES, 100)
    fill(fewer, [5])
    with pytest.raises(UserError, match="1 episodes but the checkpoint was made with 2"):
        fewer.load_state_dict(state)
    fill(replay, [5], first=10)
    replay.load_state_dict(state)  # more than the checkpoint knew are welcome


def test_entries_are_those_of_the_spaces():
    observation = gymnasium.spaces.Dict(
        image=gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8),
        proprio=gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32),
    )
    action = gymnasium.spaces.Box(-1, 1, (60,), np.float64)  # more than 50 dimensions
    assert entries_for(observation, action) == {
        "image": Entry((64, 64, 3), "uint8"),
        "proprio": Entry((7,), "float32"),
        "action": Entry((60,), "float32"),
        "reward": Entry((), "float32"),
        "is_first": Entry((), "bool"),
        "is_terminal": Entry((), "bool"),
    }
