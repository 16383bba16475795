"""Intervals for outcomes that are right or wrong, or lie between known bounds.

A rate gets Wilson's interval (1927): at n equal outcomes it still has width, and at small n it covers better than
the bootstrap. Where all n samples hold the same value v of an outcome within [a, b], another value comes in a share
of at most u of all samples, u being Wilson's upper bound for 0 of n; what else comes lies in [a, b], so the mean
lies in [v - u (v - a), v + u (b - v)]. For a rate that is Wilson's interval again; for a paired difference that
is 0 in every sample it is [-u, u]. Several seeds that all agree count as one: their sample is what n counts, so the
interval is then wider than the level asks for.

A paired difference of right-or-wrong outcomes gets Tango's score interval (1998), which has width where one pair of 24
differs: [-0.10, 0.20], where the bootstrap says [0, 0.17]. Of several seeds n is how many independent outcomes they are worth
(`effective`), for rates and for differences.

A band over many positions of such outcomes is the intervals of each at its share of the chance to miss (Bonferroni), of rates
Clopper and Pearson's. The max-t band of the bootstrap missed 13 to 25% in place of 5% (20 rates of 0.3 at n = 24), Wilson's
intervals 21% (rates of 0.02).

Other outcomes within bounds, such as scores, of which few samples differ from the usual one, get these intervals, too: the
bootstrap's missed 8 to 11% there, and its max-t band over 20 positions 51 to 78%.

Measured (`tests/unit/analysis/test_right_or_wrong.py` simulates some of it): 95% intervals at n = 24 and 64, with 1 to 5 seeds
that agree never, by half, or always, at rates from 0.02 to 0.5: differences miss 7% at most, rates 7% but at 0.02 (9%); bands
over 20 positions 10% at most.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dit_lens.analysis.bootstrap import FEW_SAMPLES

Array = NDArray[np.float64]
Bounds = tuple[float, float]

FEW = 20
"""Samples that differ from the rest, at which the design effect counts half."""

RATES: Bounds = (0.0, 1.0)
DIFFERENCES: Bounds = (-1.0, 1.0)
"""Bounds of outcomes that are right or wrong, and of the difference of two of them."""


def wilson(rate: Array, n: Array | int, level: float) -> tuple[Array, Array]:
    """Return Wilson's interval, low [...] and high [...], of rates [...] among n outcomes each."""
    from scipy.stats import norm

    z2 = norm.isf((1 - level) / 2) ** 2
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At a rate of 0 or 1 rounding must not leave the bound just inside of the estimate.
    return np.where(rate == 0, 0.0, middle - half), np.where(rate == 1, 1.0, middle + half)


def clopper_pearson(rate: Array, n: Array, level: float) -> tuple[Array, Array]:
    """Return Clopper and Pearson's interval (1934), low [...] and high [...], of rates [...] among n [...] outcomes."""
    from scipy.stats import beta

    tail, hits = (1 - level) / 2, rate * n
    with np.errstate(invalid="ignore"):
        low, high = beta.ppf(tail, hits, n - hits + 1), beta.isf(tail, hits + 1, n - hits)
    return np.where(rate == 0, 0.0, low), np.where(rate == 1, 1.0, high)


def unanimous(value: Array, n: int, level: float, bounds: Bounds) -> tuple[Array, Array]:
    """Return the interval, low [...] and high [...], of a mean whose n samples all hold one value [...]."""
    other = wilson(np.zeros(()), n, level)[1]
    low, high = bounds
    return value - other * (value - low), value + other * (high - value)


