"""Agents that walk a board together, each on its own path and in its own colour: how they are drawn, and where they are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.trail import RADIUS, still_masks, walked

Colour = tuple[float, ...]
Heads = list[NDArray[np.float64]]
"""Where each agent is, (x, y)."""


@dataclass(frozen=True)
class Walker:
    """An agent, and the path that it walks: from its first cell in the first frame to its last in the last.

    Attributes:
        path: cells.
        colour: of the agent.
        trail: colour of what it leaves behind it.
    """

    path: Sequence[Cell]
    colour: Colour = cv.AGENT
    trail: Colour = cv.TRAIL


def picture(background: Canvas, walkers: Sequence[Walker], moves: Sequence[float]) -> Canvas:
    """Draw every walker after so many moves of its own, on top of all trails."""
    out, heads = trails(background, walkers, moves)
    for walker, head in zip(walkers, heads, strict=True):
        cv.disc(out, head[0], head[1], RADIUS, walker.colour)
    return out


def trails(background: Canvas, walkers: Sequence[Walker], moves: Sequence[float]) -> tuple[Canvas, Heads]:
    """Draw the trail of every walker after so many moves of its own; return it, and where the agents then are."""
    out, heads = background, []
    for walker, made in zip(walkers, moves, strict=True):
        out, head = walked(out, walker.path, made, walker.trail)
        heads.append(head)
    return out, heads


def walk_together(background: Canvas, walkers: Sequence[Walker], num_frames: int) -> NDArray[np.uint8]:
    """Draw all agents walking at once, each at its constant speed, so that all arrive in the last frame.

    Returns:
        [time, height, width, rgb], uint8.
    """
    return cv.to_frames([picture(background, walkers, moves) for moves in _times(walkers, num_frames)])


def masks_together(
    size: int, walkers: Mapping[str, Walker], num_frames: int, things: Mapping[str, Callable[..., None]]
) -> dict[str, NDArray[np.bool_]]:
    """Return where what is seen while agents walk, by name, [time, height, width].

    Names are `red agent` and `red trail` for the walker `red`, and those of the things that stand still.

    Args:
        size: cells along each side.
        walkers: by name.
        num_frames: frames of the video.
        things: name to `f(canvas, colour=...)`, which draws all things of that kind.
    """
    times, masks = list(_times(list(walkers.values()), num_frames)), {}
    for n, (name, walker) in enumerate(walkers.items()):
        alone = [_seen(size, walker, moves[n]) for moves in times]
        masks[f"{name} agent"] = np.stack([agent for agent, _ in alone])
        masks[f"{name} trail"] = np.stack([trail for _, trail in alone])
    return masks | still_masks(size, things, np.any(list(masks.values()), 0))


def _times(walkers: Sequence[Walker], num_frames: int) -> Iterator[list[float]]:
    """Go through the frames: how many moves each walker has made."""
    for t in range(num_frames):
        yield [(len(walker.path) - 1) * t / max(num_frames - 1, 1) for walker in walkers]


def _seen(size: int, walker: Walker, moves: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pixels an agent and its trail have, each [height, width]."""
    white, agent = (1.0, 1.0, 1.0), _nothing(size)
    trail, head = walked(_nothing(size), walker.path, moves, white)
    cv.disc(agent, head[0], head[1], RADIUS, white)
    stands = agent[..., 0] > 0.5
    return stands, (trail[..., 0] > 0.5) & ~stands


def _nothing(size: int) -> Canvas:
    return np.zeros((size * CELL, size * CELL, 3), np.float32)
