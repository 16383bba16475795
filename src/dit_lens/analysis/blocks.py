"""Blocks in a similarity matrix of steps: whether the steps before and after a border are two kinds of steps."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import name_of, require_dims
from dit_lens.errors import DitLensError

DEGREE = 3
"""Of the polynomial in the distance between two steps that is taken off their similarity."""


def block_score(
    similarity: xr.DataArray, along: str = "step", other: str = "other_step", position: str | None = None
) -> xr.DataArray:
    """Return how much more alike steps on one side of a border are than steps across it, for every border.

    Steps that lie near each other are alike whatever they are, and across a border fewer lie near. So a cubic in the distance of
    two steps is fitted to each matrix by least squares, and taken off; the score is the mean of what is left over pairs on one
    side, minus the mean over pairs across. It is 0 on average of noise, and nearly 0 of a drift that the
    distance alone makes.

    Args:
        similarity: [..., along, other], finite, 4 steps or more, the same on both in the same order.
        along: the dimension of the steps.
        other: that of the steps that they are compared with.
        position: the coordinate on `along` in which distances are measured, such as sigma. Default: their number.

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
    places = np.arange(count) if position is None else similarity[position].to_numpy().astype(float)
    if not np.isfinite(values).all() or places.shape != (count,) or not np.isfinite(places).all():
        raise DitLensError(
            f"block_score: {name_of(similarity)} or its positions hold NaN or Inf; select what was measured."
        )
    first, second = np.triu_indices(count, 1)
    excess = _beyond_distance(values[..., first, second], np.abs(places[second] - places[first]))
    borders = np.arange(2, count - 1)
    scores = [_contrast(excess, (first < border) == (second < border)) for border in borders]
    rest = similarity.isel({along: 0, other: 0}, drop=True)
    coords = {**rest.coords, "border": labels[borders]}
    return xr.DataArray(np.stack(scores, -1), coords, (*rest.dims, "border"), "block_score")


def _beyond_distance(values: NDArray[np.float64], apart: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the polynomial in the distance [pair] that is nearest to values [..., pair] off them.

    Where there are fewer distances than it has coefficients, it is of a lower degree: it then takes their means off.
    """
    scaled = apart / max(float(apart.max()), 1e-300)
    different = len(np.unique(scaled.round(9)))
    basis = np.linalg.qr(np.vander(scaled, min(DEGREE + 1, different)))[0]
    return values - values @ basis @ basis.T


def _contrast(excess: NDArray[np.float64], within: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over pairs on one side of a border minus that over pairs across, of [..., pair]."""
    out: NDArray[np.float64] = excess[..., within].mean(-1) - excess[..., ~within].mean(-1)
    return out


__all__ = ["block_score"]
