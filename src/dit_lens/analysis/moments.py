"""Mean and (co)variance of channels, in one pass over tokens that need not fit in memory.

Every block is centred on its own mean before it is squared, and blocks are merged by the update of Chan,
Golub & LeVeque (1979), all in float64. The textbook sum of squares minus squared sum would lose everything
where massive activations make a channel's mean a thousand times its spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.analysis.states import float64_blocks

COVARIANCE_BLOCK_BYTES = 2**27
"""A channel x channel product pays off only on many tokens at once: 3,276 of them at 5,120 channels."""


class Moments:
    """Running count, mean, and scatter (the sum of squared deviations) of tokens.

    Attributes:
        count: number of tokens seen.
        mean: [channel], float64.
        scatter: [channel], or [channel, channel] if `full`; divided by `count` it is the (co)variance.
    """

    def __init__(self, channels: int, *, full: bool) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(channels)
        self.scatter: NDArray[np.float64] = np.zeros((channels, channels) if full else channels)

    def add(self, tokens: NDArray[Any]) -> None:
        """Take in tokens [token, channel] of any float type."""
        full = self.scatter.ndim == 2
        # Without the products, a block only has to be much longer than the one row that merging adds to it.
        size = COVARIANCE_BLOCK_BYTES if full else 64 * 8 * tokens.shape[1]
        for _, block in float64_blocks(tokens, size):
            mean = block.mean(0)
            block -= mean
            total = self.count + len(block)
            # What merging adds: one more row, sqrt(n m / (n + m)) times the distance between the means.
            gap = (mean - self.mean) * np.sqrt(self.count * len(block) / total)
            if full:
                self.scatter += block.T @ block
                self.scatter += np.outer(gap, gap)
            else:
                self.scatter += np.einsum("tc,tc->c", block, block) + gap * gap
            self.mean += (mean - self.mean) * (len(block) / total)
            self.count = total
