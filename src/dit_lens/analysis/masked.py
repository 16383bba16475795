"""How strongly a state is excited on an object, and how strongly elsewhere.

The energy of a token is the norm of its state. Most of it may be the same at every token, which says nothing of the object:
so there is also the energy of what is left once the mean over all tokens is taken off, and the variance of the channels over
the tokens of the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import map_units, require_dims, shape_of
from dit_lens.errors import DitLensError

MEASURES = ("raw", "centred", "variance")
"""What `region_energy` measures."""


def token_shares(mask: NDArray[Any], grid: Sequence[int]) -> NDArray[np.float64]:
    """Return which share of the pixels of each token a mask covers.

    A token stands for the pixels of its tile. In time, the first token stands for the first frame alone where frames are one more
    than a multiple (the causal codecs of Wan, LTX and CogVideoX), and otherwise for as many frames as every other token.

    Args:
        mask: [time, height, width] of bool; or [height, width], the same at all times.
        grid: (frame, y, x) of the tokens.

    Returns:
        [frame, y, x], from 0 to 1.

    Raises:
        DitLensError: frames or pixels cannot be shared out evenly.
    """
    pixels = np.asarray(mask, bool)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3:
        raise DitLensError(
            f"token_shares: the mask is {pixels.shape}; give [time, height, width] or [height, width]."
        )
    (frames, rows, columns), (time, height, width) = grid, pixels.shape
    if height % rows or width % columns:
        raise DitLensError(
            f"token_shares: a mask of {height} x {width} pixels does not share out among {rows} x {columns} tokens; give one of "
            "the size that the model makes."
        )
    tiles = pixels.reshape(time, rows, height // rows, columns, width // columns).mean((2, 4))
    if time == 1:
        return np.repeat(tiles, frames, 0)
    starts = _first_frames(time, frames)
    shares: NDArray[np.float64] = np.add.reduceat(tiles, starts, 0)
    return shares / np.diff([*starts, time])[:, None, None]


def _first_frames(time: int, frames: int) -> list[int]:
    """Return with which frame of a video each token begins."""
    each, left = divmod(time - 1, frames - 1) if frames > 1 else (0, 1)
    if not left and (
        each == 1 or each % 2 == 0
    ):  # no codec squeezes time by an odd number: 8 frames in 2 tokens are 4 and 4
        return [0, *range(1, time, each)]
    if time % frames == 0:
        return list(range(0, time, time // frames))
    raise DitLensError(
        f"token_shares: {time} frames do not share out among {frames} tokens in time; give a mask of as many frames as the model "
        "makes."
    )


def region_energy(tokens: Any, regions: Any) -> NDArray[np.float64]:
    """Measure a state in some regions, where the state is: on a GPU or a CPU.

    Args:
        tokens: [token, channel], a tensor or an array of float32 or float64.
        regions: [region, token], of the same kind and on the same device: 1 where the token is in the region, else 0.

    Returns:
        [measure, region], the `MEASURES`, as `masked_energy` has them.
    """
    count = regions.sum(1)
    weights = regions / count[:, None]
    centred = tokens - tokens.mean(0)
    squares = (centred**2).sum(1)
    # About each region's own mean: the difference of two large sums would be rounding.
    means = weights @ centred
    spread = [weight @ ((centred - mean) ** 2).sum(1) for weight, mean in zip(weights, means, strict=True)]
    parts = weights @ (tokens**2).sum(1) ** 0.5, weights @ squares**0.5
    raw, about_mean, tokens_inside = (on_host(part) for part in (*parts, count))
    variance = np.array([on_host(part) for part in spread])
    return np.stack([raw, about_mean, np.where(tokens_inside > 1, variance, np.nan)])


def on_host(values: Any) -> NDArray[np.float64]:
    """Return a tensor, wherever it is, or an array in float64."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values, np.float64)


def masked_energy(hidden: xr.DataArray, masks: xr.DataArray) -> xr.Dataset:
    """Measure states on objects and elsewhere.

    Args:
        hidden: [..., frame, y, x, channel]; any float type, may be lazy.
        masks: [region, frame, y, x] of bool, such as `token_shares(...) >= 0.1` of each object.

    Returns:
        Dataset on [..., region]: `raw`, the mean norm of the region's tokens; `centred`, the same once the mean over all tokens
        of the state is taken off; `variance`, the variance over the region's tokens, summed over channels. NaN in a region
        without a token, and the variance of a single token.

    Raises:
        DitLensError: dimensions are missing or do not fit, or a state was not recorded.
    """
    grid = ["frame", "y", "x"]
    require_dims(hidden, [*grid, "channel"], "masked_energy")
    require_dims(masks, ["region", *grid], "masked_energy")
    if any(hidden.sizes[d] != masks.sizes[d] for d in grid) or masks.ndim != 4:
        raise DitLensError(
            f"masked_energy: the masks have {shape_of(masks)}, the states {shape_of(hidden)}: give [region, frame, y, x] on the "
            "states' grid."
        )
    regions = masks.transpose("region", *grid).to_numpy().astype(bool).reshape(masks.sizes["region"], -1)

    def measure(state: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            tokens = state.reshape(-1, state.shape[-1]).astype(np.float64)
            return region_energy(tokens, regions.astype(np.float64))

    out = map_units(hidden, [*grid, "channel"], ["measure", "region"], measure, "masked_energy")
    names = {"region": masks["region"]} if "region" in masks.coords else {}
    texts = (
        "mean norm of tokens",
        "mean norm of tokens less the mean of all",
        "variance over tokens, summed over channels",
    )
    parts = {
        name: out.isel(measure=i).assign_attrs(long_name=text, units="1")
        for i, (name, text) in enumerate(zip(MEASURES, texts, strict=True))
    }
    return xr.Dataset(parts).assign_coords(names)


__all__ = ["MEASURES", "masked_energy", "on_host", "region_energy", "token_shares"]
