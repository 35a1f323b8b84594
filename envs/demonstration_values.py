"""Values of demonstrations that nothing can be learned from: not finite, out of bounds, no class.

Rows count from 0, as in the files.
"""

import numpy as np

from errors import UserError
from mask_classes import NAMES, UNLABELLED

ROUNDING = 1e-3
"""How far beyond its bounds an action may be: half-precision numbers near 1 are as far apart."""
UNBOUNDED = ("dmc/lqr-lqr_2_1", "dmc/lqr-lqr_6_2")
"""Tasks whose simulator takes any action; those of the others are in [-1, 1]."""
CLASSES = np.isin(np.arange(256), [*range(len(NAMES)), UNLABELLED])
"""Whether a byte is a class of masks, (256,)."""


def fault_of_actions(actions: np.ndarray, task: str, first_row: int = 0) -> str | None:
    """What is wrong with actions (T, A) of a task; None: nothing. `first_row`: of the first."""
    fault = fault_of_table(actions, first_row)
    if fault is None and task not in UNBOUNDED:
        outside = np.abs(actions) > 1 + ROUNDING
        if outside.any():
            row, column = np.argwhere(outside)[0]
            return f"row {first_row + row} holds {actions[row, column]:g}, outside of [-1, 1]"
    return fault


def fault_of_table(values: np.ndarray, first_row: int = 0) -> str | None:
    """What is wrong with numbers (T, D); None: nothing."""
    finite = np.isfinite(values)
    if finite.all():
        return None
    row, column = np.argwhere(~finite)[0]
    return f"row {first_row + row} holds {values[row, column]}, not a finite number"


def fault_of_masks(masks: np.ndarray, first_row: int = 0) -> str | None:
    """What is wrong with masks (T, H, W); None: nothing."""
    if masks.max(initial=0) < len(NAMES):
        return None
    known = CLASSES[masks]
    if known.all():
        return None
    row = np.argwhere(~known)[0][0]
    return (
        f"row {first_row + row} holds {masks[~known][0]}, no class of masks (0 to"
        f" {len(NAMES) - 1}, and {UNLABELLED} for unlabelled)"
    )


def refuse(fault: str | None, where: str) -> None:
    """Raise a UserError where there is a fault: `where` names the file and the dataset."""
    if fault is None:
        return
    remedy = "mend the demonstration, or leave it out"
    if "class of masks" in fault:
        remedy = "python run.py annotate draws masks anew"
    raise UserError(f"{where}, {fault}; {remedy}")
