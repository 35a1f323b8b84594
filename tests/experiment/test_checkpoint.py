"""Checkpoints: what comes back bit for bit, what is refused, what a kill cannot break."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from atomic_file import atomic_file
from errors import UserError
from experiment.checkpoint import load_checkpoint, save_checkpoint


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
