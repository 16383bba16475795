"""Where a curve is highest, with an interval."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dit_lens.analysis.bootstrap import Bootstrap
from dit_lens.analysis.states import name_of, require_dims
from dit_lens.errors import DitLensError


def peak(
    values: xr.DataArray, along: str, *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> xr.Dataset:
    """Find where the mean over samples and seeds is highest along a dimension.

    The interval is of positions: the percentiles of where drawn curves are highest, samples drawn with all their seeds. A curve
    without a peak has an interval that spans it; positions jump, so the interval covers at least as often as it says.

    Args:
        values: [sample, along] or [sample, seed, along], numbers.
        along: the dimension, whose labels increase.
        draws: how many bootstrap draws.
        seed: of the draws.
        level: the chance that the interval holds the position of the true mean's peak.

    Returns:
        Dataset without dimensions: `peak`, `low`, `high`, labels of `along`; of several equal peaks the first. Attributes
        `n_samples`, `n_seeds`, `level`.

    Raises:
        DitLensError: other dimensions, fewer than 2 samples, a value that is no finite number, or labels that do not increase.
    """
    require_dims(values, ["sample", along], "peak")
    if "seed" not in values.dims:
        values = values.drop_vars("seed", errors="ignore").expand_dims("seed")
    if others := set(values.dims) - {"sample", "seed", along}:
        raise DitLensError(f"peak: {name_of(values)} has {', '.join(map(str, others))}, too; select one.")
    values = values.transpose("sample", "seed", along).astype(float).compute()
    labels = values[along].to_numpy()
    if values.sizes["sample"] < 2 or not np.isfinite(values.to_numpy()).all():
        raise DitLensError(
            f"peak: {name_of(values)} takes 2 samples or more, and finite numbers; select what was measured."
        )
    if labels.dtype.kind not in "iuf" or not (np.diff(labels) > 0).all():
        raise DitLensError(f"peak: the labels of {along} are no numbers that increase: {labels.tolist()}.")
    bootstrap = Bootstrap(values.to_numpy(), draws, seed)
    at = np.sort(bootstrap.drawn.argmax(1))
    tail = (1 - level) / 2 * (draws - 1)
    low, high = int(at[int(np.floor(tail))]), int(at[int(np.ceil(draws - 1 - tail))])
    ends = {"peak": int(bootstrap.estimate.argmax()), "low": low, "high": high}
    attrs = {"n_samples": values.sizes["sample"], "n_seeds": values.sizes["seed"], "level": level}
    return xr.Dataset({name: labels[i] for name, i in ends.items()}, attrs=attrs)


__all__ = ["peak"]
