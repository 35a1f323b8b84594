"""The MP4 files of LeRobot's datasets, decoded and encoded by the ffmpeg of imageio-ffmpeg."""

import contextlib
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np

from errors import UserError
from regular_file import open_regular

LARGEST_SIDE = 16384
"""Pixels of a frame's side."""
QUALITY = 18
"""x264's constant rate factor; 18 is hard to tell from the original by eye."""


def decoded(
    path: pathlib.Path, start: float, count: int, fps: float, what: str
) -> Iterator[np.ndarray]:
    """``count`` frames of a video from second ``start`` on, each (H, W, 3) uint8.

    Args:
        path: an MP4 of a constant rate.
        start: seconds, of a frame's beginning.
        count: frames.
        fps: of the video.
        what: of the frames, for the error.

    Raises:
        UserError: it cannot be read, or has fewer frames that can be decoded.
    """
    with open_regular(path):
        pass
    command = [_ffmpeg(), "-v", "error", "-nostdin", "-protocol_whitelist", "file", "-f", "mp4"]
    if start > 0:  # half a frame early: rounding must not skip one
        command += ["-ss", f"{max(0.0, start - 0.5 / fps):.6f}"]
    command += ["-i", f"file:{path}", "-map", "0:v:0", "-frames:v", str(count)]
    # Every frame once, whatever its time stamp; each with a header that says its size.
    command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe"]
    done = 0
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen([*command, "-"], stdout=subprocess.PIPE, stderr=said) as ffmpeg,
    ):
        assert ffmpeg.stdout is not None
        try:
            while (frame := _frame(ffmpeg.stdout)) is not None:
                done += 1
                yield frame
        except BaseException:
            ffmpeg.kill()  # whoever reads has stopped
            raise
        ffmpeg.stdout.close()
        ffmpeg.wait()
        said.seek(0)
        reason = " ".join(said.read(4096).decode(errors="replace").split())[:200]
    if done < count:
        raise UserError(
            f"{path}: frame {done} of {what} (second {start + done / fps:.2f}) cannot be decoded,"
            f" of {count}" + (f": {reason}" if reason else "; the video ends before it")
        )


def _frame(stream) -> np.ndarray | None:
    """One picture in the PPM format; None at the end, or where it is cut off."""
    if stream.readline().strip() != b"P6":
        return None
    size, most = stream.readline().split(), stream.readline()
    if len(size) != 2 or most.strip() != b"255":
        return None
    width, height = map(int, size)
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        return None
    content = stream.read(width * height * 3)
    if len(content) < width * height * 3:
        return None
    return np.frombuffer(content, np.uint8).reshape(height, width, 3)


class VideoEncoder:
    """Writes frames of the same size to an MP4, H.264; a context, which ends the file.

    Every second frame is a key frame, as in LeRobot's own videos: they are read in any order.

    Args:
        path: of the file.
        size: edge of the square frames, pixels.
        fps: frames a second.

    Raises:
        UserError: ffmpeg cannot write it.
    """

    def __init__(self, path: pathlib.Path, size: int, fps: float):
        self._path, self._stack = path, contextlib.ExitStack()
        self._said = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        # Half the colour resolution, as everybody decodes it, needs an even edge.
        pixels = "yuv420p" if size % 2 == 0 else "yuv444p"
        command = [_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "rawvideo"]
        command += ["-pix_fmt", "rgb24", "-s", f"{size}x{size}", "-r", f"{fps:g}", "-i", "-"]
        command += ["-c:v", "libx264", "-crf", str(QUALITY), "-g", "2", "-bf", "0"]
        command += ["-pix_fmt", pixels, "-threads", "1", f"file:{path}"]
        self._ffmpeg = self._stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said
            )
        )
        self.pixels = pixels

    def add(self, frame: np.ndarray) -> None:
        """Append a frame (S, S, 3) uint8."""
        assert self._ffmpeg.stdin is not None
        try:
            self._ffmpeg.stdin.write(np.ascontiguousarray(frame).tobytes())
        except OSError as error:
            raise self._failed() from error

    def _failed(self) -> UserError:
        self._said.seek(0)
        reason = " ".join(self._said.read(4096).decode(errors="replace").split())[:200]
        return UserError(f"cannot write {self._path}: {reason or 'ffmpeg ended'}")

    def __enter__(self) -> "VideoEncoder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is not None:
                self._ffmpeg.kill()
            assert self._ffmpeg.stdin is not None
            with contextlib.suppress(OSError):
                self._ffmpeg.stdin.close()
            if self._ffmpeg.wait() and kind is None:
                raise self._failed()
        finally:
            self._stack.close()


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()
