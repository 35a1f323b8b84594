"""Where a result came from: command, commit, versions, hardware."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from agents.precision import has_bfloat16


def provenance() -> dict[str, Any]:
    """Where a result came from: ``command``, ``commit`` and ``versions`` of what computed it."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy", "gymnasium", "mujoco", "metaworld", "dm_control"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    script, *arguments = sys.argv
    root, path = Path(__file__).resolve().parents[1], Path(script).resolve()
    name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    return {
        "command": shlex.join(["python", name, *arguments]),
        "commit": _commit(),
        "versions": versions,
    }


def _commit() -> str:
    """The commit of the toolkit, with ``-dirty`` when tracked files differ from it."""
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


def hardware() -> dict[str, Any]:
    """What this computes on: ``processor`` and ``gpu`` (None without one) by name, ``cores``,
    PyTorch's ``threads`` (before a run's own ``--threads``), and whether the processor has
    arithmetic for ``bfloat16``."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": has_bfloat16(torch.device("cpu")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
