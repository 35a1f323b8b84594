"""LeRobot datasets in and out: one that their library made, and with it where it is installed."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.demonstrations import read_headers
from envs.lerobot import LeRobotDataset
from envs.lerobot_reading import LeRobotConversion
from envs.lerobot_writing import LeRobotWriter
from envs.mask_files import add_masks
from envs.mask_palette import MaskPalette
from envs.windows import WindowConfig, Windows
from errors import UserError
from run import main
from tests.envs import lerobot_maker as maker

TINY = Path(__file__).parents[1] / "data" / "lerobot_tiny"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"
REACH, PUSH = "reach-the-red-block.hdf5", "push-it-away.hdf5"


def converted(root, folder, size=48, **options):
    given = {
        "cameras": (), "fit": "crop", "state": "observation.state", "action": "action",
        "range_of": None, "palette": MaskPalette.own(),
    }  # fmt: skip
    conversion = LeRobotConversion(root, size=size, **(given | options))
    for name, episodes in conversion.tasks().items():
        conversion.write(folder / f"{name}.hdf5", episodes)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return converted(TINY, tmp_path_factory.mktemp("files"))


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "dataset"))


def in_units(demo, data):
    low, high = data.attrs["action_low"], data.attrs["action_high"]
    return low + (demo["actions"][()] + 1) / 2 * (high - low)


def check_holds_what_was_made(path, episodes, size=48):
    """Rows, pictures and masks of a file are those of the maker's episodes, frame by frame."""
    middle = slice((maker.WIDTH - maker.HEIGHT) // 2, (maker.WIDTH + maker.HEIGHT) // 2)
    with h5py.File(path) as file:
        data = file["data"]
        assert data.attrs["fps"] == maker.FPS
        assert data.attrs["instruction"] == maker.TASKS[episodes[0]]
        for number, episode in enumerate(episodes):
            demo, frames = data[f"demo_{number}"], range(maker.length(episode))
            assert len(demo["actions"]) == len(frames)
            actions = [maker.action(episode, frame) for frame in frames]
            np.testing.assert_allclose(in_units(demo, data), actions, atol=1e-4)
            states = [maker.state(episode, frame) for frame in frames]
            np.testing.assert_allclose(demo["obs/proprio"][()], states)
            for frame in frames:
                mask = maker.mask(episode, frame)[:, middle]
                assert (demo["obs/front_mask"][frame] == mask).all()
                red = demo["obs/front_rgb"][frame][..., 0] > 140  # of the video: it is lossy
                assert (red == (mask == maker.OBJECT)).mean() > 0.97
                wrist = demo["obs/wrist_rgb"][frame].astype(int)
                assert np.abs(wrist - maker.grey(episode, frame)).max() <= 3


def test_their_dataset_becomes_one_file_a_task(files):
    check_holds_what_was_made(files / REACH, [0, 2])
    check_holds_what_was_made(files / PUSH, [1])
    reach, push = read_headers([files / REACH, files / PUSH])
    assert (reach.task, reach.instruction) == ("own/reach-the-red-block", "Reach the red block.")
    assert reach.cameras == ("front", "wrist")
    assert (reach.masks, reach.fps, reach.alignment) == (("front",), 10.0, "before_action")
    assert reach.action_low == push.action_low  # of the whole dataset: the files go together
    assert len(Windows([reach, push], WindowConfig(2, 1, 1, 4), "pixels")) == 21


def test_cameras_are_chosen_and_ordered_and_pictures_made_square(tmp_path):
    wrist = converted(TINY, tmp_path / "wrist", 16, cameras=("wrist",)) / PUSH
    assert read_headers([wrist])[0].cameras == ("wrist",)
    both = converted(TINY, tmp_path / "both", 16, cameras=("wrist", "front")) / PUSH
    assert read_headers([both])[0].cameras == ("wrist", "front")
    padded = converted(TINY, tmp_path / "padded", 64, fit="pad") / PUSH
    with h5py.File(padded) as file:
        demo = file["data/demo_0/obs"]
        assert (demo["front_mask"][0][:8] == 255).all()  # a bar of nothing
        assert (demo["wrist_rgb"][0][:8] == 0).all()
        assert (demo["front_mask"][0][8:56] == maker.mask(1, 0)).all()
    stretched = converted(TINY, tmp_path / "stretched", 32, fit="stretch") / PUSH
    with h5py.File(stretched) as file:
        rows, columns = np.nonzero(file["data/demo_0/obs/front_mask"][0] == maker.OBJECT)
        assert np.ptp(rows) == 7  # 12 of 48
        assert np.ptp(columns) == 7  # 16 of 64


def test_the_way_back_and_in_again_keeps_everything(files, tmp_path):
    """Masks and rows to the last digit that float32 has, videos but for what compression loses."""
    recordings = read_headers([files / REACH, files / PUSH])
    LeRobotWriter(recordings, tmp_path / "dataset", None).write()
    dataset = LeRobotDataset(tmp_path / "dataset")
    assert (dataset.fps, len(dataset.episodes)) == (10.0, 3)
    again = converted(tmp_path / "dataset", tmp_path / "again")
    for name in (REACH, PUSH):
        with h5py.File(files / name) as before, h5py.File(again / name) as after:
            assert before["data"].keys() == after["data"].keys()
            for demo in before["data"]:
                one, other = before["data"][demo], after["data"][demo]
                np.testing.assert_allclose(one["actions"][()], other["actions"][()], atol=1e-6)
                np.testing.assert_array_equal(one["obs/proprio"][()], other["obs/proprio"][()])
                masks = one["obs/front_mask"][()], other["obs/front_mask"][()]
                np.testing.assert_array_equal(*masks)
                for camera in ("front", "wrist"):
                    a, b = (each[f"obs/{camera}_rgb"][()].astype(int) for each in (one, other))
                    assert np.abs(a - b).mean() < 3


def test_masks_go_out_as_png_files_that_annotate_reads(files, tmp_path):
    recordings = read_headers([files / REACH])
    LeRobotWriter(recordings, tmp_path / "dataset", None, "folder").write()
    assert not any(key.endswith("_mask") for key in LeRobotDataset(tmp_path / "dataset").pictures)
    bare = tmp_path / REACH
    shutil.copy(files / REACH, bare)
    with h5py.File(bare, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/front_mask"]
    out = tmp_path / "out.hdf5"
    add_masks(bare, out, tmp_path / "dataset" / "masks", MaskPalette.own())
    with h5py.File(files / REACH) as before, h5py.File(out) as after:
        for demo in before["data"]:
            name = f"data/{demo}/obs/front_mask"
            np.testing.assert_array_equal(before[name][()], after[name][()])


def test_a_row_holds_what_was_seen_when_its_action_was_chosen(files, tmp_path):
    """Of files that show what came of an action, the first action has no picture."""
    path = tmp_path / PUSH
    shutil.copy(files / PUSH, path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["obs_alignment"] = "after_action"
        file["data/demo_0"].attrs["success"] = False
        actions = in_units(file["data/demo_0"], file["data"])
    LeRobotWriter(read_headers([path]), tmp_path / "dataset", None).write()
    dataset = LeRobotDataset(tmp_path / "dataset")
    (episode,) = dataset.episodes
    assert episode.length == maker.length(1) - 1
    np.testing.assert_allclose(dataset.table(episode, "action"), actions[1:], atol=1e-4)
    assert not dataset.table(episode, "next.success").any()


def edited_info(change):
    def edit(root):
        path = root / "meta" / "info.json"
        info = json.loads(path.read_text())
        change(info)
        path.write_text(json.dumps(info))

    return edit


def without_column(root):
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


def cut(name, share=0.5):
    def edit(root):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(share * len(content))])

    return edit


def playlist(root):
    """A text that ffmpeg would follow to other files, were it asked to guess what a file is."""
    (root / VIDEO).write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")


def rows(name, change):
    def edit(root):
        table = pq.read_table(root / name)
        changed = change(table.to_pylist())
        pq.write_table(pa.Table.from_pylist(changed, table.schema), root / name)

    return edit


def other_second(rows):
    rows[2][f"videos/{FRONT}/from_timestamp"] += 0.1
    return rows


def pipe(root):
    (root / DATA).unlink()
    os.mkfifo(root / DATA)


FRONT = "observation.images.front"
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
WRONG = [
    (edited_info(lambda i: i.update(codebase_version="v2.1")), {}, r"info\.json is of .* v2\.1"),
    (edited_info(lambda i: i.update(fps=0)), {}, r"info\.json: fps is 0"),
    (edited_info(lambda i: i.update(video_path="../{video_key}")), {}, "video_path leads to"),
    (edited_info(lambda i: i.update(data_path="/etc/passwd")), {}, "data_path leads to"),
    (edited_info(lambda i: i["features"][FRONT]["info"].update({"video.fps": 30})), {},
     r"fps is 10, video\.fps of observation\.images\.front 30"),
    (edited_info(lambda i: i["features"]["observation.images.front_mask"].update(dtype="video")),
     {}, "front_mask is a video"),
    (lambda root: None, {"cameras": ("top",)}, r"no feature top \(--cameras\); it has .*front"),
    (lambda root: None, {"action": "act"}, r"no feature act \(--action\)"),
    (lambda root: None, {"state": "joints"}, r"no feature joints \(--state\)"),
    (without_column, {}, r"file-000\.parquet has no column action"),
    (cut("data/chunk-000/file-000.parquet"), {}, r"file-000\.parquet is no readable Parquet"),
    (cut("meta/info.json"), {}, r"info\.json is no JSON"),
    (lambda root: (root / "meta/tasks.parquet").unlink(), {}, r"tasks\.parquet cannot be read"),
    (pipe, {}, r"file-000\.parquet is a pipe"),
    (rows(EPISODES, lambda rows: [*rows, rows[0]]), {}, r"episodes lists episode 0 twice"),
    (rows(EPISODES, lambda rows: rows[:2]), {}, r"lists 2 episodes, .*info\.json says .* 3"),
    (rows(EPISODES, lambda rows: []), {}, r"lists 0 episodes, .*info\.json says .* 3"),
    (rows(EPISODES, other_second), {}, r"episode 2 is from second 1\.4 to 2\.1 of .*no 8 frames"),
    (rows(DATA, lambda rows: rows[::-1]), {}, r"frame_index of episode 0, row 0, is 5, not 0"),
    (edited_info(lambda i: i.update(fps=5)), {}, r"timestamp of .*row 2, is 0\.2.*not 0\.4"),
    (lambda root: (root / VIDEO).unlink(), {}, r"file-000\.mp4 cannot be read"),
    (cut(VIDEO), {}, r"file-000\.mp4: frame \d of episode 0 .* cannot be decoded, of 6"),
    (playlist, {}, r"file-000\.mp4: frame 0 of episode 0"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "options", "sentence"), WRONG)
def test_what_is_wrong_with_a_dataset_names_file_and_place(copy, tmp_path, edit, options, sentence):
    edit(copy)
    with pytest.raises(UserError, match=sentence) as refusal:
        converted(copy, tmp_path / "files", 16, **options)
    assert str(copy) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("files/*.hdf5"))  # at most *.part, which is gone on with


