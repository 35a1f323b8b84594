"""Videos, read back frame by frame."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from agents.video import write_video


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
