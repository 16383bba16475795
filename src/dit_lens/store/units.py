"""Read a variable's units from their files: lazily, by outer indexing, with what is not committed masked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from io import FileIO
from itertools import product
from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from dit_lens.errors import REMEDY, StoreError
from dit_lens.store import journal
from dit_lens.store.bfloat16 import checksum, narrow, widen_into
from dit_lens.store.files import check_regular
from dit_lens.store.journal import Entry
from dit_lens.store.layout import Variable, is_place_dim
from dit_lens.store.scratch import Scratch
from dit_lens.store.shard import check_contiguous, decompress, read_compressed

Key = tuple[int | slice | np.ndarray, ...]
_ALL = slice(None)
COMPARED = 64 << 20
"""Bytes up to which a unit is read whole, and compared with its checksum, before a part of it is read for the first time."""

Compared = dict[tuple[int, ...], tuple[int, int]]
"""Units that were compared with their checksums: their file then, by inode and time of its last change."""


class UnitArray(BackendArray):
    """A stored variable as xarray's lazy array; bfloat16 codes come out as float32.

    Args:
        folder: The variable's folder.
        variable: What it holds.
        committed: The committed units, by position on the variable's `unit_dims`.
        keep: Whatever holds the folder in being: it lives as long as this array.
        recorded: The attribute `recorded`: the positions that the plan records. Where a number type has no NaN, no other
            position can be read.
        stamp: Of the journal (`journal.stamp`) that says what is committed, from before it was read.
    """

    def __init__(
        self,
        folder: str,
        variable: Variable,
        committed: Mapping[tuple[int, ...], Entry],
        keep: object = None,
        recorded: Any = None,
        stamp: object = None,
    ) -> None:
        self.folder, self.variable, self.committed, self._keep = folder, variable, committed, keep
        self.recorded, self._stamp = recorded, stamp
        self._compared: Compared = {}
        self.shape = variable.shape
        self.codes = variable.encoding == "codes"
        self.dtype = np.dtype("float32") if self.codes else variable.stored_dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        """Read what an xarray indexer selects."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def __deepcopy__(self, memo: dict[int, Any]) -> UnitArray:
        """Return itself: it never changes, and what it keeps in being must not be made twice."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out what it keeps in being when it is pickled: that belongs to this process.

        Raises:
            StoreError: See `Scratch.check_leaving`.
        """
        if isinstance(self._keep, Scratch):
            self._keep.check_leaving()
        return type(self), (self.folder, self.variable, self.committed, None, self.recorded)

    def _read(self, key: Key) -> np.ndarray:
        variable = self.variable
        self._check_run()
        selectors = [
            _positions(k, n) if dim in variable.unit_dims else _keep_axis(k, n)
            for k, n, dim in self._axes(key)
        ]
        inside: Key = tuple(
            _ALL if dim in variable.unit_dims else k for k, dim in zip(selectors, variable.dims, strict=True)
        )
        sizes = [len(_positions(k, n)) for k, n, _ in self._axes(tuple(selectors))]
        out = np.empty(sizes, self.dtype)
        split = [axis for axis, dim in enumerate(variable.dims) if dim in variable.unit_dims]
        for places in product(*(range(sizes[axis]) for axis in split)):
            at: list[Any] = [_ALL] * out.ndim
            for axis, place in zip(split, places, strict=True):
                at[axis] = slice(place, place + 1)
            self._read_unit(
                tuple(int(selectors[axis][place]) for axis, place in zip(split, places, strict=True)),
                inside,
                out[tuple(at)],
            )
        return out[tuple(0 if isinstance(k, int | np.integer) else _ALL for k in key)]

    def _check_run(self) -> None:
        """Refuse the values of another run, which was put in the place of this one since it was opened.

        Raises:
            StoreError: the journal says other values of a unit now.
        """
        run, name = os.path.split(self.folder)
        stamp = journal.stamp(run)
        if stamp == self._stamp:
            return
        now = journal.read(run).units
        for unit, entry in self.committed.items():
            if (name, unit) not in now or now[name, unit].crc32c != entry.crc32c:
                raise StoreError(
                    f"{self.folder} is not what it was when the run was opened: the run was made again, or moved. Open it again."
                )
        self._stamp = stamp

    def _axes(self, key: Key) -> Any:
        return zip(key, self.shape, self.variable.dims, strict=True)

    def _read_unit(self, unit: tuple[int, ...], inside: Key, out: np.ndarray) -> None:
        entry = self.committed.get(unit)
        has_nan = out.dtype.kind in "fc"
        if entry is not None:
            if not has_nan:
                self._require_recorded(unit, inside)
            load_unit(self.folder, self.variable, unit, entry, inside, out, self._compared)
        elif has_nan:
            out[...] = np.nan
        else:
            at = dict(zip(self.variable.unit_dims, unit, strict=True)) or "all"
            raise StoreError(
                f"{self.folder} at {at} is not committed, and {self.dtype} has no NaN to say so; select what "
                "status(run).missing does not name, or drop the variable"
            )

    def _require_recorded(self, unit: tuple[int, ...], inside: Key) -> None:
        """Refuse to read places of a unit that the plan does not record: what stands there is no value.

        Raises:
            StoreError: It names one of them.
        """
        variable = self.variable
        dims = [d for d in variable.dims if is_place_dim(d) and d not in variable.unit_dims]
        if self.recorded is None or not dims:
            return
        positions = dict(zip(variable.unit_dims, unit, strict=True))
        chosen = [
            _positions(inside[axis], variable.shape[axis])
            for axis, dim in enumerate(variable.dims)
            if dim in dims
        ]
        parts = self.recorded if isinstance(self.recorded, list) else [self.recorded]
        for place in product(*chosen):
            at = positions | {dim: int(n) for dim, n in zip(dims, place, strict=True)}
            if not any(all(n in part.get(dim, (n,)) for dim, n in at.items()) for part in parts):
                raise StoreError(
                    f"{self.folder} at {at} was not recorded, and {self.dtype} has no NaN to say so; select the positions of its "
                    f"attribute 'recorded' by isel, as Run(path)[{variable.name!r}] does where they are one block"
                )


