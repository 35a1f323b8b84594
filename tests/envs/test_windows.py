"""Windows of demonstrations: aligned, padded at the ends, drawn the same for the same seed."""

import pickle
import shutil

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from envs.demonstrations import read_header
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor, collect
from envs.windows import POINTS, Read, WindowConfig, Windows, open_windows, statistics
from errors import UserError

pytestmark = pytest.mark.simulator

SEEN = EnvironmentConfig(size=32, quality="fast")
CONFIG = WindowConfig(n_obs_steps=3, future=5, stride=2, chunk=6)
READS = CONFIG.reads()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations")
    for task in ("drawer-close", "reach"):
        collect(f"metaworld/{task}", 2, folder / f"{task}.hdf5", ScriptedActor, SEEN, seed=5)
    return folder


@pytest.fixture
def windows(folder):
    return open_windows([folder], READS)


def test_a_window_holds_the_frames_before_and_after_and_the_actions_from_its_step_on(windows):
    index = 0
    for recording in windows.recordings:
        with h5py.File(recording.path) as file:
            for episode in recording.episodes:
                demo = file[f"data/{episode.name}"]
                frames, masks = demo["obs/corner2_rgb"][()], demo["obs/corner2_mask"][()]
                for step in range(episode.steps):
                    window, last = windows[index], episode.steps - 1
                    assert windows.locate(index) == (recording, episode, step)
                    past = [max(0, step - 4), max(0, step - 2), step]
                    np.testing.assert_array_equal(window["image"], frames[past][None])
                    ahead = np.arange(step + 2, step + 11, 2)
                    np.testing.assert_array_equal(window["future_valid"], ahead <= last)
                    np.testing.assert_array_equal(
                        window["future"], masks[np.minimum(ahead, last)][None]
                    )
                    taken = demo["actions"][step : step + 6].astype(np.float32)
                    np.testing.assert_array_equal(window["action"][: len(taken)], taken)
                    assert not window["action"][len(taken) :].any()
                    assert window["action_valid"].sum() == len(taken)
                    np.testing.assert_array_equal(
                        window["proprio"], demo["obs/proprio"][step : step + 1]
                    )
                    assert windows.tasks[window["task"]] == recording.task
                    index += 1
    assert index == len(windows)


