from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from dit_lens.analysis import bootstrap
from dit_lens.analysis.statistics import effect, mean
from dit_lens.errors import DitLensError


def runs(values: np.ndarray, *others: str) -> xr.DataArray:
    """Outcomes [sample, seed, ...] with labels that are no positions."""
    names = np.array([f"maze-{i}" for i in range(len(values))], dtype=object)
    coords = {"sample": names, "seed": 10 + np.arange(values.shape[1])}
    return xr.DataArray(values, coords, ["sample", "seed", *others], "score")


def misses(out: xr.Dataset, low: str = "low", high: str = "high", true: float = 0) -> xr.DataArray:
    return (out[low] > true) | (out[high] < true)


def width(out: xr.Dataset, low: str = "low", high: str = "high") -> np.ndarray:
    return (out[high] - out[low]).to_numpy()


def t_interval(values: np.ndarray) -> tuple[float, float]:
    sem = scipy.stats.sem(values)
    return scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), sem)


# ---- the interval


@pytest.mark.parametrize("n", [8, 40])
def test_on_a_normal_sample_the_interval_is_that_of_t(n: int) -> None:
    values = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)  # symmetric, so that the two should agree
    out = mean(xr.DataArray(values, dims="sample"), draws=40_000)
    low, high = t_interval(values)
    np.testing.assert_allclose([out["low"], out["high"]], [low, high], rtol=0.05)
    assert out["mean"] == pytest.approx(0, abs=1e-12)


def test_with_many_samples_it_is_the_percentile_interval_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    reference = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    out = mean(xr.DataArray(values, dims="sample"))
    np.testing.assert_allclose([out["low"], out["high"]], reference, atol=0.03 * width(out))
    assert out["high"] - out["mean"] > out["mean"] - out["low"]  # it leans as the data do


def test_a_rate_stays_between_0_and_1() -> None:
    out = mean(xr.DataArray(np.arange(20) != 3, dims="sample"))
    assert out["mean"] == pytest.approx(0.95) and 0 < out["low"] < 0.9 and 0.95 < out["high"] <= 1


def test_a_bound_that_is_0_is_not_just_below_0() -> None:
    for n in range(6, 40):
        worse = np.zeros((n, 3))
        worse[:2, 1] = -1  # some draws have neither of the two: that the edit does nothing is not excluded
        assert mean(runs(worse), draws=1000)["high"] == 0
        assert mean(runs(-worse), draws=1000, bounds=(-np.inf, np.inf))["low"] == 0


@pytest.mark.parametrize("n", [10, 40])
def test_it_misses_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    normal = xr.DataArray(rng.standard_normal((n, 600)), dims=["sample", "experiment"])
    rate = xr.DataArray(rng.random((n, 600)) < 0.5, dims=["sample", "experiment"])
    assert 0.03 < misses(mean(normal, draws=2000)).mean() < 0.07
    assert 0.01 < misses(mean(rate, draws=2000), true=0.5).mean() < 0.07  # few values: it cannot be exact


def test_a_higher_level_is_wider() -> None:
    values = xr.DataArray(np.random.default_rng(0).standard_normal(30), dims="sample")
    widths = [float(width(mean(values, level=level))) for level in (0.5, 0.9, 0.99)]
    ratio = scipy.stats.t.isf(0.005, 29) / scipy.stats.t.isf(0.25, 29)
    assert widths[0] < widths[1] < widths[2] and widths[2] / widths[0] == pytest.approx(ratio, rel=0.05)


# ---- rates, and outcomes within bounds


def rates(*hits: int, n: int = 20, seeds: int = 1) -> xr.DataArray:
    """Right or wrong [sample, seed, arm]: of n samples the first so many are right, with all their seeds."""
    solved = np.arange(n)[:, None, None] < np.array(hits)
    return runs(np.repeat(solved, seeds, axis=1), "arm")


@pytest.mark.parametrize("kind", [bool, float, int])
def test_a_rate_of_one_seed_has_the_interval_of_wilson(kind: type) -> None:
    out = mean(rates(0, 1, 9, 20).astype(kind), level=0.9)
    for arm, hits in enumerate((0, 1, 9, 20)):
        expected = scipy.stats.binomtest(hits, 20).proportion_ci(0.9, method="wilson")
        np.testing.assert_allclose([out["low"][arm], out["high"][arm]], expected, atol=1e-12)
    assert (out["method"] == "wilson").all() and out.attrs["methods"].startswith("wilson: ")
    assert out["low"][0] == 0 and out["high"][3] == 1 and (width(out) > 0.1).all()


