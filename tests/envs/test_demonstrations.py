"""Demonstration files: recorded in the simulator, written, read back, refused when broken."""

import json
import shutil

import h5py
import numpy as np
import pytest

import envs
from envs.annotation import annotate
from envs.demonstration_writer import PARTIAL, DemonstrationWriter
from envs.demonstrations import find_files, read_header
from envs.environment_config import EnvironmentConfig
from envs.hdf5 import open_file
from envs.recording import ScriptedActor, collect, demonstration_seed
from errors import UserError
from results.experiments.roundtrip import differing, strip_masks, to_after_action

pytestmark = pytest.mark.simulator

SEEN = EnvironmentConfig(size=32, quality="fast")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two successful episodes of the drawer, which the expert closes in some 30 steps."""
    path = tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5"
    collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, seed=3, after_success=2)
    return path


@pytest.fixture
def copy(recorded, tmp_path):
    path = tmp_path / "copy.hdf5"
    shutil.copy(recorded, path)
    return path


def edit(path, name, change):
    """Put ``change(values)`` in the place of a dataset; None removes it."""
    with h5py.File(path, "r+") as file:
        values = change(file[name][()])
        del file[name]
        if values is not None:
            file[name] = values


def same_file(one, other, ignored=()):
    """Every dataset and attribute below data equal, to the bit."""
    with h5py.File(one) as a, h5py.File(other) as b:
        assert set(a["data"]) == set(b["data"])
        names = []
        a["data"].visit(names.append)
        for name in names:
            assert name in b["data"], name
            if isinstance(a["data"][name], h5py.Dataset):
                np.testing.assert_array_equal(a["data"][name], b["data"][name], err_msg=name)
            for key, value in a["data"][name].attrs.items():
                np.testing.assert_array_equal(b["data"][name].attrs[key], value)


def test_a_recording_holds_what_the_policy_saw_when_it_acted(recorded):
    """The recorded actions, replayed from the recorded seed, show the recorded observations."""
    header = read_header(recorded)
    assert header.task == "metaworld/drawer-close"
    assert header.instruction == "drawer close"
    assert (header.cameras, header.masks, header.size) == (("corner2",), ("corner2",), 32)
    assert header.alignment == "before_action"
    assert header.orientation == "upright"
    assert header.action_repeat == 2
    environment = envs.make(header.task, size=32, quality="fast", masks=True, proprio=True)
    with h5py.File(recorded) as file:
        for episode in header.episodes:
            demo = file[f"data/{episode.name}"]
            observation, _ = environment.reset(seed=episode.seed)
            successes = []
            for step in range(episode.steps):
                for name, kind in (("image", "rgb"), ("mask", "mask")):
                    np.testing.assert_array_equal(
                        observation[name], demo[f"obs/corner2_{kind}"][step]
                    )
                np.testing.assert_array_equal(observation["proprio"], demo["obs/proprio"][step])
                assert environment.data.time == demo["states"][step, 0]
                action = demo["actions"][step].astype(np.float32)
                observation, reward, *_, info = environment.step(action)
                assert demo["rewards"][step] == np.float32(reward)
                successes.append(info["success"])
            assert np.flatnonzero(successes)[0] == episode.steps - 3  # after_success is 2
            assert demo["dones"][()].tolist() == [0] * (episode.steps - 1) + [1]
    environment.close()


def test_seeds_of_demonstrations_are_a_stream_of_their_own(recorded):
    seeds = [episode.seed for episode in read_header(recorded).episodes]
    tried = [demonstration_seed(3, attempt) for attempt in range(4)]
    assert [seed for seed in tried if seed in seeds] == seeds


def test_names_and_colours_of_the_classes_travel_with_the_masks(recorded):
    with h5py.File(recorded) as file:
        attributes = file["data"].attrs
        assert json.loads(attributes["mask_classes"])[2] == "hand"
        assert attributes["mask_palette"].shape == (8, 3)
        assert json.loads(attributes["versions"])["mujoco"]
        assert attributes["total"] == sum(
            demo.attrs["num_samples"] for demo in file["data"].values()
        )


@pytest.mark.parametrize("task", envs.expand("metaworld/mt10")[::3])
def test_annotating_a_stripped_file_gives_the_recorded_masks_back(task, tmp_path):
    original, stripped = tmp_path / "a.hdf5", tmp_path / "b.hdf5"
    collect(task, 1, original, ScriptedActor, SEEN, seed=1)
    shutil.copy(original, stripped)
    strip_masks(stripped)
    with h5py.File(stripped, "r+") as file:
        for demo in file["data"].values():
            for name in ("tracks", "visible", "effector"):
                del demo[f"obs/corner2_{name}"]
    header = read_header(stripped)
    assert (header.masks, header.tracks) == ((), False)
    annotate(stripped, tmp_path / "c.hdf5", tracks=True)
    same_file(original, tmp_path / "c.hdf5")
    assert differing(original, tmp_path / "c.hdf5") == {"rgb": 0, "mask": 0}
    annotate(stripped, stripped, tracks=True)  # in place
    assert read_header(stripped).tracks
    same_file(original, stripped)


def test_annotating_libero_in_either_alignment_gives_the_recorded_masks_back(
    libero_assets, tmp_path
):
    original = tmp_path / "a.hdf5"
    collect("libero/object/3", 1, original, ScriptedActor, SEEN, seed=1)
    header = read_header(original)
    assert header.cameras == ("agentview", "eye_in_hand")
    assert header.proprio_size == 12
    stripped = tmp_path / "b.hdf5"
    shutil.copy(original, stripped)
    strip_masks(stripped)
    annotate(stripped, tmp_path / "c.hdf5")
    same_file(original, tmp_path / "c.hdf5")

    official = tmp_path / "official.hdf5"
    shutil.copy(original, official)
    to_after_action(official)
    header = read_header(official)
    assert (header.task, header.lag, header.orientation) == ("libero/object/3", 1, "opengl")
    truth = tmp_path / "truth.hdf5"
    shutil.copy(official, truth)
    strip_masks(official)
    annotate(official, tmp_path / "d.hdf5")
    same_file(truth, tmp_path / "d.hdf5")


def test_robomimic_reads_what_is_written(recorded):
    """With its own dataset class: every step of every episode, pictures and actions equal."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs(
        {"obs": {"low_dim": ["proprio"], "rgb": ["corner2_rgb"]}}
    )
    dataset = SequenceDataset(
        hdf5_path=str(recorded),
        obs_keys=("proprio", "corner2_rgb"),
        dataset_keys=("actions", "rewards", "dones"),
        load_next_obs=False,
        seq_length=1,
        hdf5_cache_mode=None,
        hdf5_use_swmr=False,
    )
    with h5py.File(recorded) as file:
        total = sum(len(demo["actions"]) for demo in file["data"].values())
        demo = file["data/demo_0"]
        np.testing.assert_allclose(dataset[4]["actions"][0], demo["actions"][4])
        picture = demo["obs/corner2_rgb"][4].transpose(2, 0, 1) / 255  # as robomimic hands it out
        np.testing.assert_allclose(dataset[4]["obs"]["corner2_rgb"][0], picture, atol=1e-6)
    assert len(dataset) == total
    dataset.close_and_delete_hdf5_handle()


