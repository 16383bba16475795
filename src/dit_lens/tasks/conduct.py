"""Conduct: what agents and their board do in every frame of a video, and not only where the agents end.

A frame of a walk is legal where it looks as the right video does, but for how far the agent is: there is one agent, on its path,
no more than `LATE` pixels before or after its time, and not behind where it was; the trail lies behind it and nowhere else;
the rest is as the board is. Of several agents this holds for each, by its own colour.

A codec's blur takes no room: a frame is compared with what the organism's codec makes of the walk, too (`blur`). The bounds are
for a model's own hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.blur import CHANGED, blur, difference, largest, smooth
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.judged import Judged
from dit_lens.tasks.trail import RADIUS
from dit_lens.tasks.walkers import Colour, Walker, picture

NUM_FRAMES = 25
"""Frames of the tasks that are judged in every frame."""
FAINT = 0.45
"""Share of the agent's colour below which a pixel has none: a codec colours thin lines."""
TINTED = 0.1
"""The same from which on the board itself has some, as a goal in the agent's colour; the agent is what is more than that."""
MASS = (0.25, 1.3)
"""Agents' worth of colour that are one agent."""
SPREAD = 5.0
"""Root mean squared distance of an agent's colour from its middle, at most, in pixels; a disc has 3.5."""
CORE = 0.5
"""Mean share of the agent's colour around its middle, at least: between two halves of an agent there is less."""
OFF_PATH = 5.0
"""Pixels between the agent's middle and the path, at most."""
SAME = 1.0
"""Pixels by which two parts of the path may differ in how far the agent is from them, where it may be on either."""
LATE = 10.0
"""Pixels along the path that the agent may be from where the right video has it."""
STILL = 4.0
"""The same in the first frame and in the last; and how many the agent may seem to go back."""
AROUND = 11.0
"""Pixels around the agent, from where it is `BLENDED` frames before to as many after, within which a model may draw it otherwise:
a codec makes one latent of four frames."""
BLENDED = 3
FEW = 0.18
"""Share of a square that things fill at least, where they are looked at by themselves: the outer wall is a pixel wide."""
GONE = 0.3
"""Difference from which on a thing has changed where it is looked at by itself."""
DRAWN = 0.5
"""How different a frame may be around the agents, which a model may draw a little otherwise, as a share of how far the palest
trail is from the floor; so a trail that is missing there, or new, is seen."""
OTHER_COLOUR = 0.37
"""Distance (RGB in [0, 1]) of the colour around an agent's middle from its own, from which on it is none."""
OFF_COLOUR = 0.3
"""The same distance of the colour around the agent's middle from that in the picture that a frame is like, at most."""
GHOST = 0.25
"""Mean share of the agent's colour over a small square from which on something has it; behind a red agent the codec draws a
few pixels of blue."""
STRIP = (1, 5)
"""Pixels along the sides of the strips, upright and across, that are looked at for things that should not be there."""
STRANGE = 0.55
"""How much nearer to a thing's colour a strip is than it should be, from which on there is one."""
THINGS = (cv.WALL, cv.GOAL, cv.SIGN)
"""Colours of what may stand on a board."""


@dataclass(frozen=True)
class Sighting:
    """The agent in one frame.

    Attributes:
        mass: agents' worth of its colour.
        at: its middle, (x, y) in pixels.
        spread: root mean squared distance of its colour from there, in pixels.
        core: mean share of its colour around its middle.
        off_colour: distance of the mean colour there from its own.
    """

    mass: float
    at: tuple[float, float]
    spread: float
    core: float
    off_colour: float

    @property
    def is_one(self) -> bool:
        """Whether it is one agent: none, several and a smear are not."""
        whole = MASS[0] <= self.mass <= MASS[1] and self.spread <= SPREAD
        return whole and self.core >= CORE and self.off_colour <= OTHER_COLOUR


