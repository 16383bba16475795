"""What `analyses/attribution.py` makes of attributions: a planted reader is found, and a null is none."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import dit_lens as dl
from dit_lens.experiments.couples import Couple
from dit_lens.models.options import ModelOptions
from readers import READS, SAID, Model
from scripts import script

TEXT = np.dtypes.StringDType()
attribution = script("attribution")


def planted_lens():
    model = Model().eval().requires_grad_(False)
    for block in model.blocks:
        nn.init.zeros_(block.ffn.bias)  # then a reader's word is all that the video shows
    return dl.blocks(
        model,
        "blocks",
        latent=lambda sample: (4, 2, 3, 3),
        grid=lambda latent: latent[1:],
        condition=lambda sample, branch: {"told": torch.full((1, 1, 1), SAID[sample.prompt])},
        sites={"cross": "cross", "ffn": "ffn"},
        steps=3,
    )


def couple(number, prompts=("dark", "bright")):
    both = [dl.Sample(prompt=p, size=(3, 3), num_frames=2, task="say", id=f"{number}") for p in prompts]
    return Couple.of(*both)


def options(tmp_path, **more):
    given = {
        "sites": "block,cross,ffn",
        "map_steps": "all",
        "check": 12,
        "steps": 3,
        "cfg_scale": 1.0,
        "seeds": 2,
    }
    return attribution.Options(out=tmp_path, **{**given, **more})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    couples = [couple(0), couple(1), couple(2), couple(3, ("dark", "dark"))]
    return attribution.measure(planted_lens(), couples, options(tmp_path_factory.mktemp("out")))


def test_what_is_planted_is_found_where_it_is_and_nowhere_else(measured):
    gain = measured.gain.isel(sample=slice(0, 3))
    assert gain.dims[:2] == ("sample", "seed") and set(gain.dims) == {
        "sample",
        "seed",
        "direction",
        "site",
        "step",
        "layer",
    }
    by = gain.transpose("site", "step", "layer", ...).values.reshape(3, 3, 3, -1)
    expected = np.zeros((3, 3, 3))  # site, step, layer
    expected[0, 2, 1:] = 1  # a state from the reader on, at the last step, is the whole way
    expected[1, 2, READS] = 1
    np.testing.assert_allclose(by, np.broadcast_to(expected[..., None], by.shape), atol=1e-5)
    assert bool((measured.spearman_whole.isel(sample=slice(0, 3)) > 0.99).all())
    assert bool(measured.gain.isel(sample=3).isnull().all())  # both ends are one


def test_the_summary_says_it(measured, tmp_path):
    attribution.conclude(SimpleNamespace(results=measured, left_out={}), options(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["couples"] == 4 and found["couples whose ends differ"] == 3
    assert found["primary: rank correlation with exact patches of whole states"]["mean"] > 0.99
    assert found["size of estimates of whole states, in units of exact gains"]["mean"] == pytest.approx(
        1, abs=1e-4
    )
    assert found["rank correlation of the maps of both directions"]["mean"] > 0.99
    assert found["largest at"]["cross"].startswith("not measured: of 3 couples half choose the place")
    assert (tmp_path / "gain_cross.png").stat().st_size > 3000


def test_where_the_gain_is_largest_is_told_of_couples_that_did_not_choose_it():
    gain = of_noise(samples=40).gain.mean("direction")
    gain[{"step": 2, "layer": 1}] += 3
    found = attribution.largest(gain)["block"]
    assert (found["step"], found["layer"], found["n"]) == (2, int(gain.layer[1]), 20)
    assert found["low"] < 3 < found["high"]
    # A maximum of noise, told of the samples that chose it, would be off 0 most of the time.
    flat = [attribution.largest(of_noise(n, 40).gain.mean("direction"))["block"] for n in range(20)]
    assert sum(one["low"] < 0 < one["high"] for one in flat) >= 16


def of_noise(seed=0, samples=12):
    random = np.random.default_rng(seed)
    sizes = {"direction": 2, "site": 1, "step": 3, "layer": 5, "sample": samples, "seed": 2}
    gain = random.normal(size=tuple(sizes.values()))
    checks = {
        name: (("direction", "sample", "seed"), random.uniform(-1, 1, (2, samples, 2)))
        for name in attribution.CHECKS
    }
    coords = {
        "site": np.array(["block"], TEXT),
        "step": [0, 1, 2],
        "layer": range(5),
        "sample": np.array([f"say/{n}" for n in range(samples)], TEXT),
    }
    return xr.Dataset({"gain": (tuple(sizes), gain), **checks}, coords)


def test_maps_of_noise_do_not_agree(tmp_path):
    attribution.conclude(SimpleNamespace(results=of_noise(), left_out={}), options(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    for name in (
        "rank correlation of the maps of both directions",
        "primary: rank correlation with exact patches of whole states",
    ):
        assert found[name]["low"] < 0 < found[name]["high"] and found[name]["n"] == 12


def test_couples_for_which_a_check_says_nothing_are_left_out_and_counted(tmp_path):
    results = of_noise()
    results.spearman_whole[0, :3] = np.nan
    results.slope_whole[0, :11] = np.nan
    attribution.conclude(SimpleNamespace(results=results, left_out={}), options(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["primary: rank correlation with exact patches of whole states"]["n"] == 9
    assert found["size of estimates of whole states, in units of exact gains"].startswith("not measured")


def test_where_no_couple_has_two_ends_it_says_so(measured, tmp_path, capsys):
    same = measured.isel(sample=[3, 3])
    attribution.conclude(SimpleNamespace(results=same, left_out={}), options(tmp_path))
    assert "no way to attribute" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["couples whose ends differ"] == 0


def test_one_step_and_one_layer_are_no_error(tmp_path):
    results = of_noise().isel(step=[0], layer=[0])
    attribution.conclude(SimpleNamespace(results=results, left_out={}), options(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["rank correlation of the maps of both directions"].startswith("not measured")


def test_options_that_do_not_fit_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("a model is loaded"))
    for more, reason in (({"check": 2}, "--check 2"), ({"integrate": -1}, "--integrate -1")):
        with pytest.raises(dl.TaskError, match=reason):
            attribution.main(options(tmp_path, **more))


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    given = {
        "samples": 2,
        "map_steps": "1",
        "layers": "0,4",
        "sites": "block",
        "check": 3,
        "seeds": 1,
    }
    assert attribution.main(options(tmp_path, model="organism-v1", task="circle", **given)) == 0
    assert (tmp_path / "results.zarr").exists() and (tmp_path / "gain_block.png").exists()
