"""Layouts: what a scene is, apart from how it is drawn. Each belongs to training or to evaluation, by its own checksum."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from dit_lens.tasks import canvas as cv

HELD_OUT = 16
"""One layout in this many is for evaluation."""

L = TypeVar("L")


def is_held_out(key: Any) -> bool:
    """Say whether a layout is for evaluation.

    Args:
        key: all that makes the layout, as values whose `repr` is the same everywhere.
    """
    return zlib.crc32(repr(key).encode()) % HELD_OUT == 0


def draw(name: str, seed: int, make: Callable[[np.random.Generator], L], key: Callable[[L], Any]) -> L:
    """Draw layouts until one belongs to the seed's side of the split between training and evaluation.

    Args:
        name: of the task, which has random numbers of its own.
        seed: below `canvas.EVAL_SEED` for training, from there on for evaluation.
        make: random numbers to a layout.
        key: a layout to all that makes it; two scenes that look alike have one.

    Raises:
        TaskError: the seed is negative.
    """
    rng = cv.rng_for(name, seed)
    while True:
        layout = make(rng)
        if is_held_out(key(layout)) == (seed >= cv.EVAL_SEED):
            return layout
