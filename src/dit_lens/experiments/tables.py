"""Blocks of samples as one table: what stands along an axis is the same for all samples, and what differs stands by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from dit_lens.errors import DitLensError


def require_one_table(first: xr.Dataset, other: xr.Dataset, name: str) -> None:
    """Refuse blocks along whose axes other things stand, such as the noise levels of samples of several sizes.

    Args:
        first: a block.
        other: another one.
        name: of the study.

    Raises:
        DitLensError: it names the dimension or the coordinate, and what it is in each.
    """
    sizes = {str(dim): (first.sizes.get(dim), count) for dim, count in other.sizes.items() if dim != "sample"}
    differing = {dim: pair for dim, pair in sizes.items() if pair[0] not in (None, pair[1])}
    for coord in first.coords.keys() & other.coords.keys():
        pair = first[coord], other[coord]
        if "sample" not in first[coord].dims and not pair[0].variable.equals(pair[1].variable):
            differing[str(coord)] = tuple(one.values.tolist() for one in pair)
    if differing:
        axis, values = next(iter(sorted(differing.items())))
        labels = (str(data["sample"].values[0]) for data in (first, other))
        said = "; ".join(f"{label} has {value}" for label, value in zip(labels, values, strict=True))
        raise DitLensError(
            f"{name}: samples of several shapes do not fit into one table: `{axis}` is not the same in all of them ({said}). "
            "Give --num-frames, or one --tasks at a time; blocks that are measured stay."
        )


def together(measured: Sequence[xr.Dataset], name: str) -> xr.Dataset:
    """Put blocks together; a number without `sample` that is not the same in all of them gets it.

    Raises:
        DitLensError: they do not fit into one table.
    """
    first = measured[0]
    differing = [
        variable
        for variable, values in first.data_vars.items()
        if "sample" not in values.dims
        and not all(values.variable.equals(data[variable].variable) for data in measured if variable in data)
    ]
    rows = [
        data.assign({v: data[v].expand_dims(sample=data["sample"]) for v in differing}) for data in measured
    ]
    how: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "exact"}
    try:
        return xr.concat(rows, "sample", **how)
    except ValueError as error:
        raise DitLensError(
            f"{name}: samples of several shapes do not fit into one table ({error}). Give --num-frames, or "
            "one --tasks at a time; blocks that are measured stay."
        ) from error


__all__ = ["require_one_table", "together"]
