"""How outcomes are called in figures and tables; see `dit_lens.engine.outcomes` for what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

OUTCOMES = {"solved": "solved (share)", "score": "score", "distance": "RMS distance of the latents"}
"""What `outcomes` gives as numbers, and how figures call it."""

BOUNDS = {"solved": (0.0, 1.0), "score": (0.0, 1.0), "distance": (0.0, np.inf)}
"""Lowest and highest value. No interval goes beyond; where both are finite and all samples agree, it comes from these."""


def arms_as(data: xr.Dataset, arms: slice, dim: str, labels: Sequence[Any], prefix: str) -> xr.Dataset:
    """Give some of the arms a dimension of their own, with labels, and their variables a prefix."""
    part = data.isel(arm=arms).rename({"arm": dim, **{str(n): f"{prefix}_{n}" for n in data}})
    text = all(isinstance(label, str) for label in labels)
    return part.assign_coords({dim: np.array(labels, np.dtypes.StringDType() if text else None)})


def unfold(data: xr.Dataset, labels: Mapping[str, Sequence[Any]]) -> xr.Dataset:
    """Turn the dimension `arm` into several, the last of them the fastest."""
    sizes = [len(values) for values in labels.values()]
    out = {
        n: ((*labels, "pair"), v.transpose("arm", "pair").values.reshape(*sizes, -1)) for n, v in data.items()
    }
    text = np.dtypes.StringDType()
    coords = {n: np.array(v, text if isinstance(v[0], str) else None) for n, v in labels.items()}
    return xr.Dataset(out, coords)


def headline(data: xr.Dataset) -> Any:
    """Return what `analysis.mean` or `analysis.effect` found as plain data: a dict, or a list of them by label."""
    centre = "effect" if "effect" in data else "mean"
    names = [str(n) for n in (centre, "low", "high", "band_low", "band_high") if n in data]
    if not data[centre].ndim:
        return {name: float(data[name]) for name in names}
    dim = str(data[centre].dims[0])
    labels = data[dim].values.tolist() if dim in data.coords else range(data.sizes[dim])
    parts = [(label, headline(data.isel({dim: i}))) for i, label in enumerate(labels)]
    if data[centre].ndim == 1:
        return [{dim: label, **part} for label, part in parts]
    return {f"{dim} {label}": part for label, part in parts}


def family(dim: str, summaries: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put what `analysis.mean` or `analysis.effect` found of several things together, for `plot.curves`.

    Args:
        dim: the dimension that tells them apart.
        summaries: by name.

    Returns:
        One Dataset, along `dim` too; its `n_samples` is that of the one with the fewest.
    """
    names = np.array(list(summaries), np.dtypes.StringDType())
    how: dict[str, Any] = {"combine_attrs": "drop_conflicts", "coords": "minimal", "compat": "override"}
    joined = xr.concat(list(summaries.values()), xr.Variable(dim, names), **how)
    return joined.assign_attrs(n_samples=min(one.attrs["n_samples"] for one in summaries.values()))


__all__ = ["BOUNDS", "OUTCOMES", "arms_as", "family", "headline", "unfold"]
