"""Drawing and reading of the little boards: 16-pixel cells, a few flat colours, antialiased shapes.

One cell is one token of the organism (8x codec, 2x2 patch), so token maps read like the board.
Positions are in pixels, x to the right and y down; a cell (row, column) has its centre at 16 * (i + 0.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.plan.places import whole_number

CELL = 16
NUM_FRAMES = 13
EVAL_SEED = 1_000_000
"""Seeds below are for training, from here on for evaluation."""

Canvas = NDArray[np.float32]
Cell = tuple[int, int]

FLOOR = (0.95, 0.95, 0.92)
WALL = (0.20, 0.20, 0.24)
AGENT = (0.84, 0.25, 0.10)
GOAL = (0.00, 0.62, 0.38)
TRAIL = (0.20, 0.45, 0.90)
OBJECT = (0.35, 0.35, 0.42)
RING = (0.90, 0.20, 0.15)
BAR = (0.45, 0.45, 0.50)
SIGN = (0.45, 0.45, 0.50)
BALLS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.05, 0.60, 0.30),
    "blue": (0.15, 0.35, 0.90),
}


def rng_for(task: str, seed: int) -> np.random.Generator:
    """Return the random generator of one task's seed: the same everywhere, apart for every task.

    Raises:
        TaskError: the seed is negative, or no whole number.
    """
    if whole_number(seed) is None or seed < 0:
        raise TaskError(
            f"{task}(seed={seed!r}): seeds are whole numbers, 0 or more; from {EVAL_SEED:,} on they are for evaluation."
        )
    return np.random.default_rng([seed, *task.encode()])


def blank(rows: int, columns: int | None = None) -> Canvas:
    """Return an empty board [height, width, rgb] in [0, 1]."""
    return np.full((rows * CELL, (columns or rows) * CELL, 3), FLOOR, np.float32)


def centre(cell: Cell) -> tuple[float, float]:
    """Return the (x, y) pixel position of a cell's centre."""
    return (cell[1] + 0.5) * CELL, (cell[0] + 0.5) * CELL


def paint(canvas: Canvas, coverage: NDArray[np.float32], colour: tuple[float, ...]) -> None:
    """Blend a colour in, by coverage [height, width] in [0, 1]."""
    canvas += coverage[..., None] * (np.asarray(colour, np.float32) - canvas)


def _near(canvas: Canvas, x0: float, y0: float, x1: float, y1: float) -> tuple[Canvas, float, float]:
    """Return the part of a canvas around a box (a view), and the position of its corner."""
    left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
    return canvas[top : int(y1) + 2, left : int(x1) + 2], left, top


def _span(n: int, low: float, high: float) -> NDArray[np.float32]:
    """Return how much of each of n pixels lies between two positions."""
    i = np.arange(n, dtype=np.float32)
    return np.clip(np.minimum(i + 1, high) - np.maximum(i, low), 0, 1)


def rectangle(canvas: Canvas, x0: float, y0: float, x1: float, y1: float, colour: tuple[float, ...]) -> None:
    """Fill the rectangle between two corners."""
    view, left, top = _near(canvas, x0, y0, x1, y1)
    h, w = view.shape[:2]
    paint(view, _span(h, y0 - top, y1 - top)[:, None] * _span(w, x0 - left, x1 - left)[None], colour)


def _distance(shape: tuple[int, ...], x: float, y: float) -> NDArray[np.float32]:
    rows, columns = np.arange(shape[0]) + 0.5 - y, np.arange(shape[1]) + 0.5 - x
    return np.hypot(rows[:, None], columns[None]).astype(np.float32)


def disc(canvas: Canvas, x: float, y: float, radius: float, colour: tuple[float, ...]) -> None:
    """Fill a disc."""
    view, left, top = _near(canvas, x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1)
    paint(view, np.clip(radius + 0.5 - _distance(view.shape, x - left, y - top), 0, 1), colour)


