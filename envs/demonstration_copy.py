"""Copies of demonstration files with other pictures, or with masks."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from envs.demonstration_writer import write_dataset
from envs.hdf5 import DAMAGED, open_file
from errors import UserError


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[h5py.File]:
    """The file that is copied; what is broken in it is one sentence."""
    with open_file(path) as file:
        try:
            yield file
        except DAMAGED as error:
            raise UserError(f"{path} is damaged, or no demonstration file: {error}") from error


def copy_attributes(source: Any, target: Any) -> None:
    """All attributes of a file, group or dataset."""
    for name, value in source.attrs.items():
        target.attrs[name] = value


def copy_episode(demo: h5py.Group, target: h5py.Group, frames: Mapping[str, np.ndarray]) -> None:
    """An episode with other datasets by path ("obs/front_mask") in place of its own, or more."""
    copy = target.create_group(demo.name.rpartition("/")[2])
    copy_attributes(demo, copy)
    copy.attrs.pop("annotated", None)
    for name in demo:
        if name != "obs":
            demo.copy(name, copy)
    for name in demo["obs"]:
        if f"obs/{name}" not in frames:
            demo["obs"].copy(name, copy.require_group("obs"))
    for name, values in frames.items():
        write_dataset(copy, name, values)


def resized(attributes: Mapping[str, Any], size: int) -> dict[str, str]:
    """``env_args``, where robomimic reads the size of the pictures from, with that size."""
    try:
        env_args = json.loads(attributes["env_args"])
        kwargs = env_args["env_kwargs"]
        kwargs["camera_heights"] = kwargs["camera_widths"] = size
        return {"env_args": json.dumps(env_args)}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def stored(part: h5py.Group | h5py.Dataset) -> int:
    """Bytes that a copy of a part of a file takes."""
    sizes = []

    def add(name: str, found: h5py.Group | h5py.Dataset) -> None:
        if isinstance(found, h5py.Dataset):
            sizes.append(found.id.get_storage_size())

    if isinstance(part, h5py.Group):
        part.visititems(add)
    else:
        add("", part)
    return sum(sizes)
