"""`queens`: one queen in each row and each column, and no two that touch. Several answers, each bound by the others."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Canvas, Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.fades import fade_sample
from dit_lens.tasks.sample import Sample

SIDE = 6
GIVEN = (1, 2)
"""Queens of the first frame, at least and at most."""
BLOCKED = (4, 10)
"""Cells where no queen may come, at least and at most."""
MOST = 8
"""Right answers of a board, at most; at least 2."""
QUEEN = {"red": cv.BALLS["red"]}
CLEAR = 0.5
"""How near a cell's colour is to a queen's, at least, so that there is one."""

Queens = tuple[Cell, ...]
"""A queen of every row, from the first row on."""

PLACINGS: tuple[Queens, ...] = tuple(
    tuple(enumerate(columns))
    for columns in permutations(range(SIDE))
    if all(abs(a - b) > 1 for a, b in pairwise(columns))
)
"""Every way to place the queens on an empty board: where rows and columns differ, only neighbouring rows can touch."""


class QueensLayout(NamedTuple):
    """What makes a board, its right answers, and which of them the right video shows."""

    given: Queens
    blocked: tuple[Cell, ...]
    answers: list[Queens]
    shown: int


@whole_numbers
def queens(seed: int, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a board with a queen or two and some blocked cells, which 2 to 8 placings of the other queens complete.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        num_frames: frames of the video.
    """
    layout = layouts.draw("queens", seed, _layout, lambda drawn: drawn[:2])
    free = [cell for cell in np.ndindex(SIDE, SIDE) if cell not in layout.blocked]
    return fade_sample(
        "queens",
        str(seed),
        "place the queens",
        partial(_draw, given=layout.given, blocked=layout.blocked),
        layout.answers,
        [_spell(answer) for answer in layout.answers],
        layout.shown,
        partial(cv.inside_cells, SIDE, [cell for cell in free if cell not in layout.given]),
        partial(_read, free=free, answers=layout.answers),
        layout[:2],
        num_frames,
    )


def _layout(rng: np.random.Generator) -> QueensLayout:
    while True:
        first = PLACINGS[int(rng.integers(len(PLACINGS)))]
        count = int(rng.integers(GIVEN[0], GIVEN[1] + 1))
        given = tuple(first[i] for i in sorted(int(n) for n in rng.choice(SIDE, count, replace=False)))
        number = int(rng.integers(BLOCKED[0], BLOCKED[1] + 1))
        blocked = tuple(sorted(set(cv.random_cells(rng, SIDE, number)) - {*first}))
        answers = [p for p in PLACINGS if {*given} <= {*p} and not {*blocked} & {*p}]
        if len(blocked) >= BLOCKED[0] and 2 <= len(answers) <= MOST:
            return QueensLayout(given, blocked, answers, int(rng.integers(len(answers))))


def _spell(cells: Queens) -> str:
    return " ".join(f"{r}{c}" for r, c in cells)


def _draw(answer: Queens | None, given: Queens, blocked: tuple[Cell, ...]) -> Canvas:
    out = cv.blank(SIDE)
    for x, y in map(cv.centre, blocked):
        cv.rectangle(out, x - 6, y - 6, x + 6, y + 6, cv.BAR)
    for x, y in map(cv.centre, answer or given):
        cv.disc(out, x, y, 5.5, QUEEN["red"])
    return out


def _read(frame: NDArray[np.uint8], free: list[Cell], answers: list[Queens]) -> tuple[str, float]:
    """Read the cells with a queen; graded by how many of them the nearest answer shares, of all that either has."""
    seen = tuple(cell for cell in free if cv.nearest(frame, cv.centre(cell), 3, QUEEN)[1] > CLEAR)
    near = max(len({*seen} & {*answer}) / len({*seen} | {*answer}) for answer in answers)
    return _spell(seen) or "no queen", near
