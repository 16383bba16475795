"""Dates: planted ones are held by their intervals as often as these say, whatever the answers, the seeds and the samples."""

import json
from itertools import combinations

import numpy as np
import pytest
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.bounded import Bounds
from dit_lens.experiments import crossings
from dit_lens.experiments.crossings import committed, crossing_of, dated, place_of

STEPS = np.array([1, 4, 7, 10, 13, 16, 19])
RESULTS = xr.Dataset({"sigma": ("at", 1 - STEPS / 20)}, {"at": STEPS})
HALF: Bounds = (-0.5, 0.5)


def forked(n, answers, seeds, halfway, rng, forks=4):
    """Runs of scenes with equally likely answers, and forks of each, which keep the answer in so many of the cases.

    Returns:
        Agreement of the forks with their run [sample, seed, at], and of two runs [sample].
    """
    kept = np.clip(0.5 + (STEPS - halfway) / 18, 0, 1)
    own = rng.integers(answers, size=(n, seeds))
    fresh = rng.integers(answers, size=(len(STEPS), forks, n, seeds))
    ended = np.where(rng.random(fresh.shape) < kept[:, None, None, None], own, fresh)
    same = (ended == own).mean(1).transpose(1, 2, 0)
    chance = [np.mean([a == b for a, b in combinations(row, 2)]) for row in own]
    return (
        xr.DataArray(same, dims=("sample", "seed", "at"), coords={"at": STEPS}),
        xr.DataArray(chance, dims="sample"),
    )


@pytest.fixture
def few_draws(monkeypatch):
    """Fewer draws of the bootstrap: a simulation makes many intervals."""
    crossing = analysis.crossing
    monkeypatch.setattr(crossings.analysis, "crossing", lambda *a, **k: crossing(*a, **k, draws=300))


def misses(halfway, found):
    """Say whether a date's interval misses a step."""
    low, high = (np.inf if (step := found[end]["step"]) is None else step for end in ("low", "high"))
    return not low <= halfway <= high


@pytest.mark.slow
@pytest.mark.parametrize("n", [24, 64])
@pytest.mark.parametrize("answers, seeds", [(2, 2), (2, 3), (3, 2), (3, 3), (4, 2), (8, 3)])
def test_commitment_is_held_and_has_no_bias(few_draws, answers, seeds, n):
    rng, halfway = np.random.default_rng(0), 10.2
    found = [committed(*forked(n, answers, seeds, halfway, rng), RESULTS) for _ in range(70)]
    assert np.mean([misses(halfway, one) for one in found]) < 0.09
    assert np.mean([one["value"]["step"] or 22 for one in found]) == pytest.approx(halfway, abs=0.8)


def test_what_is_dated_is_not_weighed_by_chance_that_two_seeds_estimate(few_draws):
    """The fault: in the product, chance stands squared."""
    rng = np.random.default_rng(1)
    same, chance = forked(2000, 3, 2, 10.0, rng)
    product = (1 - chance) * (same - (1 + chance) / 2)
    early = float(analysis.crossing(product, "at").crossing)
    assert early < 8 and committed(same, chance, RESULTS)["value"]["step"] == pytest.approx(10, abs=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4, 24, 64])
def test_a_share_over_half_is_held(few_draws, n):
    rng, found = np.random.default_rng(2), []
    for _ in range(100):
        settled = rng.normal(10.2, 4, (n, 1, 1)) + rng.normal(0, 2, (n, 2, 1))  # symmetric: half at 10.2
        similar = xr.DataArray((settled <= STEPS) - 0.5, dims=("sample", "seed", "at"), coords={"at": STEPS})
        found.append(dated(similar, RESULTS, "at", HALF))
    assert np.mean([misses(10.2, one) for one in found]) < 0.09


