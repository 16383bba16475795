"""Conduct: what an agent and its board do in every frame of a video, and not only where the agent ends.

A frame of a walk is legal where it looks as the right video does, but for how far the agent is: there is one agent, on its path,
no more than `LATE` pixels before or after its time, and not behind where it was; the trail lies behind it and nowhere else;
the rest is as the board is. The bounds leave room for what a codec blurs (`tests/unit/tasks/test_every_task.py`: right videos
come through it), and a little for a model's own hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.trail import RADIUS, walked

NUM_FRAMES = 25
"""Frames of the tasks that are judged in every frame."""
FAINT = 0.45
"""Share of the agent's red below which a pixel has none: a codec colours thin lines."""
MASS = (0.3, 1.3)
"""Agents' worth of colour that are one agent."""
SPREAD = 5.0
"""Root mean squared distance of an agent's colour from its middle, at most, in pixels; a disc has 3.5."""
OFF_PATH = 5.0
"""Pixels between the agent's middle and the path, at most."""
LATE = 10.0
"""Pixels along the path that the agent may be from where the right video has it."""
STILL = 4.0
"""The same in the first frame and in the last; and how many the agent may seem to go back."""
AROUND = 11.0
"""Pixels within which a codec blurs the agent, around where it is from `BLENDED` frames before to as many after."""
BLENDED = 3
WINDOW = 5
"""Pixels along the sides of the square over which a difference is averaged: it sees a wall two pixels wide."""
FEW = 0.3
"""Share of such a square that walls fill at least, where they are looked at by themselves."""
CHANGED = 0.25
"""Difference (`difference`) from which on a picture has changed, as by a wall or a sign that is gone."""
BLURRED = 0.65
"""The same around the agent."""
GHOST = 0.25
"""Mean share of the agent's red in such a square, away from it, from which on something else is red."""


@dataclass(frozen=True)
class Sighting:
    """The agent in one frame.

    Attributes:
        mass: agents' worth of its colour.
        at: its middle, (x, y) in pixels.
        spread: root mean squared distance of its colour from there, in pixels.
    """

    mass: float
    at: tuple[float, float]
    spread: float

    @property
    def is_one(self) -> bool:
        """Whether it is one agent: none, several and a smear are not."""
        return MASS[0] <= self.mass <= MASS[1] and self.spread <= SPREAD


def redness(frame: NDArray[np.uint8], board: Canvas | None = None) -> NDArray[np.float32]:
    """Return how much of the agent's colour each pixel has, in [0, 1].

    It is how far the pixel is redder than green and blue, beginning at grey, or at a board (a goal is greener than grey).
    """
    under = np.float32(0) if board is None else np.minimum(_red(board), 0)
    share: NDArray[np.float32] = (_red(frame / np.float32(255)) - under) / (_red(np.array(cv.AGENT)) - under)
    return np.clip(share, 0, 1)


def _red(rgb: NDArray[Any]) -> NDArray[Any]:
    return rgb[..., 0] - (rgb[..., 1] + rgb[..., 2]) / 2


def see(frame: NDArray[np.uint8], board: Canvas) -> Sighting:
    """Find the agent in a frame [height, width, rgb] of a walk on a board."""
    red = redness(frame, board)
    red[red < FAINT] = 0
    total = float(red.sum())
    if total < 1:
        return Sighting(0.0, (float("nan"), float("nan")), float("nan"))
    y, x = (np.arange(n) + 0.5 for n in red.shape)
    at = float(red.sum(0) @ x) / total, float(red.sum(1) @ y) / total
    spread = (red.sum(0) @ (x - at[0]) ** 2 + red.sum(1) @ (y - at[1]) ** 2) / total
    return Sighting(total / (np.pi * RADIUS**2), at, float(np.sqrt(spread)))


def judge(
    video: NDArray[np.uint8], board: Canvas, path: Sequence[Cell], num_frames: int
) -> tuple[bool, float]:
    """Return whether a video has so many frames, all of them legal (`legal_frames`), and the share of its frames that are."""
    legal = legal_frames(video, board, path)
    return len(video) == num_frames and bool(legal.all()), float(legal.mean())


