"""Places along a curve: when something is settled, where a curve is highest; each with an interval, or why it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.bootstrap import FEW_SAMPLES

NO_INTERVAL = "no interval"
"""What a summary calls the reason why a place has no interval."""
MOST_CHANCE = 0.8
"""Agreement by chance above which there is nothing to date."""


def no_interval(values: xr.DataArray) -> str | None:
    """Say why a place along curves of samples has no interval that means anything; None where it has one.

    A crossing and a peak have the bootstrap's interval alone, which is too narrow of few samples, and of samples that agree has
    no width.

    Args:
        values: [sample, ...], the curves.
    """
    if not bool((values.max("sample") > values.min("sample")).any()):
        return "all samples agree everywhere"
    if (count := values.sizes["sample"]) < FEW_SAMPLES:
        return f"{count} samples, and the bootstrap's interval of a place takes {FEW_SAMPLES} or more"
    return None


def place_of(found: xr.Dataset, values: xr.DataArray) -> dict[str, Any]:
    """Return a place along curves as plain data, with its interval, or with the reason why it has none.

    Args:
        found: what `analysis.peak` or `analysis.crossing` found; a crossing that never comes is None.
        values: [sample, ...], the curves.
    """
    ends = {str(n): one.item() if np.isfinite(one) else None for n, one in found.items()}
    reason = no_interval(values)
    return ends if reason is None else {next(iter(ends)): next(iter(ends.values())), NO_INTERVAL: reason}


def dated(values: xr.DataArray, results: xr.Dataset, along: str) -> dict[str, Any]:
    """Return the step and the noise level from which on the mean stays at 0 or above, with an interval or why there is none.

    None stands for a step that never comes: the curve, or so many of the drawn ones, are below at the last step.

    Args:
        values: [sample, seed, along] or [sample, along].
        results: with the noise levels, `sigma` [along].
        along: the dimension of the steps.
    """
    found = analysis.crossing(values, along)
    reason = no_interval(values)
    steps, sigmas = results[along].values.astype(float), results.sigma.values
    out: dict[str, Any] = {}
    for name in ("crossing", "low", "high"):
        step = float(found[name])
        settled = bool(np.isfinite(step))
        sigma = float(np.interp(step, steps, sigmas)) if settled else None
        out["value" if name == "crossing" else name] = {"step": step if settled else None, "sigma": sigma}
    return out if reason is None else {"value": out["value"], NO_INTERVAL: reason}


def committed(
    same: xr.DataArray, chance: xr.DataArray, results: xr.Dataset, along: str = "at"
) -> dict[str, Any]:
    """Return the step and the noise level from which on agreement is over halfway between chance and 1.

    A sample counts by how often two of its runs differ: one whose runs always agree has nothing to be committed to. Where runs
    of most samples agree, nothing is dated.

    Args:
        same: agreement, [sample, seed, along].
        chance: agreement of two runs of each sample, [sample].
        results: with the noise levels, `sigma` [along].
        along: the dimension of the steps.
    """
    if float(chance.mean()) > MOST_CHANCE:
        return {"not measured": f"two runs give one answer in {float(chance.mean()):.2f}"}
    return dated((1 - chance) * (same - (1 + chance) / 2), results, along)


__all__ = ["MOST_CHANCE", "NO_INTERVAL", "committed", "dated", "no_interval", "place_of"]
