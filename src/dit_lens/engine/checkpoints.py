"""Gradient checkpointing: what runs now, and again in the backward pass, when the hooks that edit it are gone."""

from __future__ import annotations

import sys


def is_checkpointed() -> bool:
    """Say whether what runs now runs again in the backward pass: torch's own code of checkpoints has called it."""
    from torch.utils import checkpoint

    frame = sys._getframe()
    while (before := frame.f_back) is not None:
        frame = before
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
    return False
