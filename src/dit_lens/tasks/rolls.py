"""Samples in which one ball rolls along its lane, in its time, and every frame of it is judged; all else stands still.

A frame is legal where it looks as the right video does at that time, or a little before or after: the same ball in its colour, on
its lane, of its size, and hidden where it is hidden there; or as what a codec makes of that (`blur`). The bounds are for a
model's own hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.blur import CHANGED, blur, even_change, largest, smooth
from dit_lens.tasks.canvas import CELL, Canvas
from dit_lens.tasks.conduct import BLENDED
from dit_lens.tasks.judged import Judged
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene

SIDE = 4
RADII = (4, 7)
"""Of a ball that rolls, at least and at most, in pixels."""
SMALL = 3
"""Radius of a ball that stands: smaller than every one that rolls, so that the first frame tells which one does."""
LATE = 3 / 24
"""Share of the video that the ball may be before or after its time."""
STILL = 1 / 24
"""The same in the first frame and in the last."""
SHIFTS = np.arange(-4, 5) / 24
"""Shares of the video before and after a frame's time at which the scene is compared with it; beyond `LATE`, so that what is
later than it may be is seen to be."""
ALIKE = 0.05
"""How much less like a frame than the most like time another one may be, in `difference`, and be taken for its time."""
TINY = 1e-6
"""Share of the video by which two times that are equal may differ by rounding."""
REACH = 4
"""Pixels around the ball, from where it is seen `BLENDED` frames before to as many after, within which a model may draw it
otherwise."""
DRAWN = 0.35
"""How different a frame may be there; away from there, `CHANGED`."""
MASS = 0.2
"""Balls' worth of colour that may be missing there, or too much; a pixel more or less of radius is 0.27 or more."""
TINT = 0.2
"""The same of any colour: a green ball that turns grey is off by 0.34 or more, the others by 0.5."""
HIDDEN = 0.03
"""Balls' worth of any colour, of the whole range, in sum where a ball is hidden for `BLENDED` frames before and after."""
OFF_LANE = 1.0
"""Pixels between the ball and its lane, at most."""
CLEAR = 0.65
"""How near the colour of the ball's middle is to a ball's, at least, so that there is one; plain grey comes to 0.57."""

Way = Callable[[float], tuple[float, float]]
"""Share of the video, in [0, 1], to the middle of the ball that rolls, (x, y) in pixels."""
Spot = tuple[str, int, int]
"""A ball that stands: its colour, and its middle (x, y) in pixels."""
Paint = Callable[[Canvas, tuple[float, ...]], None]


@dataclass(frozen=True)
class Roll:
    """A scene: what rolls where, and what stands.

    Attributes:
        colour: of the ball that rolls.
        radius: of the ball that rolls, in pixels.
        way: that it rolls.
        upright: whether its lane is a column.
        bar: left and right edge of what hides it; None where nothing does.
        other: ball that stands beside the lane; None where there is none.
    """

    colour: str
    radius: int
    way: Way
    upright: bool = False
    bar: tuple[int, int] | None = None
    other: Spot | None = None

    def layers(self, share: float) -> dict[str, tuple[Paint, tuple[float, ...]]]:
        """Return what is drawn at a share of the video, the lowest first: name to `f(canvas, colour)`, and its colour."""
        x, y = self.way(share)
        ball: Paint = partial(_disc, x=x, y=y, radius=self.radius)
        return {"ball": (ball, cv.BALLS[self.colour]), **self.standing()}

    def standing(self) -> dict[str, tuple[Paint, tuple[float, ...]]]:
        """Return what stands still, as `layers` does."""
        out: dict[str, tuple[Paint, tuple[float, ...]]] = {}
        if self.other is not None:
            colour, x, y = self.other
            out["other"] = partial(_disc, x=x, y=y, radius=SMALL), cv.BALLS[colour]
        if self.bar is not None:
            out["bar"] = partial(_bar, edges=self.bar), cv.BAR
        return out

    def picture(self, share: float) -> Canvas:
        """Draw the scene at a share of the video."""
        return _draw(self.layers(share))

    def video(self, num_frames: int) -> NDArray[np.uint8]:
        """Draw the right video, [time, height, width, rgb]."""
        return cv.to_frames([self.picture(share) for share in _shares(num_frames)])


