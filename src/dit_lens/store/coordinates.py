"""Coordinates of a run as small zarr arrays: numbers, or labels as strings that xarray can select by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store.metadata import bytes_codec, zarr_array

CoordLike = Any
"""Values, `(dims, values)` or `(dims, values, attrs)`; without dims, on the dimension of the same name."""

_COORD_ATTRS = {
    "step": ("1", "denoising step (0 = most noise)"),
    "sigma": ("1", "noise level"),
    "timestep": ("1", "timestep that the model is told"),
    "expert": ("label", "transformer that served the step"),
    "branch": ("label", "guidance branch"),
    "layer": ("1", "transformer block"),
    "frame": ("1", "latent frame"),
    "y": ("1", "token row"),
    "x": ("1", "token column"),
    "channel": ("1", "channel"),
    "time": ("1", "video frame"),
}


@dataclass(frozen=True)
class Coordinate:
    """One coordinate variable: numbers, or labels as strings."""

    name: str
    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]

    @classmethod
    def of(cls, name: str, coord: CoordLike) -> Coordinate:
        """Make a coordinate from what xarray would take for one.

        Raises:
            StoreError: If the values are not numbers or strings, or have not one dimension name each.
        """
        dims, values, attrs = ((name,), coord, {})
        if isinstance(coord, tuple) and len(coord) in (2, 3) and not np.isscalar(coord[1]):
            dims = (coord[0],) if isinstance(coord[0], str) else tuple(coord[0])
            values, attrs = coord[1], dict(coord[2]) if len(coord) == 3 else {}
        array = np.asarray(values)
        if array.dtype.kind in "OUST":
            array = np.array([str(label) for label in array.ravel().tolist()], object).reshape(array.shape)
        if array.dtype.kind not in "biufO" or array.ndim != len(dims) or array.size == 0:
            raise StoreError(
                f"coordinate {name!r}: {array.dtype} values of shape {array.shape} on dims {dims}; "
                "give numbers or strings, as a list, an array or (dims, values)"
            )
        if array.dtype.kind == "O" and (bad := [label for label in array.ravel() if not _is_utf8(label)]):
            raise StoreError(
                f"coordinate {name!r}: the label {bad[0]!r} is no valid text; give it another name"
            )
        units, long_name = _COORD_ATTRS.get(name, ("label" if array.dtype.kind == "O" else "1", name))
        return cls(name, dims, array, {"units": units, "long_name": long_name, **attrs})

    @property
    def is_label(self) -> bool:
        """Whether the values are strings."""
        return self.values.dtype.kind == "O"

    def to_json(self) -> dict[str, Any]:
        """Return the array's `zarr.json`."""
        data_type = "string" if self.is_label else self.values.dtype.name
        codecs = (
            [{"name": "vlen-utf8", "configuration": {}}]
            if self.is_label
            else [bytes_codec(self.values.dtype)]
        )
        shape = self.values.shape
        return zarr_array(shape, data_type, shape, codecs, self.dims, self.attrs)

    def chunk(self) -> tuple[str, bytes]:
        """Return the file name and the bytes of the one chunk; labels as zarr's `vlen-utf8` has them."""
        name = chunk_name(self.values.ndim)
        if not self.is_label:
            return name, self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()
        parts = [self.values.size.to_bytes(4, "little")]
        for text in (label.encode() for label in self.values.ravel()):
            parts += [len(text).to_bytes(4, "little"), text]
        return name, b"".join(parts)


def chunk_name(ndim: int) -> str:
    """Return the file name of the one chunk of a coordinate on `ndim` dimensions."""
    return ".".join(["c", *["0"] * ndim])


def _is_utf8(label: str) -> bool:
    try:
        label.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
