"""What has to be done before diffusers and transformers are imported."""

import sys


def hide_broken_torchvision() -> None:
    """Let a torchvision that cannot be imported count as absent.

    Neither library needs one, but both import one that is there; a build for another torch (PyPI's,
    for CUDA, beside a torch for the CPU) then breaks their own import.
    """
    try:
        import torchvision  # noqa: F401
    except Exception:
        sys.modules["torchvision"] = None