def test_files_of_different_rates_or_units_are_not_learned_from_together(files, tmp_path):
    other = tmp_path / "other.hdf5"
    shutil.copy(files / PUSH, other)
    for name, value in (("fps", 30.0), ("action_low", np.array([-1.0, -1.0]))):
        with h5py.File(other, "r+") as file:
            file["data"].attrs[name] = value
        with pytest.raises(UserError, match=rf"other\.hdf5 has {name}"):
            Windows(read_headers([files / REACH, other]), WindowConfig(2, 1, 1, 4), "pixels")
        with pytest.raises(UserError, match=rf"other\.hdf5 has {name}"):
            LeRobotWriter(read_headers([files / REACH, other]), tmp_path / "out", None)
        shutil.copy(files / PUSH, other)


def test_actions_of_another_dataset_are_brought_into_the_same_range(copy, files, tmp_path):
    same = converted(copy, tmp_path / "same", 16, range_of=str(files / REACH))
    assert read_headers([same / PUSH])[0].action_low == read_headers([files / PUSH])[0].action_low
    narrow = tmp_path / "narrow.hdf5"
    shutil.copy(files / PUSH, narrow)
    with h5py.File(narrow, "r+") as file:
        file["data"].attrs["action_high"] = np.array([1.0, 1.0])
    with pytest.raises(UserError, match=r"episode 0, frame 1, number 0, is outside"):
        converted(copy, tmp_path / "refused", 16, range_of=str(narrow))


