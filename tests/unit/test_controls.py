"""Controls: an edit of equal norm in a random direction, and weights whose numbers are in a random order."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.plan.places import Spot

SPOT = Spot("block", 5, 0.5, 500.0, 7, "dit", "cond", 6)
SHAPE = (2, 3, 4, 64)


def state(dtype=torch.float32, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def half(h, at):
    """Change the first frame alone, there some tokens more than others."""
    out = h.clone()
    out[0] *= torch.linspace(0.5, 2, h.shape[2])[:, None].to(h)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_token_moves_as_far_as_by_the_edit_and_elsewhere(dtype):
    h = state(dtype)
    moved = dl.controls.placebo(half)(h, SPOT)
    assert moved.dtype == dtype
    ours, theirs = (x.float() - h.float() for x in (moved, half(h, SPOT)))
    assert torch.allclose(
        ours[0].norm(dim=-1), theirs[0].norm(dim=-1), rtol=0.05 if dtype != torch.float32 else 1e-5
    )
    assert torch.equal(moved[1], h[1])
    cosine = torch.nn.functional.cosine_similarity(ours[0], theirs[0], dim=-1)
    assert cosine.abs().mean() < 0.3  # in 64 dimensions about 0.1


def test_directions_are_uniform_and_of_the_place_and_the_seed():
    h = torch.zeros(1, 100, 100, 3)
    edit = dl.replace(np.array([1.0, 0, 0]))
    moved = dl.controls.placebo(edit)(h, SPOT)
    assert torch.allclose(moved.norm(dim=-1), torch.ones(1, 100, 100))
    # On the unit sphere in 3 dimensions every coordinate is uniform on [-1, 1].
    flat = moved.flatten(0, 2)
    assert flat.mean(0).abs().max() < 0.03
    assert torch.allclose((flat**2).mean(0), torch.full((3,), 1 / 3), atol=0.01)
    assert torch.equal(moved, dl.controls.placebo(edit)(h, SPOT))
    assert not torch.equal(moved, dl.controls.placebo(edit, seed=1)(h, SPOT))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_edit_that_gives_nan_or_inf_has_no_placebo(number):
    def broken(h, at):
        out = h.clone()
        out[0, 1, 2, 3] = number
        return out

    with pytest.raises(dl.PlanError, match="moves 1 of 24 tokens by NaN or Inf"):
        dl.controls.placebo(broken)(state(), SPOT)


def test_an_edit_that_changes_nothing_or_the_shape():
    h = state()
    assert torch.equal(dl.controls.placebo(dl.scale(1.0))(h, SPOT), h)
    with pytest.raises(dl.PlanError, match=r"returned \(1, 3, 4, 64\)"):
        dl.controls.placebo(lambda h, at: h[:1])(h, SPOT)


def test_it_declares_what_its_edit_declares():
    plan = dl.Plan.of(edit=[(dl.controls.placebo(dl.renoise()), dl.at(step=2))])
    assert plan.edits[0].site == "latents"
    assert plan.edits[0].reads_x0
    assert not plan.edits[0].over_seeds
    mean = dl.Plan.of(edit=[(dl.controls.placebo(dl.mean_over_seeds()), dl.at(layer=1))])
    assert mean.edits[0].over_seeds
    with pytest.raises(dl.PlanError, match=r"missing: \['edit'\]"):
        dl.controls.placebo()


def test_it_is_data():
    edits = [dl.controls.placebo(dl.scale(0.5), seed=s) for s in (0, 1)] + [dl.scale(0.5)]
    plans = [dl.Plan.of(edit=[(edit, dl.at(layer=1))]) for edit in edits]
    assert len({json.dumps(plan.to_json()) for plan in plans}) == 3
    assert dl.Plan.from_json(plans[0].to_json()) == plans[0]


def test_over_seeds_every_seed_moves_as_far_as_by_the_mean():
    h = state(shape=(3, *SHAPE))
    moved = dl.controls.placebo(dl.mean_over_seeds())(h, SPOT)
    sizes = [(x - h).norm(dim=-1) for x in (moved, h.mean(0, keepdim=True).expand_as(h))]
    assert torch.allclose(*sizes, rtol=1e-4)


def test_runs_and_batches_agree(lens, sample):
    edits = {
        "block": (dl.controls.placebo(dl.scale(0.5)), dl.at(layer=1, step="1-2")),
        "x0": (dl.controls.placebo(dl.renoise()), dl.at(step=2)),
    }
    for edit in edits.values():
        batch = lens.batch([(sample, 0), (sample, 1)], steps=3, record=[dl.x0], edit=edit).run()
        alone = [lens.run(sample, seed, steps=3, record=[dl.x0], edit=edit) for seed in (0, 1)]
        clean = lens.run(sample, 0, steps=3, record=[dl.x0])
        for one, other in zip(batch, alone, strict=True):
            assert np.allclose(one["x0"], other["x0"], rtol=0, atol=2e-5)
        assert not np.allclose(alone[0]["x0"], clean["x0"], atol=1e-3)


# ---- weights in a random order


def test_shuffled_weights_have_the_same_numbers_and_know_nothing():
    trained, shuffled = (dl.load("organism-v1", weights=w) for w in ("trained", "shuffled"))
    for (name, ours), theirs in zip(
        shuffled.dits["dit"].named_parameters(), trained.dits["dit"].parameters(), strict=True
    ):
        assert torch.equal(ours.flatten().sort().values, theirs.flatten().sort().values), name
        assert ours.numel() < 3 or not torch.equal(ours, theirs) or len(ours.unique()) == 1, name
    assert shuffled.fingerprint() != trained.fingerprint()
    assert shuffled.identity() != trained.identity()
    assert shuffled.info["shuffled"]
    sample = dl.tasks.circle(1_000_000, num_frames=13)
    off = [
        np.abs(lens.run(sample, steps=4).video / 255 - sample.truth / 255).mean()
        for lens in (trained, shuffled)
    ]
    assert off[0] < 0.05 < 0.1 < off[1]
    again = dl.controls.shuffle_weights(dl.load("organism-v1"))
    assert again.fingerprint() == shuffled.fingerprint()
    assert dl.controls.shuffle_weights(dl.load("organism-v1"), seed=1).fingerprint() != shuffled.fingerprint()


def test_shuffled_weights_are_not_moved_about():
    with pytest.raises(dl.PlanError, match="without offload and vram_limit"):
        dl.load("wan2.2", weights="shuffled", offload="cpu")


def test_what_is_alike_on_all_branches_is_so_of_the_placebo():
    h = state()
    conditional, other = (dl.controls.placebo(half)(h, replace(SPOT, branch=b)) for b in ("cond", "uncond"))
    assert torch.equal(conditional, other)
    assert not torch.equal(conditional, dl.controls.placebo(half)(h, replace(SPOT, layer=7)))


@pytest.mark.parametrize(
    ("site", "place"),
    [
        ("block", {"channel": [7, 11]}),
        ("block", {"channel": 37}),
        ("heads", {"head": [0, 2], "channel": "0-9"}),
    ],
)
def test_of_some_channels_the_placebo_moves_these_alone_and_as_far(site, place):
    """A massive channel would have a placebo that is spread over all channels, and mostly cut away."""
    lens = dl.load("organism-v1")
    sample, name = dl.tasks.maze(seed=1_000_007), "hidden" if site == "block" else f"hidden_{site}"
    record, at = [(dl.hidden, dl.at(site=site, layer=2, step=0))], dl.at(site=site, layer=2, step=0, **place)
    plain, edited, moved = (
        lens.run(sample, steps=1, record=record, edit=[(edit, at)] if edit else [])[name].values[0, 0, 0]
        for edit in (None, dl.scale(factor=0.3), dl.controls.placebo(edit=dl.scale(factor=0.3)))
    )
    ours, theirs = moved - plain, edited - plain
    assert np.array_equal(ours != 0, theirs != 0)
    norms = [np.linalg.norm(change, axis=-1) for change in (ours, theirs)]
    assert np.allclose(*norms, rtol=1e-4, atol=1e-6) and norms[0].max() > 0


def test_a_type_has_one_label_wherever_it_comes_and_all_labels_come_as_often_as_before():
    rng = np.random.default_rng(0)
    types, labels = rng.integers(400, size=20_000), rng.random(20_000) < 0.3
    drawn = dl.controls.shuffled_labels(labels, types, seed=1)
    assert all(len({*drawn[types == kind].tolist()}) == 1 for kind in range(400))
    assert drawn.mean() == pytest.approx(0.3, abs=0.07)
    assert np.corrcoef(drawn, labels)[0, 1] == pytest.approx(0, abs=0.05)
    assert (drawn == dl.controls.shuffled_labels(labels, types, seed=1)).all()
    assert (drawn != dl.controls.shuffled_labels(labels, types, seed=2)).any()
    for seed in range(20):  # every label comes, however few the types
        assert {*dl.controls.shuffled_labels(["a", "a", "a", "b"], [0, 1, 0, 1], seed=seed)} == {"a", "b"}


@pytest.mark.parametrize(
    "labels, types", [([1, 1], [0, 1]), ([0, 1], [1, 1]), ([0, 1], [0, 1, 2]), ([[0]], [[1]])]
)
def test_labels_without_a_control_task_are_refused(labels, types):
    with pytest.raises(dl.DitLensError, match="shuffled_labels"):
        dl.controls.shuffled_labels(labels, types)


def test_a_random_direction_is_as_long_and_elsewhere():
    given = np.stack([np.eye(200)[0] * 3, np.eye(200)[5] * 7])
    drawn = dl.controls.random_direction(given)
    assert np.linalg.norm(drawn, axis=1).tolist() == pytest.approx([3, 7])
    assert abs(drawn[0, 0]) < 1 and abs(drawn[1, 5]) < 2
    assert (drawn == dl.controls.random_direction(given)).all()
    assert (drawn != dl.controls.random_direction(given, seed=1)).all()
