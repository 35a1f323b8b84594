"""Locks on run folders, where a system has none."""

import importlib
import sys

import pytest

from errors import UserError


def test_a_system_without_file_locks_is_told_where_the_toolkit_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delitem(sys.modules, "experiment.locks", raising=False)
    with pytest.raises(UserError, match=r"Windows.*WSL"):
        importlib.import_module("experiment.locks")
