"""Names of files are each other's alone, and what cannot be written is one sentence."""

import os
import resource
from contextlib import contextmanager

import pytest

from analysis.output import file_names, make_folder, write_file
from errors import UserError


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["metaworld/push"], ["metaworld-push"]),
        (["a/b", "a-b"], ["a-b", "a-b-2"]),
        (["a/b", "a-b", "a-b-2", "A-B"], ["A-B", "a-b-2", "a-b-2-2", "a-b-3"]),
        (["x" * 300, "x" * 301], ["x" * 200, "x" * 200 + "-2"]),
        (["捡" * 100], ["捡" * 66]),
    ],
)
def test_no_two_names_share_a_file(names, files):
    found = file_names(names)
    assert list(found) == sorted(names)
    assert sorted(found.values()) == files
    assert found == file_names(reversed(names))
    assert all(len(f"{name}.json".encode()) < 255 for name in found.values())


def test_what_is_written_replaces_a_link_and_never_what_it_leads_to(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    path = tmp_path / "out" / "scores.md"
    path.parent.mkdir()
    path.symlink_to(outside)
    write_file(path, "λ")
    assert path.read_bytes() == "λ".encode()
    assert outside.read_text() == "mine"


def test_a_pipe_is_replaced_without_waiting_for_a_reader(tmp_path):
    os.mkfifo(tmp_path / "scores.md")
    write_file(tmp_path / "scores.md", b"1")
    assert (tmp_path / "scores.md").read_bytes() == b"1"


@pytest.mark.parametrize("out", ["file", "file/below", "x" * 300, "folder"])
def test_where_nothing_can_be_written_is_one_sentence(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "scores.md").mkdir(parents=True)
    with pytest.raises(UserError) as refusal:
        write_file(tmp_path / out / "scores.md", "text")
    assert str(tmp_path / out) in str(refusal.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path / "folder")) == ["scores.md"]
    if out != "folder":
        with pytest.raises(UserError):
            make_folder(tmp_path / out)


@contextmanager
def files_up_to(size):
    """Whatever this process writes ends at `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "scores.md"
    write_file(path, "old")
    with files_up_to(1000), pytest.raises(UserError, match=r"scores\.md"):
        write_file(path, bytes(2000))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.md"]