@lru_cache(4096)
def tango(better: float, worse: float, n: float, level: float) -> tuple[float, float]:
    """Return Tango's score interval of a difference of paired rates (1998, Statistics in Medicine 17, 891-908).

    Args:
        better: pairs that are right in the first and wrong in the second.
        worse: pairs that are wrong in the first and right in the second.
        n: all pairs; as the others, it need not be whole.
        level: the chance that the interval holds.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.isf((1 - level) / 2))

    def score(difference: float) -> float:
        """Deviation in standard errors, the share of `worse` at its most likely value under the difference."""
        b = (2 * n - better + worse) * difference - better - worse
        c = -worse * difference * (1 - difference)
        share = (np.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        off = better - worse - n * difference
        if variance <= 0:
            return float(np.copysign(np.inf, off)) if off else 0.0
        return float(off / np.sqrt(variance))

    estimate, edge = (better - worse) / n, 1e-12
    low, high = -1.0, 1.0
    if better < n and score(1 - edge) < -z:
        high = brentq(lambda d: score(d) + z, max(estimate, -1 + edge), 1 - edge)
    if worse < n and score(-1 + edge) > z:
        low = brentq(lambda d: score(d) - z, -1 + edge, min(estimate, 1 - edge))
    return float(low), float(high)


def effective(outcomes: Array) -> Array:
    """Return how many independent outcomes those of samples with several seeds are worth, [...].

    That is their number over the design effect: the variance of their mean by samples, over what it would be if no two seeds
    of a sample were alike (Kish 1965; for intervals of rates Korn & Graubard 1998, Survey Methodology 24). Few samples that
    differ from the rest tell little of that effect, so it counts by `m / (m + FEW)`, m being how many do; else the samples
    are counted. It is between the number of samples and that of all outcomes.

    Args:
        outcomes: [sample, seed, ...].
    """
    samples, seeds = outcomes.shape[:2]
    by_sample = outcomes.mean(1).var(0, ddof=1) / samples
    if seeds == 1 or not by_sample.size:
        return np.full(by_sample.shape, float(samples))
    alone = outcomes.var((0, 1)) / (samples * seeds)
    whole = np.full(alone.shape, float(samples * seeds))
    worth = np.clip(
        np.divide(whole * alone, by_sample, out=whole, where=by_sample > 0), samples, samples * seeds
    )
    return _trusted(worth, samples, _differing(outcomes))


def _differing(outcomes: Array) -> NDArray[np.intp]:
    """Return how many samples of [sample, seed, ...] differ from the usual value, [...]."""
    count: NDArray[np.intp] = (outcomes != np.median(outcomes, axis=(0, 1))).any(1).sum(0)
    return count


def _trusted(worth: Array, samples: int, differing: NDArray[np.intp]) -> Array:
    """Return what outcomes are worth, as far as the samples that differ tell it; else the number of samples."""
    return samples + (worth - samples) * differing / (differing + FEW)


def _tango_each(better: Array, worse: Array, n: Array, level: float) -> tuple[Array, Array]:
    """Return Tango's intervals, low [...] and high [...], of shares [...] that are better and worse."""
    rows = zip((better * n).flat, (worse * n).flat, n.flat, strict=True)
    ends = np.array([tango(*map(float, row), level) for row in rows]).reshape(*better.shape, 2)
    return ends[..., 0], ends[..., 1]


def _right_or_wrong(outcomes: Array, level: float, bounds: Bounds, exact: bool) -> tuple[Array, Array]:
    """Return intervals, low [...] and high [...], of right-or-wrong outcomes [sample, seed, ...] or their differences.

    Args:
        outcomes: 0 and 1, or -1, 0 and 1.
        level: the chance that an interval holds.
        bounds: `RATES` or `DIFFERENCES`.
        exact: whether rates get Clopper and Pearson's interval in place of Wilson's, which misses more at high levels.
    """
    n = effective(outcomes)
    if bounds == RATES:
        return (clopper_pearson if exact else wilson)(outcomes.mean((0, 1)), n, level)
    return _tango_each((outcomes > 0).mean((0, 1)), (outcomes < 0).mean((0, 1)), n, level)


def _few_differ(outcomes: Array) -> NDArray[np.bool_]:
    """Say where less than half of the samples, and fewer than `FEW`, differ from the usual value, [...]."""
    few: NDArray[np.bool_] = np.asarray(_differing(outcomes) < min(len(outcomes) / 2, FEW))
    return few


