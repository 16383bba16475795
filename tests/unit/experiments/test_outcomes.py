"""What comes of runs, as tables by arm, sample and seed."""

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, tasks
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.experiments import object_contrasts
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, family
from dit_lens.experiments.samples import pairs_of
from dit_lens.experiments.swap_summary import SIZES, told
from scripts import script


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


def test_no_interval_of_a_distance_goes_below_0_and_those_of_differences_do():
    few = xr.DataArray([[0.01], [0.02], [0.9]], {"sample": list("abc"), "seed": [0]}, ("sample", "seed"))
    assert analysis.mean(few).low < 0  # of three samples Student's t knows no bound
    found = analysis.mean(few, bounds=BOUNDS["distance"])
    assert (
        found.low == 0
        and found.high == analysis.mean(few).high
        and found["mean"] == analysis.mean(few)["mean"]
    )
    assert analysis.effect(few, few + 0.1 * few, bounds=BOUNDS["distance"]).low < 0
    movement = told(
        few.expand_dims(site=["block"], layer=[0], arm=["all steps"], direction=["a", "b"]), "movement", SIZES
    )
    assert movement.summary["movement"]["site block"]["layer 0"][0]["low"] == 0


def test_what_may_be_negative_has_no_bound_at_0():
    values = xr.DataArray(
        np.random.default_rng(0).normal(-0.3, 0.1, (4, 1, 2, 3)),
        {"layer": [0, 1, 2]},
        ("sample", "seed", "step", "layer"),
    )
    rows = script("massive_channels").by_layer(values)  # correlations and debiased CKA
    assert all(row["high"] < 0 for row in rows)
    assert object_contrasts.summarise(values.mean("step"), "layer").high.max() < 0


def test_a_family_says_how_few_samples_its_smallest_member_has():
    values = xr.DataArray(
        np.arange(12.0).reshape(4, 3), dims=("sample", "layer"), coords={"layer": [2, 5, 8]}
    )
    summaries = {"all": analysis.mean(values), "some": analysis.mean(values[:3])}
    found = family("contrast", summaries)
    assert found.contrast.values.tolist() == ["all", "some"] and found.attrs["n_samples"] == 3
    for name, summary in summaries.items():
        np.testing.assert_array_equal(found["mean"].sel(contrast=name), summary["mean"])


def test_runs_of_two_samples_are_compared_in_couples_that_share_none():
    from types import SimpleNamespace

    from dit_lens.experiments.partners import partners

    scenes = [dl.tasks.circle(1_000_000 + i) for i in range(3)]
    batch = SimpleNamespace(pairs=[(scene, seed) for scene in scenes for seed in (0, 1)])
    found = partners(batch)
    assert found["seed"] == {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}
    assert found["sample"] == {0: 2, 1: 3}  # the third is left alone