def ring(canvas: Canvas, x: float, y: float, radius: float, width: float, opacity: float) -> None:
    """Draw a ring of a mean radius and a line width."""
    off = np.abs(_distance(canvas.shape, x, y) - radius)
    paint(canvas, opacity * np.clip(width / 2 + 0.5 - off, 0, 1), RING)


def ring_strength(frame: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Return how much of a full ring each cell of a board shows, [row, column]."""
    mask = blank(1) * 0
    ring(mask, CELL / 2, CELL / 2, 6.5, 2, 1.0)
    weight = mask[..., 0] / mask[..., 0].sum()
    tiles = likeness(frame, RING).reshape(side, CELL, side, CELL).transpose(0, 2, 1, 3)
    strength: NDArray[np.float32] = (tiles * weight).sum((2, 3))
    return strength


def random_cells(rng: np.random.Generator, size: int, count: int) -> list[Cell]:
    """Draw cells of a board, each once."""
    return [divmod(int(i), size) for i in rng.choice(size * size, count, replace=False)]


def inside_cells(size: int, cells: Iterable[Cell]) -> NDArray[np.bool_]:
    """Return which pixels of a board lie in some cells, [height, width]."""
    out = np.zeros((size * CELL, size * CELL), bool)
    for r, c in cells:
        out[r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL] = True
    return out


def fade(scene: Canvas, final: Canvas, num_frames: int) -> NDArray[np.uint8]:
    """Return the frames from a scene to another, evenly, [time, height, width, rgb]."""
    shares = np.arange(num_frames) / max(num_frames - 1, 1)
    return to_frames([scene + (final - scene) * np.float32(share) for share in shares])


def to_frames(canvases: list[Canvas]) -> NDArray[np.uint8]:
    """Stack canvases to a video [time, height, width, rgb] of uint8.

    Raises:
        TaskError: there are none.
    """
    if not canvases:
        raise TaskError("num_frames is 0: a video has at least one frame.")
    return (np.stack(canvases) * 255).round().clip(0, 255).astype(np.uint8)


def likeness(frame: NDArray[np.uint8], colour: tuple[float, ...]) -> NDArray[np.float32]:
    """Say how far each pixel has gone from floor to a colour: 0 at the floor, 1 at the colour (clipped).

    A colour that lies off the line from floor to `colour` counts less, by its distance from that line.

    Args:
        frame: [height, width, rgb], uint8.
        colour: RGB in [0, 1].

    Returns:
        [height, width] in [0, 1].
    """
    floor = np.asarray(FLOOR, np.float32)
    axis = np.asarray(colour, np.float32) - floor
    offset = frame.astype(np.float32) / 255 - floor
    length = float(np.linalg.norm(axis))
    along = offset @ axis / length**2
    across = np.linalg.norm(offset - along[..., None] * axis, axis=-1) / length
    return np.clip(along - across, 0, 1)


def nearest(
    frame: NDArray[np.uint8], at: tuple[float, float], half: int, colours: Mapping[str, tuple[float, ...]]
) -> tuple[str, float]:
    """Name the colour nearest to the mean of a square of 2 * half pixels around a position (x, y).

    Returns:
        Its name, and how near it is: 1 at the colour, 0 as far from it as the floor is, or farther.
    """
    rgb = np.array([patch((frame[..., i] / 255).astype(np.float32), *at, half) for i in range(3)])
    off = {name: float(np.linalg.norm(rgb - colour)) for name, colour in colours.items()}
    name = min(off, key=lambda n: off[n])
    return name, max(1 - off[name] / float(np.linalg.norm(np.subtract(FLOOR, colours[name]))), 0.0)


def patch(values: NDArray[np.float32], x: float, y: float, half: int) -> float:
    """Return the mean of a map over a square of 2 * half pixels around a position."""
    x0, y0 = round(x) - half, round(y) - half
    return float(values[max(y0, 0) : y0 + 2 * half, max(x0, 0) : x0 + 2 * half].mean())
