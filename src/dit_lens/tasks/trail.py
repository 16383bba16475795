"""Boards on which an agent walks and leaves a trail: drawing the walk, and reading it back.

The trail is read on the edges between neighbouring cells, so a trail through a wall is seen as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Canvas, Cell

Edge = tuple[Cell, Cell]
"""Two neighbouring cells, the smaller first."""

MOVES = {"R": (0, 1), "D": (1, 0), "L": (0, -1), "U": (-1, 0)}
HALF_WIDTH = 3.0


def edge(a: Cell, b: Cell) -> Edge:
    """Return the edge between two cells, in its one spelling."""
    return (a, b) if a < b else (b, a)


def path_edges(path: Sequence[Cell]) -> frozenset[Edge]:
    """Return the edges along a path of cells."""
    return frozenset(edge(a, b) for a, b in pairwise(path))


def grid_edges(size: int) -> list[Edge]:
    """Return all edges of a board of size x size cells."""
    cells = [(r, c) for r in range(size) for c in range(size)]
    return [((r, c), n) for r, c in cells for n in ((r, c + 1), (r + 1, c)) if max(n) < size]


def board(size: int, walls: Iterable[Edge], goals: Iterable[Cell]) -> Canvas:
    """Draw a board: outer wall, walls between cells, goals."""
    out = cv.blank(size)
    for goal in goals:
        x, y = cv.centre(goal)
        cv.rectangle(out, x - 5, y - 5, x + 5, y + 5, cv.GOAL)
    n = size * CELL
    for x0, y0, x1, y1 in ((0, 0, n, 1), (0, n - 1, n, n), (0, 0, 1, n), (n - 1, 0, n, n)):
        cv.rectangle(out, x0, y0, x1, y1, cv.WALL)
    for (r, c), b in walls:
        if b == (r, c + 1):
            cv.rectangle(
                out, (c + 1) * CELL - 1, r * CELL - 1, (c + 1) * CELL + 1, (r + 1) * CELL + 1, cv.WALL
            )
        else:
            cv.rectangle(
                out, c * CELL - 1, (r + 1) * CELL - 1, (c + 1) * CELL + 1, (r + 1) * CELL + 1, cv.WALL
            )
    return out


def walk(background: Canvas, path: Sequence[Cell], num_frames: int) -> NDArray[np.uint8]:
    """Draw the agent walking a path at constant speed, arriving in the last frame; it leaves a trail.

    Returns:
        [time, height, width, rgb], uint8.
    """
    points = np.array([cv.centre(c) for c in path])
    trail, laid, frames = background.copy(), 0, []
    for t in range(num_frames):
        done = (len(path) - 1) * t / max(num_frames - 1, 1)
        k = min(int(done), len(path) - 2)
        for i in range(laid, k):
            _line(trail, points[i], points[i + 1])
        laid = k
        head = points[k] + (done - k) * (points[k + 1] - points[k])
        frame = trail.copy()
        _line(frame, points[k], head)
        cv.disc(frame, head[0], head[1], 5, cv.AGENT)
        frames.append(frame)
    return cv.to_frames(frames)


def _line(canvas: Canvas, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    (x0, y0), (x1, y1) = np.minimum(a, b) - HALF_WIDTH, np.maximum(a, b) + HALF_WIDTH
    cv.rectangle(canvas, x0, y0, x1, y1, cv.TRAIL)


def trail_strength(frame: NDArray[np.uint8], size: int) -> dict[Edge, float]:
    """Read how much trail lies on every edge of the board: 0 none, 1 full."""
    seen = np.maximum(cv.likeness(frame, cv.TRAIL), cv.likeness(frame, cv.AGENT))
    out = {}
    for a, b in grid_edges(size):
        (xa, ya), (xb, yb) = cv.centre(a), cv.centre(b)
        out[a, b] = cv.patch(seen, (xa + xb) / 2, (ya + yb) / 2, 2)
    return out


def read_trail(frame: NDArray[np.uint8], size: int) -> frozenset[Edge]:
    """Read the edges that carry a trail (more than half of a full one)."""
    return frozenset(e for e, s in trail_strength(frame, size).items() if s > 0.5)


def read_agent(frame: NDArray[np.uint8], size: int) -> Cell | None:
    """Read the cell where the agent stands; None where there is none, or where it is in several places."""
    seen = cv.likeness(frame, cv.AGENT)
    cells = [(r, c) for r in range(size) for c in range(size)]
    agents = [c for c in cells if cv.patch(seen, *cv.centre(c), 3) > 0.5]
    return agents[0] if len(agents) == 1 else None


def follow(edges: frozenset[Edge], start: Cell) -> list[Cell] | None:
    """Walk a set of edges from a cell; None unless they are one simple path from there."""
    path, left = [start], set(edges)
    while left:
        end = path[-1]
        ahead = [e for e in left if end in e]
        if len(ahead) != 1:  # a fork, a cycle, or edges elsewhere
            return None
        left.remove(ahead[0])
        path.append(ahead[0][1] if ahead[0][0] == end else ahead[0][0])
    return path


def spell(edges: frozenset[Edge], start: Cell) -> str:
    """Write a trail as an answer: moves such as 'RRDL' for a path from the start, else all its edges."""
    path = follow(edges, start)
    if path is None:
        return "edges " + " ".join(f"{r}{c}{'R' if b == (r, c + 1) else 'D'}" for (r, c), b in sorted(edges))
    names = {step: name for name, step in MOVES.items()}
    return "".join(names[b[0] - a[0], b[1] - a[1]] for a, b in pairwise(path))


def overlap(a: frozenset[Edge], b: frozenset[Edge]) -> float:
    """Return shared edges over all edges (Jaccard index), 0 for two empty sets."""
    return len(a & b) / len(a | b) if a | b else 0.0
