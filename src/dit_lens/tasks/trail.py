"""Boards on which an agent walks and leaves a trail: drawing the walk, and reading it back.

The trail is read on the edges between neighbouring cells, so a trail through a wall is seen as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Canvas, Cell

Edge = tuple[Cell, Cell]
"""Two neighbouring cells, the smaller first."""

MOVES = {"R": (0, 1), "D": (1, 0), "L": (0, -1), "U": (-1, 0)}
HALF_WIDTH = 3.0
"""Of a trail, in pixels."""
RADIUS = 5.0
"""Of the agent, in pixels."""
LAID = 0.4
"""Share of a full trail from which on one lies on an edge. The codec leaves 0.52 and more of the end of a right walk, and
makes up to 0.25 of none; half of a trail would be too near to the first."""


def edge(a: Cell, b: Cell) -> Edge:
    """Return the edge between two cells, in its one spelling."""
    return (a, b) if a < b else (b, a)


def move(a: Cell, b: Cell) -> str:
    """Return the name of the move from a cell to its neighbour."""
    return _NAMES[b[0] - a[0], b[1] - a[1]]


_NAMES = {step: name for name, step in MOVES.items()}


def neighbours(cell: Cell, size: int) -> list[Cell]:
    """Return the cells of a board beside one, in the order of `MOVES`."""
    around = [(cell[0] + dr, cell[1] + dc) for dr, dc in MOVES.values()]
    return [n for n in around if min(n) >= 0 and max(n) < size]


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
    paint_goals(out, goals)
    paint_walls(out, size, walls)
    return out


def paint_goals(out: Canvas, goals: Iterable[Cell], colour: tuple[float, ...] = cv.GOAL) -> None:
    """Draw a square in every cell of a goal."""
    for goal in goals:
        x, y = cv.centre(goal)
        cv.rectangle(out, x - 5, y - 5, x + 5, y + 5, colour)


def paint_walls(
    out: Canvas, size: int, walls: Iterable[Edge] = (), colour: tuple[float, ...] = cv.WALL
) -> None:
    """Draw the wall around a board, and walls between its cells."""
    n = size * CELL
    for x0, y0, x1, y1 in ((0, 0, n, 1), (0, n - 1, n, n), (0, 0, 1, n), (n - 1, 0, n, n)):
        cv.rectangle(out, x0, y0, x1, y1, colour)
    for (r, c), b in walls:
        if b == (r, c + 1):
            cv.rectangle(
                out, (c + 1) * CELL - 1, r * CELL - 1, (c + 1) * CELL + 1, (r + 1) * CELL + 1, colour
            )
        else:
            cv.rectangle(
                out, c * CELL - 1, (r + 1) * CELL - 1, (c + 1) * CELL + 1, (r + 1) * CELL + 1, colour
            )


def walk(background: Canvas, path: Sequence[Cell], num_frames: int) -> NDArray[np.uint8]:
    """Draw the agent walking a path at constant speed, arriving in the last frame; it leaves a trail.

    Returns:
        [time, height, width, rgb], uint8.
    """
    frames = []
    for trail, head in _walked(background, path, num_frames, cv.TRAIL):
        cv.disc(trail, head[0], head[1], RADIUS, cv.AGENT)
        frames.append(trail)
    return cv.to_frames(frames)


def walk_masks(
    size: int, path: Sequence[Cell], num_frames: int, things: Mapping[str, Callable[..., None]]
) -> dict[str, NDArray[np.bool_]]:
    """Return where what is seen in a walk, by name, [time, height, width]: `agent`, `trail`, and things that stand still.

    Args:
        size: cells along each side.
        path: that the agent walks.
        num_frames: frames of the video.
        things: name to `f(canvas, colour=...)`, which draws all things of that kind.
    """
    nothing, white = np.zeros((size * CELL, size * CELL, 3), np.float32), (1.0, 1.0, 1.0)
    agents, trails = [], []
    for trail, head in _walked(nothing, path, num_frames, white):
        agent = nothing.copy()
        cv.disc(agent, head[0], head[1], RADIUS, white)
        agents.append(agent[..., 0] > 0.5)
        trails.append((trail[..., 0] > 0.5) & ~agents[-1])
    masks = {"agent": np.stack(agents), "trail": np.stack(trails)}
    return masks | still_masks(size, things, masks["agent"] | masks["trail"])


def still_masks(
    size: int, things: Mapping[str, Callable[..., None]], covered: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Return where things that stand still are seen, by name, [time, height, width]: where nothing covers them."""
    masks = {}
    for name, paint in things.items():
        drawn = np.zeros((size * CELL, size * CELL, 3), np.float32)
        paint(drawn, colour=(1.0, 1.0, 1.0))
        masks[name] = (drawn[..., 0] > 0.5)[None] & ~covered
    return masks


