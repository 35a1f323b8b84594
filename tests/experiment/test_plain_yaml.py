"""YAML of somebody else: plain data comes out, everything else is refused where it stands."""

import time

import pytest
import yaml

from errors import UserError
from experiment.plain_yaml import DEEPEST, MOST_BYTES, read_plain_yaml

DATA = {
    "text": ["λ = 0.95", "", "no", "1e-4", "2001-01-01", "0x1f", "~", "a\nb", "é\u2028", "\ud800"],
    "numbers": [0, -1, 2**63 - 1, 1.5, 1e-05, 1e300],
    "nothing": None,
    "flags": [True, False],
    "nested": {"a": {"b": [[], {}]}},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.yaml"


def test_what_is_written_by_the_toolkit_is_read_back(path):
    text = yaml.safe_dump(DATA, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    assert read_plain_yaml(path) == DATA


def test_dates_and_merged_keys_are_text(path):
    path.write_text("a: 2001-99-99\nb: 12:30:45 o'clock\n<<: {c: 1}\n")
    assert read_plain_yaml(path) == {"a": "2001-99-99", "b": "12:30:45 o'clock", "<<": {"c": 1}}


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\n"
REFUSED = {
    "aliases": (LAUGHS, "line 1: an anchor or alias"),
    "an alias": ("a: 1\nb: *a\n", "line 2: an anchor or alias"),
    "an object": ("a: 1\nb: !!python/object/apply:os.abort []\n", "line 2: a tag"),
    "a module": ("!!python/module:payload", "line 1: a tag"),
    "bytes": ("a: !!binary aGk=\n", "line 1: a tag"),
    "a set": ("a: !!set {b}\n", "line 1: a tag"),
    "deep lists": ("a: " + "[" * 100_000, f"more than {DEEPEST} levels"),
    "deep dicts": ("{a: " * 100_000, f"more than {DEEPEST} levels"),
    "deep blocks": ("- " * 100_000, f"more than {DEEPEST} levels"),
    "a long number": (f"a: {'9' * 5000}\n", "a number has 5,000 digits"),
    "a long hexadecimal": (f"a: 0x{'f' * 5000}\n", "a number has 5,002 digits"),
    "a long time": (f"a: 1{':59' * 1000}\n", "a number has 3,001 digits"),
    "digits that are none": ("a: 0b_\n", "'0b_' is no number"),
    "a key twice": ("a: 1\nb: 2\na: 3\n", "line 3: 'a' stands there twice"),
    "a number for a key": ("a: 1\n2: 3\n", "line 2: a name is no text"),
    "a list for a key": ("? [a, b]\n: 1\n", "line 1: a name is no text"),
    "two documents": ("a: 1\n---\nb: 2\n", "another document"),
    "a tab": ("a:\n\t- b\n", "line 2"),
    "half of it": ("config: {task", "line 1"),
    "a zero byte": ("a: \x00\n", "special characters are not allowed"),
    "an escape sequence": ("a: \x1b[2J\n", "special characters are not allowed"),
    "too much": ("a" * (MOST_BYTES + 1), "is longer than"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_data_is_refused_where_it_stands(path, text, words):
    path.write_text(text)
    begun = time.monotonic()
    with pytest.raises(UserError) as refusal:
        read_plain_yaml(path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert time.monotonic() - begun < 5


def test_other_encodings_are_refused(path):
    path.write_bytes("a: é\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_plain_yaml(path)
    path.write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_plain_yaml(path)