def test_rates_of_seeds_that_agree_are_rates_of_samples() -> None:
    out = mean(rates(0, 9, 20, seeds=3))
    assert (out["method"] == "wilson").all() and "wilson: " in out.attrs["methods"]
    expected = [scipy.stats.binomtest(k, 20).proportion_ci(method="wilson") for k in (0, 9, 20)]  # 20, not 60
    np.testing.assert_allclose(out["high"], [e.high for e in expected])
    np.testing.assert_allclose(out["low"], [e.low for e in expected], atol=1e-12)


def test_unanimous_scores_and_differences_have_width_too() -> None:
    other = scipy.stats.binomtest(0, 20).proportion_ci(method="wilson").high
    score = mean(runs(np.full((20, 2), 0.75)), bounds=(0, 1))
    np.testing.assert_allclose([score["low"], score["high"]], [0.75 - 0.75 * other, 0.75 + 0.25 * other])
    assert width(mean(runs(np.full((20, 2), 0.75)))) == 0  # nothing was said of its bounds
    halves = (rates(9, 20, 20) / 2, rates(9, 20, 0) / 2)
    same = effect(*halves, bounds=(0, 1))
    np.testing.assert_allclose(same["low"], [-other, -other, 0.5 - 1.5 * other])
    assert same["method"].values.tolist() == [
        "tango",
        "tango",
        "unanimous",
    ]  # 0 is a difference of rates, too
    same = effect(rates(9, 20, 20), rates(9, 20, 0))
    np.testing.assert_allclose(same["low"], [-other, -other, 1 - 2 * other])
    np.testing.assert_allclose(same["high"], [other, other, 1])
    assert (same["method"] == "tango").all()


def test_of_outcomes_between_0_and_1_those_positions_that_are_right_or_wrong_are_rates() -> None:
    mixed = xr.concat([rates(9, 20).astype(float), rates(10).astype(float) / 2], "arm")
    out = mean(mixed, bounds=(0, 1))
    assert out["method"].values.tolist() == ["wilson", "wilson", "bootstrap"]
    xr.testing.assert_equal(out.isel(arm=slice(2)), mean(rates(9, 20)))
    assert (mean(mixed)["method"] == "bootstrap").all()


def test_numbers_that_happen_to_be_0_and_1_can_be_declared_unbounded() -> None:
    out = mean(rates(20).astype(float), bounds=(-np.inf, np.inf))
    assert width(out) == 0 and out["method"].values.tolist() == ["bootstrap"]
    with pytest.raises(DitLensError, match=r"mean: values run from 0 to 3, outside of the bounds \(0, 1\)"):
        mean(3.0 * rates(7), bounds=(0, 1))


@pytest.mark.parametrize("hits", [(0, 0, 0, 0), (0, 3, 12, 20)])
def test_the_band_over_rates_is_wider_than_their_intervals_and_within_0_and_1(hits: Sequence[int]) -> None:
    out = mean(rates(*hits), along="arm")
    assert (out["band_low"] <= out["low"]).all() and (out["band_high"] >= out["high"]).all()
    assert (out["band_low"] >= 0).all() and (out["band_high"] <= 1).all()
    assert out["band_high"][0] > out["high"][0] + 0.05  # 4 positions at once, also where none ever varied


@pytest.mark.parametrize(("true", "most", "bootstrap"), [(0.02, 0.12, 0.5), (0.95, 0.07, 0.2)])
def test_rates_near_0_and_1_are_missed_far_less_than_by_the_bootstrap(
    true: float, most: float, bootstrap: float
) -> None:
    values = runs(np.random.default_rng(3).random((25, 1, 600)) < true, "experiment")
    assert misses(mean(values, draws=1000), true=true).mean() < most
    unbounded = mean(values, draws=1000, bounds=(-np.inf, np.inf))
    assert misses(unbounded, true=true).mean() > bootstrap


# ---- seeds within samples


def nested(between: float, within: float, samples: int, seeds: int, experiments: int = 1) -> np.ndarray:
    rng = np.random.default_rng(5)
    sample = between * rng.standard_normal((samples, 1, experiments))
    return sample + within * rng.standard_normal((samples, seeds, experiments))


