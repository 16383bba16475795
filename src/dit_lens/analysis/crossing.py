"""Where a curve comes to stay above a level, with an interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.bootstrap import Bootstrap, expanded_tail
from dit_lens.analysis.curve import curve_of


def crossing(
    values: xr.DataArray, along: str, *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> xr.Dataset:
    """Find from where on the mean over samples and seeds stays at 0 or above, along a dimension.

    Between the last position below 0 and the next one the line between them is followed. To ask for another level, subtract
    it; where the level is measured too, as chance is, subtract that of each sample, so that its error counts.

    Args:
        values: [sample, along] or [sample, seed, along], numbers.
        along: the dimension, whose labels increase.
        draws: how many bootstrap draws: samples are drawn, with all their seeds.
        seed: of the draws.
        level: the chance that the interval holds the place where the true mean crosses.

    Returns:
        Dataset without dimensions: `crossing`, `low`, `high`, on the scale of the labels: the first label where it is never
        below, infinity where it is below to the end. Attributes `n_samples`, `n_seeds`, `level`.

    Raises:
        DitLensError: other dimensions, fewer than 2 samples, a value that is no finite number, or labels that do not increase.
    """
    outcomes, labels = curve_of(values, along, "crossing")
    bootstrap = Bootstrap(outcomes, draws, seed)
    drawn = np.sort([_crossing(curve, labels) for curve in bootstrap.drawn])
    tail = expanded_tail(level, bootstrap.samples) * (draws - 1)
    low, high = drawn[int(np.floor(tail))], drawn[int(np.ceil(draws - 1 - tail))]
    ends = {"crossing": _crossing(bootstrap.estimate, labels), "low": low, "high": high}
    attrs = {"n_samples": outcomes.shape[0], "n_seeds": outcomes.shape[1], "level": level}
    return xr.Dataset({name: float(value) for name, value in ends.items()}, attrs=attrs)


def _crossing(curve: NDArray[Any], labels: NDArray[np.float64]) -> float:
    """Return from where on a curve stays at 0 or above."""
    below = np.flatnonzero(curve < 0)
    if not len(below):
        return float(labels[0])
    last = int(below[-1])
    if last == len(curve) - 1:
        return float("inf")
    share = curve[last] / (curve[last] - curve[last + 1])
    return float(labels[last] + share * (labels[last + 1] - labels[last]))


__all__ = ["crossing"]
