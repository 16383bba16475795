"""`latin`: fill a 4 x 4 square so that no row and no column has a colour twice. Several answers, each bound by the others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Canvas, Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.fades import fade_sample
from dit_lens.tasks.sample import Sample

SIDE = 4
COLOURS = {**cv.BALLS, "dark": (0.15, 0.15, 0.18)}
LETTERS = {"r": "red", "g": "green", "b": "blue", "d": "dark"}
MOST = 8
"""Right answers of a square, at most; at least 2."""
CLEAR = 0.5
"""How near a cell's colour is to one of the four, at least, so that it is read as that."""

Square = dict[Cell, str]
"""Cell to the letter of its colour."""


@whole_numbers
def latin(seed: int, open_cells: int = 8, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a square with some cells filled, which 2 to 8 fillings complete.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        open_cells: cells to fill, 6 to 10.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such square.
    """
    if not 6 <= open_cells <= 10:
        raise TaskError(f"latin(open_cells={open_cells}): give 6 to 10.")
    given, fillings, shown = layouts.draw(
        f"latin-{open_cells}",
        seed,
        partial(_layout, count=open_cells),
        lambda layout: sorted(layout[0].items()),
    )
    cells = [cell for cell in np.ndindex(SIDE, SIDE) if cell not in given]
    return fade_sample(
        "latin" if open_cells == 8 else f"latin{open_cells}",
        str(seed),
        "fill the square",
        partial(_draw, given=given),
        fillings,
        [_spell(given | filling) for filling in fillings],
        shown,
        partial(cv.inside_cells, SIDE, cells),
        partial(_read, given=given, fillings=fillings),
        sorted(given.items()),
        num_frames,
    )


def _layout(rng: np.random.Generator, count: int) -> tuple[Square, list[Square], int]:
    while True:
        rows, columns, letters = (rng.permutation(SIDE) for _ in range(3))
        plain = (
            (np.arange(SIDE)[:, None] ^ np.arange(SIDE))
            if rng.integers(2)
            else np.add.outer(range(SIDE), range(SIDE)) % SIDE
        )
        whole = letters[plain[rows][:, columns]]
        cells = cv.random_cells(rng, SIDE, count)
        given = {(r, c): "rgbd"[whole[r, c]] for r in range(SIDE) for c in range(SIDE) if (r, c) not in cells}
        fillings = list(_fillings(given, sorted(cells)))
        if 2 <= len(fillings) <= MOST:
            return given, fillings, int(rng.integers(len(fillings)))


def _fillings(given: Square, cells: list[Cell]) -> Iterator[Square]:
    """Go through all ways to fill cells."""
    if not cells:
        yield {}
        return
    (r, c), *rest = cells
    taken = {letter for (i, j), letter in given.items() if i == r or j == c}
    for letter in LETTERS:
        if letter not in taken:
            for filling in _fillings({**given, (r, c): letter}, rest):
                yield {(r, c): letter, **filling}


def _spell(square: Square) -> str:
    return "".join(square[cell] for cell in np.ndindex(SIDE, SIDE))


def _draw(filling: Square | None, given: Square) -> Canvas:
    out = cv.blank(SIDE)
    for cell, letter in {**given, **(filling or {})}.items():
        cv.disc(out, *cv.centre(cell), 5.5, COLOURS[LETTERS[letter]])
    return out


def _read(frame: NDArray[np.uint8], given: Square, fillings: list[Square]) -> tuple[str, float]:
    """Read the letters of a square, '?' where a cell shows none; graded by the open cells of the nearest filling."""
    letters = {name: letter for letter, name in LETTERS.items()}
    seen: Square = {}
    for cell in np.ndindex(SIDE, SIDE):
        name, strength = cv.nearest(frame, cv.centre(cell), 3, COLOURS)
        seen[cell] = letters[name] if strength > CLEAR else "?"
    near = max(np.mean([seen[cell] == letter for cell, letter in filling.items()]) for filling in fillings)
    return _spell(seen), float(near)
