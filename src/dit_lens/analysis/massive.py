"""Massive channels: a few whose values are huge at every token, and which carry most of a state's energy.

Large transformers have them (Sun et al. 2024, arXiv 2402.17762: over 100 times the median). Small ones have few or none by that
rule, so there is a relative one too: the share of a state's energy that its k largest channels carry. A channel that is the same
at every token tells none of them apart: of its energy, the part about its mean over tokens does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.masked import on_host
from dit_lens.analysis.states import map_units, require_dims, token_dims
from dit_lens.errors import DitLensError

TIMES = 100.0
"""A channel is massive whose mean absolute value is so many times that of the median channel."""
SIZES = ("size", "energy", "variance")
"""What `channel_sizes` measures."""
PROFILE = ("massive", "largest_to_median", "energy_share", "variance_share")
"""What `profile` says of a state."""


def channel_sizes(tokens: Any) -> NDArray[np.float64]:
    """Measure every channel of a state, where the state is: on a GPU or a CPU.

    Args:
        tokens: [token, channel], a tensor or an array of float32 or float64.

    Returns:
        [measure, channel], the `SIZES`: mean absolute value, mean square, and variance over the tokens.
    """
    centred = tokens - tokens.mean(0)
    return np.stack(
        [on_host(part) for part in (abs(tokens).mean(0), (tokens**2).mean(0), (centred**2).mean(0))]
    )


def largest_channels(size: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """Return the k channels of the largest mean absolute value, the largest first.

    Args:
        size: [channel].
        k: how many.

    Raises:
        DitLensError: k is not from 1 to one less than there are channels, or a size is no finite number.
    """
    if not 1 <= k < len(size):
        raise DitLensError(f"k={k}: there are {len(size)} channels; take 1 to {len(size) - 1}.")
    if not np.isfinite(size).all():
        raise DitLensError(f"The size of channel {int(np.argmin(np.isfinite(size)))} is NaN or Inf.")
    return np.argsort(-size, kind="stable")[:k]


def profile(sizes: NDArray[np.float64], k: int, times: float = TIMES) -> NDArray[np.float64]:
    """Return the `PROFILE` of a state from its `channel_sizes`.

    Args:
        sizes: [measure, channel].
        k: how many of the largest channels the shares are of.
        times: how many times the median channel a massive one is.

    Returns:
        How many channels are massive; how many times the median channel the largest is (Inf where the median is 0); which shares
        of the state's energy and of its variance the k largest channels carry (NaN where there is none).
    """
    size, energy, variance = sizes
    chosen = largest_channels(size, k)
    median = float(np.median(size))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [part[chosen].sum() / part.sum() for part in (energy, variance)]
        return np.array([(size > times * median).sum(), size.max() / np.float64(median), *shares])


def massive_channels(hidden: xr.DataArray, k: int = 3, times: float = TIMES) -> xr.Dataset:
    """Find the largest channels of states, and say how much they carry.

    Args:
        hidden: [..., frame, y, x, channel]; any float type, may be lazy.
        k: how many of the largest channels.
        times: how many times the median channel a massive one is.

    Returns:
        Dataset: `channel` [..., rank], the k channels of the largest mean absolute value over tokens; on [...] `massive`, how
        many channels are over `times` the median one; `largest_to_median`, how many times the median channel the largest is (Inf
        where that is 0); `energy_share` and `variance_share`, which shares of a state's energy (mean square) and of its
        variance over tokens the k channels carry (NaN where there is none).

    Raises:
        DitLensError: there is no `channel`, k does not fit, or a state was not recorded or holds NaN or Inf.
    """
    require_dims(hidden, ["channel"], "massive_channels")
    grid = token_dims(hidden, "massive_channels")
    labels = hidden["channel"].to_numpy()

    def measure(state: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # Inf is refused below
            sizes = channel_sizes(state.reshape(-1, state.shape[-1]).astype(np.float64))
        return np.concatenate([largest_channels(sizes[0], k), profile(sizes, k, times)])

    out = map_units(hidden, [*grid, "channel"], ["value"], measure, "massive_channels")
    channels = out.isel(value=slice(0, k)).rename(value="rank")
    parts = {name: out.isel(value=k + i) for i, name in enumerate(PROFILE)}
    named = channels.copy(data=labels[channels.to_numpy().astype(int)])
    return (
        xr.Dataset({"channel_of": named, **parts}).rename(channel_of="channel").assign_attrs(k=k, times=times)
    )


def matched_channels(variance: NDArray[np.float64], channels: Sequence[int]) -> list[int]:
    """Return for each of some channels another one whose variance is nearest, none of them twice and none of these.

    Args:
        variance: [channel], over tokens.
        channels: to match, at most half of all.

    Raises:
        DitLensError: too few others are left.
    """
    left = [c for c in range(len(variance)) if c not in set(channels)]
    if len(left) < len(channels):
        raise DitLensError(
            f"{len(channels)} of {len(variance)} channels have too few others to match: take {len(variance) // 2} at most."
        )
    out: list[int] = []
    for channel in channels:
        nearest = min(left, key=lambda c: (abs(variance[c] - variance[channel]), c))
        left.remove(nearest)
        out.append(nearest)
    return out


__all__ = [
    "PROFILE",
    "SIZES",
    "TIMES",
    "channel_sizes",
    "largest_channels",
    "massive_channels",
    "matched_channels",
    "profile",
]
