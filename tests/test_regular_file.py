"""A file of somebody else is read, or refused in one sentence; it is never waited for."""

import os
import socket

import pytest

from errors import UserError
from regular_file import open_regular, read_bytes, read_text


def test_text_is_utf8_whatever_the_locale_and_has_no_byte_order_mark(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    path = tmp_path / "text"
    path.write_bytes("\ufeffλ = 0.95\n".encode())
    assert read_text(path) == "λ = 0.95\n"
    assert read_bytes(path)[:3] == b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "No such file"),
        ("folder", "Is a directory"),
        ("pipe", "is a pipe or a device"),
        ("device", "is a pipe or a device"),
        ("socket", "cannot be read"),
        ("circle", "cannot be read"),
        ("latin", r"is not UTF-8 text \(byte 3\)"),
        ("long", "longer than 1,000 bytes"),
        ("holes", "longer than 1,000 bytes"),
    ],
)
def test_what_is_no_file_that_can_be_read_is_refused_by_name(tmp_path, kind, words):
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "latin":
        path.write_bytes(b"me\xe9")
    elif kind == "long":
        path.write_bytes(bytes(1001))
    elif kind == "holes":
        path.touch()
        os.truncate(path, 2**40)
    with pytest.raises(UserError, match=words) as refusal:
        read_text(path, most=1000)
    assert str(path) in str(refusal.value)


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    """The superuser may read everything, and looks as somebody else."""
    path = tmp_path / "file"
    path.touch(0o000)
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            read_bytes(path)
    finally:
        if superuser:
            os.seteuid(0)


NOBODY = 65534


def test_a_refusal_leaves_nothing_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    for name in ("pipe", "nothing"):
        with pytest.raises(UserError), open_regular(tmp_path / name):
            pass
    assert os.listdir("/proc/self/fd") == before
