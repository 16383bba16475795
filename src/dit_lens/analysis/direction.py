"""Directions that tell two sets of states apart: what a run is steered along, or what is taken away from it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.probe import fit_probe
from dit_lens.analysis.states import place, require_dims
from dit_lens.errors import DitLensError

Array = NDArray[np.float64]
How = Literal["means", "probe", "pca"]
"""How a direction is found."""


def direction(positive: xr.DataArray, negative: xr.DataArray, *, how: How = "means") -> xr.DataArray:
    """Find the direction from states of one kind to states of another one, for `dl.steer` and `dl.ablate`.

    It is as long as the means of the two kinds are apart along it, so `dl.steer` by it, at scale 1, takes the mean of the
    negative states as far as the positive ones are, however it was found:

    - `means`: the difference of the means;
    - `probe`: the weights of a linear probe that tells the two apart (`fit_probe`: logistic regression on standardised channels);
    - `pca`: the first principal direction of the differences of states that belong together, not centred (Zou et al. 2023,
      arXiv 2310.01405). It takes pairs: `positive` and `negative` have the same samples.

    Args:
        positive: [sample, ..., channel].
        negative: [sample, ..., channel], of as many channels, and with the same labels of other dimensions. Only `pca` takes its
            samples for those of `positive`.
        how: one of the above.

    Returns:
        [..., channel], float64, in the unit of the states: a direction for each position (layer, step, ...) of the other
        dimensions.

    Raises:
        DitLensError: a dimension is missing or its labels differ, there are fewer than 2 samples of either, a state was not
            recorded, or the two kinds do not differ.
    """
    if how not in get_args(How):
        raise DitLensError(f"direction(how={how!r}): it is one of {', '.join(get_args(How))}.")
    a, b, places = _matched(positive, negative, how)
    flat = [
        one.to_numpy().astype(np.float64).reshape(one.sizes["sample"], -1, one.shape[-1]) for one in (a, b)
    ]
    find = {"means": _of_means, "probe": _of_probe, "pca": _of_pca}[how]
    rows = [find(flat[0][:, i], flat[1][:, i]) for i in range(flat[0].shape[1])]
    shape = [a.sizes[dim] for dim in (*places, "channel")]
    for number, row in enumerate(rows):
        if not np.linalg.norm(row) > 0:
            where = place(a, dict(zip(places, map(int, np.unravel_index(number, shape[:-1])), strict=True)))
            raise DitLensError(
                f"direction(how={how!r}): the two kinds of states do not differ, or not along it{where and ', at '}{where}."
            )
    coords = {name: c for name, c in a.coords.items() if set(c.dims) <= {*places, "channel"}}
    values = np.array(rows).reshape(shape)
    return xr.DataArray(values, coords, [*places, "channel"], "direction", {"how": how})


def _matched(
    positive: xr.DataArray, negative: xr.DataArray, how: str
) -> tuple[xr.DataArray, xr.DataArray, list[str]]:
    """Return both as [sample, ..., channel], and what stands between.

    Raises:
        DitLensError: they do not fit together.
    """
    for states in (positive, negative):
        require_dims(states, ["sample", "channel"], "direction")
        if states.sizes["sample"] < 2:
            raise DitLensError(
                "direction: one sample says nothing of what a kind has in common: give 2 or more."
            )
    places = [str(dim) for dim in positive.dims if dim not in ("sample", "channel")]
    if {*positive.dims} != {*negative.dims}:
        raise DitLensError(
            f"direction: the states have the dimensions {positive.dims} and {negative.dims}; give the same."
        )
    kept = [] if how == "pca" else ["sample"]
    try:
        xr.align(positive, negative, join="exact", exclude=kept, copy=False)
    except ValueError as error:
        raise DitLensError(f"direction: the states do not belong together ({error}).") from None
    a, b = (states.transpose("sample", *places, "channel") for states in (positive, negative))
    if not all(bool(np.isfinite(states).all()) for states in (a, b)):
        raise DitLensError("direction: a state holds NaN or Inf: it was not recorded, or its run broke.")
    return a, b, places


def _of_means(a: Array, b: Array) -> Array:
    difference: Array = a.mean(0) - b.mean(0)
    return difference


def _of_probe(a: Array, b: Array) -> Array:
    labels = np.arange(len(a) + len(b))[:, None] < len(a)
    weight = fit_probe(np.concatenate([a, b]), labels, balanced=True)[0][0]
    return _as_far(weight, a, b) * np.sign(weight @ _of_means(a, b) or 1.0)


def _of_pca(a: Array, b: Array) -> Array:
    first: Any = np.linalg.svd(a - b, full_matrices=False)[2][0]
    return _as_far(first, a, b)


def _as_far(along: Array, a: Array, b: Array) -> Array:
    """Return the part of the difference of the means that lies along a line."""
    squared = along @ along
    return along * (along @ _of_means(a, b) / squared) if squared > 0 else along


__all__ = ["direction"]
