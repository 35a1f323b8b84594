"""Disks that are full or read-only, for tests: file systems in memory, which root may mount."""

import contextlib
import subprocess

import pytest


class SmallDisk:
    """A file system of a few KiB at ``path``."""

    def __init__(self, path):
        self.path = path
        self._filler = path / "filler"

    def fill(self, free=0):
        """Leave ``free`` bytes of room."""
        self.empty()
        with contextlib.suppress(OSError), open(self._filler, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        if free:
            size = self._filler.stat().st_size
            with open(self._filler, "r+b") as file:
                file.truncate(size - free)

    def empty(self):
        """Make room again."""
        self._filler.unlink(missing_ok=True)

    def may_be_written(self, allowed):
        """Whether anything may be written."""
        _run("mount", "-o", f"remount,{'rw' if allowed else 'ro'}", self.path)


@contextlib.contextmanager
def small_disk(path, kib):
    """A disk of ``kib`` KiB at ``path``, a new folder; the test is skipped where none can be
    mounted."""
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", path)


def _run(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
