"""Rows that go through the model together give what single runs give, edits and labels included."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.plan.plan import Placed

CLOSE = {"rtol": 0, "atol": 2e-5}  # float32, another order of summation
MASK = np.zeros((3, 3, 2), bool)
MASK[1, 2, 0] = MASK[2, 0] = True
PATCHED = torch.full((3, 3, 2, 64), 0.25)


def placed(function, **where):
    return Placed(function, dl.at(**where))


def go(batch, edits=None, watch=(), groups=None, pairs=None):
    x, seen = batch.noise if pairs is None else batch.noise[pairs], []
    for step in range(batch.steps):
        out = batch.step(step, x, rows=pairs, edits=edits, watch=watch, groups=groups)
        seen.append(out)
        x = out.latents
    return x, seen


def single(lens, sample, seed, edits=(), **options):
    run = lens.run(
        sample, seed, edit=[(e.function, e.place) for e in edits], record=[dl.x0, dl.hidden], **options
    )
    return run, torch.from_numpy(np.array(run["x0"].isel(step=-1).values)).permute(3, 0, 1, 2)


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
@pytest.mark.parametrize("experts", [1, 2])
def test_every_row_is_its_single_run(request, sample, experts, cfg_scale):
    lens = dl.Lens(request.getfixturevalue("pipe" if experts == 1 else "two_experts"))
    samples = [sample, replace(sample, prompt="circle the disc"), sample]
    pairs = list(zip(samples, (0, 0, 5), strict=True))
    batch = lens.batch(pairs, steps=4, cfg_scale=cfg_scale, at_once=2)
    branch = batch.layout.branches[-1]
    x, seen = go(batch, watch=[("block", branch, 1)])
    for row, (one, seed) in enumerate(pairs):
        run, last = single(lens, one, seed, steps=4, cfg_scale=cfg_scale)
        assert torch.allclose(x[row], last, **CLOSE)
        for step, out in enumerate(seen):
            assert batch.expert(step) == str(run.dataset["expert"].values[step])
            hidden = torch.from_numpy(np.array(run["hidden"].sel(step=step, branch=branch, layer=1).values))
            assert torch.allclose(out.states["block", branch, 1][row], hidden, rtol=0, atol=1e-4)
    if cfg_scale > 1:
        assert not torch.allclose(x[0], x[1], atol=1e-3)


EDITS = {
    "noise on latents": placed(dl.add_noise(scale=0.5), site="latents", step=1),
    "noise on a frame": placed(dl.add_noise(scale=0.5), site="latents", frame=1),
    "block": placed(dl.scale(factor=0.5), layer=[0, 2], branch="cond", step="1-"),
    "input": placed(dl.zero(), site="block_in", layer=1, branch="uncond"),
    "queries of a region": placed(dl.ablate(to="token_shuffle"), site="q", y=1, step=0),
    "velocity": placed(dl.scale(factor=1.1), site="velocity", step=2),
    "x0": placed(dl.scale(factor=0.9), site="x0", step=1),
    "by sigma": placed(dl.ablate(to="token_mean"), layer=1, sigma=(0.0, 0.9)),
    "a mask": placed(dl.zero(), layer=1, mask=MASK),
    "patch": placed(dl.replace(value=PATCHED), layer=1, step=1),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_does_to_its_row_what_it_does_to_a_single_run_and_nothing_to_the_others(lens, sample, name):
    batch = lens.batch([(sample, 3)], steps=3, cfg_scale=2.0)
    x, _ = go(batch, edits=[[], [EDITS[name]], []], pairs=[0, 0, 0])
    _, clean = single(lens, sample, 3, steps=3, cfg_scale=2.0)
    _, edited = single(lens, sample, 3, edits=[EDITS[name]], steps=3, cfg_scale=2.0)
    assert torch.allclose(x[1], edited, **CLOSE)
    assert torch.allclose(x[0], clean, **CLOSE) and torch.allclose(x[2], clean, **CLOSE)
    assert not torch.allclose(edited, clean, atol=1e-3)


def test_identity_controls_change_nothing_bit_for_bit(lens, sample):
    batch = lens.batch([(sample, 0), (sample, 1)], steps=3, cfg_scale=2.0)
    clean, seen = go(batch, watch=[("block", b, 1) for b in ("cond", "uncond")])
    own = [placed(dl.replace(value=seen[1].states["block", "cond", 1][0]), layer=1, step=1, branch="cond")]
    for edits in (
        [own, []],
        [
            [placed(dl.add_noise(scale=0.0), site="latents")],
            [placed(dl.steer(direction=torch.ones(64), scale=0.0))],
        ],
    ):
        assert torch.equal(go(batch, edits=edits)[0], clean)


OVER_SEEDS = {"mean": dl.mean_over_seeds(), "medoid": dl.medoid_over_seeds()}
AVERAGED = {"block": {"layer": "0-1"}, "velocity": {}, "x0": {}, "latents": {}}


@pytest.mark.parametrize("site", AVERAGED)
@pytest.mark.parametrize("edit", OVER_SEEDS)
def test_an_ensemble_of_identical_seeds_or_of_one_changes_nothing_bit_for_bit(lens, sample, edit, site):
    ensemble = [placed(OVER_SEEDS[edit], site=site, step="0-1", **AVERAGED[site])]
    for pairs, groups in (([(sample, 0)] * 3, [0] * 3), ([(sample, 0), (sample, 1)], [0, 1])):
        batch = lens.batch(pairs, steps=2, cfg_scale=1.0)
        clean, _ = go(batch)
        assert torch.equal(go(batch, edits=[ensemble] * len(pairs), groups=groups)[0], clean)


@pytest.mark.parametrize("site", AVERAGED)
def test_the_medoid_takes_over_for_all_in_lockstep_and_one_after_another(lens, sample, site):
    edits = [[placed(dl.medoid_over_seeds(), site=site, step=0, **AVERAGED[site])]] * 3
    ends = []
    for at_once in (3, 1):
        batch = lens.batch([(sample, seed) for seed in range(3)], steps=2, at_once=at_once)
        ends.append(go(batch, edits=edits, groups=[0] * 3)[0])
    assert torch.allclose(*ends, **CLOSE)
    clean = go(batch)[0]
    moved = [not torch.allclose(end, own, atol=1e-3) for end, own in zip(ends[0], clean, strict=True)]
    assert sum(moved) == 2  # the medoid's own run goes on as it was


@pytest.mark.parametrize("layers", [1, "0-1"])
@pytest.mark.parametrize("site", ["block", "self_attn"])
def test_the_ensemble_in_lockstep_and_one_after_another_agree(lens, sample, layers, site):
    pairs = [(sample, 0), (sample, 1), (sample, 2), (sample, 3)]
    edits = [[placed(dl.mean_over_seeds(), site=site, layer=layers, step=0)]] * 4
    groups = [0, 0, 0, 1]
    results = []
    for at_once in (4, 1):
        batch = lens.batch(pairs, steps=2, cfg_scale=2.0, at_once=at_once)
        x, seen = go(batch, edits=edits, groups=groups, watch=[(site, "cond", 1)])
        results.append((x, seen[0].states[site, "cond", 1]))
    assert torch.allclose(results[0][0], results[1][0], **CLOSE)
    together, clean = results[0][1], go(batch)[0]
    assert torch.equal(together[0], together[1]) and not torch.equal(together[0], together[3])
    assert torch.allclose(results[0][0][3], clean[3], **CLOSE)  # a group of one is a run of its own
    assert not torch.allclose(results[0][0][0], clean[0], atol=1e-3)


def test_averaging_whole_states_over_layers_is_averaging_them_at_the_first(lens, sample):
    batch = lens.batch([(sample, 0), (sample, 1)], steps=1, cfg_scale=1.0)
    ends = [
        go(batch, edits=[[placed(dl.mean_over_seeds(), layer=layers, step=0)]] * 2, groups=[0, 0])[0]
        for layers in (0, "0-2")
    ]
    assert torch.equal(*ends)


def test_the_pipelines_own_runs_in_between_change_nothing(lens, sample):
    batch = lens.batch([(sample, 0)], steps=3)
    first = batch.step(0, batch.noise)
    lens.run(sample, steps=7)
    assert torch.equal(batch.step(1, first.latents).latents, go(batch)[1][1].latents)


def test_nothing_is_left_behind_also_when_an_edit_raises(lens, pipe, sample, left_behind):
    def broken(h, at):
        raise RuntimeError("broken")

    batch = lens.batch([(sample, 0)], steps=2)
    with pytest.raises(RuntimeError):
        batch.step(0, batch.noise, edits=[[placed(broken, layer=1)]])
    assert left_behind(pipe) == []


def test_what_does_not_fit_together_is_refused(lens, pipe, sample):
    other = replace(sample, num_frames=5)
    for pairs, says in (
        ([(sample, 0), (other, 0)], "one \\(height, width, num_frames\\)"),
        ([(replace(sample, prompt=("a", "b")), 0)], "prompt batch"),
        ([], "0 pairs"),
    ):
        with pytest.raises(dl.PlanError, match=says):
            lens.batch(pairs)
    batch = lens.batch([(sample, 0)], steps=2)
    ensemble = placed(dl.mean_over_seeds(), layer=1)
    for options, says in (
        ({"rows": [0, 0]}, "1 latents, 2 rows"),
        ({"rows": [3]}, "out of 1 pairs"),
        ({"edits": [[placed(dl.zero(), layer=9)]]}, "layer"),
        ({"edits": [[ensemble]]}, "groups="),
        ({"edits": [[placed(dl.replace(value=torch.zeros(9, 9)), layer=1)]]}, "does not broadcast"),
        ({"edits": [[placed(dl.steer(direction=torch.zeros(9)), layer=1)]]}, "64 channels"),
        ({"edits": [[placed(dl.ablate(to="median"), layer=1)]]}, "median"),
    ):
        with pytest.raises(dl.PlanError, match=says):
            batch.step(0, batch.noise, **options)
    with pytest.raises(dl.PlanError, match=r"lens\.batch"):
        lens.run(sample, edit=[(dl.mean_over_seeds(), dl.at(layer=1))])
    with pytest.raises(dl.PlanError, match="does not say how to batch"):
        dl.Lens(pipe, family=replace(lens.family, batching=None)).batch([(sample, 0)])


def test_a_mask_confines_an_edit_to_its_cells(lens, sample):
    batch = lens.batch([(sample, 0)], steps=1)
    place = [("block", "cond", 2)]
    clean = batch.step(0, batch.noise, watch=place).states[place[0]][0]
    edited = batch.step(0, batch.noise, edits=[[placed(dl.zero(), layer=2, mask=MASK)]], watch=place)
    expected = torch.where(torch.from_numpy(MASK)[..., None], 0.0, clean)
    assert torch.equal(edited.states[place[0]][0], expected)
    with pytest.raises(dl.PlanError, match="The mask is"):
        batch.step(0, batch.noise, edits=[[placed(dl.zero(), site="latents", mask=MASK)]])


ENSEMBLES = {
    "of a region": [[placed(dl.mean_over_seeds(), layer=1, step=0, frame=0)]] * 3,
    "of edits made apart": [[placed(dl.mean_over_seeds(), layer=1, step=0)] for _ in range(3)],
    "after an edit of its own": [
        [placed(dl.scale(factor=0.5), layer=1, step=0), placed(dl.mean_over_seeds(), layer=1, step=0)]
    ]
    * 3,
    "before an edit of its own": [
        [placed(dl.mean_over_seeds(), layer=1, step=0), placed(dl.scale(factor=0.5), layer=1, step=0)]
    ]
    * 3,
    "of some rows": [
        [],
        [placed(dl.mean_over_seeds(), layer=1, step=0)],
        [placed(dl.mean_over_seeds(), layer=1, step=0)],
    ],
    "listed late first": [
        [placed(dl.mean_over_seeds(), site="self_attn", layer=n, step=0) for n in (2, 0)] for _ in range(3)
    ],
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_ensemble_is_the_same_in_lockstep_and_one_after_another(lens, sample, name):
    pairs, ends = [(sample, 0), (sample, 1), (sample, 2)], []
    for at_once in (3, 1):
        batch = lens.batch(pairs, steps=2, cfg_scale=1.0, at_once=at_once)
        x, seen = go(batch, edits=ENSEMBLES[name], groups=[0, 0, 0], watch=[("block", "cond", 1)])
        ends.append((x, seen[0].states["block", "cond", 1]))
    assert torch.allclose(ends[0][0], ends[1][0], **CLOSE)
    clean, seen = go(batch, watch=[("block", "cond", 1)])
    own, met = seen[0].states["block", "cond", 1], ends[0][1]
    assert not torch.allclose(ends[0][0][1], clean[1], atol=1e-3)
    if name == "of a region":
        assert torch.allclose(met[:, 1:], own[:, 1:], atol=1e-5) and torch.allclose(
            met[0, 0], own[:, 0].mean(0), atol=1e-5
        )
    if "an edit of its own" in name:
        assert torch.allclose(met[0], 0.5 * own.mean(0), atol=1e-5) and torch.equal(met[0], met[2])
    if name == "of some rows":
        assert torch.allclose(met[0], own[0], atol=1e-5) and torch.allclose(
            met[1], own[1:].mean(0), atol=1e-5
        )


def test_a_place_that_cannot_be_seen_is_refused(two_experts, sample):
    batch = dl.Lens(two_experts).batch([(sample, 0)], steps=4, cfg_scale=1.0)
    for options, says in (
        ({"watch": [("block", "uncond", 1)]}, "branches cond"),
        ({"watch": [("blok", "cond", 1)]}, "there are the sites"),
        ({"watch": [("block", "cond", 9)]}, "layer=9 is out of range"),
        (
            {"edits": [[placed(dl.zero(), layer=1, step=3, expert="high")]]},
            "never fired in this run: no step had its sigma and expert together",
        ),
    ):
        with pytest.raises(dl.PlanError, match=says):
            batch.step(0, batch.noise, **options)


def test_a_module_that_the_model_passes_by_is_an_error(lens, pipe, sample):
    batch = lens.batch([(sample, 0)], steps=1)
    block = pipe.dit.blocks[1]
    block.forward, forward = (
        lambda x, *rest: x + 0 * block.ffn.forward(x),
        block.forward,
    )  # around the hooks of its parts
    try:
        with pytest.raises(dl.CaptureError, match=r"nothing ran .*\('ffn', 'cond', 1\)"):
            batch.step(0, batch.noise, watch=[("ffn", "cond", 1)])
    finally:
        del block.forward
    assert block.forward == forward


def half(h, at, weight=0.5):
    """Go half of the way to the mean of all seeds."""
    return h + weight * (h.mean(0, keepdim=True) - h)


half.over_seeds = True


class Half:
    def __call__(self, h, at):
        return half(h, at)

    __call__.over_seeds = True

    def method(self, h, at):
        return half(h, at)

    method.over_seeds = True


@dl.options
def maker(h, at, *, weight):
    return half(h, at, weight)


maker.over_seeds = True


@pytest.mark.parametrize(
    "edit",
    [
        partial(half, weight=0.5),
        partial(partial(half), weight=0.5),
        Half(),
        Half().method,
        maker(weight=0.5),
    ],
    ids=["partial", "partial of one", "object", "method", "maker"],
)
def test_a_function_that_sees_all_seeds_does_so_however_it_is_wrapped(lens, sample, edit):
    pairs, place = [(sample, 0), (sample, 1)], dl.at(layer=1, step=0)
    batches = [
        lens.batch(pairs, steps=2, cfg_scale=1.0, edit=[(e, place)], record=[dl.x0]).run()
        for e in (half, edit)
    ]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one["x0"].values, other["x0"].values)
    with pytest.raises(dl.PlanError, match=r"lens\.batch"):
        lens.run(sample, edit=[(edit, place)])


def test_seeds_that_never_meet_twice_with_the_same_values_are_an_error_and_no_endless_loop(lens, sample):
    def drawn(h, at):
        return h + 0.01 * torch.randn_like(h)

    edit = [(drawn, dl.at(layer=0)), (dl.mean_over_seeds(), dl.at(layer=1))]
    with pytest.raises(dl.PlanError, match="draws random numbers without a seed"):
        lens.batch([(sample, 0), (sample, 1)], steps=1, at_once=1, edit=edit).run()


def test_a_step_takes_edits_as_a_run_does(lens, sample):
    batch = lens.batch([(sample, 0), (sample, 1)], steps=2, cfg_scale=1.0)
    pair = (dl.zero(), dl.at(layer=0))
    expected = batch.step(0, batch.noise, edits=[[placed(dl.zero(), layer=0)]] * 2).velocity
    for edits in ([[pair]] * 2, [pair] * 2, [placed(*pair[:1], layer=0)] * 2, [iter([pair]), [pair]]):
        assert torch.equal(batch.step(0, batch.noise, edits=edits).velocity, expected)
    assert not torch.equal(batch.step(0, batch.noise).velocity, expected)
    run = lens.run(sample, steps=2, cfg_scale=1.0, edit=[Placed(*pair)], record=[dl.energy])
    assert (run["energy"].sel(layer=0) == 0).all()
    with pytest.raises(dl.PlanError, match=r"give a function, or a pair \(function, dl.at"):
        batch.step(0, batch.noise, edits=[[(dl.zero(), "layer 0")]] * 2)
