"""An affine map from one set of states to another, by ridge regression: the tuned lens's translator.

Fitted from channel x channel products in float64, a block of tokens at a time, so any number of tokens will do:
memory is 16 channel^2 bytes (0.42 GB at 5,120 channels), and twice that while solving.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from dit_lens.analysis.states import float64_blocks
from dit_lens.errors import DitLensError

BLOCK_BYTES = 2**27
"""Size of the tokens that are in float64 at once."""


class AffineFit:
    """Fits target = state @ weight + bias.

    Minimises the squared error plus `ridge` times the squared norm of the weight, on states whose channels are
    centred (Hoerl & Kennard 1970); the bias is not penalised.

    Args:
        channels: of the states.
        targets: channels of the targets.
        ridge: strength, as a share of the states' mean variance over channels times the number of tokens.
    """

    def __init__(self, channels: int, targets: int, ridge: float = 1e-4) -> None:
        self.ridge, self.count = ridge, 0
        self._sums = np.zeros(channels), np.zeros(targets)
        self._products = np.zeros((channels, channels)), np.zeros((channels, targets))
        self._shift: tuple[NDArray[Any], NDArray[Any]] | None = None

    def add(self, states: NDArray[Any], targets: NDArray[Any]) -> None:
        """Take in matching tokens: states [token, channel], targets [token, target channel]."""
        for where, x in float64_blocks(np.asarray(states), BLOCK_BYTES):
            y = np.array(targets[where], np.float64)
            if self._shift is None:  # near the mean, so that a channel far from 0 keeps its digits
                self._shift = x.mean(0), y.mean(0)
            x -= self._shift[0]
            y -= self._shift[1]
            self.count += len(x)
            for total, new in zip(
                (*self._sums, *self._products), (x.sum(0), y.sum(0), x.T @ x, x.T @ y), strict=True
            ):
                total += new

    def solve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight [channel, target channel] and bias [target channel].

        Raises:
            DitLensError: fewer than two tokens were taken in, or they do not vary.
        """
        if self.count < 2 or self._shift is None:
            raise DitLensError(f"An affine map is fitted on at least two tokens; {self.count} were given.")
        means = [total / self.count for total in self._sums]
        scatter = self._products[0] - self.count * np.outer(means[0], means[0])
        cross = self._products[1] - self.count * np.outer(means[0], means[1])
        strength = self.ridge * np.trace(scatter) / len(scatter)
        if not strength > 0:
            raise DitLensError("An affine map cannot be fitted: the states do not vary.")
        weight = solve(scatter + strength * np.eye(len(scatter)), cross, assume_a="pos")
        bias = means[1] + self._shift[1] - (means[0] + self._shift[0]) @ weight
        return weight, bias
