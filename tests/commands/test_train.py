"""Options of `run.py train` for ablations."""

import pytest

from agents.presets import preset
from run import main

TASK = "metaworld/window-close"


def configured(monkeypatch, tmp_path, *arguments):
    """The configuration that a command would train."""
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.online.train", lambda *run: started.append(run))
    assert main(["train", "--task", TASK, *arguments]) == 0
    return started[0][0]


@pytest.mark.parametrize(
    "arguments",
    [["--autoencoder-from", "runs/x"], ["--autoencoder-from=runs/x"],
     ["--agent.autoencoder-from", "runs/x"]],
)  # fmt: skip
def test_where_features_come_from_is_one_option_and_is_recorded(monkeypatch, tmp_path, arguments):
    config = configured(monkeypatch, tmp_path, *arguments)
    assert config.agent.autoencoder_from == "runs/x"
    folder = tmp_path / "runs" / "metaworld-window-close-cpu-seed0"
    assert "autoencoder_from: runs/x" in (folder / "config.yaml").read_text()


def test_every_ablation_of_the_autoencoder_is_an_option(monkeypatch, tmp_path):
    arguments = ["--agent.autoencoder.mask", "pixels", "--agent.autoencoder.mask-ratio", "0.9",
                 "--agent.autoencoder.features", "class", "--agent.autoencoder.kind", "vae",
                 "--agent.autoencoder.reward-weight", "0"]  # fmt: skip
    seeing = configured(monkeypatch, tmp_path, *arguments).agent.autoencoder
    assert (seeing.mask, seeing.mask_ratio, seeing.features) == ("pixels", 0.9, "class")
    assert (seeing.kind, seeing.reward_weight) == ("vae", 0.0)


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_presets_ablate_nothing(name):
    agent = preset(name, TASK).agent
    seeing = agent.autoencoder
    assert (seeing.kind, seeing.mask, seeing.features) == ("mae", "features", "all")
    assert agent.autoencoder_from is None
