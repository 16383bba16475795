"""Object permanence, on `occlude`: is the ball gone while it is hidden, and the same one afterwards?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks.canvas import BALLS, CELL, Cell
from dit_lens.tasks.sample import Frames, Sample

GREY = 0.1
"""Difference between the channels of a pixel, up to which it is grey: floor 0.03, bar 0.05, balls 0.5 and more."""
SEEN = 0.25
"""Balls' worth of colour from which on there is a ball."""


@dataclass(frozen=True)
class Seen:
    """What a video shows of the ball.

    Attributes:
        hidden: mean over the frames in which it should be hidden (but the first and the last of them), in balls' worth
            of colour.
        colour: of the ball that comes out; empty where none does.
        lane: row of cells of the ball that comes out; empty where none does.
    """

    hidden: float
    colour: str
    lane: str


def ball(sample: Sample) -> tuple[str, Cell]:
    """Return the colour of a sample's ball, and the cell where it ends, from the scorer.

    Raises:
        TaskError: the sample is not of `occlude`.
    """
    read = getattr(sample.scorer, "keywords", {}).get("read")
    known = getattr(read, "keywords", {})
    if not {"colour", "end"} <= set(known):
        raise TaskError(f"Task {sample.task!r} has no ball that is hidden: use occlude.")
    return known["colour"], known["end"]


def lanes(sample: Sample) -> tuple[str, str]:
    """Return the colour and the lane that a sample's ball has.

    Raises:
        TaskError: the sample is not of `occlude`.
    """
    colour, end = ball(sample)
    return colour, str(end[0])


def hidden_frames(sample: Sample) -> NDArray[np.intp]:
    """Return the frames of the right video in which nothing of the ball is seen."""
    return np.flatnonzero(_worth(_truth(sample), _truth(sample)) < 0.02)


def permanence(sample: Sample, frames: Frames) -> Seen:
    """Read what becomes of the ball: while the right video hides it, and once it has half come out there.

    Args:
        sample: of `occlude`.
        frames: [time, height, width, rgb], as many as the right video has.

    Raises:
        TaskError: another task, or another number of frames.
    """
    lanes(sample)
    truth = _truth(sample)
    if frames.shape != truth.shape:
        raise TaskError(
            f"{sample.task}/{sample.id}: the video is {frames.shape}, the right one {truth.shape}: "
            "ask for a number of frames that the model makes (4k + 1)."
        )
    hidden = hidden_frames(sample)
    after = np.flatnonzero((_worth(truth, truth) > 0.45) & (np.arange(len(truth)) > hidden[-1]))
    leftward = _colourful(truth[0])[:, : truth.shape[2] // 2].sum() == 0  # it starts on the right
    far = slice(0, CELL) if leftward else slice(truth.shape[2] - CELL, truth.shape[2])
    cells = frames[after][:, :, far].reshape(len(after), -1, CELL, CELL, 3)  # [time, lane, y, x, rgb]
    mass = _colourful(cells)
    by_lane = mass.sum((0, 2, 3)) / len(after) / _ball(truth)
    lane = int(by_lane.argmax())
    # Grain is colourful, too: squares of 4 pixels average it out, and keep a ball of 12.
    # The first and the last hidden frame are left out: codecs smear in time.
    deep = frames[hidden[1:-1]]
    squares = deep.reshape(len(deep), frames.shape[1] // 4, 4, -1, 4, 3).mean((2, 4))
    shown = float(_colourful(squares).sum((1, 2)).mean() * 16 / _ball(truth))
    if by_lane[lane] < SEEN:
        return Seen(shown, "", "")
    weights = mass[:, lane]
    rgb = (cells[:, lane] / 255 * weights[..., None]).sum((0, 1, 2)) / weights.sum()
    colour = min(BALLS, key=lambda name: float(np.linalg.norm(rgb - BALLS[name])))
    return Seen(shown, colour, str(lane))


def _truth(sample: Sample) -> Frames:
    if sample.truth is None:
        raise TaskError(f"Sample {sample.task}/{sample.id} has no right video to compare with.")
    return sample.truth


def _colourful(frames: NDArray[Any]) -> NDArray[np.float64]:
    """Say how far each pixel [..., rgb] is from grey; 0 for floor and bar."""
    red, green, blue = (
        frames[..., i] for i in range(3)
    )  # a reduction over an axis of 3 takes ten times as long
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return np.clip((high - low) / 255 - GREY, 0, None)


def _ball(truth: Frames) -> float:
    return float(_colourful(truth[0]).sum())


def _worth(frames: Frames, truth: Frames) -> NDArray[np.float64]:
    """Return how many balls' worth of colour each frame [time] shows."""
    return _colourful(frames).sum((1, 2)) / _ball(truth)
