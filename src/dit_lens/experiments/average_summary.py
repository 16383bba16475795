"""What is said of averages over seeds: beside clean runs and placebos at equal cost, and of two at equal movement."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.experiments.ensembles import RIVALS, at_cost
from dit_lens.experiments.leverage import at_equal_movement
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.primary import primary_outcome

WAYS = dict(zip(("one goes on", "all go on, majority vote", "all go on, best (oracle)"), RIVALS, strict=True))
"""How averaged runs go on, and what clean runs do at that cost."""
ONE = next(iter(WAYS))
AVERAGED, PLACEBO = "averaged", "placebo"


def costs(results: xr.Dataset, seeds: int) -> dict[str, Any]:
    """Return what each way to go on with so many seeds costs, in whole runs."""
    one = {
        average: dict(zip(results.interval.values.tolist(), row, strict=True))
        for average, row in zip(results.average.values.tolist(), results.cost.values.tolist(), strict=True)
    }
    at_most = {way: seeds for way in (*list(WAYS)[1:], *RIVALS[1:])}
    return {ONE: one, RIVALS[0]: 1, **at_most}


def primary(results: xr.Dataset) -> dict[str, Any]:
    """Return the primary outcome: solved, states averaged minus x0 averaged, one goes on, at the steps of --at-steps."""
    names = results.average.values.tolist()
    states = [name for name in names if name.startswith("states")]
    if not states or "x0" not in names:
        return {"not measured": "it takes states and x0 in --what"}
    chosen = results.solved.isel(interval=int(results.at_steps.values.argmax()), drop=True)
    chosen = chosen.sel(way=ONE, kind=AVERAGED, drop=True)
    middle = states[len(states) // 2]
    first, second = (chosen.sel(average=name, drop=True).reset_coords(drop=True) for name in (middle, "x0"))
    found = primary_outcome(partial(analysis.effect, first, second, bounds=(0, 1)))
    return {"solved, one goes on": f"{middle}, minus x0", **found}


def compared(results: xr.Dataset, name: str, seeds: int) -> dict[str, Any]:
    """Return an outcome of averages, of clean runs, and averages minus clean runs and minus placebos at equal cost."""
    values, clean = results[name], results[f"clean_{name}"]
    averaged = values.sel(kind=AVERAGED, drop=True)
    out = {
        name: headline(analysis.mean(averaged, bounds=(0, 1))),
        f"{name}, clean runs": headline(analysis.mean(clean, bounds=(0, 1))),
    }
    against = {f"{way} minus {how}": (way, clean.sel(rival=how, drop=True)) for way, how in WAYS.items()}
    against[f"{ONE} minus clean runs at its cost"] = ONE, at_cost(clean, results.cost, seeds)
    if PLACEBO in results.kind.values.tolist():
        against |= {
            f"{way} minus placebo": (way, values.sel(kind=PLACEBO, way=way, drop=True)) for way in WAYS
        }
    for label, (way, other) in against.items():
        difference = analysis.effect(
            averaged.sel(way=way, drop=True), other, bounds=(0, 1), along=["average", "interval"]
        )
        out[f"{name}, {label}"] = headline(difference)
    return out


def of_equal_leverage(results: xr.Dataset) -> dict[str, Any]:
    """Compare each average with x0, and with its placebo, where both have moved a sample's latents equally."""
    if not results.from_first.any():
        return {"not compared": "no interval begins at the first step; give --until"}
    ladder = results.isel(interval=np.flatnonzero(results.from_first.values))[["solved", "score", "movement"]]
    ladder = ladder.sel(way=ONE, drop=True).reset_coords(["cost", "at_steps", "from_first"], drop=True)
    names, out = results.average.values.tolist(), {}
    for name in names:
        here = ladder.sel(average=name, drop=True)
        averaged = here.sel(kind=AVERAGED, drop=True)
        if name != "x0" and "x0" in names:
            other = ladder.sel(average="x0", kind=AVERAGED, drop=True)
            out[f"{name} minus x0"] = at_equal_movement(averaged, other, ("solved", "score"))
        if PLACEBO in results.kind.values.tolist():
            other = here.sel(kind=PLACEBO, drop=True)
            out[f"{name} minus placebo"] = at_equal_movement(averaged, other, ("solved", "score"))
    return out


__all__ = ["AVERAGED", "ONE", "PLACEBO", "WAYS", "compared", "costs", "of_equal_leverage", "primary"]
