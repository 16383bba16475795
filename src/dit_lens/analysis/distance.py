"""How far the clean video that the model believes in moves along the denoising steps.

Where x0 still moves from step to step the answer is still being made; where its distance to the final x0 has
fallen to nothing it is settled. These are distances of latents, not of answers: a scene may repaint itself
while the answer stands (see `dit_lens.analysis.commitment` for the answers).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import require_dims, units
from dit_lens.plan.places import LATENT_DIMS

TOKENS = ("frame", LATENT_DIMS["y"], LATENT_DIMS["x"])
"""The dimensions that count the places of a latent video."""

CHANNEL = LATENT_DIMS["channel"]


def trajectory_distance(x0: xr.DataArray) -> xr.Dataset:
    """Compute the RMS distance of x0 at every step to that of the step before, and to the final one.

    The distance at one place is the root of the mean over `latent_channel` of the squared difference; that of
    a frame is the root of the mean square over its places, so it is not the mean of the map.

    Args:
        x0: [..., step, frame, latent_y, latent_x, latent_channel], as `run["x0"]`; may be lazy. Other
            dimensions (sample, seed, ...) are kept apart.

    Returns:
        Dataset: `to_previous` and `to_final` [..., step, frame, latent_y, latent_x], and for whole frames
        `to_previous_frame` and `to_final_frame` [..., step, frame]; dimensionless (latents have no unit),
        float32, or float64 for a float64 x0. "Previous" and "final" are among the steps passed: `to_previous`
        is NaN at the first, which has none before it, and `to_final` is 0 at the last. A place with a NaN
        or Inf gets NaN, or Inf.

    Raises:
        DitLensError: a dimension is missing, or a step was not recorded.
    """
    require_dims(x0, ["step", *TOKENS, CHANNEL], "trajectory_distance")
    x0 = x0.transpose(..., "step", *TOKENS, CHANNEL)
    outer = [str(d) for d in x0.dims[:-4]]
    dims = [*outer, *TOKENS]
    dtype = np.result_type(x0.dtype, np.float32)
    shape = [x0.sizes[d] for d in dims]
    maps = {name: np.full(shape, np.nan, dtype) for name in ("to_previous", "to_final")}
    frames = {name: np.full(shape[:-2], np.nan, dtype) for name in maps}
    last = x0.sizes["step"] - 1
    previous = final = np.empty(0)
    for index, values in units(x0, [*TOKENS, CHANNEL], "trajectory_distance"):
        at = tuple(index.values())
        state = values.astype(np.float64)
        if index["step"] == 0:
            alone = x0.isel({d: [i] for d, i in index.items() if d != "step"} | {"step": [last]})
            ((_, final),) = units(alone, [*TOKENS, CHANNEL], "trajectory_distance")
        else:
            maps["to_previous"][at], frames["to_previous"][at] = _rms(state, previous)
        maps["to_final"][at], frames["to_final"][at] = _rms(state, final)
        previous = state
    return _dataset(x0, dims, maps, frames)


def _rms(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Root mean square of a - b over the last axis, and over the last three."""
    with np.errstate(invalid="ignore"):
        squares = np.square(a - b).mean(-1)
    return np.sqrt(squares), np.sqrt(squares.mean((-2, -1)))


def _dataset(
    x0: xr.DataArray, dims: list[str], maps: dict[str, NDArray[Any]], frames: dict[str, NDArray[Any]]
) -> xr.Dataset:
    """Name the distances, with the coordinates of x0 that still apply."""
    out = xr.Dataset(coords={name: c for name, c in x0.coords.items() if set(c.dims) <= set(dims)})
    texts = {
        "to_previous": "distance of x0 to the previous step's",
        "to_final": "distance of x0 to the final",
    }
    for name, text in texts.items():
        long_name = f"RMS {text} over latent channels"
        out[name] = (dims, maps[name], {"long_name": long_name, "units": "1"})
        long_name = f"RMS {text} over a frame"
        out[f"{name}_frame"] = (dims[:-2], frames[name], {"long_name": long_name, "units": "1"})
    return out
