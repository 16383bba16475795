"""Places along a curve: when something is settled, where a curve is highest; each with an interval, or why it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.bootstrap import FEW_SAMPLES
from dit_lens.analysis.bounded import Bounds

NO_INTERVAL = "no interval"
"""What a summary calls the reason why a place has no interval."""
AT_OR_BEFORE = "at or before"
"""What marks a date that is a bound: the curve is up at the first step that was measured, and may have been before."""
MOST_CHANCE = 0.8
"""Agreement by chance above which there is nothing to date."""
ABOVE_HALFWAY: Bounds = (-1.0, 0.5)
"""Bounds of agreement less halfway from chance to 1."""


def no_interval(values: xr.DataArray) -> str | None:
    """Say why a peak of curves of samples has no interval that means anything; None where it has one.

    It has the bootstrap's alone, which is too narrow of few samples, and of samples that agree has no width.

    Args:
        values: [sample, ...], the curves.
    """
    if not bool((values.max("sample") > values.min("sample")).any()):
        return "all samples agree everywhere"
    if (count := values.sizes["sample"]) < FEW_SAMPLES:
        return f"{count} samples, and the bootstrap's interval of a place takes {FEW_SAMPLES} or more"
    return None


def place_of(found: xr.Dataset, values: xr.DataArray) -> dict[str, Any]:
    """Return what `analysis.peak` found as plain data, with its interval, or with the reason why it has none.

    Args:
        found: the peak.
        values: [sample, ...], the curves.
    """
    reason = no_interval(values)
    ends = {str(name): value.item() for name, value in found.items()}
    return ends if reason is None else {"peak": ends["peak"], NO_INTERVAL: reason}


def crossing_of(values: xr.DataArray, along: str, bounds: Bounds) -> dict[str, Any]:
    """Return from where on a mean stays at 0 or above as plain data, with its interval, or with the reason why it has none.

    None stands for a place that never comes: the mean is below at the last position, or may be. Ends named under `AT_OR_BEFORE`
    are bounds: the mean is up at the first position, or may be, and so may have been before.

    Args:
        values: [sample, along] or [sample, seed, along].
        along: the dimension of the places.
        bounds: lowest and highest value.
    """
    found = analysis.crossing(values, along, bounds=bounds)
    first, reason = float(values[along][0]), found.attrs.get("no_interval")
    ends = {str(n): float(value) for n, value in found.items() if n == "crossing" or reason is None}
    # The last place that surely is below is no bound where it is the first; the others are, for there the mean is up.
    at_first = [n for n, end in ends.items() if (end == -np.inf if n == "low" else end == first)]
    out: dict[str, Any] = {n: None if end == np.inf else max(end, first) for n, end in ends.items()}
    out |= {AT_OR_BEFORE: at_first} if at_first else {}
    return out if reason is None else {**out, NO_INTERVAL: reason}


def dated(values: xr.DataArray, results: xr.Dataset, along: str, bounds: Bounds) -> dict[str, Any]:
    """Return the step and the noise level from which on the mean stays at 0 or above, with an interval or why there is none.

    The interval is between steps that were measured. A step that never comes is None; one at the first step that was measured
    is a bound, and marked so.

    Args:
        values: [sample, seed, along] or [sample, along].
        results: with the noise levels, `sigma` [along].
        along: the dimension of the steps.
        bounds: lowest and highest value.
    """
    steps, sigmas = results[along].values.astype(float), results.sigma.values
    found = crossing_of(values, along, bounds)
    out = {NO_INTERVAL: found.pop(NO_INTERVAL)} if NO_INTERVAL in found else {}
    at_first = found.pop(AT_OR_BEFORE, ())
    for name, step in found.items():
        sigma = None if step is None else float(np.interp(step, steps, sigmas))
        bound = {AT_OR_BEFORE: True} if name in at_first else {}
        out["value" if name == "crossing" else name] = {"step": step, "sigma": sigma, **bound}
    return out


def committed(
    same: xr.DataArray, chance: xr.DataArray, results: xr.Dataset, along: str = "at"
) -> dict[str, Any]:
    """Return the step and the noise level from which on agreement is over halfway between chance and 1.

    What is dated is the mean over samples of same - (1 + chance) / 2. With same = chance + (1 - chance) kappa, that is the
    mean of (1 - chance) (kappa - 1/2): where kappa, weighed by how often two runs of a sample differ, passes 1/2. It is linear
    in both, and so has no bias of few seeds; a product with chance, of 2 or 3 seeds, has one. A sample whose runs and forks all
    agree has nothing to be committed to, and is 0. Where runs of most samples agree, nothing is dated.

    Args:
        same: agreement, [sample, seed, along].
        chance: agreement of two runs of each sample, [sample].
        results: with the noise levels, `sigma` [along].
        along: the dimension of the steps.

    Returns:
        As `dated`, and how many samples have runs that differ.
    """
    counted = {"samples whose runs differ": int((chance < 1).sum())}
    if float(chance.mean()) > MOST_CHANCE:
        return {**counted, "not measured": f"two runs give one answer in {float(chance.mean()):.2f}"}
    return {**dated(same - (1 + chance) / 2, results, along, ABOVE_HALFWAY), **counted}


__all__ = [
    "AT_OR_BEFORE",
    "MOST_CHANCE",
    "NO_INTERVAL",
    "committed",
    "crossing_of",
    "dated",
    "no_interval",
    "place_of",
]
