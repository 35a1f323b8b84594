"""Videos of episodes and predictions."""

import math
import os
import subprocess
from pathlib import Path

import numpy as np

# Height in pixels to which smaller frames are enlarged: 64 are too few to look at.
SMALLEST_HEIGHT = 320


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
    # ffmpeg chooses the container by the ending.
    temporary = path.with_suffix(".tmp.mp4")
    temporary.touch()  # an error of ours, not a page of ffmpeg's
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
        writer.close()
        os.replace(temporary, path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def shrink_video(source: Path, target: Path, fps: float = 10, height: int = 256) -> None:
    """Write a small copy of ``source`` to ``target`` (.mp4, H.264): to be sent or kept in git.

    Args:
        source: a video; its duration and its colours stay.
        target: the copy, written all at once.
        fps: frames a second, at most; a slower ``source`` keeps its own.
        height: pixels, at most; the width follows.

    Raises:
        OSError: ``source`` is no video that can be read, or ``target`` cannot be written.
    """
    import imageio_ffmpeg

    temporary = target.with_suffix(".tmp.mp4")
    filters = f"fps='min({fps},source_fps)',scale=-2:'2*trunc(min({height},ih)/2)'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-nostdin", "-loglevel", "error"]
    command += ["-i", str(source), "-vf", filters, "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    command += ["-crf", "26", "-movflags", "+faststart", str(temporary)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{source} was not made smaller: {done.stderr.strip()[-300:]}")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
