"""`arrows`: follow the arrows from cell to cell until there is none. One answer; the depth is how many are followed."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts, trail
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Canvas, Cell
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.walks import walk_sample, whole

DEEPEST = 32
"""Arrows that are followed, at most."""
EMPTY = 0.2
"""Share of the cells beside the path that have no arrow, so that its end is not the only such cell."""

Arrows = dict[Cell, str]
"""Cell to the name of the move that its arrow tells, as in `trail.MOVES`."""


@whole_numbers
def arrows(seed: int, depth: int = 8, size: int | None = None, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a board with an arrow in most cells; the answer is the walk that they tell, to the first cell without one.

    Each arrow on the way is read after the one before it, so the depth says how long a chain a model has to follow.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        depth: arrows on the way, 2 to 32.
        size: cells along each side, 4 to 12. Default: 6, and 8 where the depth is over 20.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such board.
    """
    depth = whole(depth, "depth")
    usual = 6 if depth <= 20 else 8
    size = usual if size is None else whole(size, "size")
    if not 4 <= size <= 12 or not 2 <= depth <= min(DEEPEST, size * size // 2 + 2):
        raise TaskError(
            f"arrows(depth={depth}, size={size}): a board has 4 to 12 cells a side, and 2 to {DEEPEST} arrows on the way, "
            "half as many as it has cells."
        )
    make = partial(_layout, depth=depth, size=size)
    key = partial(_key, size=size)
    told, path = layouts.draw(f"arrows{size}-{depth}", seed, make, key)
    things = {"arrows": partial(paint_arrows, told=told)}
    return walk_sample(
        ("arrows" if depth == 8 else f"arrows{depth}") + ("" if size == usual else f"x{size}"),
        str(seed),
        "follow the arrows",
        size,
        path,
        things,
        key((told, path)),
        num_frames,
    )


def _layout(rng: np.random.Generator, depth: int, size: int) -> tuple[Arrows, list[Cell]]:
    path = _walk(rng, depth, size)
    told = {a: trail.move(a, b) for a, b in pairwise(path)}
    # Another chain of the same length, or of half of it, so that the end is not the only cell that a long chain leads to.
    taken = {*path}
    decoy = _walk_among(rng, depth, size, taken) or _walk_among(rng, max(depth // 2, 2), size, taken)
    told |= {a: trail.move(a, b) for a, b in pairwise(decoy)}
    taken |= {*decoy}
    for cell in ((r, c) for r in range(size) for c in range(size)):
        ahead = trail.neighbours(cell, size)
        if cell not in taken and rng.random() >= EMPTY:
            told[cell] = trail.move(cell, ahead[rng.integers(len(ahead))])
    return told, path


def _walk(rng: np.random.Generator, depth: int, size: int) -> list[Cell]:
    """Draw a walk of so many moves that enters no cell twice."""
    while not (path := _walk_among(rng, depth, size, set())):
        pass
    return path


def _walk_among(rng: np.random.Generator, depth: int, size: int, taken: set[Cell]) -> list[Cell]:
    """Draw such a walk that enters none of some cells; empty where it comes to no end in a few tries."""
    for _ in range(50):
        path = [(int(rng.integers(size)), int(rng.integers(size)))]
        while len(path) <= depth:
            ahead = [n for n in trail.neighbours(path[-1], size) if n not in path and n not in taken]
            if not ahead or path[0] in taken:
                break
            path.append(ahead[rng.integers(len(ahead))])
        if len(path) > depth:
            return path
    return []


def _key(layout: tuple[Arrows, list[Cell]], size: int) -> tuple[int, list[tuple[Cell, str]], Cell]:
    told, path = layout
    return size, sorted(told.items()), path[0]


def paint_arrows(canvas: Canvas, told: Arrows, colour: tuple[float, ...] = cv.SIGN) -> None:
    """Draw a triangle near the side of a cell that its tip points to, where the agent does not hide it."""
    for cell, name in told.items():
        (x, y), (dy, dx) = cv.centre(cell), trail.MOVES[name]
        for n in range(4):  # in slices of a pixel, from its base to its tip
            half, near = 4.0 - n, 4.0 + n
            xs = sorted((x + dx * near - abs(dy) * half, x + dx * (near + 1) + abs(dy) * half))
            ys = sorted((y + dy * near - abs(dx) * half, y + dy * (near + 1) + abs(dx) * half))
            cv.rectangle(canvas, xs[0], ys[0], xs[1], ys[1], colour)
