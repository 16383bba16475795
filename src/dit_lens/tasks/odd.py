"""`odd`: ring the one object that is unlike the others. One right object; every other one is a wrong answer."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.fades import fade_sample
from dit_lens.tasks.sample import Sample

SIDE = 4
SHAPES = ("disc", "square")
SIZES = {"small": 2.0, "large": 4.0}
COLOURS = {"grey": cv.OBJECT, "green": cv.BALLS["green"], "blue": cv.BALLS["blue"]}
CLEAR = 0.5
"""Share of a full ring from which on there is one."""

Look = tuple[str, str, str]
"""Shape, size and colour."""


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
    return fade_sample(
        "odd" if count is None else f"odd{count}",
        str(seed),
        "circle the odd one",
        partial(_draw, looks=looks),
        [right],
        [f"{right[0]}{right[1]}"],
        0,
        _rings,
        partial(_read, right=right),
        sorted(looks.items()),
        num_frames,
    )


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


def _draw(right: Cell | None, looks: dict[Cell, Look]) -> Canvas:
    out = cv.blank(SIDE)
    for cell, (shape, size, colour) in looks.items():
        (x, y), half = cv.centre(cell), SIZES[size]
        if shape == "disc":
            cv.disc(out, x, y, half, COLOURS[colour])
        else:
            cv.rectangle(out, x - half, y - half, x + half, y + half, COLOURS[colour])
    if right is not None:
        cv.ring(out, *cv.centre(right), 6.5, 2, 1.0)
    return out


def _rings() -> NDArray[np.bool_]:
    """Return where a ring may come, around every cell's object, [height, width]."""
    y, x = np.mgrid[: SIDE * CELL, : SIDE * CELL] + 0.5
    off = np.hypot(y % CELL - CELL / 2, x % CELL - CELL / 2)
    rings: NDArray[np.bool_] = (off > 4.6) & (off < 8.4)
    return rings


def _read(frame: NDArray[np.uint8], right: Cell) -> tuple[str, float]:
    """Read the cells with a ring; graded by the right cell's ring, less the fullest of the others."""
    strength = cv.ring_strength(frame, SIDE)
    ringed = [f"{r}{c}" for r, c in np.ndindex(SIDE, SIDE) if strength[r, c] > CLEAR]
    wrong = max(float(strength[cell]) for cell in np.ndindex(SIDE, SIDE) if cell != right)
    return " ".join(ringed) or "no ring", float(np.clip(strength[right] - wrong, 0, 1))
