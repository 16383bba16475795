"""Tasks on objects: `circle` (ring all of a kind), `pattern` (fill the gap), `occlude` (permanence)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import fades, layouts, rolls
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.judged import Judged
from dit_lens.tasks.rolls import Roll
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene

SIZES = (2.0, 4.0, 6.0)
"""Radii of the discs of `pattern`, in pixels."""
NAMES = ("empty", "small", "middle", "large")
KINDS = ("disc", "square")
"""Of the objects of `circle`."""
UNCLEAR = 8.0
"""A gap that is off from every disc by more (squared differences, summed over pixels) is none of them.

The codec costs up to 2; an even blend of the three sizes is off by 9, noise by 60.
"""
BOARD = 4
BALL = 6
"""Radius of the ball of `occlude`, in pixels."""

Legal = Callable[[NDArray[np.uint8], bool], NDArray[np.bool_]]
"""A video, and whether its last frame is right, to which of its frames are as they should be, [time]."""


def _finish(
    task: str,
    seed: int,
    prompt: str,
    truth: NDArray[np.uint8],
    read: partial[Score],
    legal: Legal,
    masks: Callable[[], dict[str, NDArray[np.bool_]]],
    layout: Any = None,
) -> Sample:
    scorer = partial(score_frames, read=read, legal=legal, num_frames=len(truth))
    scene = Scene(layout, masks, partial(_answer, scorer, truth))
    return of_truth(task, str(seed), prompt, truth, scorer, scene)


def score_frames(
    video: NDArray[np.uint8], read: Callable[[NDArray[np.uint8]], Score], legal: Legal, num_frames: int
) -> Score:
    """Judge all frames: the last one shows the right answer, and each is what the right video is then.

    Graded: what the last frame is worth, times the share of frames that are as they should be; where the last one is wrong,
    as they should be on the way there. A video of another number of frames is not solved.

    Args:
        video: [time, height, width, rgb].
        read: judges the last frame.
        legal: says of every frame whether it is as it should be, [time], given whether the last one is right.
        num_frames: that the video should have.
    """
    last = read(video)
    frames = Judged.of(legal(video, last.solved), num_frames)
    solved = last.solved and frames.whole
    return Score(solved, 1.0 if solved else min(last.score * frames.share, 0.99), last.answer, frames.frames)


def _legal_fade(video: NDArray[np.uint8], right: bool, asked: Canvas, answered: Canvas) -> NDArray[np.bool_]:
    return fades.legal_frames(video, asked, answered if right else None)


def _legal_roll(video: NDArray[np.uint8], right: bool, roll: Roll) -> NDArray[np.bool_]:
    return rolls.legal_frames(video, roll)


def _answer(scorer: partial[Score], truth: NDArray[np.uint8]) -> list[Answer]:
    """Return the one right answer."""
    return [Answer(scorer(truth).answer, truth, 1.0)]


def _colour_masks(truth: NDArray[np.uint8], **colours: tuple[float, ...]) -> dict[str, NDArray[np.bool_]]:
    """Return where each of some colours is seen, by name, [time, height, width]: more of it than of the floor."""
    return {name: np.stack([cv.likeness(f, colour) > 0.5 for f in truth]) for name, colour in colours.items()}


@whole_numbers
def circle(seed: int, kind: str | None = None, num_frames: int = cv.NUM_FRAMES) -> Sample:
    """Make 2 to 4 objects, discs and squares, at least one of each; all of the named kind get a ring.

    Two samples of one seed with the two kinds share their scene: only the prompt differs.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        kind: "disc" or "square". Default: random.
        num_frames: frames of the video.
    """
    if kind not in (None, *KINDS):
        raise TaskError(f"circle(kind={kind!r}): kind is 'disc' or 'square'.")
    shapes = layouts.draw("circle", seed, _circle_layout, lambda shapes: sorted(shapes.items()))
    kind = kind or str(cv.rng_for("circle-kind", seed).choice(KINDS))
    scene = cv.blank(BOARD)
    for cell, shape in shapes.items():
        _object(scene, cell, shape)
    wanted = frozenset(cell for cell, shape in shapes.items() if shape == kind)
    ringed = scene.copy()
    for cell in wanted:
        cv.ring(ringed, *cv.centre(cell), 6.5, 2, 1.0)
    truth = cv.fade(scene, ringed, num_frames)
    return _finish(
        "circle",
        seed,
        f"circle the {kind}",
        truth,
        partial(score_rings, wanted=wanted),
        partial(_legal_fade, asked=scene, answered=ringed),
        partial(_circle_masks, truth, scene, wanted),
        sorted(shapes.items()),
    )


def _circle_layout(rng: np.random.Generator) -> dict[Cell, str]:
    count = int(rng.integers(2, 5))
    cells = cv.random_cells(rng, BOARD, count)
    return dict(zip(cells, [*KINDS, *(str(kind) for kind in rng.choice(KINDS, count - 2))], strict=True))


def _circle_masks(
    truth: NDArray[np.uint8], scene: Canvas, wanted: frozenset[Cell]
) -> dict[str, NDArray[np.bool_]]:
    """Return where the rings, the named objects and the others are, [time, height, width]."""
    objects = cv.likeness(cv.to_frames([scene])[0], cv.OBJECT) > 0.5
    named = cv.inside_cells(BOARD, wanted)
    rings = _colour_masks(truth, rings=cv.RING)["rings"] & ~objects
    still = {"named": objects & named, "others": objects & ~named}
    return {"rings": rings, **{name: np.repeat(mask[None], len(truth), 0) for name, mask in still.items()}}


def _object(scene: Canvas, cell: Cell, shape: str) -> None:
    x, y = cv.centre(cell)
    if shape == "disc":
        cv.disc(scene, x, y, 4, cv.OBJECT)
    else:
        cv.rectangle(scene, x - 3.5, y - 3.5, x + 3.5, y + 3.5, cv.OBJECT)


def score_rings(video: NDArray[np.uint8], wanted: frozenset[Cell]) -> Score:
    """Judge the last frame: the cells with a ring are the wanted ones. Graded: Jaccard index of the sets."""
    strength = cv.ring_strength(video[-1], BOARD)
    ringed = frozenset((r, c) for r in range(BOARD) for c in range(BOARD) if strength[r, c] > 0.5)
    answer = " ".join(f"{r}{c}" for r, c in sorted(ringed))
    return Score(ringed == wanted, len(ringed & wanted) / len(ringed | wanted), f"rings {answer}".strip())


@whole_numbers
def pattern(seed: int, num_frames: int = cv.NUM_FRAMES) -> Sample:
    """Make two rows of discs whose sizes repeat in a cycle of three, with one place empty; fill it.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        num_frames: frames of the video.
    """
    rng = cv.rng_for("pattern", seed)
    cycle, gap, top = rng.permutation(3), int(rng.integers(8)), int(rng.integers(3))
    places = [(top + i // BOARD, i % BOARD) for i in range(8)]
    scene = cv.blank(BOARD)
    for i, cell in enumerate(places):
        if i != gap:
            cv.disc(scene, *cv.centre(cell), SIZES[cycle[i % 3]], cv.OBJECT)
    right = int(cycle[gap % 3])
    disc = scene.copy()
    cv.disc(disc, *cv.centre(places[gap]), SIZES[right], cv.OBJECT)
    truth = cv.fade(scene, disc, num_frames)
    return _finish(
        "pattern",
        seed,
        "complete the pattern",
        truth,
        partial(score_size, cell=places[gap], right=right),
        partial(_legal_fade, asked=scene, answered=disc),
        partial(_colour_masks, truth, discs=cv.OBJECT),
    )


def score_size(video: NDArray[np.uint8], cell: Cell, right: int) -> Score:
    """Judge the last frame: what stands in the gap is the disc of the right size.

    It is read as the nearest of four pictures (nothing, and the three discs), and as "unclear" where that one
    is off by more than `UNCLEAR`: noise, a blend of sizes, something half faded in. Graded: 1 minus the
    squared difference from the right picture, over that of an empty gap.
    """
    r, c = cell[0] * CELL, cell[1] * CELL
    seen = cv.likeness(video[-1], cv.OBJECT)[r : r + CELL, c : c + CELL]
    pictures = np.stack([_disc_alone(radius) for radius in (0.0, *SIZES)])
    off = ((seen - pictures) ** 2).sum((1, 2))
    read = int(off.argmin()) - 1
    clear = bool(off[read + 1] <= UNCLEAR)
    if clear and read == right:
        return Score(True, 1.0, NAMES[read + 1])
    graded = 1 - float(off[right + 1]) / float((pictures[right + 1] ** 2).sum())
    return Score(False, min(max(graded, 0.0), 0.99), NAMES[read + 1] if clear else "unclear")


def _disc_alone(radius: float) -> NDArray[np.float32]:
    """Return a cell with a disc in it, as `likeness` sees it."""
    canvas = cv.blank(1)
    cv.disc(canvas, CELL / 2, CELL / 2, radius, cv.OBJECT if radius else cv.FLOOR)
    return cv.likeness(cv.to_frames([canvas])[0], cv.OBJECT)


@whole_numbers
def occlude(seed: int, num_frames: int = cv.NUM_FRAMES) -> Sample:
    """Make a ball that rolls along its lane, behind a bar, and comes out: same colour, same lane.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        num_frames: frames of the video.
    """
    rng = cv.rng_for("occlude", seed)
    colour, lane, leftward = str(rng.choice(list(cv.BALLS))), int(rng.integers(BOARD)), bool(rng.integers(2))
    roll = Roll(colour, BALL, partial(_way, lane=lane, leftward=leftward), bar=(CELL, (BOARD - 1) * CELL))
    truth = roll.video(num_frames)
    return _finish(
        "occlude",
        seed,
        "roll the ball behind the bar",
        truth,
        partial(score_ball, end=(lane, 0 if leftward else BOARD - 1), colour=colour),
        partial(_legal_roll, roll=roll),
        partial(_ball_masks, truth, cv.BALLS[colour]),
    )


def _way(share: float, lane: int, leftward: bool) -> tuple[float, float]:
    """Return where the middle of the ball is at a share of the video, (x, y)."""
    x = CELL * (0.5 + (BOARD - 1) * share)
    return BOARD * CELL - x if leftward else x, (lane + 0.5) * CELL


def _ball_masks(truth: NDArray[np.uint8], colour: tuple[float, ...]) -> dict[str, NDArray[np.bool_]]:
    """Return where the ball and the bar are, [time, height, width]: each pixel is nearest to one of them, or to the floor."""
    known = np.array([cv.FLOOR, colour, cv.BAR])
    nearest = np.linalg.norm(truth[..., None, :] / 255 - known, axis=-1).argmin(-1)
    return {"ball": nearest == 1, "bar": nearest == 2}


def score_ball(video: NDArray[np.uint8], end: Cell, colour: str) -> Score:
    """Judge the last frame: one ball of the right colour, at the far end of its lane, and nowhere else.

    A ball's colour is the nearest of the four to the mean colour of its middle. Graded: half for a ball at the
    right place, half for the right colour there.
    """
    balls: dict[Cell, str] = {}
    for cell in ((row, column) for row in range(BOARD) for column in (0, BOARD - 1)):
        colour_there, strength = cv.nearest(video[-1], cv.centre(cell), 4, cv.BALLS)
        if strength > 0.65:  # plain grey comes to 0.57
            balls[cell] = colour_there
    answer = ", ".join(f"{name} at {r}{c}" for (r, c), name in sorted(balls.items())) or "no ball"
    if balls == {end: colour}:
        return Score(True, 1.0, answer)
    return Score(False, min(0.5 * (end in balls) + 0.5 * (balls.get(end) == colour), 0.99), answer)
