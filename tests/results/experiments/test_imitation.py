"""The page of imitation: what is kept of it, and numbers worked out by hand."""

import json
from pathlib import Path

import pytest
import yaml

from errors import UserError
from results.experiments import imitation
from results.experiments.imitation import Imitation

KEPT = Path(__file__).resolve().parents[3] / "results" / "imitation"


def episodes(*successes):
    return [{"success": bool(one), "return": 0.0, "task": "metaworld/reach"} for one in successes]


def rows(*successes):
    success = {"mean": sum(successes) / len(successes), "interval": [0.0, 1.0]}
    return {
        "episodes": episodes(*successes), "success": success, "tasks": {"metaworld/reach": success}
    }  # fmt: skip


def run_folder(folder, **changes):
    """What `run.py imitate` and `evaluate` leave of a run, in small."""
    folder.mkdir()
    config = {"task": "metaworld/reach", "seed": 2, "agent": {"dynamics": {"target": "masks"}}}
    origin = {
        "command": "python run.py imitate", "commit": "c0ffee",
        "hardware": {"processor": "some", "cores": 2, "gpu": None},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config, **origin}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "time": 3600.0}\n')
    shifts = {
        "background:0.5": rows(1, 0, 0, 0),
        "lighting:0.5": rows(1, 1, 0, 0),
        "objects:0.5": rows(0, 0, 0, 0),
        "noise:0.5": rows(1, 1, 1, 1),
    }
    evaluation = {
        "updates": 1000, "command": "python run.py evaluate", "commit": "c0ffee",
        "agent": rows(1, 1, 1, 1), "shifts": list(shifts), **shifts,
        "retained": {"retain": 7 / 16, "interval": [0.25, 0.5]}, **changes,
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return str(folder)


def test_the_page_that_is_kept_is_what_its_measurements_say():
    runs = imitation.read([str(KEPT / "measured.json")])
    command = (
        "python -m results.experiments.imitation results/imitation/measured.json"
        " --out results/imitation"
    )
    assert imitation.markdown(runs, command, "imitation") == KEPT.with_suffix(".md").read_text()


def test_retain_is_over_all_shifts_and_over_the_papers(tmp_path, capsys):
    out = tmp_path / "out"
    imitation.main(Imitation((run_folder(tmp_path / "run"),), out))
    report = (tmp_path / "out.md").read_text()
    assert report == capsys.readouterr().out[:-1]
    assert "| **Retain** | 0.44 (0.25 to 0.50) |" in report
    published = "| **Retain** of background:0.5, lighting:0.5, objects:0.5 | 0.25 ("
    assert published in report  # (1 + 2 + 0) / 12
    assert "| run | masks | 2 | 1,000 | 1.0 |" in report
    again = tmp_path / "again"
    imitation.main(Imitation((str(out / "measured.json"),), again))
    assert (tmp_path / "again.md").read_text().replace("again", "out") == report


@pytest.mark.parametrize("name", ["execute", "n_action_steps"])
def test_evaluations_that_say_how_many_actions_are_executed_by_either_name(tmp_path, name):
    plain, named = (run_folder(tmp_path / name) for name in "ab")
    changed = json.loads((tmp_path / "b" / "evaluation.json").read_text()) | {name: 8}
    (tmp_path / "b" / "evaluation.json").write_text(json.dumps(changed))
    one, other = (imitation.markdown(imitation.read([run]), "it", "f") for run in (plain, named))
    assert one == other.replace("| b |", "| a |").replace("- b:", "- a:")


def test_what_is_no_evaluated_run_of_imitate_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="name at least one run folder"):
        imitation.read([])
    run = run_folder(tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match="no run of imitate; python -m results.experiments.robust"):
        imitation.read([run])
    (tmp_path / "run" / "evaluation.json").unlink()
    with pytest.raises(UserError, match="has not been evaluated yet; python run.py evaluate"):
        imitation.read([run])
