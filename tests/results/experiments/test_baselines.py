"""The page of baselines: which variants a question takes, what is published, what is missing."""

import json
import subprocess
from pathlib import Path

from agents.online_config import METHODS
from commands.train import configured
from experiment.config_record import flat, plain
from results.experiments.baselines import PUBLISHED, QUESTIONS, Baselines, measure

ROOT = Path(__file__).parents[3]


def recorded(folder, method, task, scores, evaluated=None):
    entry = {"method": method, "task": task, "seed": 0, "steps": [10_000, 20_000, 30_000],
             "success_rates": scores, "command": f"python run.py train of {method}",
             "commit": "0123456789", "wall_seconds": 3600.0}  # fmt: skip
    if evaluated is not None:
        entry["evaluation"] = {"episodes": 20, "agent": {"success": {"count": evaluated}}}
    folder.mkdir(exist_ok=True)
    (folder / f"{method}-{task.replace('/', '-')}.json").write_text(json.dumps([entry]))


def test_a_question_says_what_its_variants_reach(tmp_path):
    task, curves, published = "metaworld/window-close", tmp_path / "curves", tmp_path / "score.json"
    recorded(curves, "mwm", task, [0.5, 0.9, 1.0], 19)
    recorded(curves, "no-reward", task, [0.0, 0.25, 0.5], 7)
    entry = {"steps": [10_000, 30_000], "success_rates": [0.1, 0.3], "method": "dreamerv2"}
    names = {"metaworld_window_close": 0, "metaworld_drawer_open": 1}
    published.write_text(json.dumps([{**entry, "task": t, "seed": s} for t, s in names.items()]))
    out = tmp_path / "baselines"
    measure(Baselines((str(curves),), out, published))
    page = out.with_suffix(".md").read_text()
    assert f"| mwm | {task} | 1 | 0.80 | 20,000 | 19 of 20 |" in page
    assert f"| no-reward | {task} | 1 | 0.25 | never | 7 of 20 |" in page
    assert f"| published dreamerv2 | {task} | 1 | 0.20 | never | – |" in page
    assert "drawer-open" not in page  # nothing of ours beside it
    assert "Not run yet: dreamer, dreamer-vit, vae, dreamer-contrastive." in page
    assert "`python run.py train of no-reward` at 0123456, 1.0 h" in page
    drawn = {path.stem for path in out.glob("*.png") if path.stat().st_size > 1000}
    assert drawn == {"representation", "reward"}  # the others have one variant, and no answer


def test_the_make_target_runs_every_variant_as_one_change():
    planned = subprocess.run(
        ["make", "-n", "-B", "baselines", "BASELINE_SEEDS=0", "BASELINE_TASKS=window-close"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    commands = [line.split()[3:] for line in planned.splitlines() if " run.py train " in line]
    trained = [configured(command).config for command in commands]
    names = [command[-1].partition("window-close-")[2][: -len("-seed0")] for command in commands]
    asked = {name for question in QUESTIONS for name in question.variants}
    assert set(names) == asked - set(PUBLISHED.values())
    values = dict(zip(names, map(flat, map(plain, trained)), strict=True))
    for method in METHODS:
        ours = {name: v for name, v in values.items() if v["method"] == method}
        base = ours["dreamer" if method == "dreamer" else "mwm"]
        changed = [{n for n, value in v.items() if base[n] != value} for v in ours.values()]
        assert sorted(map(len, changed)) == [0] + [1] * (len(ours) - 1)
        assert len({str(v) for v in ours.values()}) == len(ours)
