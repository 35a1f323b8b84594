"""Where a result came from: command, commit, versions."""

import functools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from versions import installed_versions

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "metaworld", "dm_control")


def provenance() -> dict[str, Any]:
    """Where a result came from: ``command``, ``commit`` and ``versions`` of what computed it."""
    return {
        "command": _command(),
        "commit": _commit(),
        "versions": installed_versions(PACKAGES),
    }


def _command() -> str:
    """The command line of this process, with the script's path from the toolkit's root."""
    script, *arguments = sys.argv
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == script:  # python -m
        return shlex.join(["python", "-m", spec.name, *arguments])
    root, path = Path(__file__).resolve().parents[1], Path(script).resolve()
    name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    return shlex.join(["python", name, *arguments])


@functools.cache
def _commit() -> str:
    """The commit of the toolkit, with ``-dirty`` when tracked files differ from it; that of the
    code which runs, whatever happens to the files later."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
