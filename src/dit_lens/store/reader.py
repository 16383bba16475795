"""Open stores: a run as a lazy `xarray.Dataset`, a folder of runs as a `DataTree`. No model, no torch.

What the journal does not hold is masked, which plain `xarray.open_zarr` cannot do; else both show the same.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from dit_lens.errors import REMEDY, DamageError, StoreError
from dit_lens.store import journal
from dit_lens.store.bfloat16 import narrow
from dit_lens.store.layout import Variable
from dit_lens.store.metadata import (
    LAYOUT_ATTR,
    check_run_group,
    is_copy,
    load_any,
    load_group,
)
from dit_lens.store.names import absolute, place_of
from dit_lens.store.stored import Stored
from dit_lens.store.units import UnitArray, load_unit


def load_run(path: Path | str) -> Stored:
    """Return a run's metadata and its journal, without reading any data.

    Raises:
        StoreError: If `path` holds no run, or one of a layout that this code does not know, or a damaged one.
    """
    path = absolute(path)
    group = load_group(path)
    if group is None or LAYOUT_ATTR not in group["attributes"]:
        raise StoreError(f"{path} holds no run: {_describe(path)}")
    check_run_group(group, path)
    return Stored.of(path, group)


def _load_with_labels(path: Path) -> Stored:
    """Return the same of a run whose labels are those that were written. A writer may set them meanwhile: its last word counts.

    Raises:
        DamageError: If they are not, or the run is complete and its journal was lost or cut.
    """
    stored = load_run(path)
    while flaw := stored.damage or stored.label_flaw():
        before, stored = stored, load_run(path)
        if stored.checksums == before.checksums and stored.damage == before.damage:
            said = "says that it is complete, but" if stored.damage else "cannot be opened:"
            raise DamageError(
                f"{path} {said} {flaw}; {REMEDY} (plain xarray.open_zarr shows what lies there, unchecked)"
            )
    return stored


def open_run(path: Path | str, keep: object = None) -> xr.Dataset:
    """Open one run, lazily.

    Floats that were not recorded read as NaN; integers have no NaN, so select what their attribute `recorded` names, as `Run`
    does. bfloat16 codes read as float32; nothing is cached (`.load()` does). The dataset shows the run as it is now: open
    it again to see what a writer has added. Every variable carries the model that it is of, as the attribute
    `model_fingerprint` and `model_architecture`, where the manifest says.

    Attributes are strings and numbers, so that `to_netcdf` takes all of it: `manifest`, `nan`, `inf`, `journal`
    and `recorded` are JSON text. `Run.attrs`, or `json.loads(dataset.attrs["manifest"])`, has the manifest as data.

    Args:
        path: The run's folder, e.g. `runs/maze.zarr/maze-0123456789`.
        keep: Whatever holds the folder in being; every lazy array of the run holds on to it.

    Returns:
        Its variables with their coordinates; `attrs` hold `status`, `manifest` and the rest.

    Raises:
        StoreError: If `path` holds no run of a known layout, or one whose metadata or labels are not what was written, or a
            complete one whose journal was lost or cut. Reading raises it for an integer that was not recorded or is not
            committed, and for a file that is not what the journal says.
    """
    path = absolute(path)
    stamp = journal.stamp(path)
    stored = _load_with_labels(path)
    dataset = _opened(path, stored)
    model = _fingerprint(stored.attrs.get("manifest"))
    for name, variable in stored.variables.items():
        committed = {key: entry for (owner, key), entry in stored.ledger.units.items() if owner == name}
        recorded = dataset[name].attrs.get("recorded")
        units = UnitArray(os.path.join(path, name), variable, committed, keep, recorded, stamp)
        lazy = indexing.LazilyIndexedArray(units)
        dataset[name] = xr.Variable(
            variable.dims, lazy, _flat(dataset[name].attrs | model), _netcdf_encoding(variable)
        )
    dataset.attrs = _flat(stored.attrs)
    return dataset


def _opened(path: Path, stored: Stored) -> xr.Dataset:
    """Open a run by xarray, with its labels in memory. A writer may have gone on since the first look: that one counts.

    Raises:
        StoreError: xarray cannot open it.
    """
    try:
        dataset = xr.open_zarr(path, chunks=None, consolidated=True)
        for coord in dataset.coords.values():
            coord.load()  # labels are small, and read when the folder is sure to be there
        for name in stored.variables:
            dataset[name].attrs = dict(stored.arrays[name]["attributes"])
    except Exception as error:  # whatever zarr says of files that are cut, changed, or gone meanwhile
        raise StoreError(f"{path} cannot be opened ({type(error).__name__}: {error}): {REMEDY}") from error
    return dataset


def _flat(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes as strings and numbers, the rest as JSON text."""
    return {
        key: value
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        else json.dumps(value)
        for key, value in attrs.items()
    }


