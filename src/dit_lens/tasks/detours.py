"""Pairs of paths on an open board that share no cell: how two agents get past each other, by as few steps as they can."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.trail import neighbours

MOST_DETOUR = 4
"""Steps that both paths together have beyond the shortest, at most."""
LONGEST = 8
"""Cells on a path, at most: the codec blurs what goes faster."""

Ways = tuple[tuple[Cell, ...], ...]
Pair = tuple[tuple[Cell, ...], tuple[Cell, ...]]
"""A path of each agent."""


def distance(a: Cell, b: Cell) -> int:
    """Return the steps between two cells of an open board."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


@lru_cache(1 << 12)
def ways(start: Cell, end: Cell, detour: int, size: int) -> tuple[Ways, NDArray[np.uint64]]:
    """Return the simple paths between two cells that have so many steps beyond the shortest, in a fixed order.

    The second of the two says of each path which cells it has, by one bit for each cell of the board.
    """
    found = tuple(_walks((start,), end, distance(start, end) + detour, size))
    return found, np.array([sum(1 << (r * size + c) for r, c in way) for way in found], np.uint64)


def _walks(path: tuple[Cell, ...], end: Cell, steps: int, size: int) -> Iterator[tuple[Cell, ...]]:
    if path[-1] == end:
        if steps == 0:
            yield path
        return
    for cell in neighbours(path[-1], size):
        if distance(cell, end) < steps and cell not in path:
            yield from _walks((*path, cell), end, steps - 1, size)


def crossing(red: tuple[Cell, Cell], blue: tuple[Cell, Cell], size: int) -> float:
    """Return the share of the pairs of shortest paths, each taken as if its agent were alone, that share a cell.

    Args:
        red: where the one agent starts, and where it ends.
        blue: the same of the other.
        size: cells along each side.
    """
    (_, one), (_, other) = ways(*red, 0, size), ways(*blue, 0, size)
    return float((one[:, None] & other != 0).mean())


def shortest_pairs(red: tuple[Cell, Cell], blue: tuple[Cell, Cell], size: int) -> list[Pair]:
    """Return the pairs of simple paths that share no cell, of the least total length at which there are any.

    None where they would need more than `MOST_DETOUR` steps beyond the shortest, or a path of more than `LONGEST` cells.

    Args:
        red: where the one agent starts, and where it ends.
        blue: the same of the other.
        size: cells along each side.
    """
    for extra in range(0, MOST_DETOUR + 1, 2):  # a detour on a grid has an even number of steps
        found = []
        for detour in range(0, extra + 1, 2):
            (paths, one), (others, other) = ways(*red, detour, size), ways(*blue, extra - detour, size)
            free = np.argwhere(one[:, None] & other == 0)
            found += [(paths[i], others[j]) for i, j in free]
        if found:
            return found if max(len(path) for pair in found for path in pair) <= LONGEST else []
    return []
