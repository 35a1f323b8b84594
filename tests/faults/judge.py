"""One try from its beginning to a verdict.

A command that meets something wrong gives the right result and exit status 0, or one line that
begins with "error: " and names what is wrong, and exit status 2. It never ends otherwise, never
hangs, leaves no process, runs no code that came with the data, and a refusal loses nothing.
"""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.kinds import fault
from tests.faults.place import Fault, Place
from tests.faults.process import Ended, call

GOOD = ("right result", "refused")
BAD = ("traceback", "hang", "silent wrong", "code executed", "lost", "unclear")
PATIENCE = {"command_line": 20.0, "config": 30.0}
"""Seconds after which a command that may have been asked for a lot is told to stop."""
MINE = {"lock", "evaluation.lock"}
"""Files that a command may make or write in a run folder that it then refuses."""
NO_SUCCESS = "episodes failed; there are 0 successful ones"
"""What collect says of an agent that never succeeds; the tiny ones here do not."""
LONGEST = 1500
"""Characters of a refusal; paths in it may have hundreds each."""


class Verdict(NamedTuple):
    """What came of one try."""

    kind: str
    """As the report lists it."""
    name: str
    """As --only takes it."""
    number: int
    what: str
    """What was done."""
    command: str
    verdict: str
    """One of `GOOD` or `BAD`."""
    said: str
    """The refusal, or what was wrong."""
    seconds: float


def judged(kind: Callable, seed: int, number: int, originals: Path, work: Path) -> Verdict:
    """Make a try in a folder of its own, which is removed where all is well."""
    folder = work / f"{kind.__name__}-{number}"
    folder.mkdir()
    place = Place(folder, originals)
    tried = fault(kind, seed, number, place)
    before = _seen(folder), _seen(place.outside)
    ended = call(tried.command, folder, PATIENCE.get(kind.__name__, 120.0), tried.privileged)
    verdict, said = _verdict(tried, ended, before, (_seen(folder), _seen(place.outside)))
    if verdict in GOOD:
        for path in (folder, place.outside):
            _remove(path)
    command = " ".join(map(str, tried.command))
    return Verdict(
        str(kind.__doc__).strip(), kind.__name__, number, tried.what, command, verdict, said,
        ended.seconds,
    )  # fmt: skip


Files = dict[str, tuple]


def _verdict(
    tried: Fault, ended: Ended, before: tuple[Files, Files], after: tuple[Files, Files]
) -> tuple[str, str]:
    """The verdict and what it is based on."""
    if before[1] != after[1]:
        changed = {name for name, _ in set(before[1].items()) ^ set(after[1].items())}
        return "code executed", f"outside of the folder: {', '.join(sorted(changed))}"
    if ended.stopped and not ended.hung and ended.status in (0, 143) and not ended.left:
        return "right result", "was at work, and stopped or came to its end when told to"
    verdict, last = plainly(ended)
    if verdict == "right result":
        if tried.expect == "refused":
            return "silent wrong", f"accepted; {last}"
        wrong = tried.right(ended)
        return ("silent wrong", wrong) if wrong else ("right result", last)
    if verdict != "refused":
        return verdict, last
    harmless = NO_SUCCESS in last  # of an agent that can act, which is all that was asked
    if tried.subject is not None and tried.subject.name not in last and not harmless:
        return "unclear", f"does not name {tried.subject.name}: {last}"
    lost = [
        name
        for name, what in before[0].items()
        if after[0].get(name) != what and Path(name).name not in MINE
    ]
    if lost:
        return "lost", f"{', '.join(lost[:5])} changed or gone; {last}"
    return "refused", last


def plainly(ended: Ended) -> tuple[str, str]:
    """The verdict that needs no more than how a command ended, and its last line or what was
    wrong."""
    errors = ended.errors.strip().splitlines()
    last = errors[-1] if errors else ""
    if ended.hung or ended.stopped:
        return "hang", ended.errors[-2000:]
    if ended.left:
        return "hang", f"left behind: {'; '.join(ended.left)}"
    if ended.status not in (0, 2) or "Traceback" in ended.errors:
        return "traceback", f"status {ended.status}: {ended.errors[-2000:]}"
    if ended.status == 0:
        return "right result", last
    refusals = [line for line in errors if line.startswith("error: ")]
    if len(refusals) != 1 or refusals[0] != last:
        return "unclear", f"not one last line: {ended.errors[-2000:]}"
    if not last.isprintable() or len(last) > LONGEST:
        return "unclear", f"{len(last)} characters: {last[:300]!r}"
    return "refused", last


def _seen(folder: Path) -> Files:
    """Kind, mode and content of everything below a folder, links not followed."""
    found: Files = {}
    for name in _below(folder):
        path = folder / name
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            # A file of 8 TiB of holes is known by what it begins with.
            with open(path, "rb") as file:
                content = status.st_size, hashlib.sha256(file.read(2**25)).hexdigest()
        found[name] = (status.st_mode, content)
    return found


def _below(folder: Path) -> list[str]:
    names = []
    for where, folders, files in os.walk(folder):
        names += [os.path.relpath(os.path.join(where, name), folder) for name in folders + files]
    return names


def _remove(folder: Path) -> None:
    for where, *_ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(where, 0o700)
    shutil.rmtree(folder)
