"""`odd`: ring the one object that is unlike the others. One right object; every other one is a wrong answer."""

from __future__ import annotations

from functools import partial

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.rings import COLOURS, SHAPES, SIDE, SIZES, Look, ring_sample
from dit_lens.tasks.sample import Sample


@whole_numbers
def odd(seed: int, count: int | None = None, num_frames: int = NUM_FRAMES) -> Sample:
    """Make objects that are alike but for one, in its shape, its size or its colour; the answer is a ring around it.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        count: objects, 4 to 16. Default: random.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such board.
    """
    if count is not None and not 4 <= count <= SIDE * SIDE:
        raise TaskError(f"odd(count={count}): give 4 to 16 objects.")
    looks, right = layouts.draw(
        "odd", seed, partial(_layout, count=count), lambda layout: sorted(layout[0].items())
    )
    task = "odd" if count is None else f"odd{count}"
    return ring_sample(task, str(seed), "circle the odd one", looks, [right], num_frames)


def _layout(rng: np.random.Generator, count: int | None) -> tuple[dict[Cell, Look], Cell]:
    number = int(rng.integers(4, SIDE * SIDE + 1)) if count is None else count
    cells = cv.random_cells(rng, SIDE, number)
    kinds = (SHAPES, tuple(SIZES), tuple(COLOURS))
    usual = [str(rng.choice(kind)) for kind in kinds]
    which = int(rng.integers(len(kinds)))
    other = list(usual)
    other[which] = str(rng.choice([look for look in kinds[which] if look != usual[which]]))
    looks: dict[Cell, Look] = {cell: (usual[0], usual[1], usual[2]) for cell in cells}
    looks[cells[0]] = other[0], other[1], other[2]
    return looks, cells[0]