def load_unit(
    folder: str,
    variable: Variable,
    unit: tuple[int, ...],
    entry: Entry,
    inside: Key,
    out: np.ndarray,
    compared: Compared | None = None,
) -> None:
    """Read part of one committed unit into `out`, once all of it is seen to be what was written.

    Args:
        folder: The variable's folder.
        variable: What it holds.
        unit: Positions on the variable's `unit_dims`.
        entry: The unit's line in the journal.
        inside: Outer indices on all dimensions, of a unit with size 1 along `unit_dims`.
        out: Array of the resulting shape; codes are decoded if it is a float array.
        compared: Units that were seen to be what was written, to which this one is added.

    Raises:
        StoreError: If the file is missing, or has not the size that the journal says, or not the values that were written. (A
            part of a unit of more than `COMPARED` bytes is not compared.)
    """
    compared = {} if compared is None else compared
    path = os.path.join(folder, variable.chunk_name(unit))
    try:
        info = os.stat(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path} is committed in the journal but missing; {REMEDY}") from error
    check_regular(path, info)
    if (size := info.st_size) != entry.bytes:
        raise StoreError(f"{path} has {size} bytes, the journal says {entry.bytes}; {REMEDY}")
    stamp = info.st_ino, info.st_mtime_ns
    decode = variable.encoding == "codes" and out.dtype.kind == "f" and not variable.compressed
    whole = all(isinstance(k, slice) and k == _ALL for k in inside)
    check = whole or (size <= COMPARED and compared.get(unit) != stamp)
    if variable.compressed:
        data = _load_compressed(path, variable, (_ALL,) * len(inside) if check else inside)
    else:
        data = _load_raw(path, variable, check, out if whole and not decode else None)
    if check:
        _check_values(narrow(data) if variable.compressed else data, entry, path)
        compared[unit] = stamp
    data = data if whole else _outer(data, inside)
    if decode:
        widen_into(data, out)
    elif data is not out:
        out[...] = data


def _load_raw(path: str, variable: Variable, check: bool, out: np.ndarray | None) -> np.ndarray:
    """Return a unit's values: read, into `out` where that may be, if they are to be checked; else mapped."""
    with open(path, "rb", buffering=0) as file:
        if variable.sharded:
            inner = math.prod(variable.inner_shape)
            count = math.prod(variable.chunk_shape) // inner
            check_contiguous(file, count, inner * variable.stored_dtype.itemsize, path)
        if not check:
            return np.memmap(file, variable.stored_dtype, "r", shape=variable.chunk_shape)
        own = out is None or not out.flags.c_contiguous
        data = np.empty(variable.chunk_shape, variable.stored_dtype) if own else out
        assert data is not None
        _read_into(file, data, path)
    return data


def _check_values(values: np.ndarray, entry: Entry, path: str) -> None:
    """Raise StoreError unless all values of a unit are those that were written."""
    if (crc := checksum(values)) != entry.crc32c:
        raise StoreError(f"{path} has crc32c {crc:08x}, the journal says {entry.crc32c:08x}; {REMEDY}")


def _read_into(file: FileIO, out: np.ndarray, path: str) -> None:
    view = out.reshape(-1).view(np.uint8).data
    while view:
        if not (count := file.readinto(view)):
            raise StoreError(f"{path} ends {len(view)} bytes early; {REMEDY}")
        view = view[count:]


def _load_compressed(path: str, variable: Variable, inside: Key) -> np.ndarray:
    shape, inner_size = variable.chunk_shape, math.prod(variable.inner_shape)
    if not variable.sharded:
        out = np.empty(shape, np.float32)
        with open(path, "rb") as file:
            decompress(file.read(), out, path)
        return out
    # Rows outside the index are neither read nor decompressed.
    rows = np.arange(math.prod(shape[:-2])).reshape(shape[:-2])
    return read_compressed(path, shape, inner_size, _outer(rows, inside[: rows.ndim]).ravel().tolist())


def _outer(data: np.ndarray, key: Key) -> np.ndarray:
    """Index each axis on its own; slices first, for they cost nothing."""
    arrays = {axis: k for axis, k in enumerate(key) if isinstance(k, np.ndarray)}
    data = data[tuple(_ALL if axis in arrays else k for axis, k in enumerate(key))]
    for axis, positions in arrays.items():
        data = np.take(data, positions, axis)
    return data


def _positions(key: int | slice | np.ndarray, size: int) -> Any:
    if isinstance(key, slice):
        return range(size)[key]
    return np.atleast_1d(np.asarray(key)) % size


def _keep_axis(key: int | slice | np.ndarray, size: int) -> Any:
    """Return an index that keeps its axis; all positions in their order are the whole of it, however they are said."""
    if isinstance(key, int | np.integer):
        return np.array([key]) if size > 1 else _ALL
    positions = _positions(key, size)
    if isinstance(positions, range):
        return _ALL if positions == range(size) else key
    return _ALL if np.array_equal(positions, np.arange(size)) else key