def scene_masks(
    size: int, walls: Iterable[Edge], goals: Iterable[Cell], path: Sequence[Cell], num_frames: int
) -> dict[str, NDArray[np.bool_]]:
    """Return where what is seen in a walk on a board of `walls` and `goals`; see `walk_masks`."""
    things = {
        "walls": partial(paint_walls, size=size, walls=walls),
        "goals": partial(paint_goals, goals=goals),
    }
    return walk_masks(size, path, num_frames, things)


def walked(
    background: Canvas,
    path: Sequence[Cell],
    moves: float,
    colour: tuple[float, ...] = cv.TRAIL,
    laid: int = 0,
) -> tuple[Canvas, NDArray[np.float64]]:
    """Draw the trail of so many moves along a path; return it, and where the agent then is, (x, y).

    Args:
        background: what it is drawn on, which stays as it is.
        path: that the agent walks.
        moves: that it has made.
        colour: of the trail.
        laid: whole moves whose trail the background has already.
    """
    points = np.array([cv.centre(c) for c in path])
    k = _whole_moves(path, moves)
    head = points[k] + (moves - k) * (points[k + 1] - points[k])
    out = background.copy()
    for start, end in pairwise(points[laid : k + 1]):
        _line(out, start, end, colour)
    _line(out, points[k], head, colour)
    return out, head


def _whole_moves(path: Sequence[Cell], moves: float) -> int:
    return min(max(int(moves), 0), len(path) - 2)


def _walked(
    background: Canvas, path: Sequence[Cell], num_frames: int, colour: tuple[float, ...]
) -> Iterator[tuple[Canvas, NDArray[np.float64]]]:
    """Go through the frames of a walk: each with the trail laid so far, and where the agent is, (x, y)."""
    points, trail, laid = [np.array(cv.centre(c)) for c in path], background.copy(), 0
    for t in range(num_frames):
        moves = (len(path) - 1) * t / max(num_frames - 1, 1)
        before, laid = laid, _whole_moves(path, moves)
        for start, end in pairwise(points[before : laid + 1]):
            _line(trail, start, end, colour)
        yield walked(trail, path, moves, colour, laid)


def _line(canvas: Canvas, a: NDArray[np.float64], b: NDArray[np.float64], colour: tuple[float, ...]) -> None:
    (x0, y0), (x1, y1) = np.minimum(a, b) - HALF_WIDTH, np.maximum(a, b) + HALF_WIDTH
    cv.rectangle(canvas, x0, y0, x1, y1, colour)


def trail_strength(
    frame: NDArray[np.uint8], size: int, colours: Sequence[tuple[float, ...]] = (cv.TRAIL, cv.AGENT)
) -> dict[Edge, float]:
    """Read how much trail lies on every edge of the board: 0 none, 1 full. An agent counts as trail where it is."""
    seen = np.maximum.reduce([cv.likeness(frame, colour) for colour in colours])
    out = {}
    for a, b in grid_edges(size):
        (xa, ya), (xb, yb) = cv.centre(a), cv.centre(b)
        out[a, b] = cv.patch(seen, (xa + xb) / 2, (ya + yb) / 2, 2)
    return out


def read_trail(
    frame: NDArray[np.uint8], size: int, colours: Sequence[tuple[float, ...]] = (cv.TRAIL, cv.AGENT)
) -> frozenset[Edge]:
    """Read the edges that carry a trail (`LAID` of a full one or more) in the colours of trail and agents."""
    return frozenset(e for e, s in trail_strength(frame, size, colours).items() if s > LAID)


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
        between = "," if any(n > 9 for e in edges for cell in e for n in cell) else ""
        return "edges " + " ".join(f"{r}{between}{c}{move((r, c), b)}" for (r, c), b in sorted(edges))
    return "".join(move(a, b) for a, b in pairwise(path))


def overlap(a: frozenset[Edge], b: frozenset[Edge]) -> float:
    """Return shared edges over all edges (Jaccard index), 0 for two empty sets."""
    return len(a & b) / len(a | b) if a | b else 0.0
