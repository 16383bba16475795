"""Where a curve is highest, with an interval."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.bootstrap import Bootstrap
from dit_lens.analysis.curve import curve_of


def peak(
    values: xr.DataArray, along: str, *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> xr.Dataset:
    """Find where the mean over samples and seeds is highest along a dimension.

    The interval spans the positions that may be the highest: where no other is higher by more than chance, by the largest of the
    standardised differences to all others (max-t, Montiel Olea & Plagborg-Moller 2019, each position against the rest), samples
    drawn with all their seeds. A curve without a peak has an interval that spans it. (Percentiles of where drawn curves are
    highest miss peaks at an end, and flat ones: by half in place of 5%.)

    Args:
        values: [sample, along] or [sample, seed, along], numbers.
        along: the dimension, whose labels increase.
        draws: how many bootstrap draws.
        seed: of the draws.
        level: the chance that the interval holds the position of the true mean's peak.

    Returns:
        Dataset without dimensions: `peak`, `low`, `high`, labels of `along`; of several equal peaks the first. Attributes
        `n_samples`, `n_seeds`, `level`.

    Raises:
        DitLensError: other dimensions, fewer than 2 samples, a value that is no finite number, or labels that do not increase.
    """
    outcomes, labels = curve_of(values, along, "peak")
    bootstrap = Bootstrap(outcomes, draws, seed)
    may = np.flatnonzero([_may_be_highest(k, outcomes.mean(1), bootstrap, level) for k in range(len(labels))])
    low, high = int(may[0]), int(may[-1])
    ends = {"peak": int(bootstrap.estimate.argmax()), "low": low, "high": high}
    attrs = {"n_samples": outcomes.shape[0], "n_seeds": outcomes.shape[1], "level": level}
    return xr.Dataset({name: labels[i] for name, i in ends.items()}, attrs=attrs)


def _may_be_highest(k: int, means: NDArray[np.float64], bootstrap: Bootstrap, level: float) -> bool:
    """Say whether the mean curve may be highest at position k: no other is higher by more than chance.

    Args:
        k: the position.
        means: of each sample, [sample, position].
        bootstrap: of the mean curve.
        level: the chance that the highest position may be so.
    """
    from scipy.stats import norm, t

    n = len(means)
    off = means - means[:, k : k + 1]
    error = off.std(0, ddof=1) / np.sqrt(n)
    higher = bootstrap.estimate - bootstrap.estimate[k]
    if bool((higher[error == 0] > 0).any()):
        return False
    varies = error > 0
    if not varies.any():
        return True
    drawn = bootstrap.drawn[:, varies] - bootstrap.drawn[:, k : k + 1] - higher[varies]
    largest = (drawn / (error[varies] * np.sqrt((n - 1) / n))).max(1)
    bound = t.isf(norm.sf(np.quantile(largest, level)), n - 1)
    return bool((higher[varies] / error[varies]).max() <= max(bound, 0.0))


__all__ = ["peak"]
