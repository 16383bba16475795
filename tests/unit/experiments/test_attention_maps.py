"""The study of attention maps: what is read is what a run records, planted maps are found, nulls are, bad input is refused."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
import dit_lens.engine.batch
from dit_lens.experiments.attention_findings import more_than_other_words, of_matches, of_words, rates
from dit_lens.experiments.attention_pictures import token_of
from dit_lens.experiments.looks import Looks, require_attention
from dit_lens.experiments.prompted import REGIONS, WORDS, groups_of, prompted, regions_to_look_from
from dit_lens.experiments.readings import Readings, read_runs
from dit_lens.experiments.study import Measured
from dit_lens.models.options import ModelOptions
from dit_lens.plan.text import TextToken
from dit_lens.tasks.pairs import label
from scripts import script

pytestmark = pytest.mark.slow
SMALL = {"task": "circle", "samples": 4, "steps": 2, "layers": "2,8", "vis_steps": "all", "best": 1}


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


@pytest.fixture(scope="module")
def maps():
    return script("attention_maps")


def go(maps, out, monkeypatch, lens, **changes):
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    assert maps.main(maps.Options(**{**SMALL, "out": out, **changes})) == 0
    results = xr.open_zarr(out / "results.zarr", consolidated=False).load()
    return json.loads((out / "summary.json").read_text()), results


def test_the_object_of_a_prompt_and_the_words_around_it():
    named = prompted(dl.tasks.circle(1_000_004, kind="disc"))
    assert named.word == "disc" and set(named.masks) == {"object", "others"}
    assert prompted(dl.tasks.occlude(1_000_000)).word == "ball"
    assert prompted(dl.tasks.choose(1_000_000)).word == "goal"
    assert prompted(dl.tasks.maze(1_000_000)) is None
    assert prompted(dl.Sample(prompt="circle the disc", size=(64, 64), num_frames=13)) is None
    tokens = [
        TextToken("circle"),
        TextToken("di"),
        TextToken("sc", begins=False),
        TextToken("</s>", "special"),
    ]
    assert groups_of([*tokens, TextToken("", "padding")], "disc") == (1, 0, 0, 2, 3)
    assert groups_of(tokens, None) == (1, 1, 1, 2)


def test_moved_masks_never_fall_on_an_object_and_no_token_is_of_two():
    named = prompted(dl.tasks.circle(1_000_004))
    everywhere, own, others, *moved = regions_to_look_from(named, (4, 4, 4), 0.05)
    assert everywhere.all() and own.any() and others.any() and not (own & others).any()
    assert not any((one & (own | others)).any() for one in moved)
    assert regions_to_look_from(None, (4, 4, 4), 0.05).sum() == 64


def test_what_is_read_is_what_a_run_records(organism):
    pairs = [(dl.tasks.circle(1_000_000 + i), i) for i in range(3)]
    batch = organism.batch(pairs, steps=2, at_once=2)
    looks = [Looks.of(batch, n, True, 0.05) for n in range(3)]
    where = {"step": [1], "layer": [2, 8], "head": [0, 3]}
    readings = [Readings([1], [2, 8], [0, 3]) for _ in pairs]
    latents = read_runs(batch, [one.records(**where, branch="cond") for one in looks], readings, "test")
    record = [dl.attention(over="frames", heads="all"), dl.attention(to="text", heads="all")]
    run = organism.run(*pairs[2], steps=2, record=[(one, dl.at(**where)) for one in record])
    place = {"step": [1], "layer": [2, 8], "head": [0, 3]}
    frames = run["attention_over_frames"].isel(branch=0).sel(place).values
    measured = looks[2].measured(readings[2], 0.75)
    np.testing.assert_allclose(readings[2].values["attention_over_frames"], frames, atol=2e-4)
    np.testing.assert_allclose(measured["frame_map"][1], frames.mean(2), atol=2e-4)
    text = (
        run["attention_to_text"].isel(branch=0).sel(place).values
    )  # [step, layer, head, frame, y, x, token]
    groups, region = np.array(looks[2].groups), looks[2].regions[1]
    expected = text[..., groups == 0].sum(-1)[..., region].mean(-1)
    np.testing.assert_allclose(measured["word_mass"][1][..., 1, 0], expected, atol=2e-4)
    np.testing.assert_allclose(
        latents[2].permute(1, 2, 3, 0), organism.run(*pairs[2], steps=2, record=[dl.x0])["x0"][-1], atol=2e-4
    )


def test_matches_are_the_largest_products_of_the_models_own_queries_and_keys(organism):
    sample = dl.tasks.occlude(1_000_001)
    batch = organism.batch([(sample, 0)], steps=1)
    looks, reading = Looks.of(batch, 0, False, 0.05), Readings([0], [8], [0, 1, 2, 3])
    read_runs(batch, [looks.records(step=0, layer=8, branch="cond")], [reading], "test")
    record = [(dl.hidden, dl.at(site=site, layer=8)) for site in ("attn_q", "attn_k")]
    run = organism.run(sample, steps=1, record=record)
    q, k = (run[f"hidden_attn_{name}"].values[0, 0, 0] for name in "qk")  # [head, frame, y, x, channel]
    for n, place in enumerate(looks.tracks.places):
        scores = np.einsum("hc,hfyxc->hfyx", q[:, *place], k).reshape(4, 4, -1)
        expected = np.stack(np.unravel_index(scores.argmax(-1), (4, 4)), -1)
        np.testing.assert_array_equal(reading.values["best_matches"][0, 0, :, n], expected)


def test_the_study_leaves_numbers_and_pictures_and_is_not_made_twice(maps, tmp_path, monkeypatch, organism):
    summary, results = go(maps, tmp_path, monkeypatch, organism)
    assert results.word.values.tolist() == list(WORDS) and results.region.values.tolist() == list(REGIONS)
    everywhere = results.word_mass.sel(region="everywhere").sum("word")
    np.testing.assert_allclose(everywhere, 1, atol=1e-4)  # words, special tokens and padding are all there is
    shares = results.frame_share.sel(share=["own", "past", "future"]).sum("share")
    np.testing.assert_allclose(shares, 1, atol=1e-4)
    found = summary["words"]["AUC on the object, its word minus other words"]
    assert found["samples that chose"] == found["samples that report"] == 2
    assert summary["frames"]["own"]["even spread"] == 1 / 4
    assert "0 samples" in summary["correspondence"]["not measured"]  # nothing of circle moves
    assert "each" in summary["heads that tell frames apart"]["variance between frames over total"]
    for picture in ("frames", "separation_by_layer_and_head", "words_by_layer_and_head", "word", "token"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr("dit_lens.engine.batch.Batch.advance", refuse)
    assert go(maps, tmp_path, monkeypatch, organism)[1].identical(results)


def test_a_model_that_sees_no_later_frame_has_a_future_share_of_exactly_0(maps, tmp_path, monkeypatch):
    causal = dl.load("organism-causal")
    options = {"task": "arrows", "samples": 2, "steps": 1, "layers": "0,9", "num_frames": 13}
    summary, results = go(maps, tmp_path, monkeypatch, causal, **options)
    assert summary["frames"]["largest future share of any head, layer and step"] == 0
    assert (results.frame_share.sel(share="past") > 0).any()
    # Half of the pairs of frames: nothing is matched in frames that may not be seen.
    assert (results.points.sel(which="all").isel(seed=0, sample=0).values == [3, 2, 1]).all()
    np.testing.assert_allclose(np.triu(results.frame_map.isel(sample=0, seed=0, step=0, layer=0), 1), 0)


def test_a_layer_without_queries_spreads_its_attention_evenly(maps, monkeypatch, organism):
    """The null in the model itself: with queries of 0 every map is even, and the layer before is as it was."""
    samples = [dl.tasks.occlude(1_000_001)]
    options = maps.Options(**{**SMALL, "task": "occlude", "steps": 1})
    plain = maps.measure(organism, samples, options)

    def without_queries(lens, pairs, options):
        edit = [(dl.zero(), dl.at(site=site, layer=8)) for site in ("attn_q", "cross_q")]
        return lens.batch(pairs, options.steps, options.cfg_scale, edit=edit)

    monkeypatch.setattr(maps, "batch_of", without_queries)
    results = maps.measure(organism, samples, options)
    assert not np.allclose(plain.frame_map.sel(layer=8), 1 / 4, atol=0.01)
    even = results.sel(layer=8).isel(sample=0, seed=0, step=0)
    np.testing.assert_allclose(even.frame_map, 1 / 4, atol=1e-6)
    np.testing.assert_allclose(even.frame_share.sel(share="distance"), (4 - 1 / 4) / 3, atol=1e-6)
    np.testing.assert_allclose(even.word_auc.sel(region="object"), 0.5, atol=0.02)
    lift = even.word_mass.sel(region="object") / even.word_mass.sel(region="everywhere")
    np.testing.assert_allclose(lift, 1, rtol=1e-4)
    assert plain.sel(layer=2).word_mass.identical(results.sel(layer=2).word_mass)


def test_a_map_that_is_planted_in_the_model_is_found(maps, monkeypatch, organism):
    """Queries of the object's tokens become the word's key: its map is on the object, and nowhere else."""
    sample = dl.tasks.circle(1_000_004)
    options = maps.Options(**{**SMALL, "steps": 1})
    batch = organism.batch([(sample, 0)], steps=1)
    looks = Looks.of(batch, 0, True, options.threshold)
    position = looks.groups.index(0)

    def planted(lens, pairs, options):
        key = torch.zeros(32)
        key[0] = 30.0
        edit = [
            (dl.zero(), dl.at(site="cross_q", layer=8, head=1)),
            (dl.replace(key.numpy()), dl.at(site="cross_q", layer=8, head=1, mask=looks.regions[1])),
            (dl.zero(), dl.at(site="cross_k", stream="text", layer=8, head=1)),
            (
                dl.replace(key.numpy()),
                dl.at(site="cross_k", stream="text", layer=8, head=1, text_token=position),
            ),
        ]
        return lens.batch(pairs, 1, edit=edit)

    monkeypatch.setattr(maps, "batch_of", planted)
    found = maps.measure(organism, [sample], options).isel(sample=0, seed=0, step=0).sel(layer=8, head=1)
    of_word = found.sel(word=WORDS[0])
    assert of_word.word_auc.sel(region="object") == 1 and of_word.word_mass.sel(region="object") > 0.99
    assert of_word.word_mass.sel(region="others") == pytest.approx(1 / 8, abs=1e-4)
    assert (found.sel(word=list(WORDS[1:])).word_auc.sel(region="object") == 0).all()


def counted(follows, hits):
    """Return counts of 6 samples, a head that hits and one that does not, one frame apart, of 4 pairs, 3 of them moved."""
    labels = np.array([f"arrows/{n}" for n in range(len(follows))], np.dtypes.StringDType())
    which = np.array(["all", "moved"], np.dtypes.StringDType())
    size = len(follows), 1
    values = np.zeros((*size, 1, 1, 2, 1, 2))
    values[..., 1, 0, 0], values[..., 1, 0, 1] = (
        1 + np.array(hits)[:, None, None, None],
        np.array(hits)[:, None, None, None],
    )
    fixed = {"points": [4, 3], "same_place": [1, 0], "chance": [0.4, 0.3]}
    data = {
        n: (("sample", "seed", "apart", "which"), np.tile(v, (*size, 1, 1)).astype(float))
        for n, v in fixed.items()
    }
    data["hits"] = ("sample", "seed", "step", "layer", "head", "apart", "which"), values
    data["follows"] = ("sample", "seed"), np.array(follows)[:, None]
    coords = {"sample": labels, "which": which, "apart": [1], "layer": [3], "head": [0, 1]}
    return xr.Dataset(data, coords)


def test_matches_count_in_runs_that_follow_the_tracks_alone():
    results = counted([True] * 6 + [False] * 2, [3] * 6 + [0] * 2)
    found = of_matches(results, 1, 0.75)
    assert found["runs that follow the tracks"] == 6
    assert found["PCK by chance, moved objects"] == pytest.approx(0.1)
    best = found["PCK of moved objects, minus chance"]["each"][0]
    assert best["place"] == "layer 3, head 1" and best["mean"] == pytest.approx(0.9)
    assert found["PCK in the chosen heads, differences"]["all pairs, minus the same place"]["mean"] == 0.75
    assert rates(results, "hits", "moved").isel(sample=7).isnull().all()
    assert "1 samples" in of_matches(counted([True] + [False] * 7, [3] * 8), 1, 0.75)["not measured"]


def test_shown_the_right_video_every_step_starts_from_it_under_its_noise(maps, monkeypatch, organism):
    sample, options = (
        dl.tasks.occlude(1_000_001),
        maps.Options(**{**SMALL, "task": "occlude", "shown": "truth"}),
    )
    started, advance = [], dl.engine.batch.Batch.advance

    def seen(batch, step, latents, *rest, **more):
        started.append((batch.sigmas[step], latents.clone()))
        return advance(batch, step, latents, *rest, **more)

    monkeypatch.setattr("dit_lens.engine.batch.Batch.advance", seen)
    results = maps.measure(organism, [sample], options)
    assert results.follows.all() and results.points.sum() > 0
    (first, x), (sigma, y) = started
    clean = organism.encode(sample.truth).permute(3, 0, 1, 2)[None]
    torch.testing.assert_close(
        (y - (1 - sigma) * clean) / sigma, (x - (1 - first) * clean) / first, atol=1e-4, rtol=0
    )
    untold = [sample.with_(truth=None)]
    with pytest.raises(dl.TaskError, match="the right video of occlude/1000001 is not known"):
        maps.measure(organism, untold, options)


def test_one_sample_and_unknown_words_are_said(maps, tmp_path, organism):
    options = maps.Options(**{**SMALL, "out": tmp_path})
    results = maps.measure(organism, [dl.tasks.maze(1_000_000)], options)
    assert results.word_auc.sel(region="object").isnull().all()  # its prompt names no object
    assert results.word_mass.sel(region="everywhere", word="padding").notnull().all()
    maps.conclude(Measured(results, {}), options)
    assert "one sample" in json.loads((tmp_path / "summary.json").read_text())["not measured"]
    assert "not known" in of_words(results.assign(word_mass=results.word_mass * np.nan), 1)["not measured"]
    assert more_than_other_words(results).isnull().all()


def test_what_cannot_be_measured_is_refused_before_anything_is_computed(
    maps, tmp_path, monkeypatch, organism
):
    bare = dl.blocks(
        torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(8, 8)])}),
        "blocks",
        latent=lambda s: (4, 2, 4, 4),
        grid=lambda size: (2, 4, 4),
        channels=8,
    )
    with pytest.raises(dl.PlanError, match=r"the attentions none are known.*with_sites"):
        require_attention(bare, "attention")
    monkeypatch.setattr("dit_lens.engine.batch.Batch.advance", None)
    for changes, said in (
        ({"word": "dragon"}, "has no such word"),
        ({"token": "9,0,0"}, r"FRAME,Y,X on the grid of \(4, 4, 4\)"),
    ):
        with pytest.raises(dl.DitLensError, match=said):
            go(maps, tmp_path, monkeypatch, organism, **changes)
    monkeypatch.setattr("dit_lens.engine.batch.Batch.__init__", None)
    for changes in ({"best": 0}, {"radius": 0.0}, {"threshold": 2.0}):
        with pytest.raises(dl.TaskError, match="a radius over 0"):
            go(maps, tmp_path, monkeypatch, organism, **changes)


def test_a_token_is_on_the_grid(organism):
    sample = dl.tasks.occlude(1_000_000)
    looks = Looks.of(organism.batch([(sample, 0)], steps=1), 0, False, 0.05)
    assert token_of("1,2,3", looks) == (1, 2, 3) and token_of(None, looks) in looks.tracks.places
    for text in ("4,0,0", "1,2", "a,b,c"):
        with pytest.raises(dl.TaskError, match="FRAME,Y,X on the grid"):
            token_of(text, looks)
    assert label(sample) == "occlude/1000000"
