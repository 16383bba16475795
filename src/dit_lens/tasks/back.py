"""`back`: a ball rolls out of the frame at the nearest edge, and comes back. While it is out, nothing tells its colour."""

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

EDGES = ("left", "right", "top", "bottom")
FARTHEST = 26
"""Pixels from the ball's start to the edge, at most: beyond, it would roll faster than a codec can show."""
NEARER = 4
"""Pixels that this edge is nearer than any other one, at least."""
OUT = 9 / 24
"""Share of the video after which the ball is out, and before the end of which it comes in: of 25 frames 7 show nothing of it."""


class BackLayout(NamedTuple):
    """What makes a scene; the start is told from the edge, the lane from the left or from the top."""

    colour: str
    radius: int
    lane: int
    start: int
    edge: str
    other: Spot | None


@whole_numbers
def back(seed: int, num_frames: int = NUM_FRAMES) -> Sample:
    """Make a ball that rolls out of the frame, and comes back along its lane to where it was: same colour, same size.

    A smaller ball of another colour may stand beside the lane.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        num_frames: frames of the video.
    """
    layout = layouts.draw("back", seed, _layout, tuple)
    scene = Roll(
        layout.colour,
        layout.radius,
        partial(_way, layout=layout),
        upright=layout.edge in ("top", "bottom"),
        other=layout.other,
    )
    return roll_sample("back", str(seed), "roll the ball out and back", scene, tuple(layout), num_frames)


def _layout(rng: np.random.Generator) -> BackLayout:
    colour, radius = str(rng.choice(list(cv.BALLS))), int(rng.integers(RADII[0], RADII[1] + 1))
    start, edge = int(rng.integers(radius + 2, FARTHEST + 1)), str(rng.choice(EDGES))
    lane = int(rng.integers(start + NEARER, SIDE * CELL - start - NEARER + 1))

    def free(x: int, y: int) -> bool:
        across = x if edge in ("top", "bottom") else y
        return abs(across - lane) >= radius + SMALL + 2

    return BackLayout(colour, radius, lane, start, edge, other_spot(rng, colour, free))


def _way(share: float, layout: BackLayout) -> tuple[float, float]:
    """Return where the ball is: it rolls until it is a pixel out of sight, waits there, and rolls back."""
    gone = min(min(share, 1 - share) / OUT, 1.0)
    inwards = layout.start - gone * (layout.start + layout.radius + 1)
    along = inwards if layout.edge in ("left", "top") else SIDE * CELL - inwards
    return (layout.lane, along) if layout.edge in ("top", "bottom") else (along, layout.lane)
