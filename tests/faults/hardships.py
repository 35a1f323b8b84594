"""Processes that are killed at a moment nobody chose, and disks that are too small.

After each, the same command comes to the end that it would have come to undisturbed.
"""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.judge import Verdict, plainly
from tests.faults.process import Ended, Process, call
from tests.faults.works import WORKS, Work

KILLS = 4
"""Of one command, one after the other, before it may come to its end."""
SHARE = 2**21
"""Bytes that a disk may have for what is to be written, at most, or as many as it takes."""


class Undisturbed(NamedTuple):
    """What a command does when nothing happens to it."""

    result: Path
    seconds: float
    most_bytes: int
    """Of all files in its folder together, at its end."""


def undisturbed(name: str, originals: Path, folder: Path) -> Undisturbed:
    """Run a command of `WORKS` in a new folder.

    Raises:
        RuntimeError: it fails.
    """
    work = WORKS[name]
    _prepare(work, originals, folder)
    ended = call(work.command, folder)
    if ended.status != 0:
        raise RuntimeError(f"{' '.join(work.command)}:\n{ended.errors}")
    return Undisturbed(folder / work.result, ended.seconds, _size(folder))


def killed(
    name: str, number: int, seed: int, kills: int, known: Undisturbed, originals: Path, folder: Path
) -> list[Verdict]:
    """Kill a command `kills` times at random instants, starting it again each time, and let it
    come to its end after the last; a verdict for every kill."""
    rng = random.Random(f"{seed} kill {name} {number}")
    work = WORKS[name]
    _prepare(work, originals, folder)
    instants: list[str] = []
    left: list[str] = []
    seconds, verdict, said = 0.0, "right result", ""
    while len(instants) < kills and verdict == "right result":
        process = Process(work.command, folder)
        after = rng.uniform(0, known.seconds)
        if process.kill_after(after):
            ended = process.wait(120.0)
            instants.append(f"after {after:.2f} s")
            left += ended.left
            seconds += ended.seconds
        else:  # it has come to its end before, and another begins
            verdict, said = _end(work, known, process.wait(120.0), folder)
            if verdict == "right result":
                shutil.rmtree(folder)
                _prepare(work, originals, folder)
    if verdict == "right result":
        verdict, said = _end(work, known, call(work.command, folder), folder)
    if left:
        verdict, said = "hang", f"left behind: {'; '.join(left)}"
    if verdict == "right result":
        shutil.rmtree(folder)
    what, command = f"killed {', '.join(instants)}", " ".join(work.command)
    found = Verdict(
        f"{name}, killed", f"kill-{name}", number, what, command, verdict, said, seconds
    )
    return [found] * max(1, len(instants))


def without_room(
    name: str, number: int, seed: int, known: Undisturbed, originals: Path, folder: Path
) -> list[Verdict]:
    """Run a command where there is too little room, then make room and run it again.

    Where nothing can be mounted, no file may become longer than some size instead.
    """
    rng = random.Random(f"{seed} disk {name} {number}")
    work = WORKS[name]
    need = _size(originals / work.needs) if work.needs else 0
    # As large as what is there before and a share of what comes to it.
    room = need + int(rng.random() ** 2 * max(1.1 * (known.most_bytes - need), SHARE))
    with _mounted(folder, room + 2**13) as mounted:
        _prepare(work, originals, folder)
        most = None if mounted else max(1, room // 4)
        first = Process(work.command, folder, most_bytes=most).wait(120.0)
        verdict, said = ("right result", "") if first.status == 0 else plainly(first)
        if verdict in ("right result", "refused"):
            if mounted:
                _mount("-o", "remount,size=1g", str(folder))
            verdict, said_then = _end(work, known, call(work.command, folder), folder)
            said = f"{said}; {said_then}"
    if verdict == "right result":
        shutil.rmtree(folder)
        verdict = "refused" if first.status else "right result"
    kind = "disk of" if mounted else "files of up to"
    what = f"{kind} {room if most is None else most:,} bytes"
    command = " ".join(work.command)
    return [
        Verdict(
            f"{name}, full disk",
            f"disk-{name}",
            number,
            what,
            command,
            verdict,
            said,
            first.seconds,
        )
    ]


def _end(work: Work, known: Undisturbed, ended: Ended, folder: Path) -> tuple[str, str]:
    """The verdict on a command that had all it needs, and should come to the known end."""
    if ended.status != 0:
        verdict, said = plainly(ended)
        return ("lost" if verdict == "refused" else verdict), f"does not go on: {said}"
    differs = work.difference(known.result, folder / work.result)
    return ("silent wrong", f"another end: {differs}") if differs else ("right result", "")


def _prepare(work: Work, originals: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    if work.needs is not None:
        source = originals / work.needs
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / work.needs)


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder, as a disk counts them."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[bool]:
    """A disk of its own of `size` bytes in the memory, where that is permitted; whether it is."""
    folder.mkdir()
    mounted = os.geteuid() == 0 and _mount(
        "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _mount(*arguments: str) -> bool:
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    return done.returncode == 0