def test_a_file_in_either_alignment_and_orientation_gives_the_same_windows(folder, tmp_path):
    """LIBERO's own files show what came of an action: there the next row's picture is paired."""
    before = open_windows([folder / "reach.hdf5"], READS)
    path = tmp_path / "after.hdf5"
    shutil.copy(folder / "reach.hdf5", path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["obs_alignment"] = "after_action"
        file["data"].attrs["macros_image_convention"] = "opengl"
        for demo in file["data"].values():
            for name in list(demo["obs"]):
                # obs[j] of the shifted file was seen after actions[j]: prepend an action
                values = demo["obs"][name][()]
                del demo["obs"][name]
                last = values[-1:]
                values = np.concatenate([values, last])
                demo["obs"][name] = values[:, ::-1] if values.ndim > 2 else values
            actions = demo["actions"][()]
            del demo["actions"]
            demo["actions"] = np.concatenate([np.full((1, 4), 0.9), actions])
            demo.attrs["num_samples"] = len(demo["actions"])
    after = open_windows([path], READS)
    assert len(after) == len(before)
    for index in range(len(before)):
        window, expected = after[index], before[index]
        # such a file has one picture more, of what the last action did
        assert (window.pop("future_valid") >= expected.pop("future_valid")).all()
        for name, value in expected.items():
            np.testing.assert_array_equal(window[name], value, err_msg=name)
    last = after.recordings[0].episodes[0].steps - 2
    ahead = last + CONFIG.ahead()
    np.testing.assert_array_equal(after[last]["future_valid"], ahead <= last + 1)


def test_pictures_as_target_and_no_target(folder):
    pixels = open_windows([folder / "reach.hdf5"], CONFIG.reads("pixels"))
    assert pixels[0]["future"].shape == (1, 5, 32, 32, 3)
    np.testing.assert_array_equal(pixels[0]["future"][:, 0], pixels[2]["image"][:, -1])
    assert "future" not in open_windows([folder / "reach.hdf5"], CONFIG.reads("none"))[0]


def test_batches_are_a_function_of_seed_and_number_and_visit_every_window_once_an_epoch(windows):
    first = windows.batches(7, seed=1)
    count = len(windows)
    batches = [next(first) for _ in range(count)]
    flat = np.concatenate(batches)
    for epoch in range(7):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert not np.array_equal(flat[:count], flat[count : 2 * count])
    later = windows.batches(7, seed=1, start=20)
    assert [next(later) for _ in range(5)] == batches[20:25]
    assert next(windows.batches(7, seed=2)) != batches[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_read_the_same_windows(windows, workers):
    sampler = [next(windows.batches(3, seed=0)) for _ in range(1)] * 2
    loader = DataLoader(windows, batch_sampler=sampler, num_workers=workers)
    for batch in loader:
        for row, index in enumerate(sampler[0]):
            for name, value in windows[index].items():
                np.testing.assert_array_equal(batch[name][row], value)
    assert pickle.loads(pickle.dumps(windows))[0]["image"].any()


def test_statistics_are_percentiles_of_all_files_whatever_lies_beside_them(folder, tmp_path):
    copied = tmp_path / "data"
    shutil.copytree(folder, copied)
    headers = [read_header(path) for path in sorted(copied.glob("*.hdf5"))]
    found = statistics(headers)
    actions = []
    for header in headers:
        with h5py.File(header.path) as file:
            actions += [demo["actions"][()] for demo in file["data"].values()]
    low, high = np.percentile(np.concatenate(actions), [1, 99], axis=0)
    np.testing.assert_allclose(found["action_low"], low)
    np.testing.assert_allclose(found["action_high"], high)
    assert {path.suffix for path in copied.iterdir()} == {".hdf5"}  # nothing is written there
    with h5py.File(headers[0].path, "r+") as file:
        file["data/demo_0/actions"][0] = -1.0
    assert statistics(headers) != found


def test_files_that_do_not_go_together_or_lack_masks_are_refused(folder, tmp_path):
    headers = [read_header(path) for path in sorted(folder.glob("*.hdf5"))]
    other = tmp_path / "large.hdf5"
    bigger = EnvironmentConfig(size=48, quality="fast")
    collect("metaworld/drawer-close", 1, other, ScriptedActor, bigger, seed=5)
    with pytest.raises(UserError, match="has size 48, .* 32"):
        Windows([*headers, read_header(other)], READS)
    with h5py.File(other, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/corner2_mask"]
    with pytest.raises(UserError, match=r"no masks for corner2 .*run.py annotate --data"):
        open_windows([other], READS)
    assert len(open_windows([other], CONFIG.reads("pixels")))
    with pytest.raises(UserError, match="chunk must be at least 1, not 0"):
        WindowConfig(chunk=0)


# ------------------------------------------------------------------------------ other reads


def test_reads_before_an_episodes_start_and_ahead_of_each_step(folder):
    """Those before the start are the first step, and ahead of them is ahead of the first."""
    reads = {
        "view": Read("rgb", [-2, -1, 0], cameras="first"),
        "then": Read("mask", [-2, -1, 0], [1, 3], cameras="first"),
        "state": Read("proprio", [-2, -1, 0]),
        "action": Read("action", [-2, -1, 0]),
    }
    windows = open_windows([folder / "reach.hdf5"], reads)
    recording, episode, _ = windows.locate(0)
    with h5py.File(recording.path) as file:
        demo = file[f"data/{episode.name}"]
        for step in (0, 1, 7, episode.steps - 1):
            window, last = windows[step], episode.steps - 1
            steps = np.maximum([step - 2, step - 1, step], 0)
            rows = (steps[:, None] + [1, 3]).ravel()
            np.testing.assert_array_equal(window["view"], demo["obs/corner2_rgb"][()][steps])
            np.testing.assert_array_equal(
                window["then"], demo["obs/corner2_mask"][()][np.minimum(rows, last)]
            )
            np.testing.assert_array_equal(window["then_valid"], rows <= last)
            np.testing.assert_array_equal(window["state"], demo["obs/proprio"][()][steps])
            taken = demo["actions"][()][steps].astype(np.float32)
            np.testing.assert_array_equal(window["action"], taken)
            assert set(window) == {"view", "then", "then_valid", "state", "action", "task"}


@pytest.mark.parametrize("kind", ["tracks", "visible", "effector"])
def test_tracks_that_are_missing_name_the_command_that_adds_them(folder, tmp_path, kind):
    path = tmp_path / "without.hdf5"
    shutil.copy(folder / "reach.hdf5", path)
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_1/obs/corner2_{kind}"]
    with pytest.raises(
        UserError, match=r"has no \w+ .*`python run.py annotate --data .* --tracks`"
    ):
        open_windows([path], {"points": Read(kind, [0], cameras="first")})


def test_tracks_of_others_are_read_upright_and_in_the_number_wanted(folder, tmp_path):
    """One row of points moves right, in a picture that is upside down."""
    path = tmp_path / "theirs.hdf5"
    shutil.copy(folder / "reach.hdf5", path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = "opengl"
        for demo in file["data"].values():
            steps = len(demo["actions"])
            tracks = np.zeros((steps, 3, 2), np.float32)
            tracks[..., 0] = np.arange(steps)[:, None] % 30
            tracks[..., 1] = [1, 2, 3]
            del demo["obs/corner2_tracks"], demo["obs/corner2_visible"]
            demo["obs/corner2_tracks"] = tracks
            demo["obs/corner2_visible"] = np.broadcast_to([True, False, True], (steps, 3))
    reads = {
        "tracks": Read("tracks", [0], cameras="first"),
        "later": Read("tracks", [0], [2], cameras="first"),
        "visible": Read("visible", [0], cameras="first"),
    }
    windows = open_windows([path], reads)
    window = windows[4]
    assert window["tracks"].shape == (1, POINTS, 2)
    assert set(window["tracks"][0, :, 1]) == {30, 29, 28}  # of 32 rows, counted from above
    np.testing.assert_array_equal(window["visible"], window["tracks"][..., 1] != 29)
    np.testing.assert_array_equal(
        window["later"] - window["tracks"], np.full((1, POINTS, 2), [2, 0])
    )
    np.testing.assert_array_equal(windows[4]["tracks"], window["tracks"])
    shutil.copy(path, tmp_path / "broken.hdf5")
    with h5py.File(tmp_path / "broken.hdf5", "r+") as file:
        file["data/demo_1/obs/corner2_tracks"][3] = np.nan
    broken = open_windows([tmp_path / "broken.hdf5"], reads)
    step = broken.recordings[0].episodes[0].steps + 3
    with pytest.raises(UserError, match=r"data/demo_1/obs/corner2_tracks, row 3 holds nan"):
        broken[step]
