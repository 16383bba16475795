"""Intervals of right-or-wrong outcomes and their paired differences: by formula, by hand, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import xarray as xr

from dit_lens.analysis.bounded import clopper_pearson, effective, tango
from dit_lens.analysis.statistics import effect, mean

EXPERIMENTS = 1500


def outcomes(values: np.ndarray) -> xr.DataArray:
    """[sample, seed, experiment or position]."""
    coords = {"sample": np.arange(len(values)), "seed": np.arange(values.shape[1])}
    return xr.DataArray(values, coords, ["sample", "seed", "position"])


def missed(out: xr.Dataset, true: float, prefix: str = "") -> np.ndarray:
    low, high = out[f"{prefix}low"].values, out[f"{prefix}high"].values
    return (low - 1e-9 > true) | (high + 1e-9 < true)


def drawn(
    n: int, seeds: int, agree: float, rate: float, kind: str, count: int = EXPERIMENTS, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Outcomes of samples whose seeds all agree in a share of samples: a rate, or differences all or no way."""
    rng = np.random.default_rng(seed)
    whole = rng.random((n, 1, count)) < agree
    hit = np.where(whole, rng.random((n, 1, count)) < rate, rng.random((n, seeds, count)) < rate)
    if kind != "both ways":
        return hit.astype(float), rate
    signs = [rng.choice([-1, 1], (n, k, count)) for k in (1, seeds)]
    return hit * np.where(whole, *signs), 0.0


def test_tangos_interval_is_where_the_score_is_z_under_the_most_likely_shares() -> None:
    """The share of pairs that are worse, under a difference, from the likelihood itself."""

    def score(difference: float, better: int, worse: int, n: int) -> float:
        def unlikely(share: float) -> float:
            rest = 1 - 2 * share - difference
            counts = (better, share + difference), (worse, share), (n - better - worse, rest)
            return -sum(k * np.log(max(p, 1e-300)) for k, p in counts if k)

        ends = max(0.0, -difference), (1 - difference) / 2
        share = scipy.optimize.minimize_scalar(
            unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}
        ).x
        variance = (2 * share + difference - difference**2) * n
        return float((better - worse - n * difference) / np.sqrt(variance))

    for better, worse, n in ((5, 2, 24), (1, 0, 24), (43, 9, 101), (3, 3, 40)):
        low, high = tango(better, worse, n, 0.95)
        assert score(low, better, worse, n) == pytest.approx(1.959964, abs=2e-3)
        assert score(high, better, worse, n) == pytest.approx(-1.959964, abs=2e-3)
        assert tango(worse, better, n, 0.95) == pytest.approx((-high, -low))
    assert tango(1, 0, 24, 0.95) == pytest.approx((-0.102, 0.202), abs=1e-3)
    bound = scipy.stats.binomtest(0, 24).proportion_ci(method="wilson").high
    assert tango(0, 0, 24, 0.95) == pytest.approx((-bound, bound))
    assert tango(24, 0, 24, 0.95)[1] == 1 and tango(0, 24, 24, 0.95)[0] == -1


def test_clopper_and_pearsons_interval_is_scipys() -> None:
    for hits in (0, 1, 9, 20):
        expected = scipy.stats.binomtest(hits, 20).proportion_ci(0.99, method="exact")
        found = clopper_pearson(np.array(hits / 20), np.array(20.0), 0.99)
        assert [float(x) for x in found] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_what_outcomes_are_worth() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random((2000, 1)) < 0.4, 4, axis=1).astype(float)
    apart = (rng.random((2000, 4)) < 0.4).astype(float)
    assert effective(alike) == pytest.approx(2000, rel=0.01)
    assert effective(apart) == pytest.approx(8000, rel=0.1)
    assert effective(apart[:, :1]) == 2000
    assert effective(np.ones((24, 5))) == 24
    few = np.zeros((24, 5))
    few[0, 0] = 1
    assert 24 <= effective(few) < 30  # one sample that differs tells little


