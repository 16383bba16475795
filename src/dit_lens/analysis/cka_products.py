"""CKA from channel x channel products, summed over tokens: for states too large for a token x token kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.analysis.cka_checks import not_finite, require_tokens, require_varied
from dit_lens.errors import DitLensError

BLOCK_BYTES = 2**25
"""Tokens go into the products this many float64 bytes at a time: 819 of them at 5,120 channels."""


class CrossProducts:
    """The sums over tokens from which CKA is computed; tokens come in blocks, in any sizes.

    Everything is relative to the mean of the first block, in float64. CKA does not change by a shift, but its
    digits would: massive activations make a channel's mean a thousand times its spread, and the sums hold
    the fourth power of that.

    Attributes:
        count: number of tokens seen.
    """

    def __init__(self, x_channels: int, y_channels: int, names: tuple[str, str] = ("x", "y")) -> None:
        self.count = 0
        self._sides = (_Side(x_channels, names[0]), _Side(y_channels, names[1]))
        self._xx = _Product(x_channels, None)
        self._xy = _Product(x_channels, y_channels)
        self._yy = _Product(y_channels, None)

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Take in the next tokens, x [token, channel_x] and y [token, channel_y], of any float type.

        Raises:
            DitLensError: the numbers of tokens differ, or there are NaN or Inf among them.
        """
        if len(x) != len(y):
            names = " and ".join(f"{len(v)} of {s.name}" for s, v in zip(self._sides, (x, y), strict=True))
            raise DitLensError(f"cka: tokens are matched one to one, but there are {names}.")
        size = max(1, BLOCK_BYTES // (8 * max(x.shape[1], y.shape[1])))
        for start in range(0, len(x), size):
            block, a = self._sides[0].take(x[start : start + size])
            other, b = self._sides[1].take(y[start : start + size])
            with np.errstate(over="ignore", invalid="ignore"):  # refused by `cka`, with the reason
                self._xx.add(block, block, a, a)
                self._xy.add(block, other, a, b)
                self._yy.add(other, other, b, b)
            self.count += len(block)

    def cka(self, *, debiased: bool = True) -> float:
        """Return the linear CKA of all tokens so far.

        Raises:
            DitLensError: it is not defined: too few tokens, or all of them are the same in x or in y.
        """
        require_tokens(self.count, debiased, "cka")
        left, right = self._sides
        with np.errstate(over="ignore", invalid="ignore"):
            xx, xx_terms = self._xx.hsic(left, left, self.count, debiased)
            yy, yy_terms = self._yy.hsic(right, right, self.count, debiased)
            xy, _ = self._xy.hsic(left, right, self.count, debiased)
        for side, self_hsic, terms in ((left, xx, xx_terms), (right, yy, yy_terms)):
            require_varied(side.varied, self_hsic, terms, side.name, "cka")
        return xy / (np.sqrt(xx) * np.sqrt(yy))


class _Side:
    """The sums of one side alone: [channel] totals of the shifted tokens, and whether any two differ."""

    def __init__(self, channels: int, name: str) -> None:
        self.name = name
        self.total: NDArray[np.float64] = np.zeros(channels)
        self.squares = 0.0
        self.varied = False
        self._first: NDArray[Any] | None = None
        self._shift: NDArray[np.float64] = np.zeros(channels)

    def take(self, tokens: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a shifted float64 copy of [token, channel], and the squared norms [token] of its tokens."""
        block = tokens.astype(np.float64, order="C")
        if not np.isfinite(block).all():
            raise not_finite(self.name, "cka")
        if self._first is None:
            self._first, self._shift = block[0].copy(), block.mean(0)
        self.varied = self.varied or bool((block != self._first).any())
        block -= self._shift
        norms = np.einsum("tc,tc->t", block, block)
        self.total += block.sum(0)
        self.squares += norms.sum()
        return block, norms


class _Product:
    """Sums over tokens of products of two sides: X'Y, and what HSIC takes off its diagonal.

    With a_i = |x_i|^2 and b_i = |y_i|^2: `cross` is X'Y [channel_x, channel_y], `bx` is sum b_i x_i, `ay` is
    sum a_i y_i, `ab` is sum a_i b_i. Where both sides are the same, only the upper triangle is computed.
    """

    def __init__(self, x_channels: int, y_channels: int | None) -> None:
        self.is_symmetric = y_channels is None
        y_channels = x_channels if y_channels is None else y_channels
        # Column order, as BLAS adds to in place: `cross += x.T @ y` would hold a second matrix.
        self.cross: NDArray[np.float64] = np.zeros((x_channels, y_channels), order="F")
        self.bx: NDArray[np.float64] = np.zeros(x_channels)
        self.ay: NDArray[np.float64] = np.zeros(y_channels)
        self.ab = 0.0

    def add(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        a: NDArray[np.float64],
        b: NDArray[np.float64],
    ) -> None:
        """Take in tokens [token, channel] and their squared norms [token]."""
        from scipy.linalg import blas

        if self.is_symmetric:
            self.cross = blas.dsyrk(1.0, x.T, 1.0, self.cross, overwrite_c=1)
        else:
            self.cross = blas.dgemm(1.0, x.T, y.T, 1.0, self.cross, trans_b=1, overwrite_c=1)
        self.bx += b @ x
        self.ay += a @ y
        self.ab += float(a @ b)

    def hsic(self, left: _Side, right: _Side, n: int, debiased: bool) -> tuple[float, float]:
        """Return HSIC but for a factor of n alone, and |X'Y|^2, the size of its terms.

        Unbiased, with zero diagonals in K = XX' and L = YY' (Song et al. 2012):
        tr(KL) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1. Biased: |X'Y|^2 of the centred tokens.
        """
        sx, sy = left.total, right.total
        flat = self.cross.ravel(order="K")
        norm, between = float(flat @ flat), float(sx @ self.cross @ sy)
        if self.is_symmetric:  # of a triangle: both halves, less the diagonal that was counted twice
            diagonal = self.cross.diagonal()
            norm = 2 * norm - float(diagonal @ diagonal)
            between = 2 * between - float(diagonal @ np.square(sx))
        if not debiased:
            return norm - 2 / n * between + float(sx @ sx) * float(sy @ sy) / n**2, norm
        trace = norm - self.ab
        k_sum, l_sum = float(sx @ sx) - left.squares, float(sy @ sy) - right.squares
        kl_sum = between - float(self.bx @ sx) - float(self.ay @ sy) + self.ab
        return trace + k_sum * l_sum / ((n - 1) * (n - 2)) - 2 / (n - 2) * kl_sum, norm
