"""Samples by the length of their right path."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

ONE_LENGTH = "the samples are too few, or too alike in the length of their paths, to be cut by it"
"""What a summary says where there are no two bins."""


def bins(lengths: xr.DataArray) -> dict[str, NDArray[np.intp]]:
    """Cut samples into up to 4 bins of path length, about equally full; each has at least 2 samples.

    Args:
        lengths: [sample], in cells.

    Returns:
        By name (`8-10 cells`), the numbers of the samples.
    """
    order = np.sort(lengths.values)
    edges = sorted({int(order[i * len(order) // 4]) for i in range(4)})
    members: dict[str, NDArray[np.intp]] = {}
    for low, after in zip(edges, [*edges[1:], int(order[-1]) + 1], strict=True):
        inside = np.flatnonzero((lengths.values >= low) & (lengths.values < after))
        if len(inside) > 1:
            last = int(lengths.values[inside].max())
            members[f"{low} cells" if low == last else f"{low}-{last} cells"] = inside
    return members


__all__ = ["ONE_LENGTH", "bins"]
