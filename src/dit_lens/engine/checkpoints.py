"""Gradient checkpointing: what runs now, and again in the backward pass, when the hooks that edit it are gone."""

from __future__ import annotations

import sys
from types import FrameType

from torch.utils import checkpoint


def is_checkpointed() -> bool:
    """Say whether what runs now runs again in the backward pass: torch's own code of checkpoints has called it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
