"""Layouts: what a scene is, apart from how it is drawn. Each belongs to training or to evaluation, by its own checksum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.scene import is_held_out

L = TypeVar("L")


def draw(name: str, seed: int, make: Callable[[np.random.Generator], L], key: Callable[[L], Any]) -> L:
    """Draw layouts until one belongs to the seed's side of the split between training and evaluation.

    Args:
        name: of the task, which has random numbers of its own.
        seed: below `canvas.EVAL_SEED` for training, from there on for evaluation.
        make: random numbers to a layout.
        key: a layout to all that makes it; two scenes that look alike have one.

    Raises:
        TaskError: the seed is negative, or no whole number.
    """
    rng = cv.rng_for(name, seed)
    while True:
        layout = make(rng)
        if is_held_out(key(layout)) == (seed >= cv.EVAL_SEED):
            return layout
