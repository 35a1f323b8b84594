"""How a command ends: what it says last, on whatever terminal."""

import io
import sys

import pytest

from commands.ending import guarded, one_line
from errors import UserError


def on_a_terminal_of_ascii(command):
    """The exit status of a command, what it prints, and what it says of errors, as bytes."""
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        status = guarded(command)
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue() for stream in streams)


def test_what_a_terminal_cannot_show_is_no_error():
    status, printed, _ = on_a_terminal_of_ascii(lambda: print("λ = 0.95 ± 0.01"))
    assert (status, printed) == (0, b"\\u03bb = 0.95 \\xb1 0.01\n")


def test_an_error_is_one_line_that_a_terminal_does_not_obey():
    def refused():
        raise UserError("the file \x1b[2J\u202e\udcff\n  of Zoë is\tdamaged")

    status, _, said = on_a_terminal_of_ascii(refused)
    assert status == 2
    assert said == b"error: the file \\x1b[2J\\u202e\\udcff of Zo\\xeb is damaged\n"
    assert one_line("of Zoë") == "of Zoë"


def test_an_error_that_nobody_could_read_is_shortened_in_its_middle():
    shown = one_line(f"cannot read {'9' * 5000}; give another")
    assert shown.startswith("cannot read 999")
    assert shown.endswith("999; give another")
    assert len(shown) < 1100
