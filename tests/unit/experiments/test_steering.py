"""Steering on a model that says what it must do, on directions that are planted, and small on the shipped organism."""

import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.experiments import prompt_directions, steering, swaps
from dit_lens.experiments.couples import Couple
from dit_lens.models.options import ModelOptions
from readers import reader, sample
from scripts import script


@pytest.fixture(scope="module")
def module():
    return script("steering")


@pytest.fixture(scope="module")
def lens():
    return reader()


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


def states(apart=0.0, samples=40, seed=0):
    """Make states [side, sample, layer, step, channel]: what samples differ in is shared by both sides."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((1, samples, 2, 3, 20))
    values = shared + 0.3 * rng.standard_normal((2, samples, 2, 3, 20))
    values[1, ..., 4] += apart
    dims = ("side", "sample", "layer", "step", "channel")
    return xr.DataArray(values, dims=dims, coords={"layer": [2, 5], "step": range(3)})


def test_placebos_are_as_long_as_the_direction_and_point_elsewhere():
    found = prompt_directions.directions_of(states(3.0), "means", 0)
    assert found.kind.values.tolist() == list(prompt_directions.KINDS)
    lengths = (found**2).sum("channel") ** 0.5
    assert np.allclose(lengths, lengths.isel(kind=0))
    cosine = (found * found.isel(kind=0)).sum("channel") / lengths**2
    assert (abs(cosine.sel(kind=["random direction", "shuffled labels"])) < 0.75).all()
    assert float(abs(cosine.sel(kind="shuffled labels")).mean()) < 0.3
    assert np.allclose(found.sel(kind="direction", channel=4), 3, atol=0.3)
    other = found.sel(kind="another layer's")  # of two layers the other one
    assert np.allclose(
        (other * found.sel(kind="direction").isel(layer=[1, 0]).assign_coords(layer=found.layer)).sum(
            "channel"
        ),
        lengths.isel(kind=0) * (lengths.isel(kind=0).isel(layer=[1, 0]).values),
    )
    alone = prompt_directions.directions_of(states(3.0).isel(layer=[0]), "means", 0)
    assert "another layer's" not in alone.kind.values


def test_two_halves_agree_where_a_direction_is_planted_and_not_where_there_is_none():
    assert (prompt_directions.agreement(states(3.0), "means") > 0.95).all()
    assert abs(float(prompt_directions.agreement(states(0.0), "means").mean())) < 0.3


@pytest.fixture(scope="module")
def steered(lens):
    """Both prompts of the reader, steered after layers 1 and 2, where it has been read."""
    couple = Couple.of(sample("dark"), sample("bright"))
    options = script("steering").Options(steps=6, cfg_scale=1.0)
    found = prompt_directions.mean_states(
        lens, [(couple, n) for n in range(4)], options, [1, 2], of_objects=False
    )
    directions = prompt_directions.directions_of(found.state, "means", 0)
    batch = lens.batch(swaps.rows_of([(couple, 7)]), steps=6, cfg_scale=1.0)
    return directions, steering.steered(
        batch, directions, [0.5, 1.0], range(6), at_objects=False, is_judged=True
    ).isel(pair=0)


def test_the_direction_of_the_prompt_takes_a_run_to_the_other_prompt_in_proportion_to_its_dose(steered):
    directions, found = steered
    assert np.allclose(
        directions.sel(kind="direction"), [2, 1, 0, 2], atol=1e-5
    )  # what bright says, minus what dark does
    of = found.sel(kind="direction")
    assert np.allclose(of.leaning.sel(scale=1.0), 1, atol=1e-5) and np.allclose(
        of.leaning.sel(scale=0.5), 0, atol=1e-5
    )
    assert of.flip.sel(scale=1.0).all() and not of.kept.sel(scale=1.0).any()
    assert np.allclose(of.inside, [[0.75], [1.5]], atol=1e-5)  # 3 long over 4 channels
    assert np.isnan(of.outside).all() and (found.target == 1).all()  # the two ends differ everywhere


def test_a_random_direction_does_not(steered):
    _, found = steered
    placebo = found.sel(kind="random direction")
    assert (placebo.leaning < 0.9).all() and np.allclose(placebo.inside, [[0.75], [1.5]], atol=1e-5)


def test_where_the_prompt_was_not_read_there_is_no_direction(lens, module):
    couple = Couple.of(sample("dark"), sample("bright"))
    options = module.Options(steps=6, cfg_scale=1.0)
    found = prompt_directions.mean_states(
        lens, [(couple, n) for n in range(4)], options, [0], of_objects=False
    )
    with pytest.raises(dl.DitLensError, match=r"do not differ.*layer 0"):
        prompt_directions.directions_of(found.state, "means", 0)


def test_the_objects_of_a_prompt_are_those_it_names():
    both = [dl.tasks.circle(1_000_002, kind=kind) for kind in ("disc", "square")]
    cells = [{*prompt_directions.named_cells(one)} for one in both]
    assert cells[0] and cells[1] and not cells[0] & cells[1]
    shown = dict(both[0].scene.layout)
    assert cells[0] == {cell for cell, shape in shown.items() if shape == "disc"}


@pytest.mark.slow
def test_one_couple_and_one_seed_give_numbers_without_intervals(
    module, organism, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    options = module.Options(
        samples=1, steps=2, layers="3", at_steps="1", scales=(1.0,), fit=4, out=tmp_path, how="probe"
    )
    assert module.main(options) == 0
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["intervals are over"].startswith("nothing")
    assert "low" not in said["leaning"]["layer 3"]["kind direction"][0]
    assert (
        "x 7.0 runs" in capsys.readouterr().err
    )  # 4 clean rows, and half a run for each of 3 kinds both ways


@pytest.mark.slow
def test_the_script_steers_objects_and_fits_on_other_pictures(module, organism, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: organism)
    options = module.Options(
        samples=2, steps=2, layers="6", scales=(1.0,), fit=4, cfg_scale=1.0, draw=1, out=tmp_path
    )
    drawn = module.couples(options)
    tested = {one.image.tobytes() for one in drawn}
    fitted = prompt_directions.fit_pairs(options, drawn, 4)
    assert len({one.image.tobytes() for one, _ in fitted} | tested) == 6
    assert module.main(options) == 0
    results = xr.open_zarr(tmp_path / "results.zarr", consolidated=False).load()
    assert results.leaning.sizes == {
        "layer": 1,
        "kind": 3,
        "scale": 1,
        "sample": 2,
        "seed": 1,
        "direction": 2,
    }
    gain = results.leaning.sel(kind="direction") - results.leaning.sel(kind="random direction")
    assert (gain > 0.3).all() and (results.outside < results.inside / 3).all()
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["the direction is fitted on"] == "4 training scenes"
    blocks = sorted(tmp_path.glob("*/*.zarr"))
    assert module.main(options) == 0 and sorted(tmp_path.glob("*/*.zarr")) == blocks  # nothing is made again


def test_a_picture_of_ones_own_without_a_scorer_on_another_model(module, pipe, tmp_path, monkeypatch):
    tiny = dl.Lens(pipe)
    monkeypatch.setattr(ModelOptions, "load", lambda _: tiny)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    asked = {
        "image": tmp_path / "a.png",
        "prompt": "circle the disc",
        "donor_prompt": "circle the square",
        "num_frames": 5,
    }
    options = module.Options(
        **asked, steps=2, layers="1", scales=(1.0,), fit=4, seeds=2, out=tmp_path / "out", how="pca"
    )
    assert module.main(options) == 0
    said = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert said["intervals are over"] == "noise seeds of one couple" and "flips" not in said
    assert said["the direction is fitted on"] == "4 other noise seeds"


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"task": "maze"}, "two prompts on one picture"),
        ({"eval_root": "here"}, "two prompts on one picture"),
        ({"scales": (0.0, 1.0)}, "over 0"),
        ({"scales": (1.0, 1.0)}, "each once"),
        ({"fit": 3}, "4 or more"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_a_model_is_loaded(module, changes, match, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("a model is loaded"))
    with pytest.raises(dl.TaskError, match=match):
        module.main(module.Options(**changes))
