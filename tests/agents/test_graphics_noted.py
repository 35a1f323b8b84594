"""What draws a run's pictures is in its record; of a GPU that does not, one line tells."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from agents.training import TrainingRun
from experiment.run_folder import RunFolder

SOFTWARE, GPU = "llvmpipe (LLVM 15.0.7, 256 bits)", "NVIDIA H200/PCIe/SSE2"


@dataclass(frozen=True)
class Run:
    """A configuration."""

    task: str = "dmc/walker-walk"
    seed: int = 0
    steps: int = 10
    device: str = "auto"


@pytest.fixture
def noted(tmp_path, capsys):
    """A function of renderer and GPU, first or not: the record then, and what has been said."""

    def note(monkeypatch, renderer, gpu, first=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: gpu)
        environments = SimpleNamespace(get_attr=lambda name: {"graphics": (renderer,)}[name])
        with RunFolder.create_or_resume(tmp_path / "run", Run()) as folder:
            run = SimpleNamespace(folder=folder, config=Run())
            TrainingRun.note_graphics(run, environments, first)
            return folder.config.read()["hardware"], capsys.readouterr().err

    return note


@pytest.mark.parametrize(
    ("renderer", "gpu", "warned"),
    [
        (SOFTWARE, "NVIDIA H200", True),
        (SOFTWARE, None, False),
        (GPU, "NVIDIA H200", False),
    ],
)
def test_software_is_told_of_where_there_is_a_gpu(noted, monkeypatch, renderer, gpu, warned):
    hardware, said = noted(monkeypatch, renderer, gpu)
    assert hardware["renderer"] == renderer
    assert hardware["cores"] >= 1  # what else is recorded stays
    assert said.count("\n") == warned
    if warned:
        assert SOFTWARE in said
        assert gpu in said


def test_the_record_is_of_what_drew_first(noted, monkeypatch):
    noted(monkeypatch, GPU, "NVIDIA H200")
    hardware, said = noted(monkeypatch, SOFTWARE, "NVIDIA H200", first=False)
    assert hardware["renderer"] == GPU
    assert SOFTWARE in said


def test_a_simulator_that_cannot_be_asked_is_passed_over(noted, monkeypatch):
    hardware, said = noted(monkeypatch, None, "NVIDIA H200")
    assert "renderer" not in hardware
    assert not said