def test_a_file_that_was_made_by_other_options_is_not_taken_for_this_one(copy, tmp_path, capsys):
    command = ["convert", str(copy), "--out", str(tmp_path / "files"), "--size", "16"]
    for _ in range(2):
        assert main(command) == 0
    assert "push-it-away.hdf5 is there already" in capsys.readouterr().out
    for more, said in (
        (["--size", "32"], "was made with size 16, not 32"),
        (["--fit", "pad"], "was made with fit crop, not pad"),
        (["--cameras", "wrist"], "was made with camera front,wrist, not wrist"),
        (["--state", "action"], "made with feature_state observation.state, not action"),
        (["--cameras", "wrist,wrist"], "--cameras names one twice"),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    for source, out in (("x" * 300, "y"), (str(copy), "x" * 300)):
        assert main(["convert", source, "--out", out]) == 2
        assert "File name too long" in capsys.readouterr().err


def test_nothing_is_left_of_a_dataset_that_could_not_be_finished(files, tmp_path):
    path = tmp_path / "demos" / REACH
    path.parent.mkdir()
    shutil.copy(files / REACH, path)
    recordings = read_headers([path])
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/wrist_rgb"]
    with pytest.raises(UserError, match="demo_1 cannot be read"):
        LeRobotWriter(recordings, tmp_path / "out", None).write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos"]
    shutil.copy(files / REACH, path)
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["fps"]
    with pytest.raises(UserError, match="give --fps"):
        LeRobotWriter(read_headers([path]), tmp_path / "out", None)


# ------------------------------------------------------------------- where lerobot is installed

with_lerobot = pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None, reason="lerobot is not installed"
)


