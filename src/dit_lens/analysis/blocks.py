"""Blocks in a similarity matrix of steps: whether the steps before and after a border are two kinds of steps."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import name_of, require_dims
from dit_lens.errors import DitLensError


def block_score(similarity: xr.DataArray, along: str = "step", other: str = "other_step") -> xr.DataArray:
    """Return how much more alike steps on one side of a border are than steps across it, for every border.

    Steps that lie near each other are alike whatever they are, and across a border fewer lie near. So each pair counts by how
    much more alike it is than the mean of all pairs as many steps apart; the score is the mean of that over pairs on one side, minus
    the mean over pairs across. A similarity that depends on the distance in steps alone, and one of noise, has a score of 0.

    Args:
        similarity: [..., along, other], finite, 4 steps or more, the same on both in the same order.
        along: the dimension of the steps.
        other: that of the steps that they are compared with.

    Returns:
        [..., border], in the unit of the similarity; a border is called by the label of the first step after it. Borders leave 2
        steps or more on either side.

    Raises:
        DitLensError: other dimensions or labels, fewer than 4 steps, or a value that is no finite number.
    """
    require_dims(similarity, [along, other], "block_score")
    values = similarity.transpose(..., along, other).astype(float).to_numpy()
    count, labels = similarity.sizes[along], similarity[along].to_numpy()
    if (
        count < 4
        or similarity.sizes[other] != count
        or not np.array_equal(labels, similarity[other].to_numpy())
    ):
        raise DitLensError(
            f"block_score: {name_of(similarity)} is {count} x {similarity.sizes[other]}; give 4 steps or more, the same on both."
        )
    if not np.isfinite(values).all():
        raise DitLensError(f"block_score: {name_of(similarity)} holds NaN or Inf; select what was measured.")
    first, second = np.triu_indices(count, 1)
    excess = _beyond_distance(values[..., first, second], second - first)
    borders = np.arange(2, count - 1)
    scores = [_contrast(excess, (first < border) == (second < border)) for border in borders]
    rest = similarity.isel({along: 0, other: 0}, drop=True)
    coords = {name: c for name, c in rest.coords.items()} | {"border": labels[borders]}
    return xr.DataArray(np.stack(scores, -1), coords, (*rest.dims, "border"), "block_score")


def _beyond_distance(values: NDArray[np.float64], apart: NDArray[np.intp]) -> NDArray[np.float64]:
    """Take the mean of all pairs as many steps apart off [..., pair]."""
    out = values.copy()
    for distance in np.unique(apart):
        same = apart == distance
        out[..., same] -= values[..., same].mean(-1, keepdims=True)
    return out


def _contrast(excess: NDArray[np.float64], within: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over pairs on one side of a border minus that over pairs across, of [..., pair]."""
    out: NDArray[np.float64] = excess[..., within].mean(-1) - excess[..., ~within].mean(-1)
    return out


__all__ = ["block_score"]
