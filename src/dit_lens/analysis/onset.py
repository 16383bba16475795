"""Where along a curve an effect begins: the first position whose interval is off 0."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dit_lens.analysis.states import require_dims
from dit_lens.errors import DitLensError


def onset(effect: xr.Dataset, along: str) -> xr.DataArray:
    """Return the first position along a dimension at which the simultaneous band of an effect is off 0.

    The band holds all positions at once, so that a curve without any effect has an onset by chance in as many cases as its level
    lets pass, 5% of a 95% band. No onset is no proof that there is none.

    Args:
        effect: from `effect` or `mean`, with `along=` this dimension among others, whose labels are numbers.
        along: the dimension.

    Returns:
        [...], the label of the first position, float; NaN where the band holds 0 everywhere.

    Raises:
        DitLensError: it has no band over this dimension.
    """
    if "band_low" not in effect or along not in effect.attrs.get("along", []):
        raise DitLensError(
            f"onset: it takes what analysis.effect(..., along={along!r}) returns, with a band over {along}."
        )
    require_dims(effect["band_low"], [along], "onset")
    labels = (
        effect[along] if along in effect.coords else xr.DataArray(np.arange(effect.sizes[along]), dims=along)
    )
    off = (effect["band_low"] > 0) | (effect["band_high"] < 0)
    first = labels.astype(float).isel({along: off.argmax(along)})
    return first.drop_vars(along, errors="ignore").where(off.any(along)).rename("onset")


__all__ = ["onset"]