def test_a_recording_that_was_stopped_goes_on_and_ends_the_same(recorded, tmp_path):
    path = tmp_path / "stopped.hdf5"

    def stop(kept, attempts):
        raise KeyboardInterrupt

    options = {"seed": 3, "after_success": 2}
    with pytest.raises(KeyboardInterrupt):
        collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, progress=stop, **options)
    assert not path.exists()
    assert path.with_name(path.name + PARTIAL).exists()
    with pytest.raises(UserError, match="was begun with another seed"):
        collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, seed=4, after_success=2)
    collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, **options)
    same_file(recorded, path)
    assert not path.with_name(path.name + PARTIAL).exists()


def test_a_partial_file_that_a_crash_has_damaged_is_begun_again(recorded, tmp_path):
    path = tmp_path / "damaged.hdf5"
    path.with_name(path.name + PARTIAL).write_bytes(recorded.read_bytes()[:3000])
    with pytest.warns(UserWarning, match="starting over"):
        collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, seed=3, after_success=2)
    same_file(recorded, path)


def test_annotating_at_another_size_says_so_wherever_it_is_read_from(copy, tmp_path):
    annotate(copy, tmp_path / "out.hdf5", size=48)
    assert read_header(tmp_path / "out.hdf5").size == 48
    with h5py.File(tmp_path / "out.hdf5") as file:
        kwargs = json.loads(file["data"].attrs["env_args"])["env_kwargs"]
        assert (kwargs["camera_heights"], kwargs["camera_widths"]) == (48, 48)
        for name in ("corner2_rgb", "corner2_mask"):
            assert file[f"data/demo_0/obs/{name}"].shape[1:3] == (48, 48)