def roll_sample(task: str, name: str, prompt: str, roll: Roll, layout: Any, num_frames: int) -> Sample:
    """Make the sample of a ball that rolls.

    Args:
        task: name of the task.
        name: of the sample.
        prompt: what is asked.
        roll: the scene.
        layout: all that makes it, as plain values.
        num_frames: frames of the video.
    """
    truth = roll.video(num_frames)
    answers = partial(_answers, truth=truth, roll=roll)
    scene = Scene(layout, partial(_masks, roll=roll, num_frames=num_frames), answers)
    scorer = partial(score_roll, roll=roll, num_frames=num_frames)
    return of_truth(task, name, prompt, truth, scorer, scene)


def other_spot(rng: np.random.Generator, colour: str, free: Callable[[int, int], bool]) -> Spot | None:
    """Draw a ball that stands, in every other scene.

    Args:
        rng: random numbers.
        colour: of the ball that rolls; this one has another.
        free: whether it may stand at (x, y).
    """
    if rng.integers(2):
        return None
    other = str(rng.choice([name for name in cv.BALLS if name != colour]))
    while True:
        x, y = (int(n) for n in rng.integers(SMALL + 1, SIDE * CELL - SMALL, 2))
        if free(x, y):
            return other, x, y


def score_roll(video: NDArray[np.uint8], roll: Roll, num_frames: int) -> Score:
    """Judge all frames: the ball rolls its way in its time, is hidden where it should be, and nothing else changes.

    Graded: whether the last frame shows the ball where it should be (half for one of another colour), times the share of
    frames that are as they should be. A video of another number of frames is not solved.
    """
    frames = Judged.of(legal_frames(video, roll), num_frames)
    seen, strength = (roll.colour, 1.0) if frames.last else cv.nearest(video[-1], roll.way(1.0), 2, cv.BALLS)
    there = strength > CLEAR
    near = there * (1.0 if seen == roll.colour else 0.5)
    text = _spell(seen) if there else "no ball at the end"
    return Score(frames.whole, 1.0 if frames.whole else min(near * frames.share, 0.99), text, frames.frames)


def legal_frames(video: NDArray[np.uint8], roll: Roll) -> NDArray[np.bool_]:
    """Say of every frame whether it shows the scene at its time, or a little before or after, [time].

    Its time is the one at which the scene is most like it. The ball may stay behind and make up for it, but it does not go back.
    """
    shares, step = np.array(_shares(len(video))), 1 / max(len(video) - 1, 1)
    times = np.clip(shares + SHIFTS[:, None], 0, 1).round(9)  # [shift, time]
    drawn = [np.stack([_picture(roll, float(time)) for time in each]) for each in times]
    looks = [np.stack([blur(pictures), pictures]) for pictures in drawn]
    seen, expected = smooth(video / np.float32(255)), [smooth(look) for look in looks]
    legal, before = np.zeros(len(video), bool), 0.0
    for t, frame in enumerate(video):
        changes = [
            [largest(seen[t] - picture) for picture in look[:, t]] for look in expected
        ]  # `blur.difference`
        off = np.array([[changed.max() for changed in each] for each in changes])
        slack = STILL if t in (0, len(video) - 1) else LATE
        like = (
            (off.min(1) <= off.min() + ALIKE) & (abs(SHIFTS) <= slack + TINY) & (times[:, t] >= before - TINY)
        )
        for n in np.flatnonzero(like):
            both = zip(looks[n][:, t], changes[n], strict=True)
            if any(
                _is_roll(frame, picture, changed, roll, float(times[n, t]), step) for picture, changed in both
            ):
                legal[t], before = True, float(times[n, t])
                break
    return legal