def colouring(frame: NDArray[np.uint8], colour: Colour, under: NDArray[Any]) -> NDArray[np.float32]:
    """Return how much of an agent's colour each pixel has, in [0, 1].

    Args:
        frame: [height, width, rgb].
        colour: of the agent.
        under: hue at which a pixel has none of it.
    """
    share: NDArray[np.float32] = (_hue(frame / np.float32(255), colour) - under) / (
        _hue(np.array(colour), colour) - under
    )
    return np.clip(share, 0, 1)


def _hue(rgb: NDArray[Any], colour: Colour) -> NDArray[Any]:
    """Return how far a pixel is redder than green and blue, where the colour is a red; so too of the others."""
    main = max(range(3), key=lambda i: colour[i])
    one, other = (i for i in range(3) if i != main)
    hue: NDArray[Any] = rgb[..., main] - (rgb[..., one] + rgb[..., other]) / 2
    return hue


def _tint(board: Canvas, colour: Colour) -> NDArray[np.float32]:
    """Return the hue that the board has of an agent's colour, 0 where it has none."""
    hue = _hue(board, colour)
    return np.where(hue > TINTED * _hue(np.array(colour), colour), hue, np.float32(0))


def see(frame: NDArray[np.uint8], board: Canvas, colour: Colour = cv.AGENT) -> Sighting:
    """Find the agent of a colour in a frame [height, width, rgb] of a walk on a board.

    Its colour is counted from what the board is: a green goal is farther from red than grey is, a red one nearer.
    """
    return _sighting(frame, colour, _under(board, colour))


def _under(board: Canvas, colour: Colour) -> NDArray[np.float32]:
    """Return the hue from which on an agent's colour is counted on a board."""
    under: NDArray[np.float32] = _tint(board, colour) + np.minimum(_hue(board, colour), 0)
    return under


def _sighting(frame: NDArray[np.uint8], colour: Colour, under: NDArray[np.float32]) -> Sighting:
    red = colouring(frame, colour, under)
    red[red < FAINT] = 0
    around = smooth(red[..., None])[..., 0]
    red[around < GHOST] = 0
    total = float(red.sum())
    if total < 1:
        return Sighting(0.0, (float("nan"), float("nan")), float("nan"), 0.0, float("nan"))
    y, x = (np.arange(n) + 0.5 for n in red.shape)
    at = float(red.sum(0) @ x) / total, float(red.sum(1) @ y) / total
    spread = (red.sum(0) @ (x - at[0]) ** 2 + red.sum(1) @ (y - at[1]) ** 2) / total
    column, row = int(at[0]), int(at[1])
    middle = frame[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] / 255
    off_colour = float(np.linalg.norm(middle.mean((0, 1)) - colour))
    core = float(around[row, column])
    return Sighting(total / (np.pi * RADIUS**2), at, float(np.sqrt(spread)), core, off_colour)


def judge(video: NDArray[np.uint8], board: Canvas, path: Sequence[Cell], num_frames: int) -> Judged:
    """Judge every frame of the walk of the usual agent alone, as `legal_frames` does."""
    return judge_together(video, board, [Walker(path)], num_frames)


def judge_together(
    video: NDArray[np.uint8], board: Canvas, walkers: Sequence[Walker], num_frames: int
) -> Judged:
    """Judge every frame of the walks of several agents, as `legal_frames` does."""
    return Judged.of(legal_frames(video, board, walkers), num_frames)


