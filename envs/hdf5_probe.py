"""Reading HDF5 files once, in a process of its own: a damaged file can crash the HDF5 library.

    python envs/hdf5_probe.py < PATHS        (each path followed by a NUL byte)

One dot is written before each file: when the process dies, their number says at which. What Python
can report is left to whoever reads the file then. Imports NumPy and h5py alone, to start fast.
"""

import contextlib
import math
import os
import signal
import sys

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5s

SECONDS = 10.0
"""Of computing, for one dataset or attribute; then the process ends (SIGPROF): damaged lists of
HDF5's can be circles."""
MEMORY = 2**33
"""Bytes of address space: damaged sizes must not take all of the machine's memory."""
READ_WHOLE = 2**24
"""Bytes up to which a table is read whole."""
LARGEST_DATASET = 2**34
"""Bytes that a dataset may declare, 16 GiB: one episode's pictures are some hundred megabytes."""

ELSEWHERE = "which is not read; copy what it leads to into this one"


class Unusable(ValueError):
    """A file holds what is not read; says where and what."""


def dataset_names(file: h5py.File) -> list[bytes]:
    """Paths of all datasets in a file, each once.

    Raises:
        Unusable: a link, or the values of a dataset, are in another file; or a dataset is larger
            than ``LARGEST_DATASET``.
    """

    def refused(name: bytes, info) -> bytes | None:
        return None if info.type in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else name

    name = file.id.links.visit(refused, info=True)
    if name is not None:
        raise Unusable(f"{_shown(name)} is a link to another file, {ELSEWHERE}")
    names: list[bytes] = []

    def listed(name: bytes, info) -> None:
        if info.type == h5o.TYPE_DATASET:
            names.append(name)

    h5o.visit(file.id, listed, info=True)
    for name in names:
        dataset = h5d.open(file.id, name)
        plan = dataset.get_create_plist()
        if plan.get_external_count() or _virtual_from_elsewhere(plan):
            raise Unusable(f"the values of {_shown(name)} are in another file, {ELSEWHERE}")
        size = dataset.get_type().get_size()
        size *= math.prod(dataset.shape or ())
        if size > LARGEST_DATASET:
            raise Unusable(
                f"{_shown(name)} declares {size / 2**30:,.0f} GiB of values, more than the"
                f" {LARGEST_DATASET >> 30} GiB of any demonstration"
            )
    return names


def _virtual_from_elsewhere(plan) -> bool:
    if plan.get_layout() != h5d.VIRTUAL:
        return False
    sources = [plan.get_virtual_filename(number) for number in range(plan.get_virtual_count())]
    return any(source not in (".", b".") for source in sources)


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def read_through(file: h5py.File) -> None:
    """Read every attribute, tables, the first and the last picture, and where chunks lie."""
    datasets = set(dataset_names(file))
    objects: list[bytes] = [b"."]
    h5o.visit(file.id, objects.append)
    for name in objects:
        with contextlib.suppress(Exception):
            found = h5o.open(file.id, name)
            for number in range(h5a.get_num_attrs(found)):
                _watch()
                _read_attribute(h5a.open(found, index=number))
            if name in datasets:
                _watch()
                _read_values(found)


def _watch() -> None:
    """Give what follows ``SECONDS``."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def _read_attribute(attribute: h5a.AttrID) -> None:
    if attribute.get_storage_size() <= READ_WHOLE:
        attribute.read(np.empty(attribute.shape or (), attribute.dtype))


def _read_values(dataset: h5d.DatasetID) -> None:
    plan = dataset.get_create_plist()
    if plan.get_layout() == h5d.CHUNKED:
        dataset.get_num_chunks()
    shape, kind = dataset.shape, dataset.dtype
    if shape is None or 0 in shape:
        return
    if len(shape) <= 2 and kind.itemsize * math.prod(shape) <= READ_WHOLE:
        dataset.read(h5s.ALL, h5s.ALL, np.empty(shape, kind))
        return
    for row in {0, shape[0] - 1}:
        part = dataset.get_space()
        part.select_hyperslab((row,) + (0,) * (len(shape) - 1), (1, *shape[1:]))
        values = np.empty((1, *shape[1:]), kind)
        dataset.read(h5s.create_simple(values.shape), part, values)


def main() -> None:
    """Read through the files named on standard input."""
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for path in sys.stdin.buffer.read().split(b"\0")[:-1]:
        _watch()
        os.write(1, b".")
        with contextlib.suppress(Exception), h5py.File(os.fsdecode(path), "r") as file:
            read_through(file)


if __name__ == "__main__":
    main()
