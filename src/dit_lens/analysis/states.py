"""Walking over arrays that are larger than memory, one unit at a time.

A unit is one state: what is left when every dimension but those of the tokens and channels is fixed, e.g. one
(step, branch, layer). At 14B a unit is 0.7 GB in float32 and a run is 1.3 TB, so the analyses load a unit,
reduce it, and forget it; sums are made in float64 over small blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.errors import DitLensError

GRID = ("frame", "y", "x")
"""The dimensions that together count the tokens of one state."""

BLOCK_BYTES = 2**20
"""Size of a float64 block of tokens: it stays in the processor's cache, twice as fast as blocks of 64 MB."""


def require_dims(array: xr.DataArray, dims: Sequence[str], caller: str) -> None:
    """Check that an array can be analysed over some dimensions.

    Raises:
        DitLensError: a dimension is missing, nothing is selected, or the values are bfloat16 codes, not
            numbers.
    """
    missing = [d for d in dims if d not in array.dims]
    if missing:
        latent = [d for d in array.dims if str(d).startswith("latent_")]
        names = ", ".join(f"{d}={str(d).removeprefix('latent_')!r}" for d in latent)
        hint = f" For latents, rename first: .rename({names})." if latent else ""
        raise DitLensError(
            f"{caller}: {name_of(array)} has no dimension {', '.join(missing)}; "
            f"it has {shape_of(array)}.{hint}"
        )
    if array.size == 0:
        raise DitLensError(f"{caller}: {name_of(array)} is empty, {shape_of(array)}; check the selection.")
    if "logical_dtype" in array.attrs and array.dtype.kind in "iu":
        raise DitLensError(
            f"{caller}: {name_of(array)} holds {array.attrs['logical_dtype']} codes in {array.dtype}, "
            "not numbers; open the store with dit_lens.open_runs, which decodes them."
        )


def units(
    array: xr.DataArray, inner: Sequence[str], caller: str
) -> Iterator[tuple[dict[str, int], NDArray[Any]]]:
    """Load an array unit by unit.

    Args:
        array: any dimensions, `inner` among them; may be lazy.
        inner: the dimensions of a unit, in the order in which they are wanted.
        caller: the name for error messages.

    Yields:
        The position of the unit on every other dimension, and its values on `inner`.

    Raises:
        DitLensError: a unit is all NaN, which means that it was not recorded or not committed.
    """
    require_dims(array, inner, caller)
    outer = [str(d) for d in array.dims if d not in inner]
    for position in np.ndindex(*(array.sizes[d] for d in outer)):
        index = dict(zip(outer, position, strict=True))
        unit = array.isel(index).transpose(*inner)
        values = unit.to_numpy()
        if all_nan(values):
            raise not_recorded(array, [place(array, index)], caller)
        yield index, values


def map_units(
    array: xr.DataArray,
    inner: Sequence[str],
    out: Sequence[str],
    reduce: Callable[[NDArray[Any]], NDArray[Any]],
    caller: str,
) -> xr.DataArray:
    """Apply a function to every unit, one in memory at a time.

    Args:
        array: [..., inner]; may be lazy.
        inner: the dimensions of a unit, which `reduce` receives.
        out: the dimensions of what `reduce` returns.
        reduce: from the values on `inner` to the values on `out`.
        caller: the name for error messages.

    Returns:
        [..., out], with the coordinates that still apply.
    """
    require_dims(array, inner, caller)
    outer = [str(d) for d in array.dims if d not in inner]
    values: NDArray[Any] | None = None
    for index, unit in units(array, inner, caller):
        result = reduce(unit)
        if values is None:
            values = np.empty([*(array.sizes[d] for d in outer), *result.shape], result.dtype)
        values[tuple(index.values())] = result
    dims = [*outer, *out]
    coords = {name: c for name, c in array.coords.items() if set(c.dims) <= set(dims)}
    return xr.DataArray(values, dims=dims, coords=coords)


def float64_blocks(
    tokens: NDArray[Any], size: int = BLOCK_BYTES
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Cut [token, channel] into float64 copies of at most `size` bytes, with their places."""
    count = max(1, size // (8 * max(1, tokens.shape[1])))
    for start in range(0, len(tokens), count):
        where = slice(start, min(start + count, len(tokens)))
        yield where, tokens[where].astype(np.float64)


def token_dims(array: xr.DataArray, caller: str) -> list[str]:
    """Return which of frame, y, x an array has.

    Raises:
        DitLensError: it has none of them.
    """
    dims = [d for d in GRID if d in array.dims]
    if not dims:
        raise DitLensError(
            f"{caller}: {name_of(array)} has no tokens (frame, y, x); it has {shape_of(array)}."
        )
    return dims


def require_recorded(array: xr.DataArray, caller: str) -> xr.DataArray:
    """Load an array that fits in memory, and check that every state in it was recorded.

    Raises:
        DitLensError: a state (all values at one place on step, branch, layer, ...) is NaN.
    """
    require_dims(array, (), caller)
    array = array.compute()
    if array.dtype.kind != "f":
        return array
    inner = [d for d in array.dims if d in {*GRID, "channel", "rank", "component", "rgb"}]
    bad = array.isnull().all(inner)
    if bad.any():
        indices = (dict(zip(map(str, bad.dims), at, strict=True)) for at in np.argwhere(bad.to_numpy()))
        raise not_recorded(array, [place(array, index) for index in indices], caller)
    return array


def all_nan(values: NDArray[Any]) -> bool:
    """Say whether all values are NaN; as good as free where the first one is not."""
    return values.dtype.kind == "f" and bool(np.isnan(values.flat[0])) and bool(np.isnan(values).all())


def not_recorded(array: xr.DataArray, places: Sequence[str], caller: str) -> DitLensError:
    """Return the error for states that are NaN throughout."""
    shown = "; ".join(places[:4]) + (f"; and {len(places) - 4} more" if len(places) > 4 else "")
    at = f" at {shown}" if shown.strip("; ") else ""
    return DitLensError(
        f"{caller}: {name_of(array)} was not recorded{at} (all values are NaN). "
        "Select the coordinates that the run holds, or resume the run to fill them."
    )


def place(array: xr.DataArray, index: Mapping[str, int]) -> str:
    """Name a position by its coordinates: "step 3, branch cond, layer 6"; scalar ones are named too."""
    parts = {d: array[d].values[int(i)] if d in array.coords else int(i) for d, i in index.items()}
    for name in ("sample", "seed", "step", "branch", "layer"):
        if name in array.coords and array.coords[name].ndim == 0:
            parts[name] = array.coords[name].item()
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def name_of(array: xr.DataArray) -> str:
    """Return the array's name, for messages."""
    return str(array.name) if array.name is not None else "the array"


def shape_of(array: xr.DataArray) -> str:
    """Return "[step 20, layer 12, ...]", for messages."""
    return "[" + ", ".join(f"{d} {n}" for d, n in array.sizes.items()) + "]"
