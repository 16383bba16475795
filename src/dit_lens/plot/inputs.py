"""What a plot takes: the right dimensions, recorded values; and how to say where they are from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.states import name_of, require_dims, require_recorded, shape_of
from dit_lens.errors import DitLensError

ENERGY_LABEL = "energy of a token\n(L2 over channels, dimensionless)"
TEMPORAL_LABEL = "temporal energy of a frame\n(L2 over tokens and channels, dimensionless)"

DIM_WORDS = {"step": "denoising step", "frame": "latent frame"}


MOST_LINES = 1000
"""Curves in one figure; more take minutes, and nobody could tell them apart."""
MOST_STEPS = 10_000
"""Positions along a row of marks or bars."""


def require_labelled(array: object, caller: str, *kinds: type) -> None:
    """Refuse what has no names for its dimensions, before anything is computed of it.

    Args:
        array: what the user passed.
        caller: the plot's name.
        kinds: what it takes; a DataArray by default.

    Raises:
        DitLensError: it is of another kind, or does not hold real numbers.
    """
    kinds = kinds or (xr.DataArray,)
    if not isinstance(array, kinds):
        shape = f" of shape {list(array.shape)}" if hasattr(array, "shape") else ""
        raise DitLensError(
            f"{caller}: it takes an xarray {' or '.join(k.__name__ for k in kinds)}, whose dimensions have names, as "
            f'run["energy"] and the analyses return; this is {type(array).__name__}{shape}.'
        )
    if isinstance(array, xr.DataArray) and array.dtype.kind not in "fiub":
        raise DitLensError(
            f"{caller}: {name_of(array)} holds {array.dtype}, which cannot be drawn: give real numbers."
        )


def require_few(count: int, most: int, what: str, caller: str) -> None:
    """Refuse a figure that would take minutes or gigabytes.

    Raises:
        DitLensError: there are more than `most` of something.
    """
    if count > most:
        raise DitLensError(
            f"{caller}: {count:,} {what} are too many for one figure: select at most {most:,}."
        )


def one_row(values: object, name: str, caller: str) -> NDArray[np.float64]:
    """Return numbers along one dimension: one a step, for example.

    Args:
        values: anything that numpy takes; dimensions of length 1 are dropped from a DataArray.
        name: of the argument.
        caller: the plot's name.

    Raises:
        DitLensError: there are other dimensions, too many numbers, or something that is none.
    """
    array = values.squeeze() if isinstance(values, xr.DataArray) and values.ndim > 1 else values
    if isinstance(array, xr.Dataset | str | Mapping) or not isinstance(array, Iterable):
        raise DitLensError(f"{caller}: {name} is one number a step, [step]; this is {type(array).__name__}.")
    shape = tuple(getattr(array, "shape", ())) or np.shape(np.asarray(array, dtype=object))
    if len(shape) != 1:
        dims = shape_of(values) if isinstance(values, xr.DataArray) else list(shape)
        raise DitLensError(f"{caller}: {name} is one number a step, [step]; this has {dims}.")
    require_few(shape[0], MOST_STEPS, name, caller)
    try:
        return np.asarray(array, dtype=float)
    except (TypeError, ValueError) as error:
        raise DitLensError(f"{caller}: {name} are no numbers ({error}).") from error


def select(
    array: xr.DataArray, dims: Sequence[str], caller: str, optional: Sequence[str] = ()
) -> xr.DataArray:
    """Load an array that must have exactly some dimensions, in that order.

    Args:
        array: what the user passed; other dimensions are dropped where their length is 1.
        dims: the dimensions needed, in order.
        caller: the plot's name, for errors.
        optional: at most one of these may be there too; it comes first.

    Raises:
        DitLensError: a dimension is missing or left over (the message says how to select), or a state was not
            recorded.
    """
    require_labelled(array, caller)
    require_dims(array, dims, caller)
    allowed = {*dims, *optional}
    array = array.squeeze([d for d in array.dims if d not in allowed and array.sizes[d] == 1])
    array = array.squeeze([d for d in array.dims if d in optional and d not in dims and array.sizes[d] == 1])
    spare = [str(d) for d in array.dims if d not in dims]
    excess = [d for d in spare if d not in optional] or (spare if len(spare) > 1 else [])
    if excess:
        keep = f", leaving at most one of {', '.join(optional)}" if optional else ""
        values = ", ".join(f"{d}={array[d].values[0]!r}" for d in excess)
        raise DitLensError(
            f"{caller}: {name_of(array)} has {shape_of(array)}, too much for one picture: "
            f"select{keep}, e.g. .sel({values})."
        )
    for dim in spare:
        require_few(array.sizes[dim], MOST_LINES, f"positions along {dim}", caller)
    return require_recorded(array.transpose(*spare, *dims), caller)


def titled(what: str, array: xr.DataArray | xr.Dataset, title: str | None) -> str:
    """Return the user's title, or what is shown and where: "Energy per token · step 3 · cond · layer 6"."""
    return title if title is not None else " · ".join([what, *whereabouts(array)])


