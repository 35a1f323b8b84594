"""NumPy's global generator, for suites that draw from it."""

import contextlib
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def global_generator(seed: int) -> Iterator[None]:
    """A block in which NumPy's global generator is seeded; afterwards it is as it was before."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
