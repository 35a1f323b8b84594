"""evaluate without a simulator: losses, action errors and predictions on demonstrations."""

from pathlib import Path
from typing import Any

from errors import UserError

OF_SIMULATORS = (
    "task", "random", "shift", "shifts", "token_pruning", "swap_instructions", "n_action_steps",
    "goals", "video",
)  # fmt: skip
"""Options of `evaluate` that say nothing of recorded demonstrations."""


def evaluate_held_out(options: Any) -> None:
    """What `run.py evaluate` does for an agent of `imitate` and demonstrations.

    Args:
        options: of `evaluate`.

    Raises:
        UserError: an option needs a simulator; as `agents.held_out_evaluation`.
    """
    for name in OF_SIMULATORS:
        if getattr(options, name) not in (None, False, ()):
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag} needs a simulator, and demonstrations are evaluated; leave it out, or"
                " name a simulator's task with --task and leave --data out"
                if name != "task"
                else "--task names a simulator's task, --data demonstrations; give one of them"
            )
    from agents.held_out_evaluation import evaluate_held_out as measure

    found = measure(
        options.logdir, options.data, options.episodes, options.seed, options.device, options.trust
    )
    what = "held-out demonstrations" if not options.data else ", ".join(options.data)
    print(
        f"{options.logdir} after {found['updates']:,} updates: {len(found['episodes'])} episodes of"
        f" {what}\n"
    )
    for name, value in found["losses"].items():
        print(f"{name:32}  {value:.4g}")
    print("\nmean absolute error of actions in [-1, 1], mean ± std over episodes")
    rows = {
        "all actions of a chunk": found["action_error"],
        "the next action": found["action_error_first"],
        "the mean action in its place": found["action_error_of_mean"],
    }
    if len(found["tasks"]) > 1:
        rows |= {f"  {task}": error for task, error in found["tasks"].items()}
    for name, error in rows.items():
        std = "" if error["std"] is None else f" ± {error['std']:.4f}"
        print(f"{name:32}  {error['mean']:.4f}{std}")
    if "in_units" in found:
        values = " ".join(f"{value:.4g}" for value in found["in_units"])
        print(f"\nby dimension, in the units of the recording: {values}")
    print(flush=True)
    folder = Path(options.logdir)
    for path in (folder / "held_out.json", folder / "pictures" / "held-out-evaluation.png"):
        if path.exists():
            print(path, flush=True)
