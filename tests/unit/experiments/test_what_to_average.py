"""Averaging over seeds, small on the shipped organism: a planted answer, planted nulls, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from dit_lens.engine.batch import Batch
from dit_lens.experiments.ensembles import at_cost
from dit_lens.experiments.samples import draw, noise_seeds
from dit_lens.models.options import ModelOptions
from scripts import script

pytestmark = pytest.mark.slow
SMALL = {"task": "choose", "samples": 2, "steps": 2, "until": "0.7", "placebo": False}


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")  # the smallest: 10 layers


@pytest.fixture(scope="module")
def module():
    return script("what_to_average")


@pytest.fixture
def go(module, organism, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)  # the real one, loaded once for all

    def run(**changes):
        assert module.main(module.Options(**{**SMALL, "out": tmp_path, **changes})) == 0
        results = xr.open_zarr(tmp_path / "results.zarr", consolidated=False).load()
        return results, json.loads((tmp_path / "summary.json").read_text())

    return run


def test_x0_averaged_at_the_last_step_ends_as_the_mean_of_the_clean_ends(go, module, organism):
    """The planted effect: the last x0 is the video, so the answer is that of the mean of the K videos."""
    results, summary = go(seeds=3, what=("x0", "states"), at_steps="1", layers="5", placebo=True)
    options = module.Options(**SMALL, seeds=3)
    for i, sample in enumerate(draw(options)):
        batch = organism.batch([(sample, seed) for seed in noise_seeds(sample, options)], steps=2)
        x = batch.noise
        for step in range(2):
            x = batch.step(step, x).latents
        mean = x.mean(0, keepdim=True)
        expected = sample.score(batch.decode(mean)[0])
        found = results.isel(sample=i).sel(average="x0", interval="1", kind="averaged")
        assert found.score.values.tolist() == pytest.approx([expected.score] * 3, abs=1e-3)  # all K end alike
        distance = (x - mean).square().mean((1, 2, 3, 4)).sqrt().mean()
        assert float(found.distance) == pytest.approx(float(distance), rel=1e-3)
        assert float(found.movement) == pytest.approx(float(found.distance), rel=1e-5)
        other = results.isel(sample=i).sel(average="x0", interval="1", kind="placebo")
        assert float(other.movement) == pytest.approx(float(distance), rel=1e-3)  # as much, elsewhere
    assert results.cost.sel(average="x0").values.tolist() == [3.0, 3.0]
    assert results.at_steps.values.tolist() == [True, False]
    assert results.from_first.values.tolist() == [False, True]
    assert summary["primary"]["solved, one goes on"] == "states, 5, minus x0"
    assert summary["cost in runs"]["single run"] == 1
    assert set(summary["at equal movement, one goes on"]) == {
        "x0 minus placebo",
        "states, 5 minus placebo",
        "states, 5 minus x0",
    }
    assert "score, one goes on minus clean runs at its cost" in summary


def test_one_seed_and_equal_seeds_change_nothing_bit_for_bit(go, monkeypatch):
    """The planted nulls; rows go through the model as many at once as the clean ones, so nothing rounds otherwise."""
    results, summary = go(seeds=1, at_once=2, block=2, placebo=True, until="none")
    assert results.sizes["average"] == 5 and results.sizes["kind"] == 2
    assert (results.movement == 0).all() and (results.distance == 0).all()
    assert (results.score == results.clean_score.isel(rival=0, drop=True)).all()
    assert summary["primary"]["effect"] == 0
    assert summary["at equal movement, one goes on"]["latents minus x0"]["movement"] == 0

    def one_seed(sample, options):
        return noise_seeds(sample, options)[:1] * options.seeds

    monkeypatch.setattr("dit_lens.experiments.samples.noise_seeds", one_seed)
    results, summary = go(seeds=2, at_once=4, block=2, what=("states", "medoid"), at_steps="1", until="none")
    assert (results.movement == 0).all() and (results.distance == 0).all()
    assert "give --until" in summary["at equal movement, one goes on"]["not compared"]


def test_a_repeated_command_runs_nothing_and_draws_what_it_drew(go, tmp_path, monkeypatch):
    results, summary = go(seeds=2, what=("x0", "latents"))
    pictures = {"solved_by_average.png", "solved_by_movement.png", "score_by_movement.png"}
    assert {p.name for p in tmp_path.glob("*.png")} == pictures
    assert summary["primary"] == {"not measured": "it takes states and x0 in --what"}
    assert "other --until" in summary["at equal movement, one goes on"]["latents minus x0"]["not compared"]

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr(Batch, "step", refuse)
    assert go(seeds=2, what=("x0", "latents"))[0].identical(results)


def test_clean_runs_at_a_cost_are_one_run_or_a_vote_by_chance(module):
    rivals = ["single run", "majority vote", "best of K (oracle)"]
    clean = xr.DataArray([[0.3, 0.9, 1.0], [0.6, 0.0, 1.0]], {"rival": rivals}, ["sample", "rival"])
    cost = xr.DataArray([[1.0, 2.0, 3.0]], dims=["average", "interval"])
    found = at_cost(clean, cost, 3).transpose("sample", "average", "interval")
    np.testing.assert_allclose(found, [[[0.3, 0.6, 0.9]], [[0.6, 0.3, 0.0]]])
    assert (at_cost(clean, cost * 0 + 1, 1) == clean.isel(rival=0)).all()


def test_one_sample_that_is_left_is_said_and_nothing_crashes(module, tmp_path):
    one = xr.Dataset({"movement": ("sample", [0.1])}, {"sample": ["choose/1"]})
    module.conclude(module.Measured(one, {"choose/2": "broken"}), module.Options(out=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "one sample is left" in summary["not compared"] and summary["samples left out"] == 1


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"until": "0.5,0.0"}, "--until"),
        ({"until": "1.5"}, "--until"),
        ({"until": "late"}, "--until"),
        ({"what": ("x0", "x0")}, "--what x0 x0"),
        ({"what": ()}, "--what"),
        ({"layers": "20-29"}, "--layers 20-29"),
        ({"at_steps": "2"}, "--at-steps 2"),
        ({"eval_root": Path("bench")}, "add --score vbvr"),
        ({"score": "vbvr"}, "goes with --eval-root"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_runs(go, tmp_path, monkeypatch, changes, says):
    monkeypatch.setattr(Batch, "__init__", lambda *_, **__: pytest.fail("a batch was prepared"))
    with pytest.raises(dl.DitLensError, match=says):
        go(**changes)
    assert not (tmp_path / "blocks").exists()


def test_the_papers_settings_stand_in_for_defaults(module):
    options = module.Options(paper=True, layers="3-5").with_preset()
    assert (options.steps, options.layers, options.seeds, options.at_steps) == (50, "3-5", 3, "0")
    assert module.Options(paper=True).with_preset().layers == "20-29"
