"""Which of two videos a third one is nearer to: what an exchange of states between two runs comes to, graded."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dit_lens.analysis.distance import CHANNEL, TOKENS
from dit_lens.analysis.states import require_dims
from dit_lens.errors import DitLensError

SAME = 1e-4
"""Two videos that are this near, as a share of their size, are one: what rounding leaves between equal runs."""


def leaning(values: xr.DataArray, a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    """Compute (d(x, a) - d(x, b)) / d(a, b): -1 where x is a, 1 where x is b, 0 where it is as far from both.

    d is the Euclidean norm over frames, places and channels; by the triangle inequality it is within [-1, 1]. Far from both
    it is near 0, whatever x is: read it beside a clean run's, or a placebo's.

    Args:
        values: x, [..., frame, latent_y, latent_x, latent_channel], as `run["x0"]`.
        a: the one video, on the same grid; may lack other dimensions of x, as b may.
        b: the other one.

    Returns:
        [...], float64, dimensionless. NaN where it is not defined: a and b are equal up to rounding (`SAME`).

    Raises:
        DitLensError: a dimension is missing, labels of a dimension differ, or a value is NaN or Inf.
    """
    dims = [*TOKENS, CHANNEL]
    for array in (values, a, b):
        require_dims(array, dims, "leaning")
    try:
        x, a, b = xr.align(*(one.astype(np.float64) for one in (values, a, b)), join="exact", copy=False)
    except ValueError as error:
        raise DitLensError(f"leaning: the videos do not stand on one grid ({error}).") from None
    to_a, to_b, apart = (_norm(one - other, dims) for one, other in ((x, a), (x, b), (a, b)))
    if not all(bool(np.isfinite(norm).all()) for norm in (to_a, to_b, apart)):
        raise DitLensError(
            "leaning: a video holds NaN or Inf: it was not recorded throughout, or its run broke."
        )
    size = np.maximum(_norm(a, dims), _norm(b, dims))
    out = ((to_a - to_b) / apart.where(apart > SAME * size)).clip(-1, 1)
    return out.rename("leaning").assign_attrs(long_name="leaning to the other video", units="1")


def _norm(values: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Return the Euclidean norm over some dimensions."""
    squares: xr.DataArray = (values**2).sum(dims, skipna=False)
    return squares**0.5


__all__ = ["leaning"]