def whereabouts(array: xr.DataArray | xr.Dataset) -> list[str]:
    """Name the scalar coordinates of an array, as "step 3 (σ 0.89)", "cond", "layer 6"."""
    scalars = {str(n): c.item() for n, c in array.coords.items() if c.ndim == 0}
    parts = [f"{name} {scalars[name]}" for name in ("sample", "seed") if name in scalars]
    if "step" in scalars:
        sigma = f" (σ {scalars['sigma']:.3g})" if "sigma" in scalars else ""
        parts.append(f"step {scalars['step']}{sigma}")
    parts += [str(scalars["branch"])] if "branch" in scalars else []
    parts += [f"layer {scalars['layer']}"] if "layer" in scalars else []
    parts += [f"frame {scalars['frame']}"] if "frame" in scalars else []
    return parts


def labels_of(array: xr.DataArray | xr.Dataset, dim: str) -> list[object]:
    """Return the coordinate values of a dimension, or 0, 1, ... where it has none."""
    return list(array[dim].to_numpy().tolist()) if dim in array.coords else list(range(array.sizes[dim]))


def axis_label(array: xr.DataArray | xr.Dataset, dim: str) -> str:
    """Return what to write at an axis: the coordinate's `long_name` and `units`, or the dimension in words."""
    attrs = array[dim].attrs if dim in array.coords else {}
    name = attrs.get("long_name", DIM_WORDS.get(dim, dim.replace("_", " ")))
    return f"{name} ({attrs['units']})" if attrs.get("units") else str(name)


def counted(samples: int, seeds: int) -> str:
    """Say how many runs a picture stands on: "n = 64 samples × 3 seeds"."""
    return f"n = {samples} sample{'s' * (samples != 1)}" + (f" × {seeds} seeds" if seeds > 1 else "")


def centre_of(summary: xr.Dataset, caller: str) -> str:
    """Return which variable of a summary is its estimate: `mean` or `effect`.

    Raises:
        DitLensError: it has neither or both, or lacks `low`, `high`, or the attributes that say what these are.
    """
    require_labelled(summary, caller, xr.Dataset)
    centres = [name for name in ("mean", "effect") if name in summary]
    if len(centres) != 1 or not {"low", "high"} <= set(summary.data_vars):
        raise DitLensError(
            f"{caller}: a Dataset needs mean or effect, and low, high, as analysis.mean and analysis.effect "
            f"return; this one has {', '.join(map(str, summary)) or 'nothing'}."
        )
    if missing := [a for a in ("n_samples", "n_seeds", "level") if a not in summary.attrs]:
        raise DitLensError(
            f"{caller}: the Dataset does not say its {', '.join(missing)}, which the picture states; set "
            "them as attributes (an xarray operation may have dropped them: keep_attrs=True)."
        )
    return centres[0]


def spread(total: int, most: int | None) -> NDArray[np.intp]:
    """Return at most `most` positions out of `total`, evenly spread, the first and the last among them."""
    if most is None or most >= total:
        return np.arange(total)
    return np.unique(np.linspace(0, total - 1, max(most, 1)).round().astype(np.intp))


def limits(values: NDArray[np.floating], low: float = 0.0, high: float = 100.0) -> tuple[float, float]:
    """Return the colour limits shared by all panels: percentiles of the finite values, never empty."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    floor, ceiling = (float(v) for v in np.percentile(finite, [low, high]))
    return (floor, ceiling) if ceiling > floor else (floor - 0.5, floor + 0.5)
