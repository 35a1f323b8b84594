"""Videos, read back frame by frame."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from experiment.video import shrink_video, write_video


@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (33, 47), (480, 640)])
def test_video_shows_the_frames_enlarged(tmp_path, shape):
    height, width = shape
    frames = np.zeros((6, height, width, 3), np.uint8)
    frames[:, :, width // 2 :] = (255, 0, 0)
    frames[3:, : height // 2, : width // 2] = (0, 0, 255)
    path = tmp_path / "videos" / "episode.mp4"
    write_video(path, frames, fps=10)
    assert [file.name for file in path.parent.iterdir()] == ["episode.mp4"]

    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    w, h = meta["size"]
    assert meta["codec"] == "h264"
    assert meta["fps"] == 10
    assert w % 2 == h % 2 == 0
    assert h >= 320
    shown = [np.frombuffer(frame, np.uint8).reshape(h, w, 3) for frame in reader]
    assert len(shown) == 6
    assert np.abs(shown[0][h // 4, 3 * w // 4].astype(int) - (255, 0, 0)).max() < 30
    assert shown[0][h // 4, w // 4].max() < 30
    assert np.abs(shown[5][h // 4, w // 4].astype(int) - (0, 0, 255)).max() < 30


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)]
)
def test_what_is_no_video_is_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "episode.mp4", frames, fps=10)


def test_a_place_that_cannot_be_written_to_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_video(tmp_path / "file" / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8), fps=10)
    with pytest.raises(OSError, match=r"/proc/a\.tmp\.mp4"):
        write_video(Path("/proc/a.mp4"), np.zeros((2, 8, 8, 3), np.uint8), fps=10)


@pytest.mark.parametrize(
    ("shape", "fps", "size", "frames"),
    [((321, 480), 30, (382, 256), 20), ((320, 480), 5, (384, 256), 60)],
)
def test_a_small_copy_lasts_as_long_and_shows_the_same(tmp_path, shape, fps, size, frames):
    # A white bar that walks over noise from left to right in the course of the video.
    height, width = shape
    noise = np.random.default_rng(0).integers(0, 100, (height, width, 3), np.uint8)
    walk = np.tile(noise, (60, 1, 1, 1))
    for time, frame in enumerate(walk):
        frame[:, time * 8 : time * 8 + 16] = 255
    source, target = tmp_path / "long.mp4", tmp_path / "small.mp4"
    write_video(source, walk, fps)
    shrink_video(source, target)
    assert {file.name for file in tmp_path.iterdir()} == {"long.mp4", "small.mp4"}
    assert target.stat().st_size < source.stat().st_size

    reader = imageio_ffmpeg.read_frames(str(target))
    meta = next(reader)
    assert meta["size"] == size
    assert meta["fps"] == min(fps, 10)
    shown = [np.frombuffer(frame, np.uint8).reshape(size[1], size[0], 3) for frame in reader]
    assert len(shown) == frames
    bars = [frame.mean(axis=(0, 2)).argmax() / size[0] for frame in shown]
    np.testing.assert_allclose(bars, np.arange(frames) / frames, atol=0.06)


def test_what_cannot_be_made_smaller_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(OSError, match=r"broken\.mp4 was not made smaller"):
        shrink_video(tmp_path / "broken.mp4", tmp_path / "small.mp4")
    assert not (tmp_path / "small.mp4").exists()
