"""What comes of runs, as tables by arm, sample and seed."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, tasks
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import family
from dit_lens.experiments.samples import pairs_of


def test_outcomes_are_the_scorers_words_and_the_distance(lens):
    samples = [tasks.circle(1_000_000), tasks.circle(1_000_001)]
    pairs = pairs_of(samples, StudyOptions(seeds=2))
    batch = lens.batch(pairs, steps=2)
    truth = torch.cat(
        [
            lens.pipe.vae.encode(torch.from_numpy(s.truth).permute(3, 0, 1, 2)[None] / 127.5 - 1)
            for s in samples
            for _ in range(2)
        ]
    )
    found = outcomes(batch, torch.stack([truth, truth + 0.5]), truth)
    assert np.allclose(found.distance[0], 0) and np.allclose(found.distance[1], 0.5)
    scores = [
        [s.score(batch.decode(x[None])[0]) for (s, _), x in zip(batch.pairs, arm, strict=True)]
        for arm in (truth, truth + 0.5)
    ]
    assert found.answer.values.tolist() == [[s.answer for s in row] for row in scores]
    table = by_sample(found, pairs)
    assert table.score.dims == ("arm", "sample", "seed") and table.noise_seed.shape == (2, 2)
    assert table.noise_seed.values.ravel().tolist() == [seed for _, seed in pairs]
    assert table.answer.sel(sample="circle/1000001", seed=1).values.tolist() == [
        row[3].answer for row in scores
    ]


def test_samples_with_several_numbers_of_seeds_fit_into_no_table():
    one, two = tasks.circle(1_000_000), tasks.circle(1_000_001)
    data = xr.Dataset({"x": ("pair", [1.0, 2.0, 3.0, 4.0])})
    with pytest.raises(dl.PlanError, match="several numbers of noise seeds"):
        by_sample(data, [(one, 0), (one, 1), (one, 2), (two, 0)])


def test_a_family_says_how_few_samples_its_smallest_member_has():
    values = xr.DataArray(
        np.arange(12.0).reshape(4, 3), dims=("sample", "layer"), coords={"layer": [2, 5, 8]}
    )
    summaries = {"all": analysis.mean(values), "some": analysis.mean(values[:3])}
    found = family("contrast", summaries)
    assert found.contrast.values.tolist() == ["all", "some"] and found.attrs["n_samples"] == 3
    for name, summary in summaries.items():
        np.testing.assert_array_equal(found["mean"].sel(contrast=name), summary["mean"])


def test_dates_are_those_of_samples_whose_runs_differ():
    from dit_lens.experiments.crossings import committed, dated

    steps = np.arange(6)
    results = xr.Dataset({"sigma": ("at", np.linspace(1, 0.2, 6))}, {"at": steps})
    differ = np.tile(np.where(steps < 2, 0.0, 1.0), (4, 1))  # settled at step 2
    alike = np.tile(np.where(steps < 5, 0.8, 1.0), (12, 1))  # whatever the noise, nearly one answer
    same = xr.DataArray(
        np.concatenate([differ, alike])[:, None], dims=("sample", "seed", "at"), coords={"at": steps}
    )
    chance = xr.DataArray(np.r_[np.zeros(4), np.ones(12)], dims="sample")
    found = committed(same, chance, results)
    assert found["value"]["step"] == pytest.approx(1.5) and found["high"]["step"] < 2
    one = dated(same.isel(sample=slice(0, 4)) - 0.5, results, "at")
    assert one == {"value": found["value"], "no interval": "all samples agree everywhere"}
    few = dated(same.isel(sample=[0, 1, 2, 14, 15]) - 0.5, results, "at")
    assert set(few) == {"value", "no interval"} and few["no interval"].startswith("5 samples, and")
    assert set(dated(same.isel(sample=[0, 1, 2, 13, 14, 15]) - 0.5, results, "at")) == {
        "value",
        "low",
        "high",
    }


@pytest.mark.parametrize(
    "samples, spread, says", [(5, 1.0, "5 samples, and"), (8, 0.0, "all samples agree"), (8, 1.0, None)]
)
def test_a_place_has_an_interval_or_says_why_it_has_none(samples, spread, says):
    from dit_lens.experiments.crossings import place_of

    rng = np.random.default_rng(0)
    curve = 3.0 * np.array([-2.1, -1, 2, 1]) + spread * rng.standard_normal((samples, 4))
    values = xr.DataArray(curve, dims=("sample", "step"), coords={"step": [2, 4, 6, 8]})
    for find, name in ((analysis.peak, "peak"), (analysis.crossing, "crossing")):
        place = place_of(find(values, "step"), values)
        assert place[name] == 6 if name == "peak" else 4 < place[name] < 6
        if says is None:
            assert place["low"] <= place[name] <= place["high"]
        else:
            assert list(place) == [name, "no interval"] and place["no interval"].startswith(says)
    never = place_of(analysis.crossing(values - 99, "step"), values)
    assert never["crossing"] is None and json.dumps(never, allow_nan=False)


def test_runs_of_two_samples_are_compared_in_couples_that_share_none():
    from types import SimpleNamespace

    from dit_lens.experiments.partners import partners

    scenes = [dl.tasks.circle(1_000_000 + i) for i in range(3)]
    batch = SimpleNamespace(pairs=[(scene, seed) for scene in scenes for seed in (0, 1)])
    found = partners(batch)
    assert found["seed"] == {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}
    assert found["sample"] == {0: 2, 1: 3}  # the third is left alone