_NETCDF_DTYPES = {"uint8": "int16", "uint16": "int32", "uint32": "int64", "float16": "float32"}
"""Number types that some version of netCDF lacks, and the next one that holds all their values."""


def _netcdf_encoding(variable: Variable) -> dict[str, Any]:
    """Say in which number type a variable is saved, by `to_netcdf` and `to_zarr`: no value changes."""
    dtype = None if variable.encoding == "codes" else _NETCDF_DTYPES.get(variable.stored_dtype.name)
    return {} if dtype is None else {"dtype": dtype}


def _fingerprint(manifest: Any) -> dict[str, str]:
    """Return the attributes that say which model a run is of; nothing where the manifest does not say."""
    found = manifest
    for key in ("identity", "model", "fingerprint"):
        found = found.get(key) if isinstance(found, Mapping) else None
    kind = manifest.get("architecture") if isinstance(manifest, Mapping) else None
    said = {"model_fingerprint": found, "model_architecture": kind}
    return {name: value for name, value in said.items() if isinstance(value, str)}


def open_runs(path: Path | str) -> xr.DataTree:
    """Open every run under a folder, lazily, at any depth.

    What cannot be opened is left out, with a warning that names it. A copy of a run, or of a part of one, that
    xarray saved (`to_zarr`) is opened as it is: the journal knows nothing of it, so nothing in it is masked.

    Args:
        path: A store, a folder of stores (`runs/`), or a single run.

    Returns:
        A tree in which each run is a leaf under its path: `tree["maze.zarr/maze-0123456789"]`, or, for a
        store or a single run, under its name.

    Raises:
        StoreError: If there is no run, or none that can be opened.
    """
    path = absolute(path)
    sights = list(look(path))
    base = path.parent if [sight.path for sight in sights] == [path] else path
    datasets: dict[str, xr.Dataset] = {}
    problems: list[str] = []
    for sight in sights:
        try:
            if sight.problem:
                raise StoreError(sight.problem)
            opened = _open_copy(sight.path) if sight.is_copy else open_run(sight.path)
        except StoreError as error:
            problems.append(str(error))
            continue
        datasets[sight.path.relative_to(base).as_posix()] = opened
    if not datasets:
        raise StoreError(problems[0] if problems else f"{path} holds no run: {_describe(path)}")
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    return xr.DataTree.from_dict(datasets)


def _open_copy(path: Path) -> xr.Dataset:
    try:
        return xr.open_zarr(path, chunks=None, consolidated=False)
    except Exception as error:  # whatever zarr and xarray say to metadata that is not ours
        raise StoreError(f"{path} cannot be opened ({type(error).__name__}: {error})") from error


def is_run(path: Path | str) -> bool:
    """Return whether a folder is a run, of whatever layout version, or a copy of one."""
    group = load_group(path)
    return group is not None and LAYOUT_ATTR in group["attributes"]


@dataclass(frozen=True)
class Sight:
    """Something that was come upon while looking for runs.

    Attributes:
        path: Its folder.
        is_copy: Whether it is a copy that xarray saved.
        problem: Why it cannot be told what it is; "" for a run or a copy.
    """

    path: Path
    is_copy: bool = False
    problem: str = ""


def look(path: Path | str) -> Iterator[Sight]:
    """Go through all runs at or under a folder, at any depth, sorted by name, and what may have been one.

    A folder is seen once, under its own name where that lies under `path`: links come last.
    """
    seen, links = set[str](), [str(absolute(path))]
    for link in links:  # which grow meanwhile
        yield from _look(link, seen, links)


