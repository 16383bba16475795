"""What the study of single heads comes to: harm by head, and heads beside their controls."""

from __future__ import annotations

from typing import Any

import xarray as xr

from dit_lens import analysis
from dit_lens.experiments.halves import Chosen, beside, measured_samples
from dit_lens.experiments.head_edits import PLACEBO, ZERO
from dit_lens.experiments.outcomes import BOUNDS, headline

CHOSEN, RANDOM = "chosen", "random"
"""Sets of heads; the random ones are numbered."""


def harm(results: xr.Dataset) -> xr.DataArray:
    """Return how much is lost with a head, [sample, layer, head]: score, clean minus zero; else the distance to the clean run."""
    if "score" not in results:
        return measured_samples(results.distance.sel(kind=ZERO, drop=True))
    return measured_samples(results.clean_score - results.score.sel(kind=ZERO, drop=True))


def of_outcome(results: xr.Dataset, name: str, chosen: Chosen | None) -> dict[str, Any]:
    """Compare every kind of edit with the placebo and with the clean run: in the chosen heads, and over all heads."""
    values, bounds = results[name].astype(float), BOUNDS[name]
    low, high = bounds
    placebo, kinds = (
        values.sel(kind=PLACEBO, drop=True),
        [k for k in values.kind.values.tolist() if k != PLACEBO],
    )
    minus = {f"{kind} minus {PLACEBO}": values.sel(kind=kind, drop=True) - placebo for kind in kinds}
    if name != "distance":
        clean = results[f"clean_{name}"].astype(float)
        minus |= {
            f"{kind} minus clean": values.sel(kind=kind, drop=True) - clean for kind in (*kinds, PLACEBO)
        }
    else:
        minus |= {kind: values.sel(kind=kind, drop=True) for kind in (*kinds, PLACEBO)}
    between = (low - high, high - low)
    everywhere = {
        text: headline(analysis.mean(one.mean(("layer", "head")), bounds=between))
        for text, one in minus.items()
    }
    return {"in the chosen heads": beside(chosen, minus, between), "over all heads": everywhere}


def of_sets(results: xr.Dataset, together: xr.Dataset, name: str) -> dict[str, Any]:
    """Compare the chosen heads taken away together with their placebo, with random sets, and with the clean run."""
    values, bounds = together[name].astype(float), BOUNDS[name]
    if values.sizes["sample"] < 2:
        return {"not measured": f"{values.sizes['sample']} samples, and an interval needs 2"}
    is_random = values.set.str.startswith(RANDOM).values
    random = values.isel(set=is_random).mean("set")
    chosen, placebo = (values.sel(set=one, drop=True) for one in (CHOSEN, PLACEBO))
    found = {
        "by set": headline(analysis.mean(values, bounds=bounds)),
        "chosen minus placebo": headline(analysis.effect(chosen, placebo, bounds=bounds)),
        "chosen minus random sets": headline(analysis.effect(chosen, random, bounds=bounds)),
    }
    if name != "distance":
        clean = results[f"clean_{name}"].astype(float).sel(sample=values["sample"])
        found["chosen minus clean"] = headline(analysis.effect(chosen, clean, bounds=bounds))
    return found


__all__ = ["CHOSEN", "RANDOM", "harm", "of_outcome", "of_sets"]