def test_many_seeds_of_few_samples_are_few_samples() -> None:
    values = nested(between=1, within=0.1, samples=12, seeds=50)
    out = mean(runs(values, "experiment"))
    low, high = t_interval(values.mean(1)[:, 0])
    np.testing.assert_allclose(width(out), high - low, rtol=0.1)
    naive = mean(xr.DataArray(values.reshape(600), dims="sample"), draws=1000)
    assert width(out) > 5 * width(naive)  # sqrt(50) = 7 times, as the seeds add nothing


@pytest.mark.parametrize("between", [0, 0.5, 3])
def test_with_seeds_it_misses_as_often_as_it_says(between: float) -> None:
    out = mean(runs(nested(between, 1, samples=40, seeds=4, experiments=600), "experiment"), draws=1000)
    assert 0.03 < misses(out).mean() < 0.075  # 0.01 at between = 0, were the seeds' noise counted twice


def test_seeds_that_all_agree_change_nothing() -> None:
    one = runs(np.random.default_rng(0).standard_normal((25, 1)))
    same = runs(np.repeat(one.to_numpy(), 6, axis=1))
    assert mean(one)["mean"] == pytest.approx(float(mean(same)["mean"]))
    np.testing.assert_allclose(width(mean(same)), width(mean(one)))
    xr.testing.assert_allclose(mean(one), mean(one.isel(seed=0)))


# ---- the band over a family


def test_the_band_misses_a_family_of_20_as_often_as_it_says() -> None:
    values = np.random.default_rng(2).standard_normal((40, 1, 400, 20))
    out = mean(runs(values, "experiment", "layer"), along="layer", draws=500)
    assert 0.02 < misses(out, "band_low", "band_high").any("layer").mean() < 0.08
    assert misses(out).any("layer").mean() > 0.4  # what the intervals would do


def test_a_band_is_as_wide_as_its_family_needs() -> None:
    independent = np.random.default_rng(3).standard_normal((40, 1, 20))
    same = np.repeat(independent[..., :1], 20, axis=-1)
    for values, positions in ((same, 1), (independent, 20)):
        out = mean(runs(values, "layer"), along=["layer"])
        tail = (1 - 0.95 ** (1 / positions)) / 2  # Sidak
        error = scipy.stats.sem(values[:, 0])
        expected = 2 * scipy.stats.t.isf(tail, 39) * error
        np.testing.assert_allclose(width(out, "band_low", "band_high"), expected, rtol=0.04)


def test_a_family_can_span_several_dimensions() -> None:
    values = runs(np.random.default_rng(3).standard_normal((30, 1, 6, 5)), "step", "layer")
    layer = mean(values, along="layer")
    both = mean(values, along=("step", "layer"))
    assert (width(both, "band_low", "band_high") > width(layer, "band_low", "band_high")).all()
    alone = mean(values.isel(step=[2]), along="layer")
    xr.testing.assert_allclose(layer.isel(step=[2]), alone)  # each step is a family of its own
    xr.testing.assert_equal(both["low"], layer["low"])
    assert both.attrs["along"] == ["step", "layer"] and "along" not in mean(values).attrs


def test_values_that_never_vary_have_no_width_and_leave_the_band_alone() -> None:
    values = np.random.default_rng(4).standard_normal((20, 3, 4))
    with_constant = np.concatenate([values, np.full((20, 3, 2), 0.1)], axis=-1)
    out = mean(runs(with_constant, "layer"), along="layer")
    constant = out.isel(layer=[4, 5])
    for name in ("mean", "low", "high", "band_low", "band_high"):
        np.testing.assert_allclose(constant[name], 0.1, rtol=1e-12)
    assert (width(constant) == 0).all() and (width(constant, "band_low", "band_high") == 0).all()
    varying = mean(runs(values, "layer"), along="layer")
    xr.testing.assert_allclose(out.isel(layer=slice(4)), varying)
    assert (constant["low"] == constant["mean"]).all()  # to the last bit: error bars may not be negative


# ---- the effect


def planted(solved: bool = False) -> tuple[xr.DataArray, xr.DataArray]:
    """A hard effect of -0.4 at layer 3 of 6, under differences between samples five times as large."""
    rng = np.random.default_rng(6)
    base = 2 * rng.standard_normal((30, 3))
    edited = base[..., None] + 0.3 * rng.standard_normal((30, 3, 6))
    edited[..., 3] -= 0.4
    with_edit, without = runs(edited, "layer").assign_coords(layer=np.arange(6) * 2), runs(base)
    return (with_edit > 0, without > 0) if solved else (with_edit, without)


