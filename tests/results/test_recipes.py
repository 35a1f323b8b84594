"""Recipes are called as modules, and say so."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [
    path.relative_to(ROOT)
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / "results" / folder).glob("*.py"))
    if "script(main" in path.read_text()
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_how_it_is_called(path):
    module = ".".join(path.with_suffix("").parts)
    text = (ROOT / path).read_text()
    assert f"    python -m {module} " in text.split('"""')[1]
    program = text.rpartition("script(main, ")[2].rpartition(", ")[2]
    assert program == f'"{module}"))\n' or f'\nMODULE = "{module}"\n' in text
    assert f"results/{path.name}" not in text


def test_a_mistake_and_the_usage_name_the_command(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "results.experiments.views", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    wrong = call("--page", "masks")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: results.experiments.views needs --out; see python -m results.experiments.views"
        " --help\n"
    )
    assert "usage: python -m results.experiments.views" in call("--help").stdout
