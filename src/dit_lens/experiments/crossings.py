"""When something is settled: the step, and the noise level, from which on a curve stays above a level."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis

MOST_CHANCE = 0.8
"""Agreement by chance above which there is nothing to date."""


def dated(values: xr.DataArray, results: xr.Dataset, along: str) -> dict[str, Any]:
    """Return the step and the noise level from which on the mean stays at 0 or above, with an interval where samples differ.

    Args:
        values: [sample, seed, along] or [sample, along].
        results: with the noise levels, `sigma` [along].
        along: the dimension of the steps.
    """
    found = analysis.crossing(values, along)
    alike = not bool(values.std("sample").any())
    steps, sigmas = results[along].values.astype(float), results.sigma.values
    out: dict[str, Any] = {}
    for name in ("crossing", "low", "high"):
        step = float(found[name])
        settled = bool(np.isfinite(step))
        sigma = float(np.interp(step, steps, sigmas)) if settled else None
        out["value" if name == "crossing" else name] = {"step": step if settled else None, "sigma": sigma}
    if alike:
        return {"value": out["value"], "no interval": "all samples agree at every step"}
    return out


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


__all__ = ["MOST_CHANCE", "committed", "dated"]