def test_a_planted_effect_is_found_at_its_layer_and_nowhere_else() -> None:
    out = effect(*planted(), along="layer")
    found = misses(out, "band_low", "band_high")
    assert found["layer"][found].values.tolist() == [6]
    assert out["effect"].sel(layer=6) == pytest.approx(-0.4, abs=0.1)
    assert out["low"].sel(layer=6) < -0.4 < out["high"].sel(layer=6)


def test_pairing_takes_the_differences_between_samples_out() -> None:
    with_edit, without = planted()
    paired = effect(with_edit, without)
    assert (width(paired) * 5 < width(mean(without))).all()


def test_runs_are_paired_by_label_not_by_place() -> None:
    with_edit, without = planted()
    rng = np.random.default_rng(1)
    shuffled = without.isel(sample=rng.permutation(30), seed=[2, 0, 1]).transpose("seed", "sample")
    xr.testing.assert_allclose(effect(with_edit, shuffled), effect(with_edit, without))
    per_layer = without.expand_dims(layer=with_edit["layer"][::-1])
    xr.testing.assert_equal(effect(with_edit, per_layer), effect(with_edit, without))


def test_bools_count_as_0_and_1() -> None:
    with_edit, without = planted(solved=True)
    out = effect(with_edit, without)
    np.testing.assert_allclose(out["effect"], with_edit.mean(["sample", "seed"]) - without.mean(), atol=1e-12)
    xr.testing.assert_equal(out, effect(with_edit.astype(float), without.astype(int)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_effect_is_reported_at_the_stated_rate(seeds: int) -> None:
    rng = np.random.default_rng(8)
    with_edit = runs(rng.random((40, seeds, 400)) < 0.4, "experiment")
    without = runs(rng.random((40, seeds, 400)) < 0.4, "experiment")
    assert 0.01 < misses(effect(with_edit, without, draws=500)).mean() < 0.07


def test_a_run_without_partner_is_named_or_dropped_and_counted() -> None:
    with_edit, without = planted()
    fewer = without.isel(sample=slice(2, None), seed=[0, 1])
    with pytest.raises(DitLensError, match="no sample maze-0 without the edit, no sample maze-1"):
        effect(with_edit, fewer)
    with pytest.raises(DitLensError, match=r"no seed 12 with the edit.*drop_unpaired=True"):
        effect(with_edit.isel(seed=[0, 1]), without)
    out = effect(with_edit, fewer, drop_unpaired=True)
    assert out.attrs["dropped_pairs"] == 30 * 3 - 28 * 2 and out.attrs["n_samples"] == 28
    common = {"sample": slice(2, None), "seed": [0, 1]}
    xr.testing.assert_equal(out, effect(with_edit.isel(common), without.isel(common)))
    assert effect(with_edit, without).attrs["dropped_pairs"] == 0
    with pytest.raises(DitLensError, match=r"no seed 10 without the edit.*select what both have"):
        effect(with_edit, without.assign_coords(seed=[0, 1, 2]), drop_unpaired=True)


# ---- what comes back, and what is refused


def test_the_dataset_says_what_it_is() -> None:
    with_edit, without = planted()
    with_edit = with_edit.assign_coords(site="ffn", depth=("layer", np.linspace(0, 1, 6)))
    out = effect(with_edit.assign_attrs(units="1"), without, seed=3, draws=500, level=0.9)
    assert set(out.data_vars) == {"effect", "low", "high", "method"} and out["effect"].dims == ("layer",)
    assert set(out.coords) == {"layer", "depth", "site"} and out["low"].attrs == {"units": "1"}
    assert (out["method"] == "bootstrap").all()
    assert "each with all its seeds" in out.attrs.pop("methods")
    assert out.attrs == {
        "n_samples": 30,
        "n_seeds": 3,
        "level": 0.9,
        "draws": 500,
        "draws_seed": 3,
        "dropped_pairs": 0,
    }


def test_same_seed_same_numbers_and_lazy_values_are_read(tmp_path: object) -> None:
    values = planted()[0]
    values.to_dataset().to_zarr(f"{tmp_path}/v.zarr", consolidated=False, zarr_format=3)
    stored = xr.open_zarr(f"{tmp_path}/v.zarr", chunks=None, consolidated=False)["score"]
    xr.testing.assert_identical(mean(stored), mean(values))
    assert (mean(values, seed=1)["low"] != mean(values)["low"]).all()


def test_positions_share_their_draws() -> None:
    values = planted()[0]
    whole, part = mean(values), mean(values.isel(layer=[4, 1]))
    xr.testing.assert_allclose(part, whole.isel(layer=[4, 1]))


def test_draws_in_blocks_are_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = runs(np.random.default_rng(0).standard_normal((30, 2)))
    whole = mean(values)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 8 * 30 * 1001)
    np.testing.assert_allclose(width(mean(values)), width(whole), rtol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": [0]}, r"mean: one sample \(sample maze-0\)"),
        ({"sample": []}, "mean: score is empty"),
    ],
)
def test_too_few_samples(change: dict[str, Sequence[int]], message: str) -> None:
    with pytest.raises(DitLensError, match=message):
        mean(planted()[0].isel(change))


