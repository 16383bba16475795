"""Logistic regression: planted log odds are found, none where there is none, and separated outcomes stay finite."""

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import logistic
from dit_lens.errors import DitLensError


def scenes(slope, count, seeds=1, seed=0):
    rng = np.random.default_rng(seed)
    length, other = rng.normal(10, 2, count), rng.integers(0, 4, count).astype(float)
    chance = 1 / (1 + np.exp(-slope * (length - 10)))
    solved = rng.random((count, seeds)) < chance[:, None]
    labels = {"sample": np.arange(count)}
    predictors = xr.Dataset({"length": ("sample", length), "other": ("sample", other)}, labels)
    return xr.DataArray(solved, labels, ("sample", "seed")), predictors


def test_it_is_the_maximum_of_the_likelihood_where_samples_are_many():
    from sklearn.linear_model import LogisticRegression

    solved, predictors = scenes(-0.5, 4000)
    found = logistic(solved, predictors, draws=40)
    x = np.stack([predictors[n].values for n in predictors], 1)
    known = LogisticRegression(C=1e9, max_iter=1000).fit(x, solved.values[:, 0]).coef_[0]
    np.testing.assert_allclose(found["mean"], known, atol=2e-3)
    assert found.predictor.values.tolist() == ["length", "other"]


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_intervals_hold_the_truth(slope):
    missed = []
    for seed in range(40):
        found = logistic(*scenes(slope, 40, seeds=2, seed=seed), draws=200, seed=seed).sel(predictor="length")
        missed.append(not found.low <= slope <= found.high)
    assert np.mean(missed) <= 0.15


def test_seeds_that_agree_count_once():
    solved, predictors = scenes(0.4, 60)
    once = logistic(solved, predictors, draws=400)
    often = logistic(solved.isel(seed=[0] * 5), predictors, draws=400)
    widths = [float((f.high - f.low).sel(predictor="length")) for f in (once, often)]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_outcomes_that_a_predictor_separates_have_finite_odds():
    solved = xr.DataArray(np.arange(20) > 9, dims="sample")
    found = logistic(solved, xr.Dataset({"length": ("sample", np.arange(20.0))}), draws=300)
    assert 0 < float(found.low[0]) < float(found["mean"][0]) < float(found.high[0]) < 100


def test_what_says_nothing_is_refused():
    solved, predictors = scenes(0.0, 30)
    with pytest.raises(DitLensError, match="all outcomes are True"):
        logistic(solved | True, predictors)
    with pytest.raises(DitLensError, match="length does not vary"):
        logistic(solved, predictors.assign(length=predictors.length * 0))
    with pytest.raises(DitLensError, match="determine one another"):
        logistic(solved, predictors.assign(twice=2 * predictors.length))
    with pytest.raises(DitLensError, match="are too few"):
        logistic(solved[:6], predictors.isel(sample=slice(6)))
    with pytest.raises(DitLensError, match="takes an outcome"):
        logistic(solved.rename(seed="step"), predictors)
    with pytest.raises(DitLensError, match="outcomes are 0 or 1"):
        logistic(solved * 2, predictors)