def test_a_camera_that_the_task_has_not_is_named_with_the_file(copy, tmp_path):
    with h5py.File(copy, "r+") as file:
        for demo in file["data"].values():
            for kind in ("rgb", "mask"):
                demo["obs"].move(f"corner2_{kind}", f"kitchen_{kind}")
        file["data"].attrs["camera"] = "kitchen"
    with pytest.raises(UserError, match=r"copy\.hdf5: unknown camera 'kitchen'"):
        annotate(copy, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


def test_annotating_that_was_stopped_goes_on(copy, recorded, tmp_path):
    strip_masks(copy)
    out, calls = tmp_path / "out.hdf5", []

    def stop(done, of):
        calls.append(done)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(copy, out, progress=stop)
    assert not out.exists()
    annotate(copy, out, progress=stop)
    assert calls == [1, 1, 2]
    same_file(recorded, out)


def test_annotating_what_was_annotated_before_and_stopped_in_an_episode_loses_nothing(
    recorded, tmp_path, monkeypatch
):
    import envs.demonstration_copy as copying

    first, second = tmp_path / "first.hdf5", tmp_path / "second.hdf5"
    annotate(recorded, first)
    write, calls = copying.write_dataset, []

    def stop(group, name, values):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(group, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(copying, "write_dataset", stop)
        with pytest.raises(KeyboardInterrupt):
            annotate(first, second)
    annotate(first, second)
    same_file(recorded, second)


def test_an_episode_is_recorded_once_wherever_recording_was_stopped(
    recorded, tmp_path, monkeypatch
):
    path = tmp_path / "stopped.hdf5"

    def stop(self, attempts):
        raise KeyboardInterrupt

    options = {"seed": 3, "after_success": 2}
    with monkeypatch.context() as patch:
        patch.setattr(DemonstrationWriter, "tried", stop)
        with pytest.raises(KeyboardInterrupt):
            collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, **options)
    collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, **options)
    same_file(recorded, path)
    with h5py.File(path) as file, h5py.File(recorded) as whole:
        for name in ("total", "num_demos", "attempts"):
            assert file["data"].attrs[name] == whole["data"].attrs[name]


def test_noise_is_a_function_of_the_episode(tmp_path):
    """A recording that was stopped and goes on has the noise of one that was not."""

    def noisy(environment):
        return ScriptedActor(environment, noise=0.2)

    paths = [tmp_path / "whole.hdf5", tmp_path / "stopped.hdf5"]
    collect("metaworld/drawer-close", 2, paths[0], noisy, SEEN)

    def stop(kept, attempts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect("metaworld/drawer-close", 2, paths[1], noisy, SEEN, progress=stop)
    collect("metaworld/drawer-close", 2, paths[1], noisy, SEEN)
    same_file(*paths)


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    import envs.demonstration_writer as writer

    monkeypatch.setattr(writer, "SPARE_BYTES", 2**60)
    path = tmp_path / "large.hdf5"
    with pytest.raises(UserError, match="no space left for .* the 0 episodes written are kept"):
        collect("metaworld/drawer-close", 1, path, ScriptedActor, SEEN)
    assert not path.exists()


def test_shifted_pictures_are_not_replaced_by_others(copy, tmp_path):
    with h5py.File(copy, "r+") as file:
        file["data"].attrs["shift"] = "background:0.5"
    with pytest.raises(UserError, match="recorded under the shift background:0.5"):
        annotate(copy, tmp_path / "out.hdf5")


def test_a_replay_that_is_elsewhere_is_refused_with_how_far(copy, tmp_path):
    edit(copy, "data/demo_1/obs/proprio", lambda values: values + np.float32(0.05))
    with pytest.raises(UserError, match=r"demo_1: replayed, the robot at step 0 is 0\.05"):
        annotate(copy, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("data/demo_1/actions", lambda v: None, "dataset data/demo_1/actions is missing"),
        ("data/demo_1/actions", lambda v: v[:0], "obs/corner2_rgb|has no steps"),
        ("data/demo_1/actions", lambda v: v[:, :3], r"shape \(\d+, 3\), not \(\d+, 4\)"),
        ("data/demo_0/actions", lambda v: v.astype(int), "is int64, not a floating-point"),
        ("data/demo_1/obs/corner2_rgb", lambda v: v[:, :16], r"corner2_rgb has shape"),
        ("data/demo_1/obs/corner2_rgb", lambda v: v / 255.0, "is float64, not uint8"),
        ("data/demo_0/obs/corner2_mask", lambda v: v[:, ::2, ::2], r"corner2_mask has shape"),
        ("data/demo_0/obs/proprio", lambda v: None, "obs/proprio is missing"),
    ],
)
def test_a_malformed_dataset_is_named(copy, name, change, sentence):
    edit(copy, name, change)
    with pytest.raises(UserError, match=sentence) as refusal:
        read_header(copy)
    assert str(copy) in str(refusal.value)


