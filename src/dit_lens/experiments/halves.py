"""The best places, chosen on one half of the samples and reported on the other, so that no sample picks what it then confirms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.experiments.outcomes import headline

LEAST = 4
"""Samples: an interval on the other half takes 2 of them."""


@dataclass(frozen=True)
class Chosen:
    """The heads whose mean over one half of the samples is largest.

    Attributes:
        heads: (layer, head), the best first.
        means: of each, over the half that chose.
        chosen_on: labels of the samples of that half.
        reported_on: labels of the others.
    """

    heads: tuple[tuple[int, int], ...]
    means: tuple[float, ...]
    chosen_on: tuple[str, ...]
    reported_on: tuple[str, ...]

    def of(self, values: xr.DataArray) -> xr.DataArray:
        """Return the mean over the chosen heads of values [sample, ..., layer, head], on the other half."""
        return self.each(values).mean("place")

    def each(self, values: xr.DataArray) -> xr.DataArray:
        """Return the values of every chosen head, [sample, ..., place], on the other half."""
        layer, head = (xr.Variable("place", [place[n] for place in self.heads]) for n in (0, 1))
        picked = values.sel(layer=layer, head=head).drop_vars(["layer", "head"], errors="ignore")
        names = np.array([f"layer {one}, head {two}" for one, two in self.heads], np.dtypes.StringDType())
        here = [label for label in self.reported_on if label in set(values["sample"].values.tolist())]
        return picked.assign_coords(place=names).sel(sample=here)


def choose_heads(values: xr.DataArray, count: int) -> Chosen | None:
    """Choose heads by their mean over every second sample; None of fewer than 4 samples.

    Args:
        values: [sample, layer, head], the larger the better, of the samples that were measured.
        count: of heads.
    """
    labels = values["sample"].values.tolist()
    if len(labels) < LEAST:
        return None
    half = values.isel(sample=slice(0, None, 2)).mean("sample").transpose("layer", "head")
    order = np.argsort(-half.values, axis=None, kind="stable")[:count]
    at = [np.unravel_index(n, half.shape) for n in order]
    return Chosen(
        tuple((int(half.layer[i]), int(half["head"][j])) for i, j in at),
        tuple(float(half.values[i, j]) for i, j in at),
        tuple(labels[::2]),
        tuple(labels[1::2]),
    )


def measured_samples(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over the seeds that were measured, of the samples that have a finite value everywhere then."""
    means = values.mean("seed") if "seed" in values.dims else values
    finite = np.isfinite(means.transpose("sample", ...).values).reshape(means.sizes["sample"], -1)
    return means.isel(sample=finite.all(1))


def report(values: xr.DataArray, chosen: Chosen | None, bounds: tuple[float, float]) -> dict[str, Any]:
    """Say which heads were chosen on half of the samples, and what they have on the other half.

    Args:
        values: [sample, layer, head], by which they were chosen.
        chosen: the heads.
        bounds: lowest and highest value.
    """
    if chosen is None:
        return {
            "not measured": f"{values.sizes['sample']} samples, and choosing heads on half of them takes {LEAST}"
        }
    best = headline(analysis.mean(chosen.each(values), bounds=bounds))
    everyone = values.mean(("layer", "head")).sel(sample=list(chosen.reported_on))
    return {
        "samples that chose": len(chosen.chosen_on),
        "samples that report": len(chosen.reported_on),
        "chosen heads together": headline(analysis.mean(chosen.of(values), bounds=bounds)),
        "each": [
            {**row, "mean where it was chosen": mean} for row, mean in zip(best, chosen.means, strict=True)
        ],
        "mean over all heads": headline(analysis.mean(everyone, bounds=bounds)),
    }


def beside(
    chosen: Chosen | None, lines: Mapping[str, xr.DataArray], bounds: tuple[float, float]
) -> dict[str, Any]:
    """Say what the chosen heads have of other things, on the half that reports.

    Args:
        chosen: the heads.
        lines: values [sample, seed, layer, head] by name.
        bounds: lowest and highest value.
    """
    found: dict[str, Any] = {}
    for name, values in lines.items() if chosen is not None else ():
        assert chosen is not None
        here = chosen.of(measured_samples(values))
        count = here.sizes["sample"]
        found[name] = (
            {"samples": count, **headline(analysis.mean(here, bounds=bounds))}
            if count > 1
            else {"not measured": f"{count} samples, and an interval needs 2"}
        )
    return found


__all__ = ["LEAST", "Chosen", "beside", "choose_heads", "measured_samples", "report"]
