"""What was found in the frames of a video, as every scorer that reads all of them takes it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Judged(NamedTuple):
    """What was found in the frames of a video.

    Attributes:
        whole: whether there are as many as there should be, all of them right.
        share: of the frames that are right; times few over many, where there is another number of them.
        last: whether the last one is right.
        frames: whether each one is right.
    """

    whole: bool
    share: float
    last: bool
    frames: tuple[bool, ...] | None = None

    @classmethod
    def of(cls, right: NDArray[np.bool_], num_frames: int) -> Judged:
        """Take what was found of every frame, [time]; there should be so many."""
        few, many = sorted((len(right), num_frames))
        whole, share = few == many and bool(right.all()), float(right.mean()) * few / many
        return cls(whole, share, bool(right[-1]), tuple(right.tolist()))
