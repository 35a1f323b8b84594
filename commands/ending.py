"""How a command ends: its exit status and its last line. Imports nothing that takes time."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from errors import UserError
from experiment.stopping import Interrupts, ignore_signals

SIGNALLED = 128
"""Added to a signal's number it is the exit status of a process that the signal ended."""

LONGEST = 1000
"""Characters of an error; the names that it holds may have thousands."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""A disk that is full, beyond its quota, read-only or broken: no defect of the toolkit."""


def guarded(command: Callable[[], None], stopped: str = "") -> int:
    """Call `command`; the exit status: 2 for a ``UserError`` and for a disk that fails, 130 for
    Ctrl-C, 143 for SIGTERM, 129 for SIGHUP (`stopped` is said then), 1 where nobody reads what is
    printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    with Interrupts() as interrupts:
        try:
            command()
            sys.stdout.flush()
        except BaseException as error:
            if interrupts.ending or isinstance(error, KeyboardInterrupt):
                with contextlib.suppress(OSError):
                    after_the_bar = "\n" if sys.stderr.isatty() else ""
                    print(f"{after_the_bar}stopped{stopped}", file=sys.stderr)
                return SIGNALLED + interrupts.number
            if isinstance(error, UserError):
                print("error:", one_line(str(error)), file=sys.stderr)
                return 2
            if isinstance(error, BrokenPipeError):
                _print_nowhere()  # the reader, `head` for example, has seen enough
                return 1
            if isinstance(error, OSError) and error.errno in DISK:
                if error.filename is None:
                    _print_nowhere()
                what = error.filename or "a file, or what is printed"
                print(f"error: cannot read or write {what} ({error.strerror})", file=sys.stderr)
                return 2
            raise
    return 0


def one_line(text: str) -> str:
    """A text on one line, without what a terminal would obey, it may name files of others, and not
    longer than can be read."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _print_nowhere() -> None:
    """What standard output has not taken yet would fail again at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end(status: int) -> NoReturn:
    """End the process. One that was stopped is not disturbed by another signal on its way out."""
    if status > SIGNALLED:
        ignore_signals()
    sys.exit(status)
