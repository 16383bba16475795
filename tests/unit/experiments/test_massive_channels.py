"""Massive channels: what is planted is found, an edit does what it says, a constant channel holds nothing."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.engine.sweep import run_arms
from dit_lens.experiments import channel_states
from dit_lens.experiments.study import Measured
from dit_lens.models.options import ModelOptions
from dit_lens.plan.plan import Placed
from scripts import script

pytestmark = pytest.mark.slow
SMALL = {"task": "circle", "samples": 3, "block": 2, "steps": 2, "layers": "2,8", "random_sets": 2}


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


@pytest.fixture(scope="module")
def massive():
    return script("massive_channels")


@pytest.fixture(scope="module")
def batch(organism):
    return organism.batch([(dl.tasks.circle(1_000_000 + i), i) for i in range(2)], steps=2)


def go(massive, out, monkeypatch, organism, **changes):
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    assert massive.main(massive.Options(**{**SMALL, "out": out, **changes})) == 0
    return json.loads((out / "summary.json").read_text()), xr.open_zarr(
        out / "results.zarr", consolidated=False
    ).load()


def test_the_study_leaves_numbers_and_figures_and_is_not_made_twice(massive, tmp_path, monkeypatch, organism):
    summary, results = go(massive, tmp_path, monkeypatch, organism)
    assert summary["layer of the edits"] == 5 and summary["k"] == 3
    assert {"effect", "low", "high"} <= set(summary["distance, channels set to mean: largest minus random"])
    assert results.set.values.tolist() == ["largest", "same variance", "random 1", "random 2"]
    chosen = results.chosen.isel(seed=0).transpose("sample", "set", "rank").values.tolist()
    for largest, *others in chosen:
        assert all(len(set(one)) == 3 and not set(one) & set(largest) for one in others)
    assert (results.edited_distance > 0).all() and (results.clean_distance == 0).all()
    taken = results.taken.mean(("sample", "seed"))
    assert (taken.sel(to="0") >= taken.sel(to="mean")).all()
    assert (taken.sel(set="largest") > taken.sel(set="random 1")).all()
    for picture in (
        "shares_by_layer_and_step",
        "without_by_layer_and_step",
        "distance_by_set",
        "score_by_set",
    ):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr("dit_lens.engine.batch.Batch.step", refuse)
    assert go(massive, tmp_path, monkeypatch, organism)[1].identical(results)
    # One layer at one step is drawn; of one sample there are no intervals, and the summary says so.
    options = massive.Options(**SMALL, out=tmp_path / "little")
    for count, name in ((2, "distance, channels set to mean: largest minus random"), (1, "not measured")):
        little = results.isel(sample=slice(count), step=[1], layer=[0])
        massive.conclude(Measured(little, {}), options)
        assert name in json.loads((options.out / "summary.json").read_text())


def test_the_edit_sets_the_channels_it_names_and_leaves_the_others_bit_for_bit():
    h = torch.randn(2, 3, 3, 8)
    for to, expected in (("mean", h[..., [1, 5]].mean((0, 1, 2))), ("0", torch.zeros(2))):
        out = channel_states.set_channels(channels=(1, 5), to=to)(h, None)
        torch.testing.assert_close(out[..., [1, 5]], expected.expand(2, 3, 3, 2))
        rest = [0, 2, 3, 4, 6, 7]
        assert torch.equal(out[..., rest], h[..., rest])


def test_all_channels_set_to_their_mean_are_the_token_mean(massive, batch):
    channels = batch.specimen.family.anatomy.channels(batch.specimen.dits["dit"])
    arms = [
        [massive.settle(range(channels), "mean", 5)],
        [Placed(dl.ablate(to="token_mean"), dl.at(layer=5))],
    ]
    clean, (ours, theirs) = run_arms(batch, arms)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert (ours - clean).abs().max() > 0.01


def looked_at(massive, organism, batch, tokens):
    options = {"steps": [0, 1], "layers": [2, 8], "edited": 5, "k": 1, "tokens": 2048, "draw": 0}
    states = channel_states.ChannelStates(batch, massive.channels_of(organism), **options)
    states.look(0, (0, 0, states.watched.index(5)), tokens)  # of the edited layer
    states.look(0, (0, 0, states.watched.index(2)), tokens)  # of one that is mapped
    return states, states.dataset().isel(pair=0, step=0, branch=0, layer=0)


def test_a_constant_channel_is_found_shapes_the_map_and_tells_no_tokens_apart(massive, organism, batch):
    """Noise, and a channel that is 500 at every token: the edit to its mean takes next to nothing away, that to 0 nearly all."""
    tokens = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    tokens[:, 17] += 500
    states, seen = looked_at(massive, organism, batch, tokens)
    assert seen.massive == 1 and seen.energy_share > 0.99 and seen.variance_share < 0.05
    largest, random = (seen.sel(without=name) for name in massive.WITHOUT)
    assert largest.cka > 0.95 and largest.same_map < 0.8
    assert random.cka > 0.95 and random.same_map > 0.99
    assert states.sets(0, 2)["largest"] == [17]
    assert states.taken(0, [17], "mean") < 0.01 and states.taken(0, [17], "0") > 0.99


def test_in_noise_the_largest_channel_is_no_more_than_any_other(massive, organism, batch):
    tokens = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    _, seen = looked_at(massive, organism, batch, tokens)
    assert seen.massive == 0 and seen.energy_share < 0.03
    assert (seen.cka > 0.95).all() and (seen.same_map > 0.8).all()


def test_tokens_that_are_all_alike_have_no_cka_and_the_summary_says_so(massive, organism, batch):
    _, seen = looked_at(massive, organism, batch, torch.ones(64, 128))
    assert seen.cka.isnull().all() and seen.same_map.isnull().all()
    text = np.dtypes.StringDType()
    values = xr.DataArray(
        np.full((3, 1, 2, 2), np.nan),
        {"sample": np.array(["a", "b", "c"], text)},
        ("sample", "seed", "step", "layer"),
    )
    assert "0 samples have finite values" in massive.by_layer(values)["not measured"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"k": 0}, "give 1 or more of each"),
        ({"random_sets": 0}, "give 1 or more of each"),
        ({"to": ("mean", "mean")}, "give each value once"),
        ({"k": 43}, "take 42 at most"),
        ({"edit_layer": 10}, "there are the layers 0 to 9"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_computed(
    changes, said, massive, tmp_path, monkeypatch, organism
):
    monkeypatch.setattr("dit_lens.engine.batch.Batch.__init__", None)
    with pytest.raises(dl.TaskError, match=said):
        go(massive, tmp_path, monkeypatch, organism, **changes)
