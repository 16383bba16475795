"""Which channels tell tokens apart: their variance over the tokens of a state, and maps of the strongest.

A channel that is large but the same at every token (a bias, a massive activation) has no variance and is no
map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.moments import Moments
from dit_lens.analysis.states import (
    map_units,
    name_of,
    require_dims,
    require_recorded,
    shape_of,
    token_dims,
    units,
)
from dit_lens.errors import DitLensError


def channel_importance(hidden: xr.DataArray) -> xr.DataArray:
    """Compute the variance of every channel over the tokens of each state.

    Args:
        hidden: [..., frame, y, x, channel]; any float type, may be lazy and larger than memory.

    Returns:
        [..., channel], float64, dimensionless: the population variance over frame, y, x (arXiv 2603.16870),
        in one stable pass. A channel with a NaN or Inf gets NaN.

    Raises:
        DitLensError: there is no `channel` or no tokens, or a state was not recorded.
    """
    require_dims(hidden, ["channel"], "channel_importance")

    def variance(state: NDArray[Any]) -> NDArray[np.float64]:
        moments = Moments(state.shape[-1], full=False)
        with np.errstate(invalid="ignore"):
            moments.add(state.reshape(-1, state.shape[-1]))
        return moments.scatter / moments.count

    grid = token_dims(hidden, "channel_importance")
    out = map_units(hidden, [*grid, "channel"], ["channel"], variance, "channel_importance")
    return out.rename("channel_importance").assign_attrs(long_name="variance over tokens", units="1")


def top_channels(hidden: xr.DataArray, k: int = 4, importance: xr.DataArray | None = None) -> xr.DataArray:
    """Return the maps of the k most important channels.

    Args:
        hidden: [..., frame, y, x, channel]; may be lazy.
        k: how many channels.
        importance: [channel] or [..., channel]; by default computed by `channel_importance`, so that each
            state shows its own channels. Give the importance of one state, or a mean, to follow the same
            channels everywhere.

    Returns:
        [..., rank, frame, y, x] in the type of `hidden`; the coordinates `channel` and `importance` say which
        channel stands at a rank (0 is the most important; of equals, the lower channel comes first).

    Raises:
        DitLensError: k does not fit, the channels do not agree, the importance is NaN, or a state was not
            recorded.
    """
    if importance is None:
        importance = channel_importance(hidden)
    importance = require_recorded(importance, "top_channels").transpose(..., "channel")
    _check(hidden, k, importance)
    weights = importance.to_numpy()
    best = np.argsort(-weights, axis=-1, kind="stable")[..., :k]
    state_dims = [str(d) for d in importance.dims[:-1]]
    grid = token_dims(hidden, "top_channels")

    outer = [str(d) for d in hidden.dims if d not in (*grid, "channel")]
    maps = [
        np.moveaxis(state[..., best[tuple(index[d] for d in state_dims)]], -1, 0)
        for index, state in units(hidden, [*grid, "channel"], "top_channels")
    ]
    dims = [*outer, "rank", *grid]
    values = np.stack(maps).reshape([*(hidden.sizes[d] for d in outer), *maps[0].shape])
    coords = {name: c for name, c in hidden.coords.items() if set(c.dims) <= set(dims)}
    coords["channel"] = ([*state_dims, "rank"], hidden["channel"].to_numpy()[best])
    coords["importance"] = ([*state_dims, "rank"], np.take_along_axis(weights, best, -1))
    attrs = {"long_name": "channel activation", "units": "1"}
    return xr.DataArray(values, {"rank": np.arange(k), **coords}, dims, "top_channels", attrs)


def _check(hidden: xr.DataArray, k: int, importance: xr.DataArray) -> None:
    """Refuse what cannot be ranked, with the reason."""
    require_dims(hidden, ["channel"], "top_channels")
    require_dims(importance, ["channel"], "top_channels")
    if not 1 <= k <= hidden.sizes["channel"]:
        raise DitLensError(f"top_channels: k is {k}, but there are {hidden.sizes['channel']} channels.")
    if any(hidden.sizes.get(d) != n for d, n in importance.sizes.items()):
        raise DitLensError(
            f"top_channels: the importance, {shape_of(importance)}, does not fit {name_of(hidden)}, "
            f"{shape_of(hidden)}; compute it from the same states, or reduce it to [channel]."
        )
    if importance.isnull().any():
        raise DitLensError(
            "top_channels: the importance of some channels is NaN; are there NaN or Inf in the states?"
        )
