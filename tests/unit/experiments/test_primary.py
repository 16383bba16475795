"""Primary outcomes: p is that of the interval, uniform under a planted null, small under a planted effect; Holm over several."""

from functools import partial

import numpy as np
import pytest
import xarray as xr
from scipy.stats import ttest_1samp

from dit_lens import analysis
from dit_lens.experiments.primary import holm, outcomes_with_p, primary_outcome
from scripts import script


def values(shift, samples=30, seed=0, places=None):
    shape = (samples,) if places is None else (samples, places)
    drawn = shift + np.random.default_rng(seed).standard_normal(shape)
    return xr.DataArray(drawn, dims=("sample", "layer")[: len(shape)])


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.45])
def test_p_of_a_mean_is_near_that_of_students_test_and_agrees_with_the_interval(shift):
    sample = values(shift)
    found = primary_outcome(partial(analysis.mean, sample))
    assert found["p"] == pytest.approx(ttest_1samp(sample, 0).pvalue, rel=0.35, abs=0.002)
    assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
    assert primary_outcome(partial(analysis.mean, sample), null=found["mean"])["p"] == 1


def test_under_a_null_all_p_are_alike_often():
    p = [
        primary_outcome(partial(analysis.mean, values(0.0, 24, seed), draws=1000), draws=1000)["p"]
        for seed in range(150)
    ]
    assert 0.4 < np.mean(p) < 0.6 and np.mean(np.array(p) <= 0.05) < 0.11 and max(p) > 0.8 and min(p) < 0.1


def test_right_or_wrong_outcomes_are_tested_by_the_interval_that_they_have():
    better, worse = np.zeros(24), np.zeros(24)
    better[:1] = 1
    pair = [xr.DataArray(x, dims="sample", coords={"sample": range(24)}) for x in (better, worse)]
    found = primary_outcome(partial(analysis.effect, *pair, bounds=(0, 1)))
    assert found["low"] < 0 and 0.2 < found["p"] < 0.5  # one of 24: a bootstrap alone would say 0.0
    assert primary_outcome(partial(analysis.effect, pair[1], pair[1], bounds=(0, 1)))["p"] == 1
    half = pair[0].copy(data=np.arange(24) < 12)
    assert primary_outcome(partial(analysis.effect, half, pair[1] > 0))["p"] < 0.001


def test_a_share_is_tested_against_its_own_null():
    always = xr.DataArray(np.ones(64), dims="sample")
    assert primary_outcome(partial(analysis.mean, always, bounds=(0, 1)), null=0.5)["p"] < 0.001
    assert primary_outcome(partial(analysis.mean, always, bounds=(0, 1)), null=1.0)["p"] == 1


def test_a_curve_is_tested_by_its_band_so_one_chance_among_many_is_none():
    curve = values(0.0, places=20)
    curve[:, 3] = curve[:, 3] - curve[:, 3].mean() + 0.45  # off 0 on its own, not among twenty
    alone = primary_outcome(partial(analysis.mean, curve[:, 3]))
    band = primary_outcome(partial(analysis.mean, curve, along="layer"))
    assert alone["p"] < 0.05 < 2 * alone["p"] < band["p"] and band["by a band over"] == "layer"
    curve[:, 3] += 1.0
    assert primary_outcome(partial(analysis.mean, curve, along="layer"))["p"] < 0.01


def test_holm_multiplies_the_smallest_by_all_and_keeps_the_order():
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"] and holm({}) == {}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_what_has_a_p_is_found_wherever_it_stands_in_a_summary():
    one, other = {"effect": 0.1, "p": 0.02}, {"by a band over": "layer", "p": 0.3}
    summary = {"samples": 3, "gain": one, "leaning": {"block": other, "rows": [one]}, "rate": {"mean": 0.5}}
    assert outcomes_with_p(summary) == {"gain": one, "leaning, block": other}


def test_the_page_says_what_is_off_its_null_with_all_rows_together_and_counts_rows_without_a_test():
    everything = script("all")
    near = {"effect": 0.2, "low": 0.01, "high": 0.4, "null": 0.0, "p": 0.02}
    far = {"by a band over": "layer", "null": 0.0, "p": 0.0009}
    outcomes = {"a": {"gain": near, "leaning, block": far}, "b": {"gain": near | {"p": 0.9}}}
    page = everything.table(outcomes)
    assert "Of 3 primary outcomes" in page and "2 are off their nulls" in page and "3 tests" in page
    assert "| `a` | gain | 0.2 [0.01, 0.4] | 0 | 0.0200 | 0.0400 | **yes** |" in page
    assert "| `a` | leaning, block | band over layer | 0 | 0.0009 | 0.0027 | **yes** |" in page
    stricter = everything.table(outcomes | {"c": {}})
    assert "1 are off" in stricter and "| 0.0600 | no |" in stricter and "off their nulls: `c`." in stricter


def test_rows_are_those_of_the_page_less_the_controls(tmp_path):
    everything = script("all")
    name = "full_early_maze"
    (tmp_path / f"{name}.json").write_text('{"gain": {"effect": 0.1, "p": 0.02}}')
    found = everything.primary_outcomes(tmp_path)
    assert set(found) == set(everything.FAMILY) - set(everything.CONTROLS)
    assert found[name] == {"gain": {"effect": 0.1, "p": 0.02}} and not any(
        v for k, v in found.items() if k != name
    )


def test_the_page_is_that_of_the_summaries_beside_it():
    everything = script("all")
    docs = everything.HERE.parent / "docs" / "findings"
    assert (docs / "holm.md").read_text() == everything.table(everything.primary_outcomes(docs))
