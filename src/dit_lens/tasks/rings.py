"""Samples in which rings fade in around some objects of a 4 x 4 board: what `odd` and `pick` draw and read alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Canvas, Cell
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


def ring_sample(
    task: str, name: str, prompt: str, looks: Mapping[Cell, Look], wanted: Sequence[Cell], num_frames: int
) -> Sample:
    """Make the sample of a board of objects, some of which get a ring.

    Args:
        task: name of the task.
        name: of the sample.
        prompt: what is asked.
        looks: cell to the object that stands there.
        wanted: cells of the objects that get a ring.
        num_frames: frames of the video.
    """
    right = tuple(sorted(wanted))
    return fade_sample(
        task,
        name,
        prompt,
        partial(_draw, looks=looks),
        [right],
        [_spell(right)],
        0,
        _zone,
        partial(_read, right=right),
        sorted(looks.items()),
        num_frames,
    )


def _draw(ringed: Sequence[Cell] | None, looks: Mapping[Cell, Look]) -> Canvas:
    out = cv.blank(SIDE)
    for cell, (shape, size, colour) in looks.items():
        (x, y), half = cv.centre(cell), SIZES[size]
        if shape == "disc":
            cv.disc(out, x, y, half, COLOURS[colour])
        else:
            cv.rectangle(out, x - half, y - half, x + half, y + half, COLOURS[colour])
    for cell in ringed or ():
        cv.ring(out, *cv.centre(cell), 6.5, 2, 1.0)
    return out


def _zone() -> NDArray[np.bool_]:
    """Return where a ring may come, around every cell's object, [height, width]."""
    y, x = np.mgrid[: SIDE * CELL, : SIDE * CELL] + 0.5
    off = np.hypot(y % CELL - CELL / 2, x % CELL - CELL / 2)
    zone: NDArray[np.bool_] = (off > 4.6) & (off < 8.4)
    return zone


def _spell(cells: Sequence[Cell]) -> str:
    return " ".join(f"{r}{c}" for r, c in cells)


def _read(frame: NDArray[np.uint8], right: Sequence[Cell]) -> tuple[str, float]:
    """Read the cells with a ring; graded by the right cells' rings, less the fullest of the others."""
    strength = cv.ring_strength(frame, SIDE)
    cells = list(np.ndindex(SIDE, SIDE))
    ringed = [(r, c) for r, c in cells if strength[r, c] > CLEAR]
    wrong = max(float(strength[cell]) for cell in cells if cell not in right)
    share = float(np.mean([strength[cell] for cell in right]))
    return _spell(ringed) or "no ring", float(np.clip(share - wrong, 0, 1))
