"""Intervals for outcomes that are right or wrong, or lie between known bounds.

A rate gets Wilson's interval (1927): at n equal outcomes it still has width, and at small n it covers better than
the bootstrap. Where all n samples hold the same value v of an outcome within [a, b], another value comes in a share
of at most u of all samples, u being Wilson's upper bound for 0 of n; what else comes lies in [a, b], so the mean
lies in [v - u (v - a), v + u (b - v)]. For a rate that is Wilson's interval again; for a paired difference that
is 0 in every sample it is [-u, u]. Several seeds that all agree count as one: their sample is what n counts, so the
interval is then wider than the level asks for.

Limit: at rates very near 0 or 1 Wilson's 95% interval misses up to 9% (n = 25, rate 0.02; the bootstrap 60%).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bounds = tuple[float, float]


def wilson(rate: Array, n: int, level: float) -> tuple[Array, Array]:
    """Return Wilson's interval, low [...] and high [...], of rates [...] among n outcomes each."""
    from scipy.stats import norm

    z2 = norm.isf((1 - level) / 2) ** 2
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At a rate of 0 or 1 rounding must not leave the bound just inside of the estimate.
    return np.where(rate == 0, 0.0, middle - half), np.where(rate == 1, 1.0, middle + half)


def unanimous(value: Array, n: int, level: float, bounds: Bounds) -> tuple[Array, Array]:
    """Return the interval, low [...] and high [...], of a mean whose n samples all hold one value [...]."""
    other = wilson(np.zeros(()), n, level)[1]
    low, high = bounds
    return value - other * (value - low), value + other * (high - value)
