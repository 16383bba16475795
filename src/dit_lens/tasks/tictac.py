"""`tictac`: put the red disc that makes three in a row. One right cell; every other empty cell is a wrong answer."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Canvas, Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.fades import fade_sample
from dit_lens.tasks.sample import Sample

SIDE = 4
DISCS = {"red": cv.BALLS["red"], "blue": cv.BALLS["blue"]}
CLEAR = 0.5
"""How near a cell's colour is to a disc's, at least, so that it is read as one."""
LINES = [
    [(r + i * dr, c + i * dc) for i in range(3)]
    for r in range(SIDE)
    for c in range(SIDE)
    for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1))
    if 0 <= r + 2 * dr < SIDE and 0 <= c + 2 * dc < SIDE
]
"""Every three cells in a row, a column or a diagonal."""

Discs = dict[Cell, str]


@whole_numbers
def tictac(seed: int, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a 4 x 4 board of red and blue discs on which exactly one cell completes three red ones in a row.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        num_frames: frames of the video.
    """
    discs, right = layouts.draw("tictac", seed, _layout, lambda layout: sorted(layout[0].items()))
    empty = [cell for cell in np.ndindex(SIDE, SIDE) if cell not in discs]
    return fade_sample(
        "tictac",
        str(seed),
        "make three in a row",
        partial(_draw, discs=discs),
        [right],
        [f"{right[0]}{right[1]}"],
        0,
        partial(cv.inside_cells, SIDE, empty),
        partial(_read, empty=empty, right=right),
        sorted(discs.items()),
        num_frames,
    )


def _layout(rng: np.random.Generator) -> tuple[Discs, Cell]:
    while True:
        count = int(rng.integers(3, 6))
        cells = cv.random_cells(rng, SIDE, 2 * count)
        discs = {cell: "red" if n < count else "blue" for n, cell in enumerate(cells)}
        reds = {cell for cell, colour in discs.items() if colour == "red"}
        blues = {cell for cell, colour in discs.items() if colour == "blue"}
        if any({*line} <= reds or {*line} <= blues for line in LINES):
            continue  # somebody has won
        wins = {
            cell
            for line in LINES
            for cell in line
            if cell not in discs and all(other in reds for other in line if other != cell)
        }
        if len(wins) == 1:
            return discs, wins.pop()


def _draw(right: Cell | None, discs: Discs) -> Canvas:
    out = cv.blank(SIDE)
    for cell, colour in (discs if right is None else {**discs, right: "red"}).items():
        cv.disc(out, *cv.centre(cell), 5.5, DISCS[colour])
    return out


def _read(frame: NDArray[np.uint8], empty: list[Cell], right: Cell) -> tuple[str, float]:
    """Read where a disc has come; graded by how red the right cell is, less how full the fullest wrong one is."""
    seen = {cell: cv.nearest(frame, cv.centre(cell), 3, DISCS) for cell in empty}
    new = [
        f"{r}{c}" + ("" if name == "red" else f" {name}") for (r, c), (name, s) in seen.items() if s > CLEAR
    ]
    red = seen[right][1] if seen[right][0] == "red" else 0.0
    wrong = max((strength for cell, (_, strength) in seen.items() if cell != right), default=0.0)
    return " ".join(new) or "nothing", float(np.clip(red - wrong, 0, 1))
