"""The seed of everything random in a run or a measurement."""

from errors import UserError
from experiment.config_values import LARGEST, shown

LARGEST_SEED = LARGEST
"""The largest that NumPy, PyTorch and HDF5 all take: 64 bits with a sign."""


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse what is no seed. Raises UserError, which calls it `name`."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(
            f"{name} must be a whole number from 0 to {LARGEST_SEED}, not {shown(seed)}"
        )
