"""The bootstrap of a mean over samples with their seeds: intervals, and bands over many positions at once.

Samples are drawn with replacement, and a drawn sample brings all of its seeds: the cluster bootstrap (Davison &
Hinkley 1997, section 3.8, strategy 1; consistent under random effects, Field & Welsh 2007, JRSS B 69). Drawing
seeds again within a drawn sample would count their noise twice, as it is already in the spread of the samples'
means: intervals up to 1.4 times too wide, and a missing effect reported in 1% of experiments in place of 5%.

Percentiles of a bootstrap over n samples are too narrow: they match z and the divisor n, not t and n - 1. Here
the levels are widened until they match t on symmetric data, the expanded percentile interval of Hesterberg
(2015, arXiv 1411.5279). BCa corrects skew, not this narrowness, and under-covers a mean at small n (Owen 2025,
arXiv 2508.10083); the bootstrap t is infinite where a draw of few, discrete outcomes happens to be constant.
Limit: an interval stays within the samples' means, as a rate should, so with n < 6 it cannot cover 95%: of so few
samples intervals are Student's t, and bands Bonferroni's.

Measured, 95% intervals that miss the true mean (1,500 simulations each; plain percentiles in brackets):

| n | normal | difference of two bools | bool at 0.3 | exponential |
|---|---|---|---|---|
| 10 | 5% (10%) | 6% (8%) | 3% (6%) | 9% (14%) |
| 20 | 6% (7%) | 4% (5%) | 4% (7%) | 8% (10%) |
| 40 | 5% (6%) | 4% (5%) | 5% (5%) | 8% (10%) |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEW_SAMPLES = 6
"""With fewer samples than these, intervals are Student's t."""
BLOCK_BYTES = 2**26
"""Size of the weights that are in memory at once."""


class Bootstrap:
    """Bootstrap of the mean, with the same draws at every position.

    Attributes:
        samples: how many samples, at least 2.
        estimate: [...], the mean over samples and seeds.
        error: [...], its standard error: the standard deviation of the samples' means over sqrt(samples).
        drawn: [draw, ...], the drawn means; their standard deviation is sqrt((samples - 1) / samples) errors.
    """

    def __init__(self, values: Array, draws: int, seed: int) -> None:
        """Draw.

        Args:
            values: [sample, seed, ...], finite.
            draws: how many.
            seed: of the random numbers.
        """
        self.samples, seeds = values.shape[:2]
        # Sums of whole numbers are exact, and so are differences of values that never vary: no bound at 0
        # comes out just below it, and no width of 0 just above.
        totals = values.sum(1)
        origin = totals[0].copy()
        totals -= origin
        self.estimate: Array = (totals.mean(0) + origin) / seeds
        self.error: Array = totals.std(0, ddof=1) / seeds / np.sqrt(self.samples)
        self.drawn: Array = (_drawn_means(totals, draws, seed) + origin) / seeds

    def interval(self, level: float) -> tuple[Array, Array]:
        """Return the expanded percentile interval, low [...] and high [...], at each position on its own; Student's of few."""
        if self.samples < FEW_SAMPLES:
            return self._student(level, 1)
        tail = expanded_tail(level, self.samples)
        low, high = np.quantile(self.drawn, [tail, 1 - tail], axis=0)
        return low, high

    def band(self, level: float, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return a band, low [...] and high [...], that holds all true means of a family at once.

        The half-width is c standard errors, with one c for a family: the quantile of the largest |z| over it,
        z being a drawn mean's deviation in standard deviations (max-t; Montiel Olea & Plagborg-Moller 2019,
        J. Appl. Econometrics 34, algorithm 1 with bootstrap draws). As the interval's levels, c is carried
        over from the normal scale to that of t. Positions whose values do not vary have no width.

        Args:
            level: the chance that the band holds the whole family.
            axes: of [...], the positions that are one family.
        """
        from scipy.stats import norm, t

        n = self.samples
        if n < FEW_SAMPLES:
            return self._student(level, int(np.prod([self.error.shape[a] for a in axes])))
        z = self.drawn - self.estimate
        np.divide(z, self.error * np.sqrt((n - 1) / n), out=z, where=self.error > 0)
        largest = np.abs(z, out=z).max(axis=tuple(a + 1 for a in axes), keepdims=True)
        c = t.isf(norm.sf(np.quantile(largest, level, axis=0)), n - 1)
        return self.estimate - c * self.error, self.estimate + c * self.error

    def _student(self, level: float, places: int) -> tuple[Array, Array]:
        """Return Student's interval, of several places at once by Bonferroni's share of the chance to miss."""
        from scipy.stats import t

        reach = t.isf((1 - level) / (2 * places), self.samples - 1) * self.error
        return self.estimate - reach, self.estimate + reach


def expanded_tail(level: float, n: int) -> float:
    """Return the share of draws beyond each end of an interval, so that it matches t on symmetric data (Hesterberg 2015)."""
    from scipy.stats import norm, t

    return float(norm.sf(t.isf((1 - level) / 2, n - 1) * np.sqrt(n / (n - 1))))


def _drawn_means(values: Array, draws: int, seed: int) -> Array:
    """Draw as many samples as there are, with replacement: from [sample, ...] to their means [draw, ...]."""
    samples, *rest = values.shape
    flat = values.reshape(samples, -1)
    rng = np.random.default_rng(seed)
    out = np.empty((draws, flat.shape[1]))
    size = max(1, BLOCK_BYTES // (8 * samples))
    for start in range(0, draws, size):
        block = out[start : start + size]
        times = rng.multinomial(samples, np.full(samples, 1 / samples), len(block))
        np.matmul(times, flat, out=block)
    out /= samples
    return out.reshape(draws, *rest)
