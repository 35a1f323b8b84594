"""The seed of everything random in a run or a measurement."""

from errors import UserError

LARGEST_SEED = 2**63 - 1
"""The largest that NumPy, PyTorch and HDF5 all take: 64 bits with a sign."""


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse what is no seed. Raises UserError, which calls it `name`."""
    if not 0 <= seed <= LARGEST_SEED:
        short = seed if seed.bit_length() < 200 else "a longer one"
        raise UserError(f"{name} must be a whole number from 0 to {LARGEST_SEED}, not {short}")
