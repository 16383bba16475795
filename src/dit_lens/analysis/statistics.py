"""Means over samples and effects of edits, with bootstrap intervals.

The samples are what is drawn from a population, so the samples are what an interval speaks of: many seeds of
few samples make few samples. For a rate at or near 0 or 1 the bootstrap has nothing to draw from (n equal
outcomes give an interval of no width); there, use a Wilson interval (`dit_lens.experiment.rate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dit_lens.analysis.bootstrap import Bootstrap
from dit_lens.analysis.pairing import pair
from dit_lens.analysis.states import name_of, place, require_dims
from dit_lens.errors import DitLensError


def mean(
    values: xr.DataArray,
    *,
    along: str | Sequence[str] = (),
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Compute the mean over samples and seeds, with a bootstrap interval.

    Args:
        values: [sample, ...] or [sample, seed, ...], bool or number; may be lazy. Other dimensions (step,
            layer, arm, ...) are kept, and share their draws, so curves keep their correlation.
        along: dimensions whose positions are one family, e.g. "layer" or ["step", "layer"]; adds a band over
            them.
        draws: how many bootstrap draws.
        seed: of the draws.
        level: the chance that an interval holds the true mean; 0.95 for a 95% interval.

    Returns:
        Dataset on [...], float64, in the unit of the values: `mean`, and `low`, `high`, which hold one
        position at a time (see `dit_lens.analysis.bootstrap` for the method and its limits). With `along`
        also `band_low`, `band_high`, which hold all positions of a family at once: read these to say *where*
        along a curve something happens. Attributes: `n_samples`, `n_seeds`, `level`, `draws`, `draws_seed`,
        `method`, and `along`.

    Raises:
        DitLensError: there are fewer than 2 samples, a value is NaN, Inf or no number, or an argument does
            not fit.
    """
    return _summarise(_numbers(values, "mean"), along, draws, seed, level, "mean")


def effect(
    with_edit: xr.DataArray,
    without: xr.DataArray,
    *,
    drop_unpaired: bool = False,
    along: str | Sequence[str] = (),
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Compute the effect of an edit: the outcome with it minus the outcome without, over paired runs.

    Args:
        with_edit: [sample, ...] or [sample, seed, ...], bool (counted as 0 and 1) or number; may be lazy.
        without: the same `sample` and `seed`, in any order: runs are paired by their labels. It may lack
            other dimensions of `with_edit` (step, layer, arm, ...).
        drop_unpaired: leave out runs that have no partner, and say how many in the attribute
            `dropped_pairs`; otherwise they are an error.
        along: as in `mean`.
        draws: as in `mean`.
        seed: as in `mean`.
        level: as in `mean`.

    Returns:
        Dataset as from `mean`, with `effect` in place of `mean`. The effect is found where `low` > 0 or
        `high` < 0; where many positions are looked at, where `band_low` > 0 or `band_high` < 0.

    Raises:
        DitLensError: a run has no partner, the labels of another dimension differ, or as in `mean`.
    """
    with_edit, without = _numbers(with_edit, "effect"), _numbers(without, "effect")
    with_edit, without, dropped = pair(with_edit, without, drop_unpaired)
    difference = (with_edit - without).transpose(*with_edit.dims).assign_attrs(with_edit.attrs)
    out = _summarise(difference, along, draws, seed, level, "effect")
    return out.assign_attrs(dropped_pairs=dropped)


def _numbers(values: xr.DataArray, caller: str) -> xr.DataArray:
    """Load outcomes as float64; what is no finite number is an error that names its place."""
    require_dims(values, ["sample"], caller)
    if values.dtype.kind not in "biuf":
        raise DitLensError(
            f"{caller}: {name_of(values)} holds {values.dtype}, neither bool nor real numbers."
        )
    values = values.astype(np.float64).compute()
    bad = np.argwhere(~np.isfinite(values.to_numpy()))
    if len(bad):
        where = [place(values, dict(zip(map(str, values.dims), at, strict=True))) for at in bad[:4]]
        more = f"; and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise DitLensError(
            f"{caller}: {name_of(values)} is NaN or Inf at {'; '.join(where)}{more}. "
            "Run what is missing, or select samples and seeds that are complete."
        )
    return values


def _summarise(
    values: xr.DataArray, along: str | Sequence[str], draws: int, seed: int, level: float, name: str
) -> xr.Dataset:
    """Bootstrap [sample, seed, ...] to a Dataset on [...]."""
    if "seed" not in values.dims:
        values = values.drop_vars("seed", errors="ignore").expand_dims("seed")
    values = values.transpose("sample", "seed", ...)
    dims = [str(d) for d in values.dims[2:]]
    family = [along] if isinstance(along, str) else list(along)
    _check(values, dims, family, draws, level, name)
    bootstrap = Bootstrap(values.to_numpy(), draws, seed)
    parts = dict(zip(("low", "high"), bootstrap.interval(level), strict=True))
    if family:
        axes = tuple(dims.index(d) for d in family)
        parts |= dict(zip(("band_low", "band_high"), bootstrap.band(level, axes), strict=True))
    coords = {n: c for n, c in values.coords.items() if set(c.dims) <= set(dims)}
    variables = {n: (dims, v) for n, v in {name: bootstrap.estimate, **parts}.items()}
    attrs = {
        "n_samples": values.sizes["sample"],
        "n_seeds": values.sizes["seed"],
        "level": level,
        "draws": draws,
        "draws_seed": seed,
        "method": "bootstrap over samples, each with all its seeds; expanded percentiles"
        + "; max-t band" * bool(family),
    }
    out = xr.Dataset(variables, coords, attrs | ({"along": family} if family else {}))
    units = {"units": values.attrs["units"]} if "units" in values.attrs else {}
    for variable in out.data_vars.values():
        variable.attrs = dict(units)
    return out


def _check(
    values: xr.DataArray, dims: list[str], family: list[str], draws: int, level: float, caller: str
) -> None:
    """Refuse what cannot be bootstrapped, with the reason."""
    if values.sizes["sample"] < 2:
        raise DitLensError(
            f"{caller}: one sample ({place(values, {'sample': 0})}) says nothing of how samples differ; "
            "run at least 2, better 20. More seeds of it do not help."
        )
    if not 0 < level < 1:
        raise DitLensError(f"{caller}: level is a chance within (0, 1), not {level}.")
    if draws * (1 - level) < 2:
        raise DitLensError(f"{caller}: {draws} draws are too few for a level of {level}; take 10,000.")
    if unknown := [d for d in family if d not in dims]:
        raise DitLensError(
            f"{caller}: along names {', '.join(unknown)}, but what is kept beside sample and seed is {dims}."
        )