def legal_frames(video: NDArray[np.uint8], board: Canvas, walkers: Sequence[Walker]) -> NDArray[np.bool_]:
    """Say of every frame whether what it shows is legal.

    Args:
        video: [time, height, width, rgb].
        board: without agents and trails, [height, width, rgb] in [0, 1].
        walkers: the agents that there are, each of a colour whose strongest channel is its own.

    Returns:
        [time].
    """
    last, times = max(len(video) - 1, 1), range(len(video))
    watched = [_Watched(walker, board) for walker in walkers]
    due = [[each.due(t, last) for each in watched] for t in times]
    seen = [[each.moves(frame, t, last) for each in watched] for t, frame in enumerate(video)]
    made = [
        [b if a is None else a for a, b in zip(*both, strict=True)] for both in zip(seen, due, strict=True)
    ]
    in_time, drawn = blur(_pictures(board, walkers, due)), _pictures(board, walkers, made)
    legal, come = np.zeros(len(video), bool), np.zeros(len(watched))
    for t, (frame, *pictures) in enumerate(zip(video, in_time, blur(drawn), drawn, strict=True)):
        now, legal[t] = due[t], difference(frame, in_time[t]).max() <= CHANGED
        if not legal[t] and None not in seen[t]:
            now, legal[t] = made[t], _is_walk(frame, pictures, board, watched, made[t], last)
        legal[t] &= bool((np.array(now) >= come - STILL / CELL).all())
        come = np.maximum(come, now) if legal[t] else come
    return legal


def _pictures(board: Canvas, walkers: Sequence[Walker], times: Sequence[Sequence[float]]) -> Canvas:
    """Draw a frame for so many moves of each walker, at every time, [time, height, width, rgb]."""
    return np.stack([picture(board, walkers, moves) for moves in times])


class _Watched:
    """A walker that is watched from frame to frame.

    Attributes:
        walker: who is watched.
        steps: moves of its path.
        points: centres of its cells, (x, y).
        board: that it walks on.
        tint: hue of its colour that the board has.
        under: hue from which on its colour is counted.
    """

    def __init__(self, walker: Walker, board: Canvas) -> None:
        self.walker, self.board = walker, board
        self.steps = len(walker.path) - 1
        self.points = np.array([cv.centre(cell) for cell in walker.path])
        self.tint, self.under = _tint(board, walker.colour), _under(board, walker.colour)

    def due(self, t: int, last: int) -> float:
        """Return how many moves it should have made in frame t."""
        return self.steps * t / last

    def moves(self, frame: NDArray[np.uint8], t: int, last: int) -> float | None:
        """Return how many moves it has made in frame t; None unless it is one agent, on its path and in its time."""
        due, slack = self.due(t, last) * CELL, STILL if t in (0, last) else LATE
        seen = _sighting(frame, self.walker.colour, self.under)
        if not seen.is_one:
            return None
        off, along = _on_path(np.array(seen.at), self.points, due)
        return None if off > OFF_PATH or abs(along - due) > slack else along / CELL

    def at(self, moves: float) -> NDArray[np.float64]:
        """Return where it is after so many moves, (x, y)."""
        cells = np.arange(self.steps + 1)
        return np.array([np.interp(moves, cells, axis) for axis in self.points.T])

    def near(self, moves: float, last: int) -> NDArray[np.bool_]:
        """Return which pixels are near where it is, `BLENDED` frames before and after so many moves, [height, width]."""
        times = moves + self.steps / last * np.linspace(-BLENDED, BLENDED, 4 * BLENDED + 1)
        cells = np.arange(self.steps + 1)
        x, y = (np.interp(np.clip(times, 0, self.steps), cells, axis) for axis in self.points.T)
        rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in self.board.shape[:2])
        down, across = (rows - y[:, None]) ** 2, (columns - x[:, None]) ** 2
        return (down[:, :, None] + across[:, None]).min(0) < AROUND**2


