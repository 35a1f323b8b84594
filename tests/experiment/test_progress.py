"""Progress where nobody watches: a line from time to time."""

import io
import re

import pytest

from experiment import progress
from experiment.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def streams(monkeypatch):
    def put(out, err):
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)

    return put


@pytest.mark.parametrize("err", [io.StringIO, Terminal])
def test_a_file_gets_a_line_from_time_to_time(streams, monkeypatch, err):
    streams(out := io.StringIO(), err())
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("reach", 20, "episode", 2) as bar:
        for _ in range(4):
            bar.update()
        assert bar.n == 6
    assert out.getvalue() == ("reach: episode 4 of 20  (31 s)\nreach: episode 6 of 20  (62 s)\n")


def test_without_a_total_it_counts(streams, monkeypatch):
    streams(out := io.StringIO(), io.StringIO())
    monkeypatch.setattr(progress, "EVERY", -1.0)
    with Progress("a.hdf5", None, "episode") as bar:
        bar.update(3)
    assert re.fullmatch(r"a\.hdf5: episode 3  \(\d+ s\)\n", out.getvalue())


def test_a_terminal_has_the_bar_alone(streams, monkeypatch):
    streams(out := Terminal(), err := Terminal())
    monkeypatch.setattr(progress, "EVERY", -1.0)
    with Progress("reach", 20, "episode") as bar:
        bar.update()
    assert out.getvalue() == ""
    assert "reach" in err.getvalue()