@pytest.mark.parametrize("n", [24, 64])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("kind", ["rate", "one way", "both ways"])
def test_intervals_miss_as_often_as_they_say_or_less(n: int, seeds: int, kind: str) -> None:
    for agree in (0.0, 0.5, 1.0):
        for rate in (0.05, 0.15, 0.4):
            values, true = drawn(n, seeds, agree, rate, kind)
            if kind == "rate":
                out = mean(outcomes(values), draws=200)
                assert (out["method"] == "wilson").all()
            else:
                out = (
                    effect(outcomes(values), outcomes(np.zeros_like(values)), bounds=(0, 1), draws=200)
                    if (kind == "one way")
                    else effect(outcomes(np.maximum(values, 0)), outcomes(np.maximum(-values, 0)), draws=200)
                )
                assert (out["method"] == "tango").all()
            assert missed(out, true).mean() < 0.08, (agree, rate)


@pytest.mark.parametrize("kind", ["rate", "one way"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_bands_over_20_positions_miss_no_more_than_they_say(seeds: int, kind: str) -> None:
    for rate in (0.02, 0.1, 0.4):
        misses = []
        for experiment in range(60):
            values, true = drawn(24, seeds, 0.5, rate, "rate", 20, experiment)
            array = outcomes(values)
            if kind == "rate":
                out = mean(array, along="position", draws=200)
            else:
                out = effect(array, xr.zeros_like(array), along="position", bounds=(0, 1), draws=200)
            misses.append(missed(out, true, "band_").any())
        assert np.mean(misses) <= 9 / 60, rate  # of 60, at 5%, 9 or more come once in a thousand


def test_a_curve_of_rates_keeps_numbers_and_rates_apart() -> None:
    values, _ = drawn(24, 1, 0, 0.3, "rate", 4)
    mixed = outcomes(values)
    mixed[:, :, 3] = np.random.default_rng(1).random((24, 1))
    out = mean(mixed, bounds=(0, 1), along="position")
    assert out["method"].values.tolist() == ["wilson", "wilson", "wilson", "bootstrap"]
    assert (out["band_low"] <= out["low"]).all() and (out["band_high"] >= out["high"]).all()


@pytest.mark.parametrize("n", [8, 24, 64])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_scores_of_which_few_differ_miss_no_more_than_they_say(n: int, share: float) -> None:
    """A score is 1 but for a share of samples, which have any: the bootstrap misses 8 to 11%, its band half and more."""
    rng = np.random.default_rng(n)

    def scores(positions: int) -> xr.DataArray:
        values = np.where(rng.random((n, 1, positions)) < 1 - share, 1.0, rng.random((n, 1, positions)))
        return outcomes(values)

    many, true = scores(600), 1 - share / 2
    whole = xr.ones_like(many)
    assert missed(mean(many, bounds=(0, 1), draws=200), true).mean() < 0.08
    assert missed(effect(many, whole, bounds=(0, 1), draws=200), true - 1).mean() < 0.08
    bands = []
    for _ in range(40):
        curve = scores(20)
        out = mean(curve, bounds=(0, 1), along="position", draws=200)
        other = effect(curve, xr.ones_like(curve), bounds=(0, 1), along="position", draws=200)
        bands.append([missed(out, true, "band_").any(), missed(other, true - 1, "band_").any()])
    assert np.mean(bands) < 0.15


def test_bounds_that_are_not_0_and_1_scale_the_interval() -> None:
    values, _ = drawn(24, 1, 0, 0.1, "rate", 3)
    few = np.where(values > 0, 0.3, 1.0)
    plain = mean(outcomes(few), bounds=(0, 1), draws=200)
    wide = mean(outcomes(2 + 3 * few), bounds=(2, 5), draws=200)
    assert (plain["method"] == "wilson").all() and (wide["method"] == "wilson").all()
    for end in ("mean", "low", "high"):
        np.testing.assert_allclose(wide[end], 2 + 3 * plain[end])