def _is_walk(
    frame: NDArray[np.uint8],
    pictures: Sequence[Canvas],
    board: Canvas,
    watched: Sequence[_Watched],
    moves: Sequence[float],
    last: int,
) -> bool:
    """Say whether a frame shows a walk after so many moves of each walker, as one of some pictures does, and nothing else.

    The last of the pictures is as it is drawn, and the others as a codec blurs it.
    """
    near = np.any([each.near(made, last) for each, made in zip(watched, moves, strict=True)], 0)
    bare = largest(pictures[-1] - board) == 0
    room = DRAWN * min(float(np.abs(np.subtract(each.walker.trail, cv.FLOOR)).max()) for each in watched)
    return any(
        _shows(frame, picture, near, room)
        and all(
            _colour_off(frame, picture, each.at(made)) <= OFF_COLOUR
            for each, made in zip(watched, moves, strict=True)
        )
        and _change_of_things(frame, picture, board, bare) <= GONE
        and _strangeness(frame, picture, board) <= STRANGE
        for picture in pictures
    )


def _colour_off(frame: NDArray[np.uint8], picture: Canvas, at: NDArray[np.float64]) -> float:
    """Return how far the mean colour of a small square is from what it is in a picture, in RGB; its middle is (x, y)."""
    column, row = (int(n) for n in at)
    square = slice(max(row - 2, 0), row + 3), slice(max(column - 2, 0), column + 3)
    return float(np.linalg.norm((frame[square] / 255 - picture[square]).mean((0, 1))))


def _shows(frame: NDArray[np.uint8], picture: Canvas, near: NDArray[np.bool_], room: float) -> bool:
    """Say whether a frame is like a picture: as near as `room` around what moves, and nearer away from it."""
    changed = difference(frame, picture)
    return bool(changed[~near].max(initial=0) <= CHANGED and changed.max() <= room)


def _change_of_things(
    frame: NDArray[np.uint8], picture: Canvas, board: Canvas, bare: NDArray[np.bool_]
) -> float:
    """Return how far a frame is from a picture in what stands on a board alone, where it is farthest and nothing covers it.

    Beside the agent, too, where the floor around two pixels of a wall, or around a sign, hides it from `difference`.
    """
    thing = (largest(board - np.asarray(cv.FLOOR, np.float32)) > 0.1) & bare
    share = smooth(thing[..., None])[..., 0]
    there = share > FEW
    off = smooth((frame / np.float32(255) - picture) * thing[..., None])
    return float((largest(off)[there] / share[there]).max(initial=0))


def _strangeness(frame: NDArray[np.uint8], picture: Canvas, board: Canvas) -> float:
    """Return how much nearer to the colour of a thing some strip of a frame is than both picture and board are there.

    Beside the agent, too, where `difference` does not see a new wall: a model's blur of it and its trail has no such colour all
    along a strip.
    """
    from scipy.ndimage import uniform_filter  # slow to import, and needed by who judges alone

    seen, out = frame.astype(np.float32) / 255, 0.0
    for colour in THINGS:
        new = _nearness(seen, colour) - np.maximum(_nearness(picture, colour), _nearness(board, colour))
        out = max(out, *(float(uniform_filter(new, sides).max()) for sides in (STRIP, STRIP[::-1])))
    return out


def _nearness(rgb: NDArray[Any], colour: Colour) -> NDArray[np.float32]:
    """Return how near each pixel is to a colour, [height, width]: 1 at the colour, 0 as far from it as the floor is."""
    off = np.linalg.norm(rgb - np.asarray(colour, np.float32), axis=-1)
    nearness: NDArray[np.float32] = np.clip(1 - off / np.linalg.norm(np.subtract(cv.FLOOR, colour)), 0, 1)
    return nearness


def _on_path(at: NDArray[np.float64], points: NDArray[np.float64], due: float) -> tuple[float, float]:
    """Return how far a point is from a path, and how far along it; where it passes twice, what is nearer to `due`."""
    a, b = points[:-1], points[1:]
    share = np.clip(((at - a) * (b - a)).sum(1) / CELL**2, 0, 1)
    off = np.linalg.norm(a + share[:, None] * (b - a) - at, axis=1)
    along = (np.arange(len(a)) + share) * CELL
    near = np.flatnonzero(off <= float(off.min()) + SAME)
    best = near[np.abs(along[near] - due).argmin()]
    return float(off[best]), float(along[best])
