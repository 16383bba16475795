"""How alike two sets of states are as geometries of tokens: linear centred kernel alignment (CKA).

Linear CKA (Kornblith, Norouzi, Lee & Hinton 2019, arXiv 1905.00414) compares which tokens are near which, so
it sees through rotations, scalings and shifts of the channels, and x and y may differ in channels. The
biased estimate tends to 1 when channels outnumber tokens, whatever the data; the debiased one (unbiased HSIC,
Song et al. 2012; as CKA in Nguyen, Raghu & Kornblith 2021, arXiv 2010.15327, and Murphy, Zylberberg & Fyshe
2024, arXiv 2405.01012) does not, and may be slightly negative. Dissimilarity is 1 - CKA.

Large states go through `cka` or `CrossProducts`: channel x channel products, never tokens x tokens (at 32,760
tokens one such kernel is 8.6 GB). Many small ones go through `cka_matrix` and `cka_pairs`: one matrix product
of their token x token kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.cka_kernels import cka_matrix, cka_pairs
from dit_lens.analysis.cka_products import CrossProducts
from dit_lens.analysis.states import (
    all_nan,
    name_of,
    not_recorded,
    place,
    require_dims,
    shape_of,
    token_dims,
)
from dit_lens.errors import DitLensError
from dit_lens.plan.places import DIMS

__all__ = ["CrossProducts", "cka", "cka_matrix", "cka_pairs"]


def cka(x: xr.DataArray, y: xr.DataArray, *, debiased: bool = True) -> xr.DataArray:
    """Compute the linear CKA between two sets of token states.

    Args:
        x: [..., frame, y, x, channel]; any float type, may be lazy and larger than memory.
        y: the same grid of tokens, matched one to one; as many channels as it likes. A further dimension
            (step, layer, ...) that both have is matched by its coordinates; one that only one of them has is
            compared with every state of the other.
        debiased: unbiased HSIC; else the biased, centred one.

    Returns:
        [...] over the further dimensions of both, in the order of `dit_lens.plan.places.DIMS`; float64,
        dimensionless. 1 is the same geometry, 0 an unrelated one. One pair of states is in memory at a time,
        and 8 (channel_x^2 + channel_x channel_y + channel_y^2) bytes.

    Raises:
        DitLensError: grids or coordinates do not match, a state was not recorded or holds NaN or Inf, its
            tokens are all the same, or there are too few of them.
    """
    grid = _matched_grid(x, y)
    inner = [*grid, "channel"]
    out = _frame(x, inner) * _frame(y, inner)
    known = [d for d in DIMS if d in out.dims]
    out = out.transpose(..., *known)
    x, y = (a.transpose(*(d for d in out.dims if d in a.dims), *inner) for a in (x, y))
    values = np.empty(out.shape)
    held: dict[int, tuple[dict[str, int], str, NDArray[Any]]] = {}
    for position in np.ndindex(*out.shape):
        at = dict(zip(map(str, out.dims), position, strict=True))
        for side, array in enumerate((x, y)):
            index = {d: i for d, i in at.items() if d in array.dims}
            if side not in held or held[side][0] != index:
                held.pop(side, None)  # before the next one is read, not after
                held[side] = (index, *_tokens(array, index))
        values[position] = _compare(held[0][1:], held[1][1:], debiased)
    kind = "debiased" if debiased else "biased"
    return out.copy(data=values).rename("cka").assign_attrs(long_name=f"linear CKA ({kind})", units="1")


def _compare(x: tuple[str, NDArray[Any]], y: tuple[str, NDArray[Any]], debiased: bool) -> float:
    """Return the CKA of two named states [token, channel]."""
    products = CrossProducts(x[1].shape[1], y[1].shape[1], (x[0], y[0]))
    products.add(x[1], y[1])
    return products.cka(debiased=debiased)


def _matched_grid(x: xr.DataArray, y: xr.DataArray) -> list[str]:
    """Check that two arrays can be compared token by token; return the dimensions of the tokens."""
    for array in (x, y):
        require_dims(array, ["channel"], "cka")
    grid = token_dims(x, "cka")
    shapes = f"x is {name_of(x)} {shape_of(x)}, y is {name_of(y)} {shape_of(y)}"
    if set(token_dims(y, "cka")) != set(grid):
        raise DitLensError(f"cka: both need the same of frame, y, x, to match their tokens; {shapes}.")
    for dim in (str(d) for d in x.dims if d in y.dims and d != "channel"):
        if x.sizes[dim] != y.sizes[dim]:
            what = "tokens are matched one to one" if dim in grid else "states are matched one to one"
            raise DitLensError(
                f"cka: {what}, but {dim} differs; {shapes}. Select the same {dim} in both, or rename it in "
                "one of them to compare all with all."
            )
        if dim in x.coords and dim in y.coords and not np.array_equal(x[dim].values, y[dim].values):
            raise DitLensError(
                f"cka: the coordinates of {dim} differ: {x[dim].values} in {name_of(x)}, {y[dim].values} in "
                f"{name_of(y)}. Select the same {dim} in both (xarray.align), or rename it in one of them to "
                "compare all with all."
            )
    return grid


def _frame(array: xr.DataArray, inner: list[str]) -> xr.DataArray:
    """Return NaN on the dimensions and coordinates of an array that are left without the inner ones."""
    dims = [d for d in array.dims if d not in inner]
    coords = {name: c for name, c in array.coords.items() if set(c.dims) <= set(dims)}
    return xr.DataArray(np.full([array.sizes[d] for d in dims], np.nan), coords, dims)


def _tokens(array: xr.DataArray, index: dict[str, int]) -> tuple[str, NDArray[Any]]:
    """Load one state as [token, channel], with its name for messages; the channels are its last dimension."""
    values = array.isel(index).to_numpy()
    where = place(array, index)
    if all_nan(values):
        raise not_recorded(array, [where], "cka")
    return f"{name_of(array)} at {where}" if where else name_of(array), values.reshape(-1, values.shape[-1])
