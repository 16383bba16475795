"""What is known of a scene beside its picture: where each object is, and every right answer."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 16
"""One layout in this many is for evaluation."""

Masks = Mapping[str, NDArray[np.bool_]]
"""Object name to where it is seen in the right video, [time, height, width]."""


def is_held_out(layout: Any) -> bool:
    """Say whether a layout is for evaluation.

    Args:
        layout: all that makes it, as values whose `repr` is the same everywhere.
    """
    return zlib.crc32(repr(layout).encode()) % HELD_OUT == 0


@dataclass(frozen=True)
class Answer:
    """One right answer.

    Attributes:
        text: as the scorer reads it.
        video: that shows it, [time, height, width, rgb] of uint8.
        prior: share of the training videos of this scene that show it; those of all answers come to 1.
    """

    text: str
    video: NDArray[np.uint8]
    prior: float


@dataclass(frozen=True)
class Scene:
    """How a sample was made.

    Attributes:
        layout: all that makes it, as plain values. None where the layouts of its task are not split.
        masks: gives where its objects are in the right video.
        answers: gives every right answer, each as training shows it; None where they cannot be enumerated.
    """

    layout: Any
    masks: Callable[[], Masks]
    answers: Callable[[], list[Answer]] | None = None

    @property
    def split(self) -> str | None:
        """`train` or `eval`: a layout belongs to one of them, whatever seed drew it. None where there is no split."""
        if self.layout is None:
            return None
        return "eval" if is_held_out(self.layout) else "train"
