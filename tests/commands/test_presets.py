"""The tables of presets are written into a page, or the page is left as it was."""

import os

import pytest

from run import main

PAGE = """# λ

<!-- presets: train -->
what was there
<!-- end -->
after
"""


def test_tables_are_put_between_their_comments_in_utf8(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    assert main(["presets", "--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# λ\n")
    assert "| `--steps` |" in text
    assert "what was there" not in text
    assert text.endswith("<!-- end -->\nafter\n")


@pytest.mark.parametrize("kind", ["nothing", "folder", "pipe", "latin"])
def test_a_page_that_cannot_be_read_is_one_line(tmp_path, kind, capsys):
    page = tmp_path / "page.md"
    if kind == "folder":
        page.mkdir()
    elif kind == "pipe":
        os.mkfifo(page)
    elif kind == "latin":
        page.write_bytes(PAGE.encode("utf-16"))
    assert main(["presets", "--write", str(page)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {page} ")
    assert said.count("\n") == 1
