"""The `zarr.json` files of a run: its arrays and its attributes, as zarr v3 and xarray expect them.

Written as plain JSON, since zarr-python takes 35 ms for ten arrays; the tests read all of it with
zarr-python.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from dit_lens.errors import DamageError, StoreError
from dit_lens.store import checksums, files, journal
from dit_lens.store.layout import LAYOUT_VERSION, Variable, is_place_dim
from dit_lens.store.shard import BLOSC

LAYOUT_ATTR = "dit_lens_layout"
FILE = "zarr.json"
_MOST_UNITS = 1_000_000
"""Units of one variable that a run may have: fifty times those of the largest models."""
Recorded = Mapping[str, Sequence[int]] | Sequence[Mapping[str, Sequence[int]]]


def bytes_codec(dtype: np.dtype) -> dict[str, Any]:
    """Return the codec of raw little-endian values."""
    return {"name": "bytes"} | ({"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {})


def zarr_array(
    shape: tuple[int, ...],
    data_type: str,
    chunk: tuple[int, ...],
    codecs: list[dict[str, Any]],
    dims: tuple[str, ...],
    attrs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the `zarr.json` of one array whose chunks lie flat in its folder, as `c.0.0`."""
    fills: dict[str, Any] = {"f": "NaN", "c": ["NaN", "NaN"], "s": "", "b": False}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fills.get(data_type[0], 0),
        "codecs": codecs,
        "attributes": dict(attrs),
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def recorded_json(variable: Variable, recorded: Recorded | None) -> Any:
    """Return where a variable is recorded, as the attribute `recorded` holds it: positions on every unit dimension.

    Raises:
        StoreError: If it names another dimension, or a position outside the run.
    """
    if recorded is not None and not isinstance(recorded, Mapping):
        return [recorded_json(variable, part) for part in recorded]
    sizes = {dim: n for dim, n in zip(variable.dims, variable.shape, strict=True) if is_place_dim(dim)}
    positions = {
        dim: [int(position) for position in (recorded or {}).get(dim, range(size))]
        for dim, size in sizes.items()
    }
    unknown = [dim for dim in recorded or {} if dim not in sizes]
    outside = [dim for dim, size in sizes.items() if not all(0 <= n < size for n in positions[dim])]
    if unknown or outside:
        raise StoreError(
            f"variable {variable.name!r}: recorded={recorded} must hold positions below the sizes {sizes}; "
            f"{'unknown' if unknown else 'out of range'}: {unknown or outside}"
        )
    _positions_asked(variable, positions)
    return positions


def units_asked(variable: Variable, recorded: Any) -> set[tuple[int, ...]]:
    """Return the units of a variable that its attribute `recorded` names, by position on its `unit_dims`.

    Raises:
        StoreError: If it does not name positions, or more than any run has.
    """
    parts = recorded if isinstance(recorded, list) else [recorded]
    return {unit for part in parts for unit in product(*_positions_asked(variable, part))}


def _positions_asked(variable: Variable, part: Any) -> list[list[int]]:
    """Return what one selection asks of each unit dimension, once it is sure to have an end."""
    try:
        positions = [part[dim] for dim in variable.unit_dims]
        count = math.prod(len(p) for p in positions)
    except (TypeError, KeyError) as error:
        raise StoreError(
            f"variable {variable.name!r}: recorded={str(part)[:60]} must name positions on {variable.unit_dims}; "
            "the run's metadata is damaged"
        ) from error
    if count > _MOST_UNITS:
        raise StoreError(
            f"variable {variable.name!r}: it is recorded at {count:,} places, and a run has {_MOST_UNITS:,} at most; "
            "record fewer, or, where this was read from a store, copy the run again"
        )
    return positions


def array_json(variable: Variable, recorded: Any) -> dict[str, Any]:
    """Return the `zarr.json` of a variable, which says all that `Variable` says, and where it is recorded."""
    codecs = [bytes_codec(variable.stored_dtype)]
    if variable.compressed:
        codecs.append({"name": "blosc", "configuration": BLOSC})
    if variable.sharded:
        index_codecs = [bytes_codec(np.dtype("uint64")), {"name": "crc32c"}]
        shard = {"chunk_shape": list(variable.inner_shape), "codecs": codecs}
        shard |= {"index_codecs": index_codecs, "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": shard}]
    attrs = {
        "units": variable.units,
        "long_name": variable.long_name or variable.name,
        "logical_dtype": variable.dtype,
        "encoding": variable.encoding,
        "commit_unit": variable.unit,
        "recorded": recorded,
    }
    if variable.rate is not None:
        attrs["rate"] = variable.rate
    dtype = variable.stored_dtype.name
    return zarr_array(variable.shape, dtype, variable.chunk_shape, codecs, variable.dims, attrs)


