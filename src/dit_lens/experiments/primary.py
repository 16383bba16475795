"""Primary outcomes, tested: p-values by inverting the intervals that summaries give, and Holm's correction over several.

An interval of a higher level is wider. The p-value of a null is 1 minus the highest level whose interval still leaves the null
out (Casella & Berger 2002, section 9.2), so an interval of 95% leaves out what has p under 0.05: test and interval are one. Of
an outcome along a curve the band is inverted, so p says whether any position is off the null.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from dit_lens.experiments.outcomes import headline

BAND = "by a band over"
"""What a summary calls the dimensions of a curve, which is tested by its band."""
DRAWS = 20_000
"""Bootstrap draws of a test. The smallest p is what one of them in a tail says: 0.0009 of 24 samples, 0.0003 of 64."""
ROUNDS = 8
"""Halvings of the range of p, in orders of magnitude: p is known within 3%, and rounded up."""

Name = TypeVar("Name", bound=Hashable)
Find = Callable[..., xr.Dataset]
"""Keywords `level` and `draws` to what `analysis.mean`, `effect` or `logistic` finds: one outcome, or a curve with its band."""


def primary_outcome(find: Find, null: float = 0.0, draws: int = DRAWS) -> dict[str, Any]:
    """Return a primary outcome as plain data: its value and interval, or by a band over what it is; the null, and p.

    Args:
        find: the outcome; called without keywords for the interval that the summary gives.
        null: the value that says nothing.
        draws: of the bootstrap, for p.
    """
    found = find()
    along = found.attrs.get("along")
    told = headline(found) if along is None else {BAND: ", ".join(along)}
    return {**told, "null": null, "p": _p_value(find, found.attrs["n_samples"], null, draws)}


def _p_value(find: Find, samples: int, null: float, draws: int) -> float:
    """Return the two-sided p-value of a null, from the smallest that so many draws tell to 1; rounded up."""
    low, high = _smallest_p(samples, draws), 1.0
    if _leaves_out(find(level=1 - low, draws=draws), null):
        return low
    for _ in range(ROUNDS):
        p = (low * high) ** 0.5
        if _leaves_out(find(level=1 - p, draws=draws), null):
            high = p
        else:
            low = p
    return high


def _smallest_p(samples: int, draws: int) -> float:
    """Return the p at which one draw is beyond each end of the bootstrap's interval; see `expanded_tail`."""
    from scipy.stats import norm, t

    return float(2 * t.sf(norm.isf(1 / draws) / np.sqrt(samples / (samples - 1)), samples - 1))


def _leaves_out(found: xr.Dataset, null: float) -> bool:
    prefix = "band_" if "band_low" in found else ""
    return bool(((found[f"{prefix}low"] > null) | (found[f"{prefix}high"] < null)).any())


def outcomes_with_p(summary: Any, path: str = "") -> dict[str, dict[str, Any]]:
    """Return the outcomes of a summary that have a p, by the names that lead to them."""
    if not isinstance(summary, Mapping):
        return {}
    if "p" in summary:
        return {path: dict(summary)}
    parts = (outcomes_with_p(part, f"{path}, {name}" if path else name) for name, part in summary.items())
    return {name: outcome for part in parts for name, outcome in part.items()}


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Return p-values that hold for all outcomes together, by name (Holm 1979, Scandinavian J. of Statistics 6, 65-70).

    The k-th smallest of m is multiplied by m - k + 1, and none is smaller than one before it. Outcomes of which it is at most
    0.05 are off their nulls all together, but in 5% of cases.
    """
    adjusted, least = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = adjusted[name] = max(least, min(1.0, (len(p_values) - rank) * p))
    return {name: adjusted[name] for name in p_values}


__all__ = ["BAND", "DRAWS", "holm", "outcomes_with_p", "primary_outcome"]
