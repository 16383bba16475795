"""Heads chosen on half of the samples: what is planted holds on the other half, and the luck of noise does not."""

import numpy as np
import xarray as xr

from dit_lens.experiments.halves import beside, choose_heads, measured_samples, report


def noise(seed, samples=24, planted=0.0):
    values = np.random.default_rng(seed).standard_normal((samples, 8, 6))
    values[:, 5, 2] += planted
    labels = np.array([f"maze/{n}" for n in range(samples)], np.dtypes.StringDType())
    return xr.DataArray(
        values,
        {"sample": labels, "layer": np.arange(0, 16, 2), "head": np.arange(6)},
        ("sample", "layer", "head"),
    )


def test_a_head_that_is_planted_is_chosen_and_holds_on_the_other_half():
    chosen = choose_heads(noise(0, planted=4.0), 1)
    assert chosen.heads == ((10, 2),) and not set(chosen.chosen_on) & set(chosen.reported_on)
    found = report(noise(0, planted=4.0), chosen, (-np.inf, np.inf))
    assert found["samples that chose"] == found["samples that report"] == 12
    assert 3 < found["each"][0]["low"] < 4 < found["each"][0]["high"] < 5.5


def test_the_best_of_noise_looks_good_where_it_was_chosen_and_is_nothing_on_the_other_half():
    chose, reported, missed = [], [], 0
    for seed in range(40):
        values = noise(seed)
        chosen = choose_heads(values, 1)
        found = report(values, chosen, (-np.inf, np.inf))["each"][0]
        chose.append(chosen.means[0])
        reported.append(found["mean"])
        missed += not found["low"] <= 0 <= found["high"]
    assert np.mean(chose) > 0.5 and abs(np.mean(reported)) < 0.1 and missed <= 6


def test_few_samples_and_what_was_not_measured_are_said():
    values = noise(0, samples=3)
    assert choose_heads(values, 1) is None
    assert "3 samples" in report(values, None, (0, 1))["not measured"] and beside(None, {}, (0, 1)) == {}
    seeds = noise(0, samples=6).expand_dims(seed=2, axis=1).copy()
    seeds[0, 0], seeds[1] = np.nan, np.nan  # one seed of a sample, all of another
    whole = measured_samples(seeds)
    assert whole.sizes["sample"] == 5 and "seed" not in whole.dims
    chosen = choose_heads(measured_samples(noise(0, samples=4)), 2)
    gone = noise(0, samples=4).where(lambda v: v["sample"] != chosen.reported_on[0])
    assert "1 samples" in beside(chosen, {"gone": gone}, (0, 1))["gone"]["not measured"]