def test_files_that_are_none_are_refused_in_one_sentence(copy, recorded, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.hdf5 cannot be read \(No such file"):
        read_header(tmp_path / "nowhere.hdf5")
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        read_header(copy)
    copy.write_bytes(b"no HDF5 at all")
    with pytest.raises(UserError, match="no readable HDF5 file"):
        read_header(copy)
    with h5py.File(copy, "w") as file:
        file.create_group("data")
    with pytest.raises(UserError, match="holds no demonstrations"):
        read_header(copy)
    with h5py.File(copy, "w"):
        pass
    with pytest.raises(UserError, match="no group data"):
        read_header(copy)
    with pytest.raises(UserError, match="no file or folder"):
        find_files([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no .hdf5 or .h5 file"):
        find_files([tmp_path / "empty"])
    with pytest.raises(UserError, match="exists already"):
        collect("metaworld/drawer-close", 1, recorded, ScriptedActor, SEEN)


def test_a_file_that_another_process_writes_is_left_alone(copy, tmp_path):
    import subprocess
    import sys

    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(copy)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        writer.stdout.readline()
        with pytest.raises(UserError, match="is being written by another process"):
            read_header(copy)
        writer.communicate("\n")
    assert read_header(copy).episodes


def test_a_full_disk_is_one_sentence():
    """The real error of a device without space, at the first write."""
    with (
        pytest.raises(UserError, match="No space left|cannot"),
        open_file("/dev/full", "x") as file,
    ):
        file["x"] = np.zeros(1000)


def test_a_policy_that_never_succeeds_is_given_up(tmp_path):
    class Idle(ScriptedActor):
        def action(self, observation):
            return np.zeros(4, np.float32)

    path = tmp_path / "idle.hdf5"
    import envs.recording as recording

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "PATIENCE", 2)
        with pytest.raises(UserError, match="the last 2 of 2 episodes failed"):
            collect("metaworld/drawer-close", 1, path, Idle, SEEN)
    assert not path.exists()


def test_where_nobody_knows_success_every_episode_is_kept(tmp_path):
    """DeepMind Control, by a policy that does nothing; its states cannot be annotated."""

    class Idle:
        def __init__(self, environment):
            self.size = environment.action_space.shape

        def begin(self, seed):
            pass

        def action(self, observation):
            return np.zeros(self.size, np.float32)

    path = tmp_path / "reach.hdf5"
    collect("dmc/reach_site", 1, path, Idle, EnvironmentConfig(size=16, quality="fast"))
    header = read_header(path)
    assert (header.task, len(header.episodes)) == ("dmc/reach_site", 1)
    with h5py.File(path) as file:
        assert "success" not in file["data/demo_0"].attrs
    with pytest.raises(UserError, match="record it again"):
        annotate(path, tmp_path / "out.hdf5")


def test_a_writer_that_fails_leaves_no_finished_file(tmp_path):
    path = tmp_path / "out.hdf5"
    with pytest.raises(ZeroDivisionError), DemonstrationWriter(path, {"task": "x"}):
        raise ZeroDivisionError
    assert not path.exists()
