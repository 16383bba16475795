"""`bounce`: a ball goes straight on, turns at every mirror, and stops at the edge. One answer; the depth is its turns."""

from __future__ import annotations

from functools import partial

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts, trail
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.arrows import paint_arrows
from dit_lens.tasks.canvas import Canvas, Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.walks import walk_sample, whole

DEEPEST = 12
LONGEST = 32
"""Cells on a path, at most."""
OTHERS = 0.25
"""Share of the cells beside the path that have a mirror too."""
TURNS = {"/": {"R": "U", "U": "R", "L": "D", "D": "L"}, "\\": {"R": "D", "D": "R", "L": "U", "U": "L"}}
"""How a mirror turns a move."""

Mirrors = dict[Cell, str]


@whole_numbers
def bounce(seed: int, depth: int = 4, size: int | None = None, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a board of mirrors, a ball and the way that it sets out; the answer is its path to the edge.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        depth: mirrors that it meets, 1 to 12.
        size: cells along each side, 4 to 12. Default: 6, 8 where the depth is over 6, and 10 where it is over 9.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such board.
    """
    depth = whole(depth, "depth")
    usual = 6 if depth <= 6 else 8 if depth <= 9 else 10
    size = usual if size is None else whole(size, "size")
    if not 4 <= size <= 12 or not 1 <= depth <= min(DEEPEST, 2 * size - 6):
        raise TaskError(
            f"bounce(depth={depth}, size={size}): a board has 4 to 12 cells a side, and 1 to {DEEPEST} mirrors on the way, fewer "
            "on a small one."
        )
    make = partial(_layout, depth=depth, size=size)
    key = partial(_key, size=size)
    mirrors, start, path = layouts.draw(f"bounce{size}-{depth}", seed, make, key)
    things = {
        "mirrors": partial(paint_mirrors, mirrors=mirrors),
        "way out": partial(paint_arrows, told={path[0]: start}),
    }
    layout = key((mirrors, start, path))
    return walk_sample(
        ("bounce" if depth == 4 else f"bounce{depth}") + ("" if size == usual else f"x{size}"),
        str(seed),
        "bounce off the mirrors",
        size,
        path,
        things,
        layout,
        num_frames,
    )


def _layout(rng: np.random.Generator, depth: int, size: int) -> tuple[Mirrors, str, list[Cell]]:
    while True:
        mirrors: Mirrors = {}
        start = str(rng.choice(list(trail.MOVES)))
        path, move = [(int(rng.integers(size)), int(rng.integers(size)))], start
        while len(path) <= LONGEST:
            cell = path[-1][0] + trail.MOVES[move][0], path[-1][1] + trail.MOVES[move][1]
            if min(cell) < 0 or max(cell) >= size or cell in path:
                break
            path.append(cell)
            if len(mirrors) < depth and rng.random() < 0.5:
                mirrors[cell] = str(rng.choice(list(TURNS)))
                move = TURNS[mirrors[cell]][move]
        at_edge = min(cell) < 0 or max(cell) >= size
        if at_edge and len(mirrors) == depth and 3 <= len(path) <= LONGEST:
            break
    for other in ((r, c) for r in range(size) for c in range(size)):
        if other not in path and rng.random() < OTHERS:
            mirrors[other] = str(rng.choice(list(TURNS)))
    return mirrors, start, path


def _key(layout: tuple[Mirrors, str, list[Cell]], size: int) -> tuple[int, list[tuple[Cell, str]], Cell, str]:
    mirrors, start, path = layout
    return size, sorted(mirrors.items()), path[0], start


def paint_mirrors(canvas: Canvas, mirrors: Mirrors, colour: tuple[float, ...] = cv.SIGN) -> None:
    """Draw a diagonal line in each cell with a mirror."""
    for cell, kind in mirrors.items():
        x, y = cv.centre(cell)
        for n in range(-6, 6):
            across = x + (n if kind == "\\" else -n - 1)
            cv.rectangle(canvas, across - 1, y + n - 1, across + 2, y + n + 2, colour)
