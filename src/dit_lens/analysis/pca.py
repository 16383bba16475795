"""Maps of the main directions in which token states differ, in colours that can be compared.

One basis is fitted over everything that is passed, so a colour means the same in every frame, step, branch
and layer of that set. A basis per step, as is common, turns and flips between steps, and its colours cannot
be compared.

Fitting adds up the exact channel x channel covariance, one state at a time: memory is 8 channel^2 bytes
(0.2 GB at 5,120 channels) and a block of tokens, whatever the number of states. Chosen by measuring, on 4 states
of 20,000 tokens x 512 channels in a store, one thread (`OMP_NUM_THREADS=1 python benchmarks/pca.py`, medians of 3
rounds beside other work on the machine; the error is the largest angle between the 3 directions and those of the
full PCA):

| method | error, degrees | s | memory, MB |
|---|---|---|---|
| scikit-learn's full PCA, float64 | 0 | 25.1 | 1159 |
| scikit-learn's randomised PCA, float32 | 3e-5 | 7.5 | 506 |
| scikit-learn's `IncrementalPCA(3)`, streamed | 0.025 | 25.1 | 118 |
| scikit-learn's `IncrementalPCA(30)`, streamed | 0.003 | 12.8 | 119 |
| this, streamed | 2e-13 | 4.0 | 144 |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.moments import Moments
from dit_lens.analysis.states import (
    float64_blocks,
    map_units,
    place,
    require_dims,
    require_recorded,
    token_dims,
    units,
)
from dit_lens.errors import DitLensError


def pca_basis(hidden: xr.DataArray, n: int = 3) -> xr.Dataset:
    """Fit one PCA basis over the tokens of all states in an array.

    Args:
        hidden: [..., frame, y, x, channel], e.g. all steps and branches of one layer; may be lazy and larger
            than memory.
        n: how many components.

    Returns:
        Dataset: `components` [component, channel] (orthonormal rows; the entry largest in magnitude is
            positive), `mean`
        [channel], `explained_variance_ratio` [component] (fractions of the total variance). All float64,
        dimensionless. The attribute `fitted_on` states the set.

    Raises:
        DitLensError: n does not fit, a state was not recorded or holds NaN or Inf, or all tokens are the
            same.
    """
    from scipy.linalg import eigh

    require_dims(hidden, ["channel"], "pca_basis")
    channels = hidden.sizes["channel"]
    if not 1 <= n <= channels:
        raise DitLensError(f"pca_basis: n is {n}, but there are {channels} channels.")
    moments = Moments(channels, full=True)
    for index, state in units(hidden, [*token_dims(hidden, "pca_basis"), "channel"], "pca_basis"):
        with np.errstate(invalid="ignore"):
            moments.add(state.reshape(-1, channels))
        if not np.isfinite(moments.mean).all():
            raise DitLensError(
                f"pca_basis: there are NaN or Inf in the state at {place(hidden, index)}; leave it out."
            )
    total = np.trace(moments.scatter)
    if total <= 0:
        raise DitLensError(
            "pca_basis: all tokens are the same, so there is no direction in which they differ."
        )
    values, vectors = eigh(moments.scatter, subset_by_index=[channels - n, channels - 1], overwrite_a=True)
    components = vectors[:, ::-1].T
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(n), largest])[:, None]
    coords: dict[str, Any] = {"component": np.arange(n)}
    if "channel" in hidden.coords:
        coords["channel"] = hidden["channel"].to_numpy()
    return xr.Dataset(
        {
            "components": (["component", "channel"], components),
            "mean": (["channel"], moments.mean),
            "explained_variance_ratio": (["component"], np.maximum(values[::-1], 0) / total),
        },
        coords,
        {"fitted_on": _stated(hidden), "tokens": moments.count},
    )


def pca_maps(hidden: xr.DataArray, n: int = 3, basis: xr.Dataset | None = None) -> xr.Dataset:
    """Project every token on the main directions of one set of states.

    Args:
        hidden: [..., frame, y, x, channel]; may be lazy and larger than memory. It is read twice (once with
            a `basis`).
        n: how many components; ignored with a `basis`.
        basis: from `pca_basis`, to project on directions fitted elsewhere: on fewer states, or on another
            run.

    Returns:
        The basis (see `pca_basis`), and `maps` [..., frame, y, x, component], float32, dimensionless.

    Raises:
        DitLensError: as `pca_basis`; or the basis has other channels.
    """
    if basis is None:
        basis = pca_basis(hidden, n)
    require_dims(hidden, ["channel"], "pca_maps")
    if basis.sizes["channel"] != hidden.sizes["channel"]:
        raise DitLensError(
            f"pca_maps: the basis has {basis.sizes['channel']} channels, but the states have "
            f"{hidden.sizes['channel']}; fit the basis on states of the same model and site."
        )
    mean, directions = basis["mean"].to_numpy(), basis["components"].to_numpy().T

    def project(state: NDArray[Any]) -> NDArray[np.float32]:
        tokens = state.reshape(-1, state.shape[-1])
        out = np.empty((len(tokens), directions.shape[1]), np.float32)
        for where, block in float64_blocks(tokens):
            out[where] = (block - mean) @ directions
        return out.reshape(*state.shape[:-1], -1)

    grid = token_dims(hidden, "pca_maps")
    maps = map_units(hidden, [*grid, "channel"], [*grid, "component"], project, "pca_maps")
    maps.attrs = {"long_name": "projection on principal component", "units": "1"}
    basis = basis[
        ["components", "mean", "explained_variance_ratio"]
    ]  # it may come with the maps of elsewhere
    return basis.drop_vars([n for n, c in basis.coords.items() if c.ndim == 0]).assign(maps=maps)


def to_rgb(maps: xr.DataArray, low: float = 1.0, high: float = 99.0) -> xr.DataArray:
    """Turn the first three components into colours, on one scale over everything that is passed.

    Args:
        maps: [..., component], as from `pca_maps`; pass all that is to be compared, and select afterwards.
        low: percentile of each component, over the whole set, that becomes 0; percentiles keep a few massive
            tokens from turning the rest grey.
        high: percentile that becomes 1. Values beyond are clipped.

    Returns:
        [..., rgb] in [0, 1], float32; component 0 is red, 1 green, 2 blue. A component that is constant
        becomes 0.5.

    Raises:
        DitLensError: there are fewer than three components, the percentiles are not in order, or a state was
            not recorded.
    """
    require_dims(maps, ["component"], "to_rgb")
    if maps.sizes["component"] < 3:
        raise DitLensError(
            f"to_rgb: colours take 3 components, but there are {maps.sizes['component']}; fit with n=3."
        )
    if not 0 <= low < high <= 100:
        raise DitLensError(f"to_rgb: percentiles must be 0 <= low < high <= 100, not {low} and {high}.")
    maps = require_recorded(maps.isel(component=slice(3)), "to_rgb").transpose(..., "component")
    values = maps.to_numpy().astype(np.float32)
    floor, ceiling = np.nanpercentile(values.reshape(-1, 3), [low, high], axis=0)
    span = np.where(ceiling > floor, ceiling - floor, 1)
    scaled = np.where(ceiling > floor, (values - floor) / span, 0.5)
    rgb = maps.copy(data=np.clip(scaled, 0, 1).astype(np.float32)).rename(component="rgb")
    rgb = rgb.assign_coords(rgb=["r", "g", "b"])
    return rgb.rename("rgb").assign_attrs(
        long_name="principal components as colours", units="1", low=low, high=high
    )


def _stated(hidden: xr.DataArray) -> str:
    """State the set of states: "20 step (0 to 19), 2 branch (cond, uncond), layer 6"."""
    fixed = place(hidden, {})
    parts = [fixed] if fixed else []
    for dim in (str(d) for d in hidden.dims if d not in ("frame", "y", "x", "channel")):
        values = hidden[dim].to_numpy()
        if values.dtype.kind in "iuf" and len(values) > 1:
            parts.append(f"{len(values)} {dim} ({values[0]} to {values[-1]})")
        else:
            parts.append(f"{len(values)} {dim} ({', '.join(map(str, values))})")
    return ", ".join(parts) if parts else "one state"