def variable_of(name: str, array: Mapping[str, Any]) -> Variable | None:
    """Return the variable that an array's `zarr.json` describes, None for a coordinate."""
    attrs = array["attributes"]
    if "commit_unit" not in attrs:
        return None
    long_name = "" if attrs["long_name"] == name else attrs["long_name"]
    dims, shape = tuple(array["dimension_names"]), tuple(array["shape"])
    dtype, unit, encoding = attrs["logical_dtype"], attrs["commit_unit"], attrs["encoding"]
    return Variable(name, dims, shape, dtype, unit, attrs["units"], long_name, encoding, attrs.get("rate"))


def array_bytes(array: Mapping[str, Any]) -> bytes:
    """Return the bytes of an array's `zarr.json`."""
    return json.dumps(array, allow_nan=False).encode()


def store_bytes() -> bytes:
    """Return the bytes of a store's `zarr.json`: a group with nothing to say."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()


def run_bytes(
    attrs: Mapping[str, Any], arrays: Mapping[str, Any], sums: Mapping[str, Sequence[str]]
) -> bytes:
    """Return the bytes of a run's `zarr.json`: its attributes, the metadata of its arrays, the checksums of its coordinates."""
    inline = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(arrays.items()))}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attrs, "consolidated_metadata": inline}
    return json.dumps(checksums.signed(group, sums)).encode()


def load_group(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the `zarr.json` of a folder with its attributes, None if there is none or it is no zarr group.

    Raises:
        StoreError: If the file is there and cannot be read, is not JSON or no zarr metadata.
    """
    node = load_any(folder)
    return node if node is not None and node["node_type"] == "group" else None


def load_any(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the `zarr.json` of a folder of a zarr group or array, with its attributes; None if there is none.

    Raises:
        DamageError: If the file is there and is not JSON, no zarr metadata, or not what was written.
        StoreError: If it cannot be read.
    """
    path = os.path.join(folder, FILE)
    try:
        node = json.loads(files.read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is not JSON ({error}); the run's metadata is damaged") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(node, dict) or node.get("node_type") not in ("group", "array"):
        raise DamageError(f"{path} is JSON, but no zarr v3 metadata; remove it, or copy the run again")
    if not isinstance(node.setdefault("attributes", {}), dict):
        raise DamageError(f"{path}: its attributes are no JSON object; the run's metadata is damaged")
    is_ours = node["attributes"].get(LAYOUT_ATTR, LAYOUT_VERSION) == LAYOUT_VERSION
    if is_ours and not checksums.is_as_signed(node) and not is_copy(node, folder):
        # And no damage that is mended: somebody may have put something there.
        raise StoreError(checksums.rewritten(path))
    return node


def load_run_group(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the `zarr.json` of a run, checked as far as it is read here; None if there is none.

    Raises:
        DamageError: If it lacks what every run has, or is not what was written.
        StoreError: If it is no run's, of another layout, or a copy that xarray saved.
    """
    group = load_group(folder)
    if group is not None:
        check_run_group(group, folder)
    return group


def check_run_group(group: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Raise what `load_run_group` raises unless a group is a run's."""
    check_version(group, folder)
    if is_copy(group, folder):
        raise StoreError(
            f"{folder} is a copy of a run that xarray saved, and no run: read it with open_runs or xarray.open_zarr"
        )
    attrs, arrays = group["attributes"], _consolidated(group)
    if arrays is None:
        raise DamageError(
            f"{folder}: its {FILE} does not say what its arrays are; the run's metadata is damaged"
        )
    for key in ("status", "identity_sha256"):
        if not isinstance(attrs.get(key), str):
            raise DamageError(f"{folder}: its {FILE} has no {key!r}; the run's metadata is damaged")
    for name, array in arrays.items():
        try:
            variable_of(name, array)
            _ = array["dimension_names"], array["shape"], array["data_type"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamageError(
                f"{folder}: {FILE} does not say what its array {name!r} is ({type(error).__name__}: {error}); the run's "
                "metadata is damaged"
            ) from error


def is_copy(group: Mapping[str, Any], folder: str | os.PathLike[str]) -> bool:
    """Return whether a group with a run's attributes was saved by xarray: its chunks lie otherwise, and it has no journal.

    A run always has the metadata of all its arrays in one place, and its chunks flat in their folders.
    """
    return _lies_otherwise(group) and journal.stamp(folder) is None


def _consolidated(group: Mapping[str, Any]) -> dict[str, Any] | None:
    consolidated = group.get("consolidated_metadata")
    arrays = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    return arrays if isinstance(arrays, dict) else None


def _lies_otherwise(group: Mapping[str, Any]) -> bool:
    arrays = _consolidated(group)
    if arrays is None:
        return True
    keys = [a.get("chunk_key_encoding") for a in arrays.values() if isinstance(a, dict)]
    flat = {"name": "default", "configuration": {"separator": "."}}
    return bool(keys) and all(key != flat for key in keys)


def check_version(group: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Raise StoreError unless a run's group has the layout version that this code reads and writes."""
    if (version := group["attributes"].get(LAYOUT_ATTR)) != LAYOUT_VERSION:
        raise StoreError(
            f"{folder} has store layout {version!r}, and this dit_lens knows layout {LAYOUT_VERSION} only: "
            f"use the dit_lens that wrote it (see its manifest), or plain xarray.open_zarr"
        )