def test_scenes_weigh_by_how_often_two_of_their_runs_differ():
    differ = np.tile(np.where(STEPS < 7, 0.0, 1.0), (12, 1))  # settled between 4 and 7
    alike = np.ones((12, 7))  # whatever the noise, one answer
    same = xr.DataArray(
        np.concatenate([differ, alike])[:, None], dims=("sample", "seed", "at"), coords={"at": STEPS}
    )
    chance = xr.DataArray(np.r_[np.zeros(12), np.ones(12)], dims="sample")
    found = committed(same, chance, RESULTS)
    assert found["value"]["step"] == 5.5 and found["samples whose runs differ"] == 12
    assert (found["low"]["step"], found["high"]["step"]) == (
        4,
        7,
    )  # they agree; the grid is what is not known
    assert found["value"]["sigma"] == pytest.approx(1 - 5.5 / 20)
    few = committed(same[10:18], chance[10:18], RESULTS)
    assert few["value"] == found["value"] and few["samples whose runs differ"] == 2
    assert few["no interval"] == "2 samples of 8 that tell where, and it takes 3" and "low" not in few
    none = committed(same, chance * 0 + 0.9, RESULTS)
    assert none == {"samples whose runs differ": 24, "not measured": "two runs give one answer in 0.90"}


def test_a_date_at_the_first_step_that_was_measured_is_marked_as_a_bound():
    coords = {"at": STEPS, "sample": np.arange(12)}
    up = xr.DataArray(np.full((12, 1, 7), 0.5), dims=("sample", "seed", "at"), coords=coords)
    first = {"step": 1.0, "sigma": pytest.approx(0.95), "at or before": True}
    assert dated(up, RESULTS, "at", HALF) == {"value": first, "low": first, "high": first}
    early = dated(up.where(up["at"] > 1, -0.5), RESULTS, "at", HALF)  # it surely is below there: no bound
    assert early["low"] == {"step": 1.0, "sigma": pytest.approx(0.95)}
    open_ = dated(up.where((up["at"] > 1) | (up["sample"] < 6), -0.4), RESULTS, "at", HALF)
    assert open_["low"] == open_["value"] == first and open_["high"]["step"] == 4
    late = dated(up.where(up["at"] > 4, -0.5), RESULTS, "at", HALF)
    assert [late[end]["step"] for end in ("value", "low", "high")] == [5.5, 4, 7]
    assert not any("at or before" in late[end] for end in late)
    never = dated(-up, RESULTS, "at", HALF)
    assert never == {end: {"step": None, "sigma": None} for end in ("value", "low", "high")}
    assert json.dumps(never, allow_nan=False)


@pytest.mark.parametrize(
    "samples, spread, says", [(5, 1.0, "5 samples, and"), (8, 0.0, "all samples agree"), (8, 1.0, None)]
)
def test_a_peak_has_an_interval_or_says_why_it_has_none(samples, spread, says):
    rng = np.random.default_rng(0)
    curve = 3.0 * np.array([-2.1, -1, 2, 1]) + spread * rng.standard_normal((samples, 4))
    values = xr.DataArray(curve, dims=("sample", "step"), coords={"step": [2, 4, 6, 8]})
    place = place_of(analysis.peak(values, "step"), values)
    assert place["peak"] == 6
    if says is None:
        assert place["low"] <= 6 <= place["high"]
    else:
        assert list(place) == ["peak", "no interval"] and place["no interval"].startswith(says)


def test_a_crossing_is_plain_data():
    values = xr.DataArray(
        np.tile([-1.0, 1, 1], (6, 1)), dims=("sample", "layer"), coords={"layer": [2, 4, 6]}
    )
    assert crossing_of(values, "layer", (-1.0, 1.0)) == {"crossing": 3, "low": 2, "high": 4}
    assert crossing_of(values[:2], "layer", (-1.0, 1.0))["no interval"].startswith("2 samples of 2")
    assert set(crossing_of(-values, "layer", (-1.0, 1.0)).values()) == {None}
