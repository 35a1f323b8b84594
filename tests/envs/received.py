"""Small demonstration files such as others write them, made without a simulator."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

TASK = "metaworld/reach"
STEPS, SIZE, WIDTH = 12, 16, 4
ATTRIBUTES = {
    "task": TASK,
    "problem_info": json.dumps({"language_instruction": "reach"}),
    "macros_image_convention": "opencv",
    "obs_alignment": "before_action",
}


def write(
    path: Path,
    change: Callable[[h5py.File], None] = lambda file: None,
    *,
    demos: int = 2,
    attributes: dict[str, object] | None = None,
) -> Path:
    """A file of `demos` episodes of one camera with masks, which `change` then edits; its path."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(ATTRIBUTES if attributes is None else attributes)
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update({"num_samples": STEPS, "success": True, "seed": number})
            demo["actions"] = rng.uniform(-1, 1, (STEPS, WIDTH))
            demo["obs/proprio"] = rng.normal(size=(STEPS, WIDTH)).astype(np.float32)
            demo["obs/corner2_rgb"] = rng.integers(0, 256, (STEPS, SIZE, SIZE, 3), np.uint8)
            masks = rng.integers(0, 8, (STEPS, SIZE, SIZE), np.uint8)
            demo.create_dataset("obs/corner2_mask", data=masks, chunks=(1, SIZE, SIZE))
        change(file)
    return path


def put(name: str, values: object) -> Callable[[h5py.File], None]:
    """A change that puts values, or a link, in the place of what has the name."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = values

    return change


def arm(path: Path, alignment: str, *, states: bool = True, still: bool = False) -> Path:
    """A file without ``obs_alignment`` of an arm as LIBERO records it: seven joints in
    ``states``, seen before or after the action of a row."""
    rng = np.random.default_rng(1)

    def change(file: h5py.File) -> None:
        del file["data"].attrs["obs_alignment"]
        for demo in file["data"].values():
            motion = rng.normal(scale=0.0 if still else 0.02, size=(STEPS + 1, 7))
            joints = rng.normal(size=7) + np.cumsum(motion, 0)
            rest = rng.normal(size=(STEPS, 5))
            time = np.arange(STEPS)[:, None] / 20
            if states:
                demo["states"] = np.concatenate([time, joints[:-1], rest], 1)
            seen = joints[:-1] if alignment == "before_action" else joints[1:]
            del demo["obs/proprio"]
            # A replay is never quite where the recording was.
            demo["obs/joint_states"] = seen + rng.normal(scale=0.001, size=seen.shape)
            demo["obs/gripper_states"] = rng.normal(size=(STEPS, 2))
            demo["obs/ee_pos"] = rng.normal(size=(STEPS, 3))

    return write(path, change)
