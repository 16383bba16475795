"""Logistic regression of right-or-wrong outcomes on what samples are, with intervals over samples.

The coefficients maximise the likelihood times the square root of its information (Firth 1993, Biometrika 80; Heinze &
Schemper 2002): they are finite where a predictor separates right from wrong, and less biased in few samples. The interval is the
bootstrap's over samples, each with all its seeds, with expanded percentiles (see `dit_lens.analysis.bootstrap`).
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.bootstrap import expanded_tail
from dit_lens.errors import DitLensError

Array = NDArray[np.float64]

ROUNDS = 60
"""Newton's steps, at most."""
LONGEST = 2.0
"""Largest change of a coefficient in one of them, in units of the standardised predictor."""


def logistic(
    outcome: xr.DataArray,
    predictors: xr.Dataset,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Fit the log odds of an outcome by an intercept and the predictors together.

    Args:
        outcome: [sample] or [sample, seed], bool or 0 and 1.
        predictors: variables on [sample], numbers that vary.
        draws: how many bootstrap draws of samples.
        seed: of the draws.
        level: the chance that an interval holds the true coefficient.

    Returns:
        Dataset on `predictor`: `mean` (the coefficient, in log odds a unit of the predictor), `low`, `high`. Attributes
        `n_samples`, `n_seeds`, `level`.

    Raises:
        DitLensError: other dimensions or values; outcomes that are all the same; a predictor that does not vary, or that the
            others determine; fewer samples than three for each coefficient.
    """
    right, x, names = _read(outcome, predictors)
    centre, spread = x.mean(0), x.std(0)
    design = np.column_stack([np.ones(len(x)), (x - centre) / spread])
    if np.linalg.cond(design) > 1e4:
        raise DitLensError(f"logistic: {', '.join(names)} determine one another; leave one out.")
    count = len(x)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(float)
    hits, tries = right.sum(1), np.full(count, right.shape[1], float)
    found = _firth(design, hits, tries, np.vstack([np.ones(count), drawn]))[:, 1:] / spread
    tail = expanded_tail(level, count)
    low, high = np.quantile(found[1:], [tail, 1 - tail], axis=0)
    text = np.array(names, np.dtypes.StringDType())
    return xr.Dataset(
        {"mean": ("predictor", found[0]), "low": ("predictor", low), "high": ("predictor", high)},
        {"predictor": text},
        {"n_samples": count, "n_seeds": right.shape[1], "level": level, "draws": draws, "draws_seed": seed},
    )


def _read(outcome: xr.DataArray, predictors: xr.Dataset) -> tuple[Array, Array, list[str]]:
    """Return outcomes [sample, seed], predictors [sample, predictor] and their names."""
    if "seed" not in outcome.dims:
        outcome = outcome.drop_vars("seed", errors="ignore").expand_dims("seed")
    names = [str(name) for name in predictors.data_vars]
    if (
        set(outcome.dims) != {"sample", "seed"}
        or any(predictors[n].dims != ("sample",) for n in names)
        or not names
    ):
        raise DitLensError(
            f"logistic: takes an outcome [sample, seed], and predictors [sample]; these are {dict(outcome.sizes)} and "
            f"{ {n: predictors[n].dims for n in names} }."
        )
    if "sample" in outcome.coords and "sample" in predictors.coords:
        predictors = predictors.sel(sample=outcome.sample)
    right = outcome.transpose("sample", "seed").astype(float).to_numpy()
    x = np.stack([predictors[n].astype(float).to_numpy() for n in names], 1)
    if not np.isin(right, (0, 1)).all() or not np.isfinite(x).all() or len(x) != len(right):
        raise DitLensError(
            "logistic: outcomes are 0 or 1, and predictors finite numbers, one for each sample."
        )
    if right.min() == right.max():
        raise DitLensError(f"logistic: all outcomes are {bool(right.min())}; nothing can be told of them.")
    if still := [name for name, values in zip(names, x.T, strict=True) if values.min() == values.max()]:
        raise DitLensError(f"logistic: {', '.join(still)} does not vary; leave it out.")
    if len(x) < 3 * (len(names) + 1):
        raise DitLensError(
            f"logistic: {len(x)} samples are too few for {len(names) + 1} coefficients; take three for each."
        )
    return right, x, names


def _firth(design: Array, hits: Array, tries: Array, times: Array) -> Array:
    """Return the coefficients [draw, coefficient] by Newton's method, of all draws at once.

    Args:
        design: [sample, coefficient].
        hits: right outcomes of each sample, [sample].
        tries: outcomes of each sample, [sample].
        times: how often a draw has each sample, [draw, sample].
    """
    found, ridge = np.zeros((len(times), design.shape[1])), 1e-9 * np.eye(design.shape[1])
    for _ in range(ROUNDS):
        chance = 1 / (1 + np.exp(-found @ design.T))  # [draw, sample]
        varies = chance * (1 - chance)
        weight = times * tries * varies
        inverse = np.linalg.inv(np.einsum("ds,si,sj->dij", weight, design, design) + ridge)
        leverage = varies * np.einsum("si,dij,sj->ds", design, inverse, design)
        score = times * (hits - tries * chance + tries * leverage * (0.5 - chance))
        change = np.einsum("dij,dj->di", inverse, score @ design)
        change *= np.minimum(1, LONGEST / np.maximum(np.abs(change).max(1, keepdims=True), LONGEST))
        found += change
        if np.abs(change).max() < 1e-7:
            break
    return found


__all__ = ["logistic"]
