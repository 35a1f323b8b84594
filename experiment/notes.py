"""What a user should know of a command that goes on all the same."""

import sys

from tqdm import tqdm


def note(text: str) -> None:
    """One line on standard error, which leaves progress bars whole."""
    tqdm.write(f"note: {text}", file=sys.stderr)
