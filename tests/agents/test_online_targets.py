"""What online runs predict and learn from: masks, cameras, episodes recorded elsewhere."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from agents.online_evaluation import evaluate, final_seeds
from agents.online_loading import load_agent
from agents.online_run import make_envs
from agents.replay import Replay
from envs import EnvironmentConfig
from envs.recording import collect
from errors import UserError
from mask_classes import UNLABELLED
from tests.agents.online_runs import (
    EPISODE,
    REPEAT,
    STEPS,
    Photographed,
    Still,
    checkpoint,
    differences,
    lines,
    never_backwards,
    records,
    run,
    tiny,
)

pytestmark = pytest.mark.simulator


# ------------------------------------------------------------------------ what is predicted


def predicting(target, **changes):
    agent = tiny().agent
    seeing = replace(agent.autoencoder, target=target)
    return tiny(agent=replace(agent, autoencoder=seeing), **changes)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run whose world model predicts masks."""
    config = predicting("masks", evaluate_first=2 * EPISODE)
    return run(tmp_path_factory.mktemp("masked") / "run", config, Photographed)


def test_masks_are_learned_from_but_acting_sees_the_picture_alone(masked):
    config = predicting("masks")
    learning, acting = (make_envs(config, 1, training=training) for training in (True, False))
    try:
        assert set(learning.single_observation_space.spaces) == {"image", "mask"}
        assert set(acting.single_observation_space.spaces) == {"image"}
    finally:
        learning.close()
        acting.close()
    agent, config, _ = load_agent(masked, "cpu")
    # On environments without masks.
    (result,) = evaluate(agent, config, final_seeds(3, 1), 3)
    assert result["length"] == EPISODE
    replay = Replay.at(masked / "replay")
    assert replay.entries["mask"].shape == (16, 16)
    assert {0, 1}.issubset(np.unique(replay.sample_frames(20)["mask"]))


def test_the_log_tells_the_iou_of_the_classes_that_are_there(masked):
    measured = {name for line in lines(masked) for name in line if "/iou/" in name}
    assert {"autoencoder/iou/background", "autoencoder/iou/robot"} <= measured


def test_the_video_shows_predicted_masks_beside_the_true_ones(masked):
    agent, _, _ = load_agent(masked, "cpu")
    video = agent.report(Replay.at(masked / "replay"), rows=2, length=8)["prediction"]
    assert video.shape == (8, 2 * 16, 4 * 16, 3)  # picture, truth, reconstruction, prediction


def test_run_that_predicts_masks_resumes_bit_for_bit(masked, tmp_path):
    first, *_ = sorted((masked.parent / "run-album").glob("*"))
    shutil.copytree(first, tmp_path / "run")
    resumed = run(tmp_path / "run", predicting("masks", evaluate_first=2 * EPISODE))
    assert differences(resumed, masked) == []


def test_masks_recorded_elsewhere_teach_a_run_that_draws_none(masked, tmp_path):
    config = predicting("pixels+masks", recorded=(str(masked),), render_masks=False)
    path = run(tmp_path / "run", config)
    theirs, ours = Replay.at(masked / "replay"), Replay.at(path / "replay")
    kept = list(ours.episodes())
    assert len(kept) == 4 + 4
    for (episode, record), (source, _) in zip(kept[:4], theirs.episodes(), strict=True):
        assert record["recorded"] == str(masked)
        np.testing.assert_array_equal(episode["mask"], source["mask"])
        np.testing.assert_array_equal(episode["image"], source["image"])
    for episode, record in kept[4:]:
        assert "recorded" not in record
        assert (episode["mask"] == UNLABELLED).all()
    assert checkpoint(path)["step"] == ours.env_steps == STEPS  # theirs are no steps of ours
    assert never_backwards(path)


def test_demonstrations_teach_a_run_that_draws_no_masks(tmp_path):
    data = tmp_path / "closed.hdf5"
    seen = EnvironmentConfig(size=16, action_repeat=REPEAT, quality="fast")
    collect("dmc/point_mass-easy", 2, data, lambda _: Still(), seen)
    config = predicting("masks", recorded=(str(data),), render_masks=False, steps=2 * EPISODE)
    path = run(tmp_path / "run", replace(config, task="dmc/point_mass-easy"))
    first, second, own, *_ = Replay.at(path / "replay").episodes()
    for episode, record in (first, second):
        assert record["recorded"] == str(data)
        assert (episode["mask"] != UNLABELLED).all()
    assert (own[0]["mask"] == UNLABELLED).all()


def test_copying_that_was_cut_off_is_taken_up_again(masked, tmp_path):
    config = predicting("masks", recorded=(str(masked),), steps=EPISODE)
    whole = run(tmp_path / "whole", config)
    shutil.copytree(whole, tmp_path / "cut")
    index = tmp_path / "cut" / "replay" / "episodes.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:2]))
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / "cut" / name).unlink()
    run(tmp_path / "cut", config)
    assert records(tmp_path / "cut") == records(whole)


def test_recorded_runs_that_cannot_be_used_are_named(masked, tmp_path):
    plain = run(tmp_path / "plain", tiny(steps=EPISODE))
    with pytest.raises(UserError, match="there is no .*nowhere; --recorded takes"):
        run(tmp_path / "a", predicting("masks", recorded=(str(tmp_path / "nowhere"),)))
    with pytest.raises(UserError, match="with --recorded"):
        predicting("masks", render_masks=False)
    with pytest.raises(UserError, match="has no masks and none are drawn"):
        run(tmp_path / "c", predicting("masks", recorded=(str(plain),), render_masks=False))
    turned = predicting("masks", recorded=(str(masked),))
    turned = replace(turned, environment=replace(turned.environment, orientation="mirrored"))
    with pytest.raises(
        UserError, match="has orientation upright, this run mirrored; give the same"
    ):
        run(tmp_path / "d", turned)
    other = run(
        tmp_path / "other",
        tiny(
            steps=EPISODE,
            environment=EnvironmentConfig(size=24, action_repeat=REPEAT, quality="fast"),
            agent=replace(
                tiny().agent, autoencoder=replace(tiny().agent.autoencoder, image_size=24)
            ),
        ),
    )
    with pytest.raises(
        UserError, match="has picture edge 24, this run 16; give the same --environment.size"
    ):
        run(tmp_path / "b", predicting("masks", recorded=(str(other),)))
