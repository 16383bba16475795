"""Two models that differ in one block: states differ from there on, and patches there and later carry the other model's run."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.experiments import model_pairs
from dit_lens.experiments.model_pairs import Course, compared, patched, refuse_strangers, rows_of
from scripts import script

CHANGED = 1
"""The block whose weights differ; there are 3."""


@pytest.fixture(scope="module")
def module():
    return script("model_diff")


@pytest.fixture
def two(tiny_pipe):
    """A tiny Wan, and the same one with other weights in a block."""
    pipes = [tiny_pipe(), tiny_pipe()]
    with torch.no_grad():
        pipes[1].dit.blocks[CHANGED].ffn[0].weight.mul_(3.0)
        for pipe in pipes:
            pipe.dit.head.head.weight.mul_(20)  # so that the ends are apart
    return [dl.Lens(pipe) for pipe in pipes]


@pytest.fixture
def courses(two, sample):
    rows = rows_of([(sample, 3), (sample.with_(id="1", prompt="circle the disc"), 4)])
    batches = [lens.batch(rows, steps=3, cfg_scale=1.5) for lens in two]
    return [*batches, *(Course.of(batch, [0, 1, 2]) for batch in batches)]


def test_states_are_alike_before_the_block_that_differs_and_not_after_it(courses):
    found = compared(*courses, [0, 1, 2], [0, 2])
    same = found.sel(course="same latents")
    for at in ({"course": "own course", "step": 0}, {"course": "same latents"}):
        assert (found.difference.sel(**at, layer=0) == 0).all() and np.allclose(
            found.cka.sel(**at, layer=0), 1
        )
    assert (found.difference.sel(layer=[1, 2]) > 1e-3).all() and (
        found.cka.sel(layer=[1, 2]) < 1 - 1e-6
    ).all()
    assert (
        found.difference.sel(course="own course", layer=0, step=2) > 0
    ).all()  # there its latents are others
    assert (same.mean_difference.sel(layer=0) == 0).all() and (same.mean_difference.sel(layer=2) > 0).all()
    assert (
        found.cka_seed < 1 - 1e-6
    ).all() and found.cka_scene.notnull().sum() == 6  # the first of the two scenes


def test_what_is_compared_is_what_the_models_hold(courses):
    batch, other, own, its = courses
    found = compared(*courses, [2], [1])
    a, b = (
        xr.DataArray(course.held["cond", 2][1, 2].numpy(), dims=["frame", "y", "x", "channel"])
        for course in (own, its)
    )
    assert float(found.cka.isel(course=0, layer=0, step=0, pair=1)) == pytest.approx(float(dl.cka(a, b)))
    relative = np.linalg.norm(b - a) / np.linalg.norm(a)
    assert float(found.difference.isel(course=0, layer=0, step=0, pair=1)) == pytest.approx(relative)
    assert torch.equal(batch.noise, other.noise) and not torch.equal(own.ends, its.ends)


def test_the_other_models_last_states_make_its_end_and_own_ones_change_nothing(courses):
    found = patched(*courses, [0, 1, 2])
    other = found.leaning.sel(source="other model")
    assert np.allclose(
        other.sel(layer=[1, 2]), 1, atol=1e-3
    )  # after the block that differs the two models are one
    assert (other.sel(layer=0) < 0.9).all()
    assert (
        np.allclose(found.leaning.sel(source="own states"), -1)
        and (found.change.sel(source="own states") < 1e-5).all()
    )
    seed = found.leaning.sel(source="own model, other seed")
    assert (seed < 0.9).all() and (found.change.sel(source="own model, other seed") > 1e-3).all()
    assert "solved" not in found  # no scorer is needed


def test_strangers_and_twins_are_refused(two, tiny_pipe):
    refuse_strangers(*two)
    with pytest.raises(dl.ModelError, match="same weights"):
        refuse_strangers(two[0], dl.Lens(two[0].pipe))
    with pytest.raises(dl.ModelError, match="different architectures"):
        refuse_strangers(two[0], dl.Lens(tiny_pipe(config={"num_layers": 2})))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({}, "Name the other model"),
        ({"other": "organism-base", "strengths": (0.5,)}, "goes with --other-lora"),
        ({"other_lora": "puzzles", "strengths": (0.5, 0.5)}, "each number once"),
    ],
)
def test_what_names_no_other_model_is_refused_before_one_is_loaded(module, changes, match):
    with pytest.raises(dl.TaskError, match=match):
        module.main(module.Options(model="nowhere", **changes))


@pytest.mark.slow
def test_a_lora_at_strength_0_is_the_base_model_and_at_1_the_other(module, tmp_path):
    options = module.Options(
        model="organism-base",
        other_lora="puzzles",
        strengths=(0.0, 1.0),
        task="odd",
        samples=2,
        steps=2,
        layers="15",
        at_steps="1",
        out=tmp_path,
    )
    assert module.main(options) == 0
    results = xr.open_zarr(tmp_path / "results.zarr", consolidated=False).load()
    assert np.allclose(results.leaning_by_strength.sel(strength=0), -1, atol=1e-3)
    assert np.allclose(results.leaning_by_strength.sel(strength=1), 1, atol=1e-3)
    assert np.allclose(
        results.leaning.sel(source=model_pairs.OTHER_MODEL, layer=15), 1, atol=0.1
    )  # but for the head's LoRA
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["own states, largest change of a latent"] < 1e-4
    blocks = sorted(tmp_path.glob("blocks/*"))
    assert module.main(options) == 0 and sorted(tmp_path.glob("blocks/*")) == blocks  # nothing is made again
