"""Videos of episodes and predictions."""

import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Height in pixels to which smaller frames are enlarged: 64 are too few to look at.
SMALLEST_HEIGHT = 320
# Pixels and frames a second that a small copy has at most.
SMALL_HEIGHT, SMALL_FPS = 256, 10


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Where to write what is called ``path`` once the block is done; nothing stays of an error."""
    # ffmpeg chooses the container by the ending.
    temporary = path.with_suffix(".tmp.mp4")
    try:
        temporary.touch()  # an error of ours, not a page of ffmpeg's
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write ``frames`` to ``path`` (.mp4, H.264), all at once.

    Args:
        frames: ``(T, H, W, 3)`` uint8, RGB; small ones are enlarged by whole pixels.
        fps: frames a second.

    Raises:
        ValueError: ``frames`` has another shape or type, or is empty.
        OSError: ``path`` cannot be written.
    """
    # Importing it looks for an ffmpeg executable.
    import imageio_ffmpeg

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3), are {frames.dtype} {frames.shape}")
    scale = math.ceil(SMALLEST_HEIGHT / frames.shape[1])
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    # H.264's usual colour format has half the resolution, so both sides must be even.
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _complete(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            size=(width + width % 2, height + height % 2),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-crf", "18", "-movflags", "+faststart"],
        )
        try:
            writer.send(None)
            for frame in frames:
                enlarged = frame.repeat(scale, axis=0).repeat(scale, axis=1)
                writer.send(np.ascontiguousarray(np.pad(enlarged, padding, mode="edge")))
        finally:
            writer.close()


def shrink_video(source: Path, target: Path) -> None:
    """Write a copy of ``source`` to ``target`` (.mp4, H.264) that is small enough for git.

    At most 256 pixels high and of 10 frames a second; duration and proportions stay.

    Raises:
        OSError: ``source`` is no video that can be read, or ``target`` cannot be written.
    """
    import imageio_ffmpeg

    filters = f"fps='min({SMALL_FPS},source_fps)',scale=-2:'2*trunc(min({SMALL_HEIGHT},ih)/2)'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-nostdin", "-loglevel", "error"]
    command += ["-i", str(source), "-vf", filters, "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    command += ["-crf", "26", "-movflags", "+faststart"]
    with _complete(target) as temporary:
        done = subprocess.run(
            [*command, str(temporary)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = done.stderr.strip().rsplit("\n", 1)[-1]
            raise OSError(f"{source} was not made smaller: {reason}")