def _look(folder: str, seen: set[str], links: list[str]) -> Iterator[Sight]:
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(folder):
        return
    seen.add(real)  # links may lead back
    try:
        metadata = load_any(folder)
        names = sorted(os.listdir(folder))
    except (StoreError, OSError) as error:
        problem = (
            str(error) if isinstance(error, StoreError) else f"{folder} cannot be read ({error.strerror})"
        )
        yield Sight(Path(folder), problem=problem)
        return
    if metadata is not None and LAYOUT_ATTR in metadata["attributes"]:
        yield Sight(Path(folder), is_copy=is_copy(metadata, folder))
    elif journal.NAME in names and (problem := _lost(folder)):
        yield Sight(Path(folder), problem=problem)
    elif metadata is None or metadata["node_type"] == "group":
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") or _is_outdone(folder, name):
                continue
            if os.path.islink(path):
                links.append(path)
            else:
                yield from _look(path, seen, links)


def _lost(folder: str) -> str:
    """Say what a folder has lost that has a run's journal, and no run's `zarr.json`; "" where a writer just begins."""
    try:
        ledger = journal.read(folder)
    except (StoreError, OSError) as error:
        return str(error)
    if not (ledger.steps or ledger.units):
        return ""
    return (
        f"{folder} has the {journal.NAME} of a run, and its zarr.json is gone or says nothing of a run: "
        f"{REMEDY}"
    )


def _is_outdone(folder: str, name: str) -> bool:
    """Say whether a folder is what a trace has left beside the place of a run, and a complete run stands in that place."""
    place = place_of(name)
    if place is None:
        return False
    try:
        group = load_group(os.path.join(folder, place))
    except (StoreError, OSError):
        return False
    return group is not None and group["attributes"].get("status") == "complete"


def find_runs(path: Path | str) -> Iterator[Path]:
    """Yield the folders of all runs at or under a folder, at any depth, sorted by name.

    What has damaged metadata is left out, with a warning that names it.
    """
    for sight in look(path):
        if sight.problem:
            warnings.warn(f"left out: {sight.problem}", stacklevel=2)
        elif not sight.is_copy:
            yield sight.path


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
    path = absolute(path)
    stored = load_run(path)
    variables, ledger = stored.variables, stored.ledger
    declared = variables.get(variable)
    if declared is None or declared.dtype != "bfloat16" or declared.encoding == "float16":
        exact = [v.name for v in variables.values() if v.dtype == "bfloat16" and v.encoding != "float16"]
        raise StoreError(f"{path}: {variable!r} has no bfloat16 codes; these have: {exact}")
    unit = declared.key(index)
    if (entry := ledger.units.get((variable, unit))) is None:
        raise StoreError(
            f"{path}: {variable} at {dict(index)} is not committed; committed steps: {sorted(ledger.steps)}"
        )
    out = np.empty(declared.chunk_shape, declared.stored_dtype)
    load_unit(os.path.join(path, variable), declared, unit, entry, (slice(None),) * out.ndim, out)
    return (narrow(out) if declared.compressed else out).reshape(declared.unit_shape)


def _describe(path: Path) -> str:
    """Say what a folder holds that was taken for a run."""
    try:
        return _described(path)
    except FileNotFoundError:
        return "its folder is being removed or replaced"


def _described(path: Path) -> str:
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        if left := sorted(str(folder) for folder in beside if place_of(folder.name) == path.name):
            return (
                f"a trace was interrupted before it took its place; open what it left, open_run({left[-1]!r})"
            )
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file; give the folder that holds zarr.json"
    if (path / journal.NAME).exists() and (problem := _lost(str(path))):
        return problem
    runs = [str(sight.path.relative_to(path)) for sight in islice(look(path), 3) if not sight.problem]
    if runs:
        return f"it is a folder of runs ({', '.join(runs)}, ...); use open_runs, or open one of them"
    names = sorted(child.name for child in path.iterdir())[:5]
    return f"it holds {names or 'nothing'}; give a run, a store or a folder of stores that RunWriter wrote"
