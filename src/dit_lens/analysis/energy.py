"""How strongly every token is excited: the energy of hidden states, and its summaries.

The energy of a token is the L2 norm of its hidden state, as in the layer-wise token visualisation of
*Demystifying Video Reasoning* (arXiv 2603.16870). It says where a layer works hardest, not on what: a few
channels with massive values may carry most of it (see `dit_lens.analysis.channel_importance`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import float64_blocks, map_units, require_dims, token_dims
from dit_lens.errors import DitLensError


def energy(hidden: xr.DataArray) -> xr.DataArray:
    """Compute the energy of every token: the L2 norm over `channel`.

    Args:
        hidden: [..., channel], e.g. [step, branch, layer, frame, y, x, channel]; any float type, may be lazy
            and larger than memory. Squares are summed in float64, so float16 states do not overflow.

    Returns:
        [...], dimensionless; float32, or float64 for float64 states.

    Raises:
        DitLensError: there is no `channel`, or a state was not recorded.
    """
    require_dims(hidden, ["channel"], "energy")
    dtype = np.result_type(hidden.dtype, np.float32)
    grid = [d for d in ("frame", "y", "x") if d in hidden.dims]

    def norms(state: NDArray[Any]) -> NDArray[Any]:
        tokens = state.reshape(-1, state.shape[-1])
        out = np.empty(len(tokens), dtype)
        for where, block in float64_blocks(tokens):
            out[where] = np.sqrt(np.einsum("tc,tc->t", block, block))
        return out.reshape(state.shape[:-1])

    out = map_units(hidden, [*grid, "channel"], grid, norms, "energy")
    return out.rename("energy").assign_attrs(long_name="energy: L2 norm over channels", units="1")


def temporal_energy(energy: xr.DataArray) -> xr.DataArray:
    """Compute the energy of every frame: the L2 norm over all of its tokens and channels.

    Args:
        energy: [..., frame, y, x], the energy of every token.

    Returns:
        [..., frame], dimensionless.

    Raises:
        DitLensError: there is no `y` and `x`, or a state was not recorded.
    """
    require_dims(energy, ["frame", "y", "x"], "temporal_energy")
    dtype = np.result_type(energy.dtype, np.float32)

    def norms(tokens: NDArray[Any]) -> NDArray[Any]:
        return np.sqrt(np.square(tokens, dtype=np.float64).sum((1, 2))).astype(dtype)

    out = map_units(energy, ["frame", "y", "x"], ["frame"], norms, "temporal_energy")
    return out.rename("temporal_energy").assign_attrs(
        long_name="temporal energy: L2 norm over a frame's tokens and channels", units="1"
    )


def energy_by_layer(energy: xr.DataArray, interval: float = 0.95) -> xr.Dataset:
    """Summarise energy over tokens, for curves over depth.

    Args:
        energy: [..., layer, frame, y, x]; other dimensions (step, branch, ...) are kept apart.
        interval: fraction of the tokens between `low` and `high`; 0.95 for the 95% range, 0.5 for the
            quartiles.

    Returns:
        Dataset on [..., layer]: `mean` over the tokens, and `low`, `high`, the quantiles (1 - interval) / 2
        and (1 + interval) / 2 of the tokens. This is the spread of the tokens, not a confidence interval of
        the mean.

    Raises:
        DitLensError: there is no `layer` or no tokens, the interval is not within (0, 1], or a state was not
            recorded.
    """
    return _summary(energy, "layer", interval, "energy_by_layer")


def energy_by_step(energy: xr.DataArray, interval: float = 0.95) -> xr.Dataset:
    """Summarise energy over tokens, for curves along the denoising steps.

    Args:
        energy: [..., step, ..., frame, y, x]; other dimensions (branch, layer, ...) are kept apart.
        interval: fraction of the tokens between `low` and `high`; 0.95 for the 95% range, 0.5 for the
            quartiles.

    Returns:
        Dataset on [..., step]: `mean`, `low`, `high` as in `energy_by_layer`.

    Raises:
        DitLensError: there is no `step` or no tokens, the interval is not within (0, 1], or a state was not
            recorded.
    """
    return _summary(energy, "step", interval, "energy_by_step")


def _summary(energy: xr.DataArray, along: str, interval: float, caller: str) -> xr.Dataset:
    """Mean and quantiles over tokens, with the dimension of the curve last."""
    require_dims(energy, [along], caller)
    if not 0 < interval <= 1:
        raise DitLensError(f"{caller}: interval is a fraction of the tokens within (0, 1], not {interval}.")
    levels = ((1 - interval) / 2, (1 + interval) / 2)

    def statistics(tokens: NDArray[Any]) -> NDArray[np.float64]:
        values = tokens.astype(np.float64).ravel()
        return np.array([values.mean(), *np.quantile(values, levels)])

    table = map_units(energy, token_dims(energy, caller), ["statistic"], statistics, caller)
    table = table.transpose(*[d for d in table.dims if d not in (along, "statistic")], along, "statistic")
    out = xr.Dataset(
        {name: table.isel(statistic=i, drop=True) for i, name in enumerate(("mean", "low", "high"))}
    )
    out["mean"].attrs = {"long_name": "mean energy over tokens", "units": "1"}
    for name, level in zip(("low", "high"), levels, strict=True):
        out[name].attrs = {
            "long_name": f"quantile {level:g} of the tokens' energy",
            "units": "1",
            "quantile": level,
        }
    return out.assign_attrs(interval=interval, over="tokens")
