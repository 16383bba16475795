"""`pick`: ring every object of one shape and colour. Neither word alone tells them, nor does the board without the prompt."""

from __future__ import annotations

from functools import partial

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.rings import COLOURS, SHAPES, SIDE, Look, ring_sample
from dit_lens.tasks.sample import Sample

Pair = tuple[str, str]
"""Shape and colour."""

PAIRS: tuple[Pair, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
HELD_OUT_PAIRS: tuple[Pair, ...] = (("disc", "blue"), ("square", "green"))
"""Never asked for in training, where they stand among the other objects; each of their words is asked for with another."""
COUNTS = (4, 9)
"""Objects on a board, at least and at most."""
MOST = 3
"""Objects of the pair that is asked for, at most; at least 1."""


@whole_numbers
def pick(
    seed: int,
    shape: str | None = None,
    colour: str | None = None,
    held_out: bool = False,
    num_frames: int = NUM_FRAMES,
) -> Sample:
    """Make a board of discs and squares in three colours; the answer is a ring around every one of a shape and colour.

    Where a pair of `HELD_OUT_PAIRS` is asked for, the task is called "pick-new".

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        shape: that is asked for, "disc" or "square". Default: random.
        colour: that is asked for, "grey", "green" or "blue". Default: random.
        held_out: draw the pair among `HELD_OUT_PAIRS`; else among the others, unless shape and colour are both given.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such pair.
    """
    pairs = _pairs(shape, colour, held_out)
    looks, pair = layouts.draw(
        "pick", seed, partial(_layout, pairs=pairs), lambda layout: sorted(layout[0].items())
    )
    wanted = [cell for cell, look in looks.items() if (look[0], look[2]) == pair]
    task = "pick-new" if pair in HELD_OUT_PAIRS else "pick"
    return ring_sample(task, str(seed), f"circle the {pair[1]} {pair[0]}", looks, wanted, num_frames)


def _pairs(shape: str | None, colour: str | None, held_out: bool) -> list[Pair]:
    """Return the pairs that may be asked for.

    Raises:
        TaskError: there are none.
    """
    named = [pair for pair in PAIRS if shape in (None, pair[0]) and colour in (None, pair[1])]
    exact = shape is not None and colour is not None and not held_out
    allowed = named if exact else [pair for pair in named if (pair in HELD_OUT_PAIRS) == held_out]
    if not allowed:
        asked = f"pick(shape={shape!r}, colour={colour!r}, held_out={held_out})"
        raise TaskError(
            f"{asked}: no such pair. Give shapes among {', '.join(SHAPES)} and colours among {', '.join(COLOURS)}; "
            f"held out are {' and '.join(f'{c} {s}' for s, c in HELD_OUT_PAIRS)}."
        )
    return allowed


def _layout(rng: np.random.Generator, pairs: list[Pair]) -> tuple[dict[Cell, Look], Pair]:
    """Draw a board and the pair that is asked for.

    Both shapes stand on it in two colours at least, so that each of those four pairs might be asked for.
    """
    pair = pairs[int(rng.integers(len(pairs)))]
    count = int(rng.integers(COUNTS[0], COUNTS[1] + 1))
    second = str(rng.choice([name for name in COLOURS if name != pair[1]]))
    beside = [other for other in PAIRS if other[1] in (pair[1], second) and other != pair]
    right = int(rng.integers(1, min(MOST, count - len(beside)) + 1))
    others = [other for other in PAIRS if other != pair]
    rest = [others[int(i)] for i in rng.integers(len(others), size=count - len(beside) - right)]
    cells = cv.random_cells(rng, SIDE, count)
    stand = [pair] * right + beside + rest
    return {cell: (s, "large", c) for cell, (s, c) in zip(cells, stand, strict=True)}, pair
