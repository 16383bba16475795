"""What a record may call its array and its dimensions: one run is one group, in which every name is taken once."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from dit_lens.plan.places import DIMS, GRID_DIMS, LATENT_DIMS

COORDINATES = ("sample", "seed", "step", "sigma", "timestep", "expert", "branch", "layer")
"""Coordinates that every run has, beside those of its grids."""

OUTPUT_DIMS = {"video": ("time", "height", "width", "rgb"), "audio": ("speaker", "audio_time")}
"""What a pipeline gives beside the records, and the dimensions that it stands on."""

TIME_UNITS = ("days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds")
"""xarray decodes a variable with one of these units as a time difference, without being asked."""

LONGEST_NAME = 120
"""Characters of an array's name: a file system takes 255 bytes, and the name stands inside longer ones."""

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DIMENSION = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def folder_problem(name: str) -> str:
    """Say why an array cannot have a name, which is also its folder's; empty where it can."""
    if not _FOLDER.fullmatch(name) or name.endswith((".json", ".jsonl", ".partial")):
        return "its name is a folder's name: use letters, digits and '_', and begin with a letter"
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} characters; give it at most {LONGEST_NAME}"
    return ""


def units_problem(units: str) -> str:
    """Say why values cannot have some units; empty where they can."""
    if units in TIME_UNITS or " since " in units:
        return f"xarray turns units={units!r} into time differences or dates; use a symbol, such as 's'"
    return ""


@lru_cache(maxsize=1024)
def record_problem(
    dims: tuple[object, ...],
    units: str,
    variable: str,
    streams: tuple[str, ...],
    variables: tuple[str, ...] = (),
) -> str:
    """Say why a record cannot be recorded as it is declared; empty where it can.

    Args:
        dims: that it keeps.
        units: of its values.
        variable: name of the array that it writes; empty where that was checked.
        streams: that the model carries.
        variables: names of all arrays of the run.
    """
    return (
        dims_problem(dims, streams, variables)
        or (variable_problem(variable, streams) if variable else "")
        or units_problem(units)
    )


def variable_problem(name: str, streams: Collection[str]) -> str:
    """Say why a record cannot write an array of some name; empty where it can.

    Args:
        name: of the array.
        streams: that the model carries.
    """
    if name in OUTPUT_DIMS:
        return f"{name!r} is what the pipeline makes; give the function another name"
    taken = {*COORDINATES, *_grid_names(streams)} | {d for dims in OUTPUT_DIMS.values() for d in dims}
    if name in taken:
        return f"{name!r} is a coordinate of every run; give the function another name"
    return folder_problem(name)


def dims_problem(dims: tuple[object, ...], streams: Collection[str], variables: Collection[str] = ()) -> str:
    """Say why a record cannot keep some dimensions; empty where it can.

    Args:
        dims: as `keeps` declares them: `frame`, `y`, `x`, `channel` for those of the value, and others.
        streams: that the model carries.
        variables: names of the arrays of the run: a dimension of such a name would be its coordinate.
    """
    if bad := [d for d in dims if not isinstance(d, str) or not _DIMENSION.fullmatch(d)]:
        return f"{bad[0]!r} is no name of a dimension: use letters, digits and '_', as @dl.keeps('frame', 'head')"
    if repeated := sorted({str(d) for d in dims if dims.count(d) > 1}):
        return f"it declares {repeated[0]!r} twice; give each dimension a name of its own"
    known = [d for d in dims if d in DIMS and d != "head"]
    if any(d in DIMS[: DIMS.index("head")] for d in dims) or known != sorted(
        known, key=lambda d: DIMS.index(str(d))
    ):
        return f"it declares {dims}; keep some of frame, y, x, channel in this order, or others"
    taken = {d: "the video" for d in OUTPUT_DIMS["video"]} | {d: "the sound" for d in OUTPUT_DIMS["audio"]}
    taken |= {d: "the steps" for d in COORDINATES}
    taken |= {d: "a grid; write frame, y, x or channel for those of the value" for d in _grid_names(streams)}
    taken |= {d: f"the array {d!r}" for d in (*variables, *OUTPUT_DIMS)}
    for dim in dims:
        if dim in taken and dim not in GRID_DIMS:
            return f"the dimension {dim!r} is one of {taken[str(dim)]}; give it another name"
    return ""


def _grid_names(streams: Collection[str]) -> set[str]:
    """Return every name that a dimension of a grid has in a run's group."""
    plain = {*GRID_DIMS, *LATENT_DIMS.values()}
    return plain | {f"{dim}_{stream}" for dim in plain for stream in streams if stream != "video"}
