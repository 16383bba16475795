"""`roll`: a ball rolls along its lane, behind a bar, and comes out as it was. Like `occlude`, with scenes without number."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from dit_lens.tasks import canvas as cv
from dit_lens.tasks import layouts
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import CELL
from dit_lens.tasks.conduct import NUM_FRAMES
from dit_lens.tasks.rolls import RADII, SIDE, SMALL, Roll, Spot, other_spot, roll_sample
from dit_lens.tasks.sample import Sample

ENDS = CELL / 2, (SIDE - 0.5) * CELL
"""Where along the lane the ball starts and ends, or ends and starts; it is clear of every bar there."""
HIDDEN = 14
"""Pixels that a bar is wider than the ball, at least: of 25 frames 7 in a row show nothing of it, so of a latent four all."""


class RollLayout(NamedTuple):
    """What makes a scene."""

    colour: str
    radius: int
    lane: int
    left: int
    right: int
    leftward: bool
    other: Spot | None


@whole_numbers
def roll(seed: int, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a ball that rolls along its lane, behind a bar, and comes out: same colour, same lane, same size.

    A smaller ball of another colour may stand beside the lane.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        num_frames: frames of the video.
    """
    layout = layouts.draw("roll", seed, _layout, tuple)
    scene = Roll(
        layout.colour,
        layout.radius,
        partial(_way, lane=layout.lane, leftward=layout.leftward),
        bar=(layout.left, layout.right),
        other=layout.other,
    )
    return roll_sample("roll", str(seed), "roll the ball behind the bar", scene, tuple(layout), num_frames)


def _layout(rng: np.random.Generator) -> RollLayout:
    colour, radius = str(rng.choice(list(cv.BALLS))), int(rng.integers(RADII[0], RADII[1] + 1))
    lane = int(rng.integers(radius + 1, SIDE * CELL - radius))
    width = int(rng.integers(2 * radius + HIDDEN, (SIDE - 2) * CELL + 1))
    left = int(rng.integers(CELL, (SIDE - 1) * CELL - width + 1))
    right = left + width

    def free(x: int, y: int) -> bool:
        beside = abs(y - lane) >= radius + SMALL + 2
        return beside and (x + SMALL < left or x - SMALL > right)

    return RollLayout(colour, radius, lane, left, right, bool(rng.integers(2)), other_spot(rng, colour, free))


def _way(share: float, lane: int, leftward: bool) -> tuple[float, float]:
    start, end = ENDS[::-1] if leftward else ENDS
    return start + (end - start) * share, lane
