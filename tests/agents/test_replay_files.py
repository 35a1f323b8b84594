"""A replay on disk that somebody shortened, damaged, or has no room for: refused by name."""

import json
import os
import shutil

import numpy as np
import pytest

from agents.replay import Entry, Replay
from errors import UserError
from tests.agents.test_replay import ENTRIES, episode, fill
from tests.disks import small_disk

CAPACITY = 40


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "replay"
    fill(Replay(folder, ENTRIES, CAPACITY), [6, 7, 5])
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "replay")


def opened(folder):
    replay = Replay(folder, ENTRIES, CAPACITY)
    replay.check()
    return replay


def shortened(path):
    os.truncate(path, path.stat().st_size - 1)


def made_again(path):
    size = path.stat().st_size
    path.write_bytes(b"")
    os.truncate(path, size)


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // CAPACITY * 8] ^= 1  # in a frame of the second episode
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["image", "reward", "is_first", "number"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (os.remove, "{name}.bin is missing"),
        (shortened, "{name}.bin has"),
        (lambda path: path.write_bytes(b""), "{name}.bin has 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "{name}.bin has"),
        (lambda path: (path.unlink(), path.mkdir()), "{name}.bin is missing"),
        (made_again, r"{name}\.bin, .* has changed since it was written: episode"),
        (changed, r"{name}\.bin, .* has changed since it was written: episode 1"),
    ],
)
def test_frames_that_are_not_those_stored_are_refused(folder, name, damage, words):
    if damage is made_again and name == "is_first":
        words = "episode 0"
    damage(folder / f"{name}.bin")
    with pytest.raises(UserError, match=words.format(name=name)) as error:
        opened(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):  # as --recorded reads it
        list(Replay.at(folder).episodes())


def test_a_replay_without_checksums_still_opens(folder):
    """As earlier versions wrote it."""
    path = folder / "episodes.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in record.items() if k != "crc32"} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert opened(folder).records == kept


def test_files_that_a_kill_left_half_made_are_made(tmp_path):
    Replay(tmp_path / "replay", ENTRIES, CAPACITY)
    (tmp_path / "replay" / "image.bin").unlink()
    os.truncate(tmp_path / "replay" / "reward.bin", 3)
    fill(opened(tmp_path / "replay"), [6])
    assert len(opened(tmp_path / "replay").records) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "null", "\0\0\0", "[" * 20_000, '{"frames": ' + "9" * 5000 + "}", "{}",
        '{"frames": -6, "agent_steps": 5, "env_steps": 10}',
        '{"frames": 0, "agent_steps": 0, "env_steps": 10}',
        '{"frames": 6, "agent_steps": 6, "env_steps": 10}',
        '{"frames": 6.0, "agent_steps": 5, "env_steps": 10}',
        '{"frames": true, "agent_steps": 0, "env_steps": 0}',
        '{"frames": 6, "agent_steps": 5, "env_steps": null}',
        '{"frames": 6, "agent_steps": 5, "env_steps": -10}',
        '{"frames": 6, "agent_steps": 5, "env_steps": 10, "return": "high"}',
        '{"frames": 41, "agent_steps": 40, "env_steps": 10}',
        '{"frames": 99999999999999, "agent_steps": 99999999999998, "env_steps": 10}',
        '{"dropped": 2}', '{"dropped": 0}', '{"dropped": "1"}', '{"dropped": NaN}',
    ],
)  # fmt: skip
def test_index_line_that_cannot_be_true_is_refused_by_number(folder, line):
    path = folder / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], line + "\n", *lines[1:]]))
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"line 2 of {path} is damaged") as error:
        opened(folder)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "layout",
    [
        "", "{", "[]", "null", '{"capacity": 40}', "[" * 20_000,
        '{"capacity": -1, "entries": {}}',
        '{"capacity": 40, "entries": []}',
        '{"capacity": 40, "entries": {"../up": [[], "uint8"]}}',
        '{"capacity": 40, "entries": {"image": [[2, 2, 3], "object"]}}',
        '{"capacity": 40, "entries": {"image": [[2, 2, 3], "O"]}}',
        '{"capacity": 40, "entries": {"image": [[0], "uint8"]}}',
        '{"capacity": 40, "entries": {"image": [["2"], "uint8"]}}',
        '{"capacity": ' + "9" * 5000 + ', "entries": {}}',
    ],
)  # fmt: skip
def test_layout_that_describes_no_replay_is_refused(folder, layout):
    (folder / "layout.json").write_text(layout)
    for read in (opened, Replay.at):
        with pytest.raises(UserError, match=r"layout\.json describes no replay") as error:
            read(folder)
        assert len(str(error.value)) < 500


def test_huge_layout_needs_files_to_match(folder):
    layout = json.loads((folder / "layout.json").read_text())
    (folder / "layout.json").write_text(json.dumps({**layout, "capacity": 2**39}))
    with pytest.raises(UserError, match="bytes, layout.json says"):
        Replay.at(folder)


def test_full_disk_refuses_an_episode_and_keeps_the_others(tmp_path):
    """Of a few pages of memory, in which the frames of a second long episode need new ones."""
    entries = {**ENTRIES, "image": Entry((32, 32, 3), "uint8")}

    def opened():
        return Replay(disk.path / "replay", entries, 4 * CAPACITY)

    def seen(length, start=0):
        picture = np.zeros((length, 32, 32, 3), np.uint8)
        return {**episode(length, start), "image": picture}

    with small_disk(tmp_path / "disk", kib=1024) as disk:
        replay = opened()
        replay.add_episode(seen(6), env_steps=10)
        before = (disk.path / "replay" / "episodes.jsonl").read_bytes()
        disk.fill()
        with pytest.raises(UserError, match=r"No space left on device\); .* are kept"):
            replay.add_episode(seen(20, 6), env_steps=10)
        assert (disk.path / "replay" / "episodes.jsonl").read_bytes() == before
        disk.empty()
        replay.add_episode(seen(20, 6), env_steps=10)
        assert len(opened().records) == 2


def test_later_episodes_come_back_as_they_were_stored(folder):
    whole, replay = opened(folder), opened(folder)
    replay.load_state_dict({"rng": replay.rng.bit_generator.state, "episodes": 1})
    assert (replay.frames, replay.agent_steps, replay.env_steps) == (6, 5, 10)
    assert replay.sample_frames(50)["number"].max() < 6
    for record in whole.records[1:]:
        assert replay.later[0] == record
        assert len(replay.next_later()["reward"]) == record["frames"]
        replay.recall()
    assert replay.records == whole.records
    for (mine, _), (theirs, _) in zip(replay.episodes(), whole.episodes(), strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_what_later_episodes_have_overwritten_cannot_be_gone_back_to(tmp_path):
    replay = Replay(tmp_path, ENTRIES, 20)
    fill(replay, [6, 6, 6, 6])
    replay.load_state_dict({"rng": replay.rng.bit_generator.state, "episodes": 2})
    assert replay.later == []
    assert len(replay.records) == 4
