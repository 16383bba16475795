"""What states have on the object that a prompt names more than on the others, and from which layer on, beside controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.masked import MEASURES
from dit_lens.analysis.statistics import NO_BOUNDS
from dit_lens.experiments.masks import NAMED, OTHERS
from dit_lens.experiments.object_regions import ELSEWHERE, MOVED, OWN
from dit_lens.experiments.outcomes import headline

ALL, LESS = "all", "without the largest"
"""Channels of a state: all, or less the k largest."""
PRIMARY = "own prompt"
CONTRASTS = (PRIMARY, "other prompt", "by the prompt alone", "masks of another scene", "masks moved")


def contrasts(results: xr.Dataset, measure: str, channels: str) -> dict[str, xr.DataArray]:
    """Return named minus others, [sample, seed, step, branch, layer], by the name of the contrast; empty where none is named.

    A sample in which one of the two takes up no token, or everything, is left out of that contrast.
    """
    values = results[measure].sel(channels=channels, drop=True)
    if not {NAMED, OTHERS} <= set(values.object.values.tolist()):
        return {}
    difference = values.sel(object=NAMED, drop=True) - values.sel(object=OTHERS, drop=True)
    own = difference.sel(masks=OWN, drop=True)
    under_own = difference.sel(prompt="own", drop=True)
    found = {PRIMARY: own.sel(prompt="own", drop=True)}
    if "other" in results.prompt.values.tolist():
        found["other prompt"] = own.sel(prompt="other", drop=True)
        found["by the prompt alone"] = (found[PRIMARY] - found["other prompt"]) / 2
    for kind, name in ((ELSEWHERE, "masks of another scene"), (MOVED, "masks moved")):
        if kind in results.masks.values.tolist():
            found[name] = under_own.sel(masks=kind, drop=True)
    return {name: complete(found[name]) for name in CONTRASTS if name in found}


def complete(values: xr.DataArray) -> xr.DataArray:
    """Return the samples that were measured everywhere."""
    is_finite: xr.DataArray = xr.apply_ufunc(np.isfinite, values)
    whole = is_finite.all([d for d in values.dims if d != "sample"])
    return values.isel(sample=whole.values)


def against_another_scene(results: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the centred energy on each object minus that on masks of another scene, [sample, seed, step, layer], by object."""
    if ELSEWHERE not in results.masks.values.tolist():
        return {}
    values = results.centred.sel(channels=ALL, prompt="own", drop=True)
    off = values.sel(masks=OWN, drop=True) - values.sel(masks=ELSEWHERE, drop=True)
    return {name: complete(off.sel(object=name, drop=True)) for name in off.object.values.tolist()}


def summarise(values: xr.DataArray, *along: str) -> xr.Dataset | None:
    """Return the mean of a contrast with a band over some dimensions; None of fewer than 2 samples."""
    if values.sizes["sample"] < 2:
        return None
    return analysis.mean(values, along=along, bounds=NO_BOUNDS).rename(mean="effect")


def at_step(values: xr.DataArray, step: int) -> dict[str, Any]:
    """Say at which layers a contrast [sample, seed, step, layer] is off 0 at a step, by a band over the layers."""
    summary = summarise(values.sel(step=step, drop=True), "layer")
    if summary is None:
        return {
            "not measured": f"{values.sizes['sample']} samples have tokens of both, and an interval needs 2"
        }
    first = float(analysis.onset(summary, "layer"))
    found = {"samples": values.sizes["sample"], "first layer off 0": None if np.isnan(first) else int(first)}
    return {**found, "by layer": headline(summary)}


def of_contrasts(results: xr.Dataset, steps: Sequence[int]) -> dict[str, Any]:
    """Return every contrast of every measure at some steps, by name; and of the primary one the first layer at every step."""
    out: dict[str, Any] = {}
    for name, channels in product(MEASURES, (ALL, LESS)):
        found = contrasts(results, name, channels)
        out[f"named minus others, {name}, {channels} channels"] = {
            contrast: {f"step {step}": at_step(values, step) for step in steps}
            for contrast, values in found.items()
        }
    over_all = summarise(contrasts(results, "centred", ALL)[PRIMARY], "layer", "step")
    if over_all is not None:
        first = analysis.onset(over_all, "layer")
        out["first layer off 0 by step, by a band over layers and steps"] = {
            str(step): None if np.isnan(layer) else int(layer)
            for step, layer in zip(first.step.values.tolist(), first.values.tolist(), strict=True)
        }
    return out


__all__ = [
    "ALL",
    "CONTRASTS",
    "LESS",
    "PRIMARY",
    "against_another_scene",
    "at_step",
    "complete",
    "contrasts",
    "of_contrasts",
    "summarise",
]
