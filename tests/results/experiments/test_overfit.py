"""A small model learns a few real frames by heart; one that cannot would be wrong somewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.presets import preset
from results.experiments.overfit import MOVES, Overfit, collect, learn, main, measure, psnr

TASK = "metaworld/window-close"


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    return collect(tmp_path_factory.mktemp("replay"), TASK, episodes=1, seed=0)


@pytest.mark.simulator
def test_collected_frames_hold_actions_and_have_masks(replay):
    assert replay.frames == 251
    batch = replay.sample_windows(1, 251)
    action = batch["action"][0, 1:]
    assert set(action.unique().tolist()) == {-1.0, 1.0}
    held = action[:248].view(31, 8, -1)
    assert (held == held[:, :1]).all()
    moves = torch.isin(batch["mask"], MOVES)
    assert 0.02 < moves.float().mean() < 0.4
    still = (batch["mask"][:, 1:] == batch["mask"][:, :-1]).float()
    assert still[moves[:, :-1]].mean() < still[~moves[:, :-1]].mean()


@pytest.mark.simulator
def test_models_learn_a_tiny_replay_by_heart(replay):
    config = preset("cpu", TASK).agent
    config = replace(config, batch=8, autoencoder_batch=16)
    model = learn(config, replay, autoencoder=500, dynamics=250, seed=0)
    known = measure(model, replay, windows=16)
    # Measured: 3.3, 4.3, .06, .01, 3.7 and 4.6.
    assert known["psnr"] > known["psnr_of_the_mean_picture"] + 2.5
    assert known["psnr_of_what_moves"] > known["psnr_of_the_mean_picture_where_it_moves"] + 3.0
    assert known["reward_error_autoencoder"] < 0.15 * known["reward_variance"]
    assert known["reward_error_dynamics"] < 0.1 * known["reward_variance"]
    assert known["open_loop_psnr_of_what_moves"] > known["copy_psnr_of_what_moves"] + 2.0
    assert known["open_loop_psnr_last_step"] > known["copy_psnr_last_step"] + 3.0


def test_psnr_is_its_definition():
    truth = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    predicted = truth.clone()
    predicted[0, 0, 0] = 51  # a fifth of the range, in one of eight pixels
    assert psnr(predicted, truth) == pytest.approx(10 * np.log10(8 * 25))
    where = torch.zeros(2, 2, 2, dtype=torch.bool)
    where[0, 0] = True
    assert psnr(predicted, truth, where) == pytest.approx(10 * np.log10(2 * 25))


@pytest.mark.simulator
def test_script_writes_measurements_and_a_picture(tmp_path):
    main(
        Overfit(
            out=tmp_path, task="dmc/reach_duplo", episodes=1, autoencoder_updates=2,
            dynamics_updates=2,
        )
    )  # fmt: skip
    measured = json.loads((tmp_path / "dmc-reach_duplo.json").read_text())
    assert measured["frames"] == 126
    assert measured["updates"] == [2, 2]
    assert np.isfinite(measured["open_loop_psnr"])
    assert (tmp_path / "dmc-reach_duplo.png").read_bytes()[:4] == b"\x89PNG"
