"""Which of several videos is picked, by what they show alone: no truth, no scorer's verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch


def sharpness(batch: Batch, x0: Tensor) -> list[float]:
    """Return how much neighbouring pixels of the last frame differ, for every row [row, channel, frame, y, x]."""
    last = [batch.decode(row[None])[0][-1].astype(float) for row in x0]
    return [float(np.abs(np.diff(f, axis=0)).mean() + np.abs(np.diff(f, axis=1)).mean()) for f in last]


def agreed(answers: Sequence[Any], sharp: Sequence[float] | None = None) -> int:
    """Return which of several answers is picked by agreement: one that is the most frequent.

    Args:
        answers: at least one.
        sharp: of each. Of the most frequent answers the sharpest is picked. Default: the first.
    """
    counts = Counter(answers)
    most = max(counts.values())
    frequent = [n for n, answer in enumerate(answers) if counts[answer] == most]
    return frequent[0] if sharp is None else max(frequent, key=lambda n: sharp[n])


__all__ = ["agreed", "sharpness"]
