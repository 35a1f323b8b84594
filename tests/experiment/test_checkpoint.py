"""Checkpoints: what comes back bit for bit, what is refused, what a kill cannot break."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

from atomic_file import atomic_file
from errors import UserError
from experiment.checkpoint import (
    FORMAT,
    VERSION,
    expect,
    fingerprint,
    fitting,
    load_checkpoint,
    save_checkpoint,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def training_state():
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    generator = np.random.default_rng(0)
    return {
        "agent": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": generator.bit_generator.state,  # integers of 128 bits
        "step": 12,
        "best": None,
        "flags": [True, ("a", 1.5)],
    }


def test_checkpoint_comes_back_bit_for_bit(path):
    state = training_state()
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    for name, tensor in state["agent"].items():
        assert torch.equal(loaded["agent"][name], tensor)
    moment = state["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], moment)
    assert torch.equal(loaded["torch"], state["torch"])
    for name in ("numpy", "step", "best", "flags"):
        assert loaded[name] == state[name]


def test_no_checkpoint_is_none(path):
    assert load_checkpoint(path) is None


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(1.0), r"\['a'\]\[0\]"),
        (np.zeros(3), "ndarray"),
        (object(), "object"),
        ({np.int64(3): 1}, "int64|NumPy"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(path, value, named):
    save_checkpoint(path, {"step": 1})
    with pytest.raises(TypeError, match=named):
        save_checkpoint(path, {"a": [value]})
    assert load_checkpoint(path) == {"step": 1}


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_checkpoint_is_refused_and_kept(path, fraction):
    save_checkpoint(path, training_state())
    whole = path.read_bytes()
    part = whole[: int(len(whole) * fraction)]
    path.write_bytes(part)
    with pytest.raises(UserError, match=r"checkpoint\.pt is .*nothing was changed"):
        load_checkpoint(path)
    assert path.read_bytes() == part


def test_weights_spoilt_on_the_disk_are_noticed(path):
    save_checkpoint(path, {"weights": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_foreign_checkpoints_are_refused(path):
    path.write_text("not a checkpoint at all")
    with pytest.raises(UserError, match="damaged or is not a checkpoint"):
        load_checkpoint(path)
    torch.save({"model": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not a checkpoint of this toolkit"):
        load_checkpoint(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)


class Touch:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_reading_a_checkpoint_runs_no_code(path, tmp_path):
    torch.save({"format": Touch(tmp_path / "made")}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "made").exists()


def written(path, state, **changes):
    """Write a checkpoint as this toolkit's, whatever is in it."""
    content = {"format": FORMAT, "version": VERSION, "state": state} | changes
    torch.save(content, path)


@pytest.mark.parametrize(
    "state",
    [
        {"agent": {"a": torch.tensor([1.0, float("nan")])}},
        {"agent": [torch.tensor(float("-inf"), dtype=torch.bfloat16)]},
        {"seconds": float("inf")},
    ],
)
def test_weights_that_are_not_finite_are_neither_read_nor_written(path, state):
    written(path, state)
    with pytest.raises(UserError, match=r"state.* is not finite.*nothing was changed"):
        load_checkpoint(path)
    save_checkpoint(path, {"step": 1})
    with pytest.raises(UserError, match="is not finite.*the checkpoint before it is untouched"):
        save_checkpoint(path, state)
    assert load_checkpoint(path) == {"step": 1}


def circle():
    one = {}
    one["itself"] = one
    return one


def each_other(depth=60):
    """2^60 empty lists in 60."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "state",
    [
        5,
        None,
        {"a": torch.zeros(3).expand(10**12, 3)},
        {"a": torch.zeros(3, device="meta")},
        {"a": torch.zeros(3, 3).to_sparse()},
        {"a": 1 << 20_000},
        {"a": {1, 2}},
        {"a": 1j},
        {"a": b"bytes"},
        {"a": torch.float32},
        circle(),
        {"a": each_other()},
    ],
)
def test_content_that_could_not_be_worked_with_is_refused(path, state):
    written(path, state)
    with pytest.raises(UserError, match="damaged or is not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("version", ["x" * 10_000, None, 10**4000])
def test_a_checkpoint_without_a_version_is_refused(path, version):
    written(path, {}, version=version)
    with pytest.raises(UserError) as refusal:
        load_checkpoint(path)
    assert len(str(refusal.value)) < 1000


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(path):
    """64 MiB of zeros, in 64 KiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(2**20))
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_a_storage_that_says_it_is_larger_is_refused(path):
    written(path, {"weights": torch.arange(1000.0)})
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            large = content.replace(b"M\xe8\x03", b"M\xff\xff") if "pkl" in name else content
            assert "pkl" not in name or large != content
            archive.writestr(name, large)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_a_file_of_holes_is_refused_by_its_size(path):
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(UserError, match="larger than this machine's memory"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "error",
    [KeyError("stage"), TypeError("not a\nmapping"), ValueError(), RuntimeError("size mismatch")],
)
def test_what_a_run_misses_in_a_checkpoint_is_one_sentence(path, error):
    words = "another run's checkpoint, or damaged"
    with pytest.raises(UserError, match=words) as refusal, fitting(path):
        raise error
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "state", [{}, {"steps": "5"}, {"steps": True}, {"steps": -1}, {"steps": None}, {"steps": 5.0}]
)
def test_a_value_of_another_kind_is_named(path, state):
    expect({"steps": 5, "agent": {}}, path, steps=int, agent=dict)
    with pytest.raises(UserError, match="has no steps that a run could go on with"):
        expect(state, path, steps=int)


def test_a_fingerprint_tells_states_apart():
    state = training_state()
    assert fingerprint(state) == fingerprint(training_state() | state)
    other = {**state, "agent": {n: v + 1e-6 for n, v in state["agent"].items()}}
    assert len({fingerprint(each) for each in (state, other, {"a": 1}, {"b": 1})}) == 4


def test_checkpoint_of_a_newer_toolkit_is_refused_by_its_version(path):
    save_checkpoint(path, {"step": 1})
    content = torch.load(path, weights_only=True)
    torch.save(content | {"version": 99}, path)
    with pytest.raises(UserError, match="version 99"):
        load_checkpoint(path)


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with atomic_file(path) as file:
            file.write(b"new, but only ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_kill_while_saving_leaves_a_whole_checkpoint(path):
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from experiment.checkpoint import save_checkpoint\n"
        "path, step = Path(sys.argv[1]), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    weights = torch.full((300_000,), float(step))\n"
        "    save_checkpoint(path, {'step': step, 'weights': weights})\n"
        "    print(step, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    try:
        for _ in range(5):
            writer.stdout.readline()
        time.sleep(0.003)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    state = load_checkpoint(path)
    assert state["step"] >= 5
    assert (state["weights"] == state["step"]).all()