def legal_frames(video: NDArray[np.uint8], board: Canvas, path: Sequence[Cell]) -> NDArray[np.bool_]:
    """Say of every frame whether what it shows is legal.

    Args:
        video: [time, height, width, rgb].
        board: without agent and trail, [height, width, rgb] in [0, 1].
        path: that the agent is to walk, from its first cell in the first frame to its last in the last.

    Returns:
        [time].
    """
    points, last = np.array([cv.centre(cell) for cell in path]), max(len(video) - 1, 1)
    legal, before = [], 0.0
    for t, frame in enumerate(video):
        due = (len(path) - 1) * CELL * t / last
        seen, slack = see(frame, board), STILL if t in (0, last) else LATE
        off, along = _on_path(np.array(seen.at), points, due) if seen.is_one else (np.inf, before)
        moved = off <= OFF_PATH and abs(along - due) <= slack and along >= before - STILL
        legal.append(moved and _is_walk(frame, board, path, along / CELL, (len(path) - 1) / last))
        before = max(before, along) if moved else before
    return np.array(legal)


def _is_walk(
    frame: NDArray[np.uint8], board: Canvas, path: Sequence[Cell], moves: float, speed: float
) -> bool:
    """Say whether a frame shows a walk after so many moves, and nothing else; the speed is in moves a frame."""
    picture, head = walked(board, path, moves)
    cv.disc(picture, head[0], head[1], RADIUS, cv.AGENT)
    changed, red = difference(frame, picture), _smooth(redness(frame)[..., None])[..., 0]
    times = np.clip(moves + speed * np.linspace(-BLENDED, BLENDED, 4 * BLENDED + 1), 0, len(path) - 1)
    cells = np.arange(len(path))
    y, x = (np.interp(times, cells, axis) for axis in np.array([cv.centre(cell)[::-1] for cell in path]).T)
    rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in board.shape[:2])
    down, across = (rows - y[:, None]) ** 2, (columns - x[:, None]) ** 2
    near = (down[:, :, None] + across[:, None]).min(0) < AROUND**2
    return bool(
        changed[~near].max() <= CHANGED
        and changed[near].max() <= BLURRED
        and red[~near].max() <= GHOST
        and _change_of_walls(frame, picture, board) <= CHANGED
    )


def _change_of_walls(frame: NDArray[np.uint8], picture: Canvas, board: Canvas) -> float:
    """Return how far a frame is from a picture in the walls of a board alone, where it is farthest.

    Beside the agent, too, where a blur hides two pixels of a wall from `difference`.
    """
    wall = (largest(board - np.asarray(cv.WALL, np.float32)) < 0.1) & (largest(picture - board) == 0)
    share = _smooth(wall[..., None])[..., 0]
    there = share > FEW
    off = _smooth((frame / np.float32(255) - picture) * wall[..., None])
    return float((largest(off)[there] / share[there]).max(initial=0))


def largest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest absolute value of three colours, [height, width]; a reduction over an axis of 3 is slow."""
    red, green, blue = (np.abs(values[..., i]) for i in range(3))
    return np.maximum(np.maximum(red, green), blue)


def difference(frame: NDArray[np.uint8], picture: Canvas) -> NDArray[np.float32]:
    """Return how far a frame is from a picture around each pixel, [height, width].

    Over a small square the difference is averaged with its sign, which evens out the ripples of a codec; then the largest
    of the three colours counts.
    """
    return largest(_smooth(frame / np.float32(255) - picture))


def _smooth(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return means over small squares, [height, width, channel]."""
    from scipy.ndimage import uniform_filter  # slow to import, and needed by who judges alone

    means: NDArray[np.float32] = uniform_filter(
        values.astype(np.float32), (WINDOW, WINDOW, 0), mode="constant"
    )
    return means


def _on_path(at: NDArray[np.float64], points: NDArray[np.float64], due: float) -> tuple[float, float]:
    """Return how far a point is from a path, and how far along it; where it passes twice, what is nearer to `due`."""
    a, b = points[:-1], points[1:]
    share = np.clip(((at - a) * (b - a)).sum(1) / CELL**2, 0, 1)
    off = np.linalg.norm(a + share[:, None] * (b - a) - at, axis=1)
    along = (np.arange(len(a)) + share) * CELL
    near = np.flatnonzero(off <= max(OFF_PATH, float(off.min())))
    best = near[np.abs(along[near] - due).argmin()]
    return float(off[best]), float(along[best])
