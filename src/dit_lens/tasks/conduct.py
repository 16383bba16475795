"""Conduct: what an agent and its board do in every frame of a video, and not only where the agent ends.

Four things are legal in a frame: there is one agent; it stands on the path; it has not gone back or jumped since the frame
before; and the board around the path is as it was. The bounds leave room for what a codec blurs: `tests` say how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.trail import RADIUS

FAINT = 0.45
"""Share of the agent's red below which a pixel has none: a codec colours thin lines."""
MASS = (0.5, 1.4)
"""Agents' worth of colour that are one agent."""
SPREAD = 6.0
"""Root mean squared distance of an agent's colour from its middle, at most, in pixels; a disc has 3.5."""
OFF_PATH = 6.0
"""Pixels between the agent's middle and the path, at most."""
BACK = 4.0
"""Pixels that the agent may seem to go back along the path."""
JUMP = 8.0
"""Pixels along the path that the agent may go in a frame beside two and a half times its mean speed."""
NEAR = 8.0
"""Pixels from the path within which the board may change: the agent's radius, and what a codec blurs."""
WINDOW = 5
"""Pixels along the sides of the square over which a difference from the board is averaged: it sees a wall two pixels wide."""
CHANGED = 0.22
"""Mean difference in such a square, in [0, 1], from which on the board has changed. A codec that was fitted to other pictures
makes up to 0.2; a wall that is gone 0.29, a small object 0.3."""


@dataclass(frozen=True)
class Seen:
    """The agent in one frame.

    Attributes:
        mass: agents' worth of its colour.
        at: its middle, (x, y) in pixels.
        spread: root mean squared distance of its colour from there, in pixels.
    """

    mass: float
    at: tuple[float, float]
    spread: float


def see(frame: NDArray[np.uint8]) -> Seen:
    """Find the agent's colour in a frame [height, width, rgb]: what is redder than it is green and blue."""
    rgb = frame.astype(np.float32) / 255
    red = rgb[..., 0] - rgb[..., 1:].mean(-1)
    red = np.clip(red / (cv.AGENT[0] - (cv.AGENT[1] + cv.AGENT[2]) / 2), 0, 1)
    red[red < FAINT] = 0
    total = float(red.sum())
    if total < 1:
        return Seen(0.0, (float("nan"), float("nan")), float("nan"))
    y, x = (np.arange(n) + 0.5 for n in red.shape)
    at = float(red.sum(0) @ x) / total, float(red.sum(1) @ y) / total
    spread = (red.sum(0) @ (x - at[0]) ** 2 + red.sum(1) @ (y - at[1]) ** 2) / total
    return Seen(total / (np.pi * RADIUS**2), at, float(np.sqrt(spread)))


def legal_frames(video: NDArray[np.uint8], board: Canvas, path: Sequence[Cell]) -> NDArray[np.bool_]:
    """Say of every frame whether what it shows is legal.

    Args:
        video: [time, height, width, rgb].
        board: without agent and trail, [height, width, rgb] in [0, 1].
        path: that the agent is to walk, from its first cell to its last.

    Returns:
        [time].
    """
    points = np.array([cv.centre(cell) for cell in path])
    speed = (len(path) - 1) * CELL / max(len(video) - 1, 1)
    around = _distance(board.shape[:2], points) > NEAR
    legal, before = [], 0.0
    for frame in video:
        seen = see(frame)
        one = MASS[0] <= seen.mass <= MASS[1] and seen.spread <= SPREAD
        off, along = _on_path(np.array(seen.at), points, before) if one else (np.inf, before)
        moved = off <= OFF_PATH and -BACK <= along - before <= 2.5 * speed + JUMP
        legal.append(one and moved and is_still(frame, board, around))
        before = max(before, along) if moved else before
    return np.array(legal)


def _on_path(at: NDArray[np.float64], points: NDArray[np.float64], before: float) -> tuple[float, float]:
    """Return how far a point is from a path, and how far along it; where it passes twice, what is nearer to `before`."""
    a, b = points[:-1], points[1:]
    share = np.clip(((at - a) * (b - a)).sum(1) / CELL**2, 0, 1)
    off = np.linalg.norm(a + share[:, None] * (b - a) - at, axis=1)
    along = (np.arange(len(a)) + share) * CELL
    near = np.flatnonzero(off <= max(OFF_PATH, float(off.min())))
    best = near[np.abs(along[near] - before).argmin()]
    return float(off[best]), float(along[best])


def _distance(shape: tuple[int, ...], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far the middle of each pixel is from a path, [height, width]."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    at, out = np.stack([x, y], -1), np.full(shape, np.inf)
    for a, b in pairwise(points):
        share = np.clip((at - a) @ (b - a) / CELL**2, 0, 1)
        out = np.minimum(out, np.linalg.norm(a + share[..., None] * (b - a) - at, axis=-1))
    return out


def is_still(frame: NDArray[np.uint8], board: Canvas, around: NDArray[np.bool_]) -> bool:
    """Say whether a frame is as the board is.

    Args:
        frame: [height, width, rgb], uint8.
        board: [height, width, rgb] in [0, 1].
        around: pixels that have to stay, [height, width].
    """
    changed = np.abs(frame / np.float32(255) - board).mean(-1) * around
    return bool(uniform_filter(changed, WINDOW, mode="constant").max() <= CHANGED)
