"""What is said of swaps: means by arm and layer, by layer and step, against the placebo; of couples, or of one couple's seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.experiments.crossings import crossing_of
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.swaps import ANOTHER, PLACEBO

Bounds = tuple[float, float]
LEANING: Bounds = (-1.0, 1.0)
RATES: Bounds = (0.0, 1.0)
SIZES: Bounds = BOUNDS["distance"]
"""Of movements: sizes, which are 0 or more. The difference of two may be anything."""
STEP = re.compile(r"step (\d+)")
"""Name of an arm with one step, on all branches."""


@dataclass(frozen=True)
class Told:
    """What is said of one outcome.

    Attributes:
        summary: the headline numbers.
        by_arm: [site, layer, arm].
        by_step: [site, layer, step], of the donor's values at one step. None where no step stands alone.
    """

    summary: dict[str, Any]
    by_arm: xr.Dataset
    by_step: xr.Dataset | None


def told(values: xr.DataArray, name: str, bounds: Bounds) -> Told:
    """Summarise an outcome.

    Args:
        values: [site, layer, arm, sample, seed, direction], numbers; the controls are at the place of the first arm.
        name: what the outcome is called.
        bounds: lowest and highest value.
    """
    first, by_step = str(values.arm.values[0]), None
    by_arm = estimate(arms_together(values).mean("direction"), bounds, ["arm", "layer"])
    by_direction = estimate(values.sel(arm=first, drop=True), bounds, ["layer", "direction"])
    summary = {name: headline(by_arm), f"{name}, by direction, {first}": headline(by_direction)}
    steps = one_step(values)
    if steps is not None:
        by_step = estimate(steps.mean("direction"), bounds, ["layer", "step"])
        summary[f"{name}, one step"] = headline(by_step)
    return Told(summary, by_arm, by_step)


def told_of_leaning(results: xr.Dataset) -> Told:
    """Summarise how far swaps go, the last latents and x0, against the placebo and the clean run.

    Args:
        results: of couples whose leaning is defined.
    """
    values, first, sites = results.leaning, str(results.arm.values[0]), results.site.values.tolist()
    said = told(values, "leaning", LEANING)
    whole, placebo = (values.sel(arm=arm, drop=True).mean("direction") for arm in (first, PLACEBO))
    against = difference(whole, placebo, ["layer"])
    x0, clean = (arms_together(results[n]).mean("direction") for n in ("leaning_x0", "leaning_x0_clean"))
    summary = {
        **said.summary,
        f"leaning, {first} minus placebo": headline(against),
        "leaning of x0 at the last swapped step": headline(estimate(x0, LEANING, ["arm", "layer"])),
        "leaning of x0, minus the clean run's": headline(difference(x0, clean, ["arm", "layer"])),
    }
    if values.sizes["sample"] > 1:
        at_site = {site: [one.sel(site=site, drop=True) for one in (whole, placebo)] for site in sites}
        summary[f"leaning, {first} minus placebo, in any layer"] = {
            site: primary_outcome(partial(analysis.effect, *both, bounds=LEANING, along="layer"))
            for site, both in at_site.items()
        }
    if "block" in values.site.values and values.sizes["layer"] > 1 and values.sizes["sample"] > 1:
        curve = whole.sel(site="block", drop=True).transpose("sample", ...)
        summary[f"layer from which on leaning is above 0, block, {first}"] = crossing_of(
            curve, "layer", LEANING
        )
    return Told(summary, said.by_arm, said.by_step)


def of_units(results: xr.Dataset) -> tuple[xr.Dataset, str]:
    """Return results whose samples are what an interval speaks of, and what that is.

    Couples are; of one couple its noise seeds, which are then all that was drawn.
    """
    if results.sizes["sample"] > 1:
        return results, "couples of samples"
    one = (
        results.isel(sample=0, drop=True).drop_vars("noise_seed").rename(seed="sample").expand_dims(seed=[0])
    )
    if results.sizes["seed"] > 1:
        return one, "noise seeds of one couple"
    return one, "nothing: one couple and one noise seed; give --seeds"


def estimate(values: xr.DataArray, bounds: Bounds, along: Sequence[str]) -> xr.Dataset:
    """Return the mean over samples and seeds, with an interval where there are two samples or more."""
    values = values.astype(float)
    if values.sizes["sample"] < 2:
        return xr.Dataset({"mean": values.mean(("sample", "seed"))})
    return analysis.mean(values, bounds=bounds, along=along)


def difference(
    values: xr.DataArray, other: xr.DataArray, along: Sequence[str], bounds: Bounds = LEANING
) -> xr.Dataset:
    """Return the paired difference of two outcomes within bounds, with an interval where there are two samples or more."""
    if values.sizes["sample"] < 2:
        return xr.Dataset({"effect": (values - other).mean(("sample", "seed"))})
    return analysis.effect(values, other, bounds=bounds, along=along)


def arms_together(values: xr.DataArray) -> xr.DataArray:
    """Return outcomes by arm: the orders of the control as their mean, and of steps that stand alone the controls' alone."""
    names = values.arm.values.tolist()
    is_order = [name.startswith(ANOTHER) for name in names]
    place = names[0].partition(",")[0]
    plain = [
        n
        for n, name in enumerate(names)
        if not is_order[n] and (not name.startswith("step ") or name.partition(",")[0] == place)
    ]
    out = values.isel(arm=plain).astype(float)
    if not any(is_order):
        return out
    mean = values.isel(arm=np.flatnonzero(is_order)).astype(float).mean("arm")
    another = mean.expand_dims(arm=np.array([ANOTHER], np.dtypes.StringDType()))
    how: dict[str, Any] = {"coords": "minimal", "compat": "override", "join": "exact"}
    together = xr.concat([out.drop_vars("last_step", errors="ignore"), another], "arm", **how)
    return together.transpose(*values.dims).rename(values.name)


def one_step(values: xr.DataArray) -> xr.DataArray | None:
    """Return the outcomes of the donor's values at one step, on all branches: `step` in place of `arm`; None without any."""
    found = {n: int(match[1]) for n, name in enumerate(values.arm.values) if (match := STEP.fullmatch(name))}
    if not found:
        return None
    chosen = values.isel(arm=list(found)).drop_vars(["arm", "last_step"], errors="ignore")
    return chosen.astype(float).rename(arm="step").assign_coords(step=list(found.values()))


__all__ = ["RATES", "SIZES", "Told", "of_units", "told", "told_of_leaning"]
