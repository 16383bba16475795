"""A causal map: what one place carries over, from whole states to single heads and frames."""

import json

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from scripts import script

pytestmark = pytest.mark.slow
causal_map = script("causal_map")


def run(tmp_path, **options):
    given = {
        "model": "organism-v1",
        "samples": 4,
        "steps": 2,
        "map_steps": "0,1",
        "cfg_scale": 1.0,
        "out": tmp_path,
    }
    assert causal_map.main(causal_map.Options(**{**given, **options})) == 0
    results = xr.open_zarr(tmp_path / "results.zarr", consolidated=False).load()
    return results, json.loads((tmp_path / "summary.json").read_text())


def test_the_last_state_of_a_run_of_one_step_is_all_of_its_answer_and_nothing_else_is(tmp_path):
    results, said = run(
        tmp_path, steps=1, map_steps="0", layers="0,9", heads="none", sites="block", frames_at="block"
    )
    way = (results.leaning_whole_block + 1) / 2
    assert np.allclose(
        way.sel(layer=9), 1, atol=1e-5
    )  # one step from the same noise: the last state says it all
    frames = ((results.leaning_frame_block + 1) / 2).sel(layer=9, step=0).mean("direction")
    assert (frames < 0.99).all() and (frames.sum("frame") > 0.5).all()
    assert said["own values, largest change of a latent"] == 0
    # Through nine layers the state of layer 0 is all of it, too, but for what later layers read of the prompt themselves.
    assert (way.sel(layer=0) < way.sel(layer=9)).all()


def test_heads_together_are_the_attention_and_each_alone_goes_less_far(tmp_path):
    results, said = run(
        tmp_path, layers="6", sites="self_attn,heads", heads="heads", frames_at="none", at_once=8
    )
    whole, joined = (((results[f"leaning_whole_{site}"] + 1) / 2) for site in ("self_attn", "heads"))
    assert np.allclose(whole, joined, atol=1e-4)  # the projection is linear
    each = (results.leaning_head_heads + 1) / 2
    assert (
        each.sizes["head_of_heads"] == 4 and (each.mean("direction") <= whole.mean("direction") + 0.05).all()
    )
    place = said["furthest, heads, each head"]["place"]
    means = each.mean(("direction", "seed")).isel(sample=[0, 2]).mean("sample")  # every second couple chooses
    assert (
        float(means.sel(layer=6, step=place["step"]).isel(head_of_heads=place["head_of_heads"]))
        == means.max()
    )


def test_a_head_is_patched_with_the_donors_head_alone():
    """Against a run of its own, edited by `dl.patch` from the donor's recorded heads."""
    from dit_lens.experiments.couples import couples
    from dit_lens.experiments.samples import batch_of, pairs_of
    from dit_lens.experiments.swap_outcomes import CleanEnds
    from dit_lens.experiments.swaps import Swap, partner, rows_of, run_swaps

    options = causal_map.Options(model="organism-v1", samples=1, steps=2, cfg_scale=1.0)
    lens = options.load()
    (couple,) = couples(options, lens)
    batch = batch_of(lens, rows_of(pairs_of([couple], options)), options)
    CleanEnds.of(batch, is_judged=False)
    _, ended = run_swaps(batch, "heads", 5, [Swap("one", partner, 5, (1,), part=("head", 2))])
    a, b = couple.both
    seed = batch.pairs[0][1]
    heads = lens.run(b, seed, steps=2, cfg_scale=1.0, record=[(dl.hidden, dl.at(site="heads", layer=5))])[
        "hidden_heads"
    ]
    edit = [(dl.patch(heads.load()), dl.at(site="heads", layer=5, head=2, step=1))]
    x0 = lens.run(a, seed, steps=2, cfg_scale=1.0, edit=edit, record=[dl.x0])["x0"].isel(step=-1).values
    assert np.allclose(ended[0, 0].permute(1, 2, 3, 0).numpy(), x0, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": "block"}, "block does not have its heads apart"),
        ({"sites": "gate"}, "gate is none of block"),
        ({"frames_at": "sky"}, "--frames-at sky"),
        ({"sites": "none", "heads": "none", "frames_at": "none"}, "nothing to swap"),
        ({"layers": "99"}, "99"),
    ],
)
def test_bad_options_are_refused_before_anything_is_computed(tmp_path, options, words):
    with pytest.raises(dl.DitLensError, match=words):
        run(tmp_path, **options)
    assert not (tmp_path / "blocks").exists()