@with_lerobot
def test_what_their_library_makes_now_is_read(tmp_path):
    maker.make(tmp_path / "dataset")
    folder = converted(tmp_path / "dataset", tmp_path / "files")
    check_holds_what_was_made(folder / REACH, [0, 2])
    check_holds_what_was_made(folder / PUSH, [1])


@with_lerobot
def test_their_library_reads_what_was_written(files, tmp_path, monkeypatch):
    import lerobot.datasets.lerobot_dataset as theirs
    import torchvision

    if not hasattr(
        torchvision.io, "VideoReader"
    ):  # torchvision 0.26 and later; their version needs it
        monkeypatch.setattr(torchvision.io, "VideoReader", PyAVReader, raising=False)
        monkeypatch.setattr(torchvision, "set_video_backend", lambda backend: None, raising=False)
    LeRobotWriter(read_headers([files / REACH, files / PUSH]), tmp_path / "dataset", None).write()
    dataset = theirs.LeRobotDataset("ours/x", root=tmp_path / "dataset", video_backend="pyav")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 21, 10)
    order, middle = [0, 2, 1], slice(8, 56)  # of the maker's episodes
    rows = [(e, frame) for e in order for frame in range(maker.length(e))]
    for number, (episode, frame) in enumerate(rows):
        item = dataset[number]
        assert item["task"] == maker.TASKS[episode]
        np.testing.assert_allclose(item["action"], maker.action(episode, frame), atol=1e-4)
        np.testing.assert_allclose(item["observation.state"], maker.state(episode, frame))
        mask = maker.mask(episode, frame)[:, middle] == maker.OBJECT
        assert ((item["observation.images.front"][0].numpy() > 0.55) == mask).mean() > 0.97
        drawn = item["observation.images.front_mask"].numpy() * 255
        assert (drawn.round().astype(int)[:, mask].T == maker.COLOUR).all()
    assert set(dataset.meta.stats["action"]) >= {"min", "max", "mean", "std", "count"}


class PyAVReader:
    """What newer torchvision no longer has: frames with their times, from a key frame on."""

    def __init__(self, path, stream):
        import av

        self.container = av.open(str(path))
        self.video = self.container.streams.video[0]

    def seek(self, seconds, keyframes_only=False):
        self.container.seek(int(seconds / self.video.time_base), stream=self.video)
        return self

    def __iter__(self):
        import torch

        for frame in self.container.decode(self.video):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            yield {"data": picture.permute(2, 0, 1), "pts": float(frame.pts * self.video.time_base)}