def _is_roll(
    frame: NDArray[np.uint8],
    picture: Canvas,
    changed: NDArray[np.float32],
    roll: Roll,
    time: float,
    step: float,
) -> bool:
    """Say whether a frame shows the scene as a picture of it does.

    Args:
        frame: [height, width, rgb].
        picture: of the scene at a share of the video.
        changed: `blur.difference` of the two.
        roll: the scene.
        time: that share.
        step: share of one frame.
    """
    near = _near_ball(roll, time, step)
    if changed[~near].max() > CHANGED or changed.max() > DRAWN:
        return False
    hidden = _behind(roll, time) & ~near
    off = frame / 255 - picture
    off = (off - even_change(off, ~near & ~hidden)) / (np.pi * roll.radius**2)
    if np.linalg.norm(off[hidden].sum(0)) > HIDDEN:
        return False
    towards = np.subtract(cv.BALLS[roll.colour], cv.FLOOR)
    off_colour = near[..., None] * off
    if np.linalg.norm(off_colour.sum((0, 1))) > TINT * np.linalg.norm(towards):
        return False
    more = off_colour @ towards / (towards @ towards)
    middles = np.arange(SIDE * CELL) + 0.5
    x, y = roll.way(time)
    aside = more.sum(0) @ (middles - x) if roll.upright else more.sum(1) @ (middles - y)
    return bool(abs(more.sum()) <= MASS and abs(aside) <= OFF_LANE)


def _behind(roll: Roll, time: float) -> NDArray[np.bool_]:
    """Return where the ball is at a share of the video, whether it is seen there or not, [height, width]."""
    x, y = roll.way(time)
    ball = np.zeros_like(cv.blank(SIDE))
    _disc(ball, (1.0, 1.0, 1.0), x, y, roll.radius)
    inside: NDArray[np.bool_] = ball[..., 0] > 0.5
    return inside


def _near_ball(roll: Roll, time: float, step: float) -> NDArray[np.bool_]:
    """Return what is near the ball at a share of the video, [height, width]: nothing while it is hidden for long."""
    from scipy.ndimage import maximum_filter  # slow to import, and needed by who judges alone

    bare = _draw(roll.standing())
    times = np.clip(time + step * np.arange(-BLENDED, BLENDED + 1), 0, 1).round(9)
    seen = np.any([largest(_picture(roll, float(t)) - bare) > 0.05 for t in times], axis=0)
    near: NDArray[np.bool_] = maximum_filter(seen, 2 * REACH + 1)
    return near


@lru_cache(maxsize=256)
def _picture(roll: Roll, time: float) -> Canvas:
    """Draw a scene at a share of the video; the same times come again and again as a video is judged."""
    picture = roll.picture(time)
    picture.flags.writeable = False
    return picture


def _shares(num_frames: int) -> list[float]:
    return [t / max(num_frames - 1, 1) for t in range(num_frames)]


def _disc(canvas: Canvas, colour: tuple[float, ...], x: float, y: float, radius: int) -> None:
    """Fill a disc, of which any part may lie outside of the canvas."""
    if -radius - 1 < x < SIDE * CELL + radius + 1 and -radius - 1 < y < SIDE * CELL + radius + 1:
        cv.disc(canvas, x, y, radius, colour)


def _bar(canvas: Canvas, colour: tuple[float, ...], edges: tuple[int, int]) -> None:
    cv.rectangle(canvas, edges[0], 0, edges[1], SIDE * CELL, colour)


def _draw(layers: dict[str, tuple[Paint, tuple[float, ...]]]) -> Canvas:
    out = cv.blank(SIDE)
    for paint, colour in layers.values():
        paint(out, colour)
    return out


def _masks(roll: Roll, num_frames: int) -> dict[str, NDArray[np.bool_]]:
    """Return where each object is seen, [time, height, width]: covered by half or more, and by nothing above it."""
    frames = [_seen(roll.layers(share)) for share in _shares(num_frames)]
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def _seen(layers: dict[str, tuple[Paint, tuple[float, ...]]]) -> dict[str, NDArray[np.bool_]]:
    out: dict[str, NDArray[np.bool_]] = {}
    for name, (paint, _) in layers.items():
        alone = np.zeros_like(cv.blank(SIDE))
        paint(alone, (1.0, 1.0, 1.0))
        covered = alone[..., 0] >= 0.5
        out = {lower: mask & ~covered for lower, mask in out.items()} | {name: covered}
    return out


def _answers(truth: NDArray[np.uint8], roll: Roll) -> list[Answer]:
    return [Answer(_spell(roll.colour), truth, 1.0)]


def _spell(colour: str) -> str:
    return f"{colour} ball at the end"
