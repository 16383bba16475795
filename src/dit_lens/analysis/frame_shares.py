"""Attention between frames as shares: how much stays, goes back, goes ahead."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dit_lens.analysis.states import require_dims, shape_of
from dit_lens.errors import DitLensError

SHARES = ("own", "past", "future", "first", "distance")
"""What `frame_shares` gives."""


def frame_shares(attention: xr.DataArray) -> xr.Dataset:
    """Say how much of the attention between frames stays in a frame, goes back and goes ahead, and how far.

    A model that spreads its attention evenly over F frames has 1/F on the own and on the first frame, (F - 1) / 2F on past and
    on future ones, and a distance of (F - 1/F) / 3. One that sees no later frame has a future share of exactly 0.

    Args:
        attention: [..., frame, key_frame], as `dl.attention(over="frames")` records it: how much the places of a frame look at
            each frame. Frames are numbered by their position.

    Returns:
        Dataset on [...], means over the frames that look: `own`, `past`, `future`, shares of the attention; `first`, the share
        on the first frame, of all frames but the first; `distance`, the mean number of frames between the two. NaN of `first`
        where there is one frame, and everywhere where a value is NaN.

    Raises:
        DitLensError: dimensions are missing, or frames and keys are of different numbers.
    """
    require_dims(attention, ["frame", "key_frame"], "frame_shares")
    count = attention.sizes["frame"]
    if attention.sizes["key_frame"] != count:
        raise DitLensError(
            f"frame_shares: the attention has {shape_of(attention)}; give as many key_frame as frame."
        )
    ahead = np.arange(count)[None] - np.arange(count)[:, None]  # [frame, key_frame]
    bare = attention.drop_vars(["frame", "key_frame"], errors="ignore").astype(np.float64)

    def share(weights: np.ndarray) -> xr.DataArray:
        table = xr.DataArray(weights.astype(float), dims=("frame", "key_frame"))
        return (bare * table).sum(("frame", "key_frame"), skipna=False) / count

    first = bare.isel(frame=slice(1, None), key_frame=0)
    return xr.Dataset(
        {
            "own": share(ahead == 0),
            "past": share(ahead < 0),
            "future": share(ahead > 0),
            "first": first.mean("frame", skipna=False) if count > 1 else share(np.zeros_like(ahead)) * np.nan,
            "distance": share(np.abs(ahead)),
        }
    )


__all__ = ["SHARES", "frame_shares"]