def _few(outcomes: Array, level: float, bounds: Bounds, exact: bool) -> tuple[Array, Array]:
    """Return intervals, low [...] and high [...], of outcomes [sample, seed, ...] within bounds of which few differ.

    A value between the bounds varies less than one that is at either, so an interval for rates holds for means of such values,
    with n what they are worth (`effective`, of the samples' means).
    """
    low, high = bounds
    differences, size = low == -high, high if low == -high else high - low
    scaled = outcomes.mean(1) / size if differences else (outcomes.mean(1) - low) / size
    samples = len(scaled)
    better, worse = np.maximum(scaled, 0).mean(0), np.maximum(-scaled, 0).mean(0)
    alone = better + worse - (better - worse) ** 2
    varies = scaled.var(0, ddof=1)
    worth = np.divide(samples * alone, varies, out=np.full(alone.shape, float(samples)), where=varies > 0)
    n = _trusted(np.maximum(worth, samples), samples, _differing(scaled[:, None]))
    if not differences:
        ends = (clopper_pearson if exact else wilson)(scaled.mean(0), n, level)
        return low + size * ends[0], low + size * ends[1]
    ends = _tango_each(better, worse, n, level)
    return size * ends[0], size * ends[1]


def settle(
    outcomes: Array,
    estimate: Array,
    parts: dict[str, Array],
    level: float,
    bounds: Bounds,
    places: int,
) -> NDArray[np.str_]:
    """Put intervals in the place of the bootstrap's where these do not hold.

    Args:
        outcomes: [sample, seed, ...].
        estimate: [...], their mean.
        parts: `low`, `high` and, if there is a band, `band_low`, `band_high`, all [...]; changed.
        level: the chance that an interval, or the band, holds.
        bounds: of one outcome; infinite where none are known.
        places: how many positions the band is over.

    Returns:
        [...], how each interval was made: "bootstrap", "student", "wilson", "tango" or "unanimous".
    """
    bounds = float(bounds[0]), float(bounds[1])
    method = np.full(estimate.shape, "student" if len(outcomes) < FEW_SAMPLES else "bootstrap", "<U9")
    right_or_wrong: NDArray[np.bool_] = np.zeros(estimate.shape, bool)
    if bounds in (RATES, DIFFERENCES):
        right_or_wrong = np.asarray(np.isin(outcomes, np.arange(bounds[0], 2)).all((0, 1)))
        method[right_or_wrong] = "wilson" if bounds == RATES else "tango"
    known = bool(np.isfinite(bounds).all())
    agree = (outcomes == outcomes[:1, :1]).all((0, 1)) & known & ~right_or_wrong
    method[agree] = "unanimous"
    rare = _few_differ(outcomes) & known & ~agree & ~right_or_wrong
    method[rare] = "tango" if bounds[0] == -bounds[1] else "wilson"
    # Over many positions at once, each is given its share of the chance to miss (Bonferroni).
    for share, prefix in ((1, ""), (places, "band_")):
        if f"{prefix}low" not in parts:
            continue
        chance, replaced = 1 - (1 - level) / share, []
        if agree.any():
            replaced.append((agree, unanimous(estimate, len(outcomes), chance, bounds)))
        if right_or_wrong.any():
            valid = np.where(right_or_wrong, outcomes, 0.0)
            replaced.append((right_or_wrong, _right_or_wrong(valid, chance, bounds, exact=bool(prefix))))
        if rare.any():
            replaced.append(
                (rare, _few(np.where(rare, outcomes, bounds[0]), chance, bounds, exact=bool(prefix)))
            )
        for where, interval in replaced:
            for end, value in zip(("low", "high"), interval, strict=True):
                parts[prefix + end] = np.where(where, value, parts[prefix + end])
    if (
        "band_low" in parts
    ):  # an interval may lean, the band does not: it takes it in, and keeps to the bounds
        parts["band_low"] = np.maximum(np.minimum(parts["band_low"], parts["low"]), bounds[0])
        parts["band_high"] = np.minimum(np.maximum(parts["band_high"], parts["high"]), bounds[1])
    return method
