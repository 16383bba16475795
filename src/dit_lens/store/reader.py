"""Open stores: a run as a lazy `xarray.Dataset`, a folder of runs as a `DataTree`. No model, no torch.

What the journal does not hold is masked, which plain `xarray.open_zarr` cannot do; else both show the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from dit_lens.errors import StoreError
from dit_lens.store import journal
from dit_lens.store.bfloat16 import narrow
from dit_lens.store.layout import Variable
from dit_lens.store.metadata import LAYOUT_ATTR, check_version, load_group, variable_of
from dit_lens.store.units import UnitArray, load_unit

_DEPTH = 4  # how far below a folder stores are looked for


def load_run(path: Path | str) -> tuple[dict[str, Variable], dict, journal.Ledger]:
    """Return a run's variables, its group's `zarr.json` and its journal, without reading any data.

    Raises:
        StoreError: If `path` holds no run, or one of a layout that this code does not know.
    """
    group = load_group(path)
    if group is None or LAYOUT_ATTR not in group["attributes"]:
        raise StoreError(f"{path} holds no run: {_what_is_there(path)}")
    check_version(group, path)
    arrays = group["consolidated_metadata"]["metadata"]
    found = {name: variable for name, array in arrays.items() if (variable := variable_of(name, array))}
    return found, group, journal.read(path)


def open_run(path: Path | str, keep: object = None) -> xr.Dataset:
    """Open one run, lazily.

    Floats that are not there read as NaN; integers have none, so select what their attribute `recorded` names, as `Run`
    does. bfloat16 codes read as float32; nothing is cached (`.load()` does). The dataset shows the run as it is now: open
    it again to see what a writer has added. Every variable carries the model that it is of, as the attribute
    `model_fingerprint`, where the manifest says.

    Args:
        path: The run's folder, e.g. `runs/maze.zarr/maze-0123456789`.
        keep: Whatever holds the folder in being; every lazy array of the run holds on to it.

    Returns:
        Its variables with their coordinates; `attrs` hold `status`, `manifest` and the rest.

    Raises:
        StoreError: If `path` holds no run of a known layout. Reading raises it for an integer that was not asked
            for or is not committed, and for a file that is not what the journal says.
    """
    variables, group, ledger = load_run(path)
    dataset = xr.open_zarr(path, chunks=None, consolidated=True)
    for coord in dataset.coords.values():
        coord.load()  # labels are small, and read when the folder is sure to be there
    model = _fingerprint(group["attributes"].get("manifest"))
    for name, variable in variables.items():
        committed = {key: entry for (owner, key), entry in ledger.units.items() if owner == name}
        recorded = dataset[name].attrs.get("recorded")
        units = UnitArray(os.path.join(path, name), variable, committed, keep, recorded)
        lazy = indexing.LazilyIndexedArray(units)
        dataset[name] = xr.Variable(variable.dims, lazy, dataset[name].attrs | model)
    return dataset


def _fingerprint(manifest: Any) -> dict[str, str]:
    """Return the attribute that says which model a run is of; nothing where the manifest does not say."""
    for key in ("identity", "model", "fingerprint"):
        manifest = manifest.get(key) if isinstance(manifest, Mapping) else None
    return {"model_fingerprint": manifest} if isinstance(manifest, str) else {}


def open_runs(path: Path | str) -> xr.DataTree:
    """Open every run under a folder, lazily.

    Args:
        path: A store, a folder of stores (`runs/`), or a single run.

    Returns:
        A tree in which each run is a leaf under its path: `tree["maze.zarr/maze-0123456789"]`, or, for a
        store or a single run, under its name.

    Raises:
        StoreError: If there is no run, or one of a layout that this code does not know.
    """
    path = Path(path)
    base = path.parent if is_run(path) else path
    found = {run.relative_to(base).as_posix(): open_run(run) for run in find_runs(path)}
    if not found:
        raise StoreError(f"{path} holds no run: {_what_is_there(path)}")
    return xr.DataTree.from_dict(found)


def is_run(path: Path | str) -> bool:
    """Return whether a folder is a run, of whatever layout version."""
    group = load_group(path)
    return group is not None and LAYOUT_ATTR in group["attributes"]


def find_runs(path: Path | str, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders of all runs at or under a folder, sorted by name."""
    path = Path(path)
    if is_run(path):
        yield path
    elif depth and path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from find_runs(child, depth - 1)


def read_codes(path: Path | str, variable: str, index: Mapping[str, int]) -> np.ndarray:
    """Read one unit of a bfloat16 variable, bit for bit.

    Args:
        path: The run's folder.
        variable: A bfloat16 variable, stored as `float32` or `codes`.
        index: Positions on its `unit_dims`, e.g. {"step": 3, "branch": 0, "layer": 20}.

    Returns:
        uint16 codes of shape `unit_shape`; `torch.from_numpy(codes).view(torch.bfloat16)` is the tensor.

    Raises:
        StoreError: If the variable has no exact codes, or the unit is not committed.
    """
    variables, _, ledger = load_run(path)
    found = variables.get(variable)
    if found is None or found.dtype != "bfloat16" or found.encoding == "float16":
        exact = [v.name for v in variables.values() if v.dtype == "bfloat16" and v.encoding != "float16"]
        raise StoreError(f"{path}: {variable!r} has no bfloat16 codes; these have: {exact}")
    unit = found.key(index)
    if (entry := ledger.units.get((variable, unit))) is None:
        raise StoreError(
            f"{path}: {variable} at {dict(index)} is not committed; committed steps: {sorted(ledger.steps)}"
        )
    out = np.empty(found.chunk_shape, found.stored_dtype)
    load_unit(os.path.join(path, variable), found, unit, entry, (slice(None),) * out.ndim, out)
    return (narrow(out) if found.compressed else out).reshape(found.unit_shape)


def _what_is_there(path: Path | str) -> str:
    path = Path(path)
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file; give the folder that holds zarr.json"
    if runs := [str(run.relative_to(path)) for run in find_runs(path)][:3]:
        return f"it is a folder of runs ({', '.join(runs)}, ...); use open_runs, or open one of them"
    names = sorted(child.name for child in path.iterdir())[:5]
    return f"it holds {names or 'nothing'}; give a run, a store or a folder of stores that RunWriter wrote"
