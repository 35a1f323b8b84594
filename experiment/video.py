"""Videos of episodes and predictions."""

import contextlib
import errno
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from atomic_file import atomic_path, writing

# Height in pixels to which smaller frames are enlarged: 64 are too few to look at.
SMALLEST_HEIGHT = 320
# Pixels and frames a second that a small copy has at most.
SMALL_HEIGHT, SMALL_FPS = 256, 10

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What ffmpeg says of the disk, in the system's words."""


class EncodingError(Exception):
    """ffmpeg has failed, for a reason other than the disk; says why in its words."""


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write ``frames`` to ``path`` (.mp4, H.264), all at once.

    Args:
        frames: ``(T, H, W, 3)`` uint8, RGB; small ones are enlarged by whole pixels.
        fps: frames a second.

    Raises:
        ValueError: ``frames`` has another shape or type, or is empty.
        Unwritable: ``path`` cannot be written.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3), are {frames.dtype} {frames.shape}")
    scale = math.ceil(SMALLEST_HEIGHT / frames.shape[1])
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    # H.264's usual colour format has half the resolution, so both sides must be even.
    padding = ((0, height % 2), (0, width % 2), (0, 0))

    def enlarged(frame: np.ndarray) -> bytes:
        large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        return np.pad(large, padding, mode="edge").tobytes()

    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s"]
    source += [f"{width + width % 2}x{height + height % 2}"]
    source += ["-r", str(Fraction(fps).limit_denominator()), "-i", "-"]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _encode(path, [*source, "-crf", "18"], map(enlarged, frames))
        except EncodingError as error:
            raise OSError(f"ffmpeg: {error}") from error


def shrink_video(source: Path, target: Path) -> None:
    """Write a copy of ``source`` to ``target`` (.mp4, H.264) that is small enough for git.

    At most 256 pixels high and of 10 frames a second; duration and proportions stay.

    Raises:
        OSError: ``source`` is no video that can be read, or ``target`` cannot be written.
    """
    filters = f"fps='min({SMALL_FPS},source_fps)',scale=-2:'2*trunc(min({SMALL_HEIGHT},ih)/2)'"
    try:
        _encode(target, ["-i", str(source), "-vf", filters, "-an", "-crf", "26"])
    except EncodingError as error:
        raise OSError(f"{source} was not made smaller: {error}") from error


def _encode(path: Path, options: Sequence[str], frames: Iterable[bytes] = ()) -> None:
    """Let ffmpeg write ``path`` (.mp4, H.264), all at once.

    Args:
        path: of the video.
        options: ffmpeg's source, filters and quality.
        frames: what it reads from its standard input.

    Raises:
        Unwritable: ``path`` cannot be written.
        EncodingError: ffmpeg has failed otherwise.
    """
    # Importing it looks for an ffmpeg executable.
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *options]
    command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    # ffmpeg chooses the container by the ending.
    with (
        atomic_path(path, path.with_suffix(".tmp.mp4")) as temporary,
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [*command, str(temporary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            process_group=0,  # Ctrl-C is for us; we end it
        ) as ffmpeg,
    ):
        assert ffmpeg.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg itself says more
                for frame in frames:
                    ffmpeg.stdin.write(frame)
            with contextlib.suppress(BrokenPipeError):
                ffmpeg.stdin.close()
            code = ffmpeg.wait()
        except BaseException:
            ffmpeg.kill()
            raise
        said.seek(0)
        _check(code, said.read().decode(errors="replace").strip())


def _check(code: int, said: str) -> None:
    """Raises OSError where ffmpeg names the disk, EncodingError where it has failed otherwise."""
    number = next((number for number in DISK if os.strerror(number) in said), None)
    if code == -signal.SIGXFSZ:
        number = errno.EFBIG
    if number is not None:  # of the last bytes it may say so and end well
        raise OSError(number, os.strerror(number))
    if code < 0:
        raise EncodingError(f"killed by {signal.Signals(-code).name}")
    if code:
        raise EncodingError(said.rpartition("\n")[2] or f"status {code}")
