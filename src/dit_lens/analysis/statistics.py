"""Means over samples and effects of edits, with bootstrap intervals.

The samples are what is drawn from a population, so the samples are what an interval speaks of: many seeds of
few samples make few samples.

Where all samples agree, the bootstrap has nothing to draw from: its interval would have no width. For outcomes
with known bounds (rates, scores, their differences) such an interval is had from Wilson's for "another value
never came in n samples"; for right-or-wrong outcomes Wilson's is taken throughout, for their paired differences Tango's
(`bounded`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dit_lens.analysis.bootstrap import Bootstrap
from dit_lens.analysis.bounded import Bounds, settle
from dit_lens.analysis.pairing import pair
from dit_lens.analysis.states import name_of, place, require_dims
from dit_lens.errors import DitLensError

NO_BOUNDS: Bounds = (-np.inf, np.inf)
METHODS = {
    "student": "student: fewer than 6 samples, of which a bootstrap says too little; Student's t",
    "tango": "tango: Tango's score interval of a paired difference, n what the outcomes are worth",
    "bootstrap": "bootstrap: over samples, each with all its seeds; expanded percentiles",
    "unanimous": "unanimous: all samples agree; Wilson's bound on how often another value comes, n the samples",
    "wilson": "wilson: Wilson's interval, n what the outcomes are worth",
}
"""How an interval was made, by its name in `method`."""


def mean(
    values: xr.DataArray,
    *,
    bounds: Bounds | None = None,
    along: str | Sequence[str] = (),
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Compute the mean over samples and seeds, with a bootstrap interval.

    Args:
        values: [sample, ...] or [sample, seed, ...], bool or number; may be lazy. Other dimensions (step,
            layer, arm, ...) are kept, and share their draws, so curves keep their correlation.
        bounds: lowest and highest value that one outcome can have. Default: (0, 1) where the array is of
            bool or holds nothing but 0 and 1, else none; (-inf, inf) says that there are none.
        along: dimensions whose positions are one family, e.g. "layer" or ["step", "layer"]; adds a band over
            them.
        draws: how many bootstrap draws.
        seed: of the draws.
        level: the chance that an interval holds the true mean; 0.95 for a 95% interval.

    Returns:
        Dataset on [...], float64, in the unit of the values: `mean`, and `low`, `high`, which hold one
        position at a time. With `along` also `band_low`, `band_high`, which hold all positions of a family
        at once: read these to say *where* along a curve something happens. `method` names how each position
        got its interval: "bootstrap" (see `dit_lens.analysis.bootstrap`; "student" of fewer than 6 samples), "wilson" (right
        or wrong, or few samples that differ, within bounds), "tango" (a difference of such) or "unanimous" (all samples agree,
        within bounds; see `dit_lens.analysis.bounded`).
        Attributes: `n_samples`, `n_seeds`, `level`, `draws`, `draws_seed`, `methods` (what the names mean,
        of those that were used), and `along`.

    Raises:
        DitLensError: there are fewer than 2 samples, a value is NaN, Inf or no number, or an argument does
            not fit.
    """
    values = _numbers(values, "mean")
    bounds = bounds or ((0.0, 1.0) if _is_binary(values) else NO_BOUNDS)
    return _summarise(values, along, draws, seed, level, "mean", bounds)


def effect(
    with_edit: xr.DataArray,
    without: xr.DataArray,
    *,
    drop_unpaired: bool = False,
    bounds: Bounds | None = None,
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
        bounds: as in `mean`, of one outcome; their difference lies between low - high and high - low.
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
    bounds = bounds or ((0.0, 1.0) if _is_binary(with_edit) and _is_binary(without) else NO_BOUNDS)
    between = (bounds[0] - bounds[1], bounds[1] - bounds[0])
    out = _summarise(difference, along, draws, seed, level, "effect", between)
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


def _is_binary(values: xr.DataArray) -> bool:
    """Say whether outcomes are right or wrong: nothing but 0 and 1."""
    return bool(((values == 0) | (values == 1)).all())


def _summarise(
    values: xr.DataArray,
    along: str | Sequence[str],
    draws: int,
    seed: int,
    level: float,
    name: str,
    bounds: Bounds,
) -> xr.Dataset:
    """Summarise [sample, seed, ...] as a Dataset on [...]: the bootstrap's intervals, others where they fail."""
    if "seed" not in values.dims:
        values = values.drop_vars("seed", errors="ignore").expand_dims("seed")
    values = values.transpose("sample", "seed", ...)
    dims = [str(d) for d in values.dims[2:]]
    family = [along] if isinstance(along, str) else list(along)
    _check(values, dims, family, draws, level, name)
    _check_bounds(values, bounds, name)
    outcomes = values.to_numpy().clip(*bounds)
    bootstrap = Bootstrap(outcomes, draws, seed)
    parts = dict(zip(("low", "high"), bootstrap.interval(level), strict=True))
    axes = tuple(dims.index(d) for d in family)
    if family:
        parts |= dict(zip(("band_low", "band_high"), bootstrap.band(level, axes), strict=True))
    places = int(np.prod([outcomes.shape[2 + a] for a in axes]))
    parts = {part: np.clip(ends, *bounds) for part, ends in parts.items()}
    method = settle(outcomes, bootstrap.estimate, parts, level, bounds, places)
    coords = {n: c for n, c in values.coords.items() if set(c.dims) <= set(dims)}
    variables = {n: (dims, v) for n, v in {name: bootstrap.estimate, **parts, "method": method}.items()}
    attrs = {
        "n_samples": values.sizes["sample"],
        "n_seeds": values.sizes["seed"],
        "level": level,
        "draws": draws,
        "draws_seed": seed,
        "methods": "; ".join(METHODS[m] for m in sorted(set(method.ravel().tolist())))
        + "; band: max-t; of right-or-wrong outcomes, and where all agree, Bonferroni" * bool(family),
    }
    out = xr.Dataset(variables, coords, attrs | ({"along": family} if family else {}))
    units = {"units": values.attrs["units"]} if "units" in values.attrs else {}
    for variable in (name, *parts):
        out[variable].attrs = dict(units)
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


def _check_bounds(values: xr.DataArray, bounds: Bounds, caller: str) -> None:
    """Refuse outcomes outside of the bounds that were stated, by more than rounding."""
    low, high = (float(end(values)) for end in (np.min, np.max))
    rounding = 1e-9 * float(np.abs([low, high]).max())
    if low < bounds[0] - rounding or high > bounds[1] + rounding:
        raise DitLensError(
            f"{caller}: values run from {low:g} to {high:g}, outside of the bounds {bounds}; state wider ones, "
            "or (-inf, inf)."
        )
