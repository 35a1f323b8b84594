"""A run of train for the scripts that look at one."""

from dataclasses import replace

import pytest

from agents.online import train
from agents.presets import preset
from experiment.run_folder import RunFolder


@pytest.fixture(scope="session")
def trained_briefly():
    """A function of a folder, a task and a target: trains there, to one update."""

    def make(folder, task, target="pixels"):
        default = preset("cpu", task)
        config = replace(
            default, steps=500, prefill=250, episode_steps=0,
            evaluate_episodes=1, evaluate_first=1000,
            environment=replace(default.environment, size=32), update_every=250,
            agent=replace(
                default.agent, autoencoder_pretraining=2, joint_pretraining=1,
                autoencoder=replace(default.agent.autoencoder, image_size=32, target=target),
            ),
        )  # fmt: skip
        with RunFolder.create_or_resume(folder, config) as opened:
            train(config, opened)
        return folder

    return make
