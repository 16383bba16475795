"""Pairing runs with an edit and runs without: the same sample, the same seed, whatever their order.

A pair starts from the same scene and the same noise, so what differs between its outcomes is due to the edit.
Pairing by place would go wrong in silence where one folder lacks a run or lists them in another order.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import xarray as xr

from dit_lens.analysis.states import name_of, shape_of
from dit_lens.errors import DitLensError

RUN = ("sample", "seed")
"""The dimensions whose labels name a run."""


def pair(
    with_edit: xr.DataArray, without: xr.DataArray, drop_unpaired: bool
) -> tuple[xr.DataArray, xr.DataArray, int]:
    """Bring both outcomes to the same runs, in the same order.

    Args:
        with_edit: [sample, ...] or [sample, seed, ...].
        without: the same of sample and seed; may lack other dimensions.
        drop_unpaired: leave out runs that are in one of them only.

    Returns:
        Both outcomes, with the labels of all shared dimensions in the order of `with_edit`; and how many runs
        (sample, seed) were left out.

    Raises:
        DitLensError: the dimensions do not fit, labels of sample or seed are missing or repeated, a run has
            no partner, or labels of another dimension differ.
    """
    extra = [d for d in without.dims if d not in with_edit.dims]
    if extra or any((d in without.dims) != (d in with_edit.dims) for d in RUN):
        raise DitLensError(
            f"effect: the outcome with the edit has {shape_of(with_edit)}, the one without {shape_of(without)}; "
            "both need the same of sample and seed, and the one without may have no other dimensions."
        )
    runs = _runs(with_edit) | _runs(without)
    for dim in map(str, without.dims):
        with_edit, without = _align(with_edit, without, dim, drop_unpaired and dim in RUN)
    seeds = [a.coords["seed"] for a in (with_edit, without) if "seed" in a.coords]
    if len(seeds) == 2 and not bool((seeds[0] == seeds[1]).all()):  # where seed is no dimension
        raise DitLensError(
            "effect: the coordinate seed differs between the runs with the edit and those without; "
            "pair runs that start from the same noise."
        )
    return with_edit, without, len(runs) - len(_runs(with_edit))


def _runs(outcome: xr.DataArray) -> set[tuple[Any, ...]]:
    """Return the labels (sample, seed) of all runs.

    Raises:
        DitLensError: there are no labels, or one stands twice.
    """
    dims = [d for d in RUN if d in outcome.dims]
    for dim in dims:
        if dim not in outcome.coords or not outcome.indexes[dim].is_unique:
            problem = "repeats labels of" if dim in outcome.coords else "has no labels for"
            raise DitLensError(
                f"effect: {name_of(outcome)} {problem} {dim}; runs are paired by their labels."
            )
    return set(product(*(outcome.indexes[d].tolist() for d in dims)))


def _align(
    with_edit: xr.DataArray, without: xr.DataArray, dim: str, drop: bool
) -> tuple[xr.DataArray, xr.DataArray]:
    """Bring one dimension of both to the same labels, in the order of the first.

    Raises:
        DitLensError: a label is in one of them only and `drop` is not set, or none is in both.
    """
    edited, clean = with_edit[dim].to_numpy().tolist(), without[dim].to_numpy().tolist()
    at = {label: i for i, label in enumerate(clean)}
    both = [i for i, label in enumerate(edited) if label in at]
    lone = [f"{dim} {label} without the edit" for label in edited if label not in at]
    lone += [f"{dim} {label} with the edit" for label in clean if label not in set(edited)]
    if lone and not (drop and both):
        more = f", and {len(lone) - 6} more" if len(lone) > 6 else ""
        remedy = "set drop_unpaired=True" if dim in RUN and both else "select what both have"
        raise DitLensError(f"effect: there is no {', no '.join(lone[:6])}{more}; run them, or {remedy}.")
    return with_edit.isel({dim: both}), without.isel({dim: [at[edited[i]] for i in both]})
