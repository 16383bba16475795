"""The study of single heads: an edit reaches its head alone, a head that is needed is found, one that does nothing is not."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.experiments.halves import choose_heads
from dit_lens.experiments.head_edits import KINDS, PLACEBO, ZERO, arm_of, require_heads, run_heads
from dit_lens.experiments.head_findings import harm, of_outcome, of_sets
from dit_lens.experiments.study import Measured
from dit_lens.models.options import ModelOptions
from scripts import script

pytestmark = pytest.mark.slow
SMALL = {
    "task": "circle",
    "samples": 4,
    "steps": 2,
    "layers": "2,8",
    "heads": "0,3",
    "best": 1,
    "random_sets": 2,
}
LAYER, HEAD = 8, 1


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


@pytest.fixture(scope="module")
def ablation():
    return script("head_ablation")


@pytest.fixture(scope="module")
def batch(organism):
    return organism.batch([(dl.tasks.circle(1_000_000 + i), i) for i in range(2)], steps=2)


def go(ablation, out, monkeypatch, lens, **changes):
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    assert ablation.main(ablation.Options(**{**SMALL, "out": out, **changes})) == 0
    results = xr.open_zarr(out / "results.zarr", consolidated=False).load()
    return json.loads((out / "summary.json").read_text()), results


def test_the_study_leaves_numbers_and_pictures_and_is_not_made_twice(
    ablation, tmp_path, monkeypatch, organism
):
    summary, results = go(ablation, tmp_path, monkeypatch, organism, seeds=2)
    assert results.kind.values.tolist() == [*KINDS, PLACEBO]
    assert results.layer.values.tolist() == [2, 8] and results["head"].values.tolist() == [0, 3]
    assert (results.distance > 0).all() and (results.clean_distance == 0).all()
    assert results.other_seed_distance.notnull().all()
    primary = summary["score"]["in the chosen heads"]["zero minus placebo"]
    assert primary["samples"] == 2 and primary["low"] <= primary["mean"] <= primary["high"]
    sets = {row["set"] for row in summary["together"]["score"]["by set"]}
    assert sets == {"chosen", "random 1", "random 2", "placebo"}
    assert summary["distance of another noise seed"]["mean"] > 0
    for picture in ("score_by_layer_and_head", "distance_by_layer_and_head"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr("dit_lens.engine.batch.Batch.advance", refuse)
    assert go(ablation, tmp_path, monkeypatch, organism, seeds=2)[1].identical(results)


def test_an_arm_is_the_run_with_that_head_edited(organism, batch):
    """Every kind against `lens.run` with plain edits: zero and token mean as they are, another scene by `dl.patch`."""
    others = [(dl.tasks.circle(2_000_000 + i), 7 + i) for i in range(2)]
    held = {}
    arms = [arm_of(kind, [(LAYER, HEAD)], [0, 1], 4, held) for kind in (*KINDS, PLACEBO)]
    clean, ended = run_heads(batch, organism.batch(others, steps=2), arms, held, [LAYER])
    assert not held
    sample, seed = batch.pairs[1]
    place = dl.at(site="heads", layer=LAYER, head=HEAD)
    donor = organism.run(*others[1], steps=2, record=[(dl.hidden, place)])["hidden_heads"].load()
    edits = [dl.zero(), dl.ablate(to="token_mean"), dl.patch(donor), dl.controls.placebo(dl.zero())]
    for n, edit in enumerate(edits):
        run = organism.run(sample, seed, steps=2, record=[dl.x0], edit=[(edit, place)])
        last = run["x0"].isel(step=-1).values
        np.testing.assert_allclose(ended[n, 1].permute(1, 2, 3, 0), last, atol=3e-4)
        assert (ended[n, 1] - clean[1]).abs().max() > 1e-3


def test_the_placebo_is_as_large_at_every_token_and_of_no_fixed_direction(organism):
    place = dl.at(site="heads", layer=LAYER, step=0)
    sample, record = dl.tasks.circle(1_000_000), [(dl.hidden, dl.at(site="heads", layer=LAYER, step=0))]
    plain = organism.run(sample, steps=1, record=record)["hidden_heads"].values[0, 0, 0]
    edit = [(dl.controls.placebo(dl.zero()), dl.at(site="heads", layer=LAYER, step=0, head=HEAD))]
    moved = organism.run(sample, steps=1, record=record, edit=edit)["hidden_heads"].values[0, 0, 0] - plain
    assert not np.delete(moved, HEAD, 0).any() and place is not None
    norms = np.linalg.norm(plain[HEAD], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(moved[HEAD], axis=-1), norms, rtol=1e-4)
    cosine = (moved[HEAD] * plain[HEAD]).sum(-1) / norms**2
    assert abs(cosine.mean()) < 0.1


def test_a_head_whose_output_no_one_reads_does_no_harm_and_another_does(ablation, organism):
    """The planted null: the columns of the projection that read a head are 0, so whatever takes its place changes nothing."""
    lens = dl.load("organism-v1")
    block = lens.specimen.blocks(lens.specimen.dits["dit"])[LAYER]
    with torch.no_grad():
        block.self_attn.o.weight[:, 32 * HEAD : 32 * (HEAD + 1)] = 0
    options = ablation.Options(**{**SMALL, "layers": str(LAYER), "heads": "0,1"})
    found = ablation.measure(lens, [dl.tasks.circle(1_000_000 + n) for n in range(2)], options)
    assert (found.distance.sel(head=HEAD) < 1e-6).all() and (found.distance.sel(head=0) > 1e-5).all()
    assert (found.distance.sel(head=0, kind=ZERO) > 0.01).all()


def planted(harmful, samples=12):
    """Return results in which zeros of one head cost a score, and placebos nothing; all else is noise."""
    rng = np.random.default_rng(0)
    labels = np.array([f"maze/{n}" for n in range(samples)], np.dtypes.StringDType())
    kinds = np.array([*KINDS, PLACEBO], np.dtypes.StringDType())
    score = 0.8 + 0.05 * rng.standard_normal((samples, 1, 4, 3, 2))
    score[:, :, 0, 1, 1] -= harmful
    dims = ("sample", "seed", "kind", "layer", "head")
    data = {"score": (dims, score), "clean_score": (dims[:2], np.full((samples, 1), 0.8))}
    return xr.Dataset(data, {"sample": labels, "kind": kinds, "layer": [0, 4, 9], "head": [0, 1]})


def test_a_head_that_is_needed_is_chosen_and_its_placebo_is_not_to_blame():
    results = planted(0.5)
    chosen = choose_heads(harm(results), 1)
    assert chosen.heads == ((4, 1),)
    found = of_outcome(results, "score", chosen)["in the chosen heads"]
    assert found["zero minus placebo"]["high"] < -0.3 and found["zero minus clean"]["high"] < -0.3
    assert found["placebo minus clean"]["low"] < 0 < found["placebo minus clean"]["high"]
    assert found["token mean minus placebo"]["low"] < 0 < found["token mean minus placebo"]["high"]


def test_where_no_head_is_needed_the_worst_one_is_nothing_on_the_other_half():
    results = planted(0.0, samples=40)
    chosen = choose_heads(harm(results), 1)
    primary = of_outcome(results, "score", chosen)["in the chosen heads"]["zero minus placebo"]
    assert chosen.means[0] > 0 and primary["low"] < 0 < primary["high"]


def test_sets_are_of_one_size_and_none_is_the_chosen_one(ablation):
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    sets = ablation.sets_of(heads, ((0, 1), (2, 2)), ablation.Options(**{**SMALL, "random_sets": 4}))
    assert {len(one) for one in sets.values()} == {2}
    assert all(not set(one) & {(0, 1), (2, 2)} for name, one in sets.items() if name != "chosen")
    results = planted(0.5)
    together = xr.Dataset({"score": results.score.isel(kind=0, layer=0, head=0).expand_dims(set=["chosen"])})
    assert "1 samples" in of_sets(results, together.isel(sample=[0]), "score")["not measured"]


def test_one_sample_is_said_and_a_folder_has_no_other_scenes(ablation, tmp_path, organism):
    options = ablation.Options(**{**SMALL, "out": tmp_path})
    results = planted(0.5).isel(sample=[0])
    ablation.conclude(Measured(results, {}), None, None, options)
    assert "one sample" in json.loads((tmp_path / "summary.json").read_text())["not measured"]
    assert ablation.kinds_of(options) == [*KINDS, PLACEBO]
    assert ablation.kinds_of(ablation.Options(eval_root=tmp_path)) == [ZERO, "token mean", PLACEBO]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"best": 0}, "give 1 or more of each"),
        ({"random_sets": 0}, "give 1 or more of each"),
        ({"kinds": ("zero", "zero")}, "give each kind once"),
        ({"best": 3}, "there are 4 heads.*take 2 at most"),
        ({"heads": "9"}, "--heads 9: heads=9 is out of range"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_computed(
    changes, said, ablation, tmp_path, monkeypatch, organism
):
    monkeypatch.setattr("dit_lens.engine.batch.Batch.__init__", None)
    with pytest.raises(dl.DitLensError, match=said):
        go(ablation, tmp_path, monkeypatch, organism, **changes)


def test_a_model_whose_heads_are_not_known_is_refused_by_name():
    blocks = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(8, 8)])})
    size = {"latent": lambda _: (4, 2, 4, 4), "grid": lambda _: (2, 4, 4), "channels": 8}
    with pytest.raises(dl.PlanError, match=r"'heads', which is not known.*attentions none"):
        require_heads(dl.blocks(blocks, "blocks", **size))