def test_arguments_that_do_not_fit() -> None:
    values = planted()[0]
    with pytest.raises(DitLensError, match="along names step"):
        mean(values, along="step")
    with pytest.raises(DitLensError, match="along names seed"):
        mean(values, along=["seed"])
    with pytest.raises(DitLensError, match="level is a chance"):
        mean(values, level=95)
    with pytest.raises(DitLensError, match="20 draws are too few"):
        mean(values, draws=20)
    with pytest.raises(DitLensError, match="no dimension sample"):
        mean(values.rename(sample="clip"))
    with pytest.raises(DitLensError, match="score holds <U1"):
        mean(values.astype(str).astype("<U1"))


def test_missing_values_are_named() -> None:
    with_edit, without = planted()
    with_edit[3, 1, 2] = np.nan
    with pytest.raises(DitLensError, match="effect: score is NaN or Inf at sample maze-3, seed 11, layer 4"):
        effect(with_edit, without)
    with_edit[3] = np.inf
    with pytest.raises(DitLensError, match="and 14 more"):
        mean(with_edit)


def test_what_cannot_be_paired() -> None:
    with_edit, without = planted()
    with pytest.raises(DitLensError, match="may have no other dimensions"):
        effect(without, with_edit)
    with pytest.raises(DitLensError, match="both need the same of sample and seed"):
        effect(with_edit, without.isel(seed=0))
    with pytest.raises(DitLensError, match="seed differs"):
        effect(with_edit.isel(seed=0), without.isel(seed=1))
    with pytest.raises(DitLensError, match="score has no labels for sample"):
        effect(with_edit.drop_vars("sample"), without)
    with pytest.raises(DitLensError, match="score repeats labels of seed"):
        effect(with_edit, without.assign_coords(seed=[10, 10, 11]))
    per_layer = with_edit.assign_coords(layer=np.arange(6))
    with pytest.raises(DitLensError, match=r"no layer 6 without the edit.*select what both have"):
        effect(with_edit, per_layer, drop_unpaired=True)


# ---- few samples


@pytest.mark.parametrize("n", [2, 3, 5])
def test_of_few_samples_intervals_and_bands_miss_as_often_as_they_say(n: int) -> None:
    rng = np.random.default_rng(n)
    values = xr.DataArray(rng.normal(size=(n, 2000)), dims=("sample", "trial"))
    out = mean(values, along=())
    assert set(out.method.values.tolist()) == {"student"} and "Student" in out.attrs["methods"]
    missed = float(((out.low > 0) | (out.high < 0)).mean())
    assert missed == pytest.approx(0.05, abs=0.02)
    families = values.rename(trial="x").coarsen(x=10).construct(x=("family", "place")).rename(family="trial")
    band = mean(families, along="place")
    missed = float(((band.band_low > 0) | (band.band_high < 0)).any("place").mean())
    assert missed < 0.09


def test_of_few_samples_an_interval_keeps_to_its_bounds_and_of_six_it_is_the_bootstraps() -> None:
    out = mean(xr.DataArray([0.2, 0.9], dims="sample"), bounds=(0, 1))
    assert (float(out.low), float(out.high)) == (0.0, 1.0)
    assert str(mean(xr.DataArray(np.linspace(0.1, 0.9, 6), dims="sample")).method.values) == "bootstrap"


def test_a_sum_that_is_above_its_bound_by_rounding_counts_as_it() -> None:
    out = mean(xr.DataArray([np.nextafter(1, 2), 0.5, 0.25], dims="sample"), bounds=(0, 1))
    assert float(out.high) <= 1
    with pytest.raises(DitLensError, match="outside of the bounds"):
        mean(xr.DataArray([1.001, 0.5, 0.25], dims="sample"), bounds=(0, 1))
