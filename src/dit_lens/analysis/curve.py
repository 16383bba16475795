"""A curve of every sample along one dimension, as `peak` and `crossing` take it."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import name_of, require_dims
from dit_lens.errors import DitLensError


def curve_of(
    values: xr.DataArray, along: str, caller: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curves of samples, [sample, seed, along], and the labels of their positions.

    Args:
        values: [sample, along] or [sample, seed, along], numbers.
        along: the dimension, whose labels are numbers that increase.
        caller: for messages.

    Raises:
        DitLensError: other dimensions, fewer than 2 samples, a value that is no finite number, or labels that do not increase.
    """
    require_dims(values, ["sample", along], caller)
    if "seed" not in values.dims:
        values = values.drop_vars("seed", errors="ignore").expand_dims("seed")
    if others := set(values.dims) - {"sample", "seed", along}:
        raise DitLensError(f"{caller}: {name_of(values)} has {', '.join(map(str, others))}, too; select one.")
    outcomes = values.transpose("sample", "seed", along).astype(float).to_numpy()
    labels = values[along].to_numpy()
    if len(outcomes) < 2 or not np.isfinite(outcomes).all():
        raise DitLensError(
            f"{caller}: {name_of(values)} takes 2 samples or more, and finite numbers; select what was measured."
        )
    if labels.dtype.kind not in "iuf" or not (np.diff(labels) > 0).all():
        raise DitLensError(
            f"{caller}: the labels of {along} are no numbers that increase: {labels.tolist()}."
        )
    return outcomes, labels


__all__ = ["curve_of"]
