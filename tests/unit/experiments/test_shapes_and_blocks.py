"""Samples of several shapes, and blocks of any size: what is said holds for every sample, not for the first block's."""

import json

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from benches import IN, MAZE, run, write_sample
from dit_lens.experiments.compared_tokens import error_of_tokens, told_of_tokens
from scripts import script

pytestmark = pytest.mark.slow
ERRORS = {
    "cross_step_similarity": "error of a similarity by the tokens drawn",
    "noise_sensitivity": "error of a dissimilarity by the tokens drawn",
}
AGAIN = {"cross_step_similarity": "similar_again", "noise_sensitivity": "dissimilarity_again"}
SMALL = {"steps": 4, "cfg_scale": 2.0, "cka_layers": "0,2", "seeds": 1}


@pytest.fixture
def two_shapes(tmp_path):
    """Three samples of 48 tokens, and the last one of 108."""
    for n, size in enumerate((64, 64, 64, 96)):
        write_sample(tmp_path / "bench" / IN / MAZE / f"{n:05d}", size, size, 9)
    return tmp_path / "bench"


def results(name, out, monkeypatch, lens, **options):
    given = {**SMALL, "out": out, **options}
    given |= {"stops": "none", "steps": 3} if name == "noise_sensitivity" else {}
    assert run(name, monkeypatch, lens, **given) == 0
    return xr.open_zarr(out / "results.zarr", consolidated=False).load(), json.loads(
        (out / "summary.json").read_text()
    )


@pytest.mark.parametrize("name", ERRORS)
def test_tokens_and_their_error_are_those_of_every_shape(name, two_shapes, tmp_path, lens, monkeypatch):
    found, summary = results(name, tmp_path / "out", monkeypatch, lens, eval_root=two_shapes, cka_tokens=60)
    assert found.tokens.sel(of="all", seed=0).values.tolist() == [48, 48, 48, 108]
    assert summary["tokens of a state"] == [
        {"compared": 48, "all": 48, "samples": 3},
        {"compared": 60, "all": 108, "samples": 1},
    ]
    # Of the first three all tokens are compared: there is no other draw.
    drawn = found[AGAIN[name]].notnull().any([d for d in found[AGAIN[name]].dims if d != "sample"])
    assert drawn.values.tolist() == [False] * 3 + [True]
    assert 0 < summary[ERRORS[name]] < 0.5


def test_the_shape_that_takes_most_memory_counts_not_the_most_numerous(
    two_shapes, tmp_path, lens, monkeypatch
):
    cross = script("cross_step_similarity")
    options = cross.Options(**SMALL, eval_root=two_shapes, cka_tokens=200, block=1, out=tmp_path / "out")
    small, large = (
        int(cross.room_of(lens, [sample], options).bytes)
        for sample in dl.tasks.vbvr(two_shapes)
        if sample.id.endswith(("00000", "00003"))
    )
    assert small < large
    given = {**SMALL, "eval_root": two_shapes, "cka_tokens": 200, "block": 1, "out": tmp_path / "out"}
    with pytest.raises(dl.TaskError, match=r"of samples as .*00003, and --memory is"):
        run("cross_step_similarity", monkeypatch, lens, **given, memory=(small + large) / 2e9)


@pytest.mark.parametrize("name", ERRORS)
def test_the_error_of_tokens_is_the_same_in_blocks_of_any_size(name, tmp_path, lens, monkeypatch):
    given = {"task": "circle", "samples": 4, "cka_tokens": 20}
    one, of_one = results(name, tmp_path / "1", monkeypatch, lens, **given, block=1)
    all_together, of_all = results(name, tmp_path / "4", monkeypatch, lens, **given, block=4)
    first, second = (data[AGAIN[name]] for data in (one, all_together))
    assert np.allclose(first, second, atol=1e-4, equal_nan=True)
    assert first.isel(seed=0).notnull().any([d for d in first.dims if d not in ("sample", "seed")]).all()
    assert of_one[ERRORS[name]] == pytest.approx(of_all[ERRORS[name]], rel=1e-2)
    # A block of one sample has no other beside it, and the summary says so.
    assert "larger --block" in of_one["no runs of another sample"]
    assert "no runs of another sample" not in of_all and "more --seeds" in of_all["no runs of another seed"]


def test_a_planted_error_of_tokens_is_found_and_none_where_all_were_compared():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 1, (200, 50))
    draws = [xr.DataArray(true + rng.normal(0, 0.03, true.shape), dims=("sample", "step")) for _ in range(2)]
    assert error_of_tokens(*draws) == pytest.approx(0.03, rel=0.05)
    assert error_of_tokens(draws[0], draws[1].where(draws[1].sample < 0)) is None
    tokens = xr.DataArray([[[40, 64]]] * 2, {"of": ["compared", "all"]}, ("sample", "seed", "of"))
    assert told_of_tokens(tokens) == {"compared": 40, "all": 64}
