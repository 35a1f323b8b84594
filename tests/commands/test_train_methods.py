"""`run.py train --method`: each method has its own options, names of folders, and refusals."""

import pytest

from agents.dreamer_config import DreamerConfig
from agents.masked_world_model_config import MaskedWorldModelConfig
from run import main

TASK = ["--task", "metaworld/window-close"]


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        ([], MaskedWorldModelConfig, "cpu-seed0"),
        (["--method", "masked-world-model"], MaskedWorldModelConfig, "cpu-seed0"),
        (["--method", "dreamer"], DreamerConfig, "dreamer-cpu-seed0"),
        (["--method=dreamer", "--preset=paper", "--seed=3"], DreamerConfig, "dreamer-paper-seed3"),
        (
            ["--method=dreamer", "--target=masks", "--agent.encoder=vit"],
            DreamerConfig,
            "dreamer-vit-cpu-masks-seed0",
        ),
        (
            ["--method=dreamer", "--agent.representation=contrastive"],
            DreamerConfig,
            "dreamer-contrastive-cpu-seed0",
        ),
    ],
)
def test_the_method_decides_the_agent_and_the_name_of_the_folder(
    arguments, kind, name, tmp_path, monkeypatch
):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.online.train", lambda *run: started.append(run))
    assert main(["train", *TASK, *arguments]) == 0
    ((config, folder, _),) = started
    assert type(config.agent) is kind
    assert folder.path.name == f"metaworld-window-close-{name}"
    assert ("masks" in name) == (config.agent.target == "masks")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "dreamr"], ["dreamr", "masked-world-model, dreamer"]),
        (
            ["--method=dreamer", "--agent.autoencoder.width", "8"],
            ["--agent.autoencoder.width"],
        ),
        (["--agent.encoder", "vit"], ["--agent.encoder"]),
        (["--method=dreamer", "--agent.encoder", "mlp"], ["--agent.encoder", "cnn"]),
        (
            ["--method=dreamer", "--target=masks", "--agent.representation=contrastive"],
            ["decodes nothing", "target masks"],
        ),
        (
            ["--method=dreamer", "--environment.size", "48", "--agent.dynamics.image-size", "48"],
            ["image_size must be a power of two", "not 48"],
        ),
        (
            ["--method=dreamer", "--environment.size", "32"],
            ["environment.size is 32 but agent.dynamics.image_size is 64"],
        ),
    ],
)
def test_what_cannot_be_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TASK, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "there", "absent"),
    [
        ("masked-world-model", "--agent.autoencoder.mask-ratio", "--agent.encoder"),
        ("dreamer", "--agent.representation", "--agent.autoencoder"),
    ],
)
def test_help_shows_the_options_of_the_method(method, there, absent, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--method", method, "--help"])
    shown = capsys.readouterr().out
    assert there in shown
    assert absent not in shown
    assert "--method {masked-world-model,dreamer}" in shown
