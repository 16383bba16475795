"""Edits are compared where they have moved a sample equally: exact on planted responses, silent where they never do."""

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from dit_lens import analysis
from dit_lens.engine.sweep import run_arms
from dit_lens.experiments import leverage
from dit_lens.experiments.leverage import Movement, at_equal_movement
from dit_lens.plan.plan import Placed

SAMPLES, INTERVALS = 40, 5


def edit(strength, more=0.0, seed=0):
    """Outcomes that depend on the movement alone, but for `more`; how strongly an interval moves is another thing."""
    rng = np.random.default_rng(seed)
    movement = strength * np.cumsum(rng.uniform(0.05, 0.1, (SAMPLES, INTERVALS)), 1)
    score = np.clip(0.9 - 0.5 * movement - more, 0, 1)
    dims = ("sample", "interval")
    data = {"movement": (dims, movement), "score": (dims, score), "solved": (dims, score)}
    return xr.Dataset(data, {"sample": np.arange(SAMPLES), "sigma": ("interval", [1.0, 0.9, 0.8, 0.7, 0.6])})


def test_at_equal_movement_only_what_is_not_movement_differs():
    weak, strong = edit(1.0), edit(1.5, seed=1)
    raw = float((strong.score - weak.score).isel(interval=-1).mean())
    assert raw < -0.05  # the null is no null without the matching
    same = at_equal_movement(strong, weak, ("solved", "score"))
    assert same["samples"] == SAMPLES
    assert same["score"]["effect"] == pytest.approx(0, abs=1e-12)
    assert same["movement"] == pytest.approx(float(weak.movement.isel(interval=-1).mean()))
    assert same["noise levels"][0] > same["noise levels"][1] == pytest.approx(0.6)
    worse = at_equal_movement(edit(1.5, more=0.1, seed=1), weak, ("score",))
    assert worse["score"]["effect"] == pytest.approx(-0.1) and worse["score"]["high"] < 0
    low, high = worse["score"]["left open between intervals"]
    assert worse["score"]["low"] < low < -0.1 < high < worse["score"]["high"]
    unread = at_equal_movement(weak, weak.assign(score=weak.score - 0.1), ("score",))  # both at an interval
    assert unread["score"]["left open between intervals"] == pytest.approx([0.1, 0.1])


def answering(scale, intervals, rng, off=0.0, steep=0.05):
    """Runs of 24 samples, 3 seeds each, whose chance to be right falls about a movement of 0.3, or of another."""
    reached = scale * np.geomspace(0.02, 0.8, intervals)
    movement = reached * np.exp(rng.normal(0, 0.15, (24, 1)))
    right = 1 / (1 + np.exp((movement - 0.3 - off) / steep))
    solved = (rng.random((24, intervals, 3)) < right[:, :, None]).mean(2)
    dims = ("sample", "interval")
    data = {"movement": (dims, movement), "solved": (dims, solved)}
    return xr.Dataset(data, {"sample": np.arange(24), "sigma": ("interval", np.linspace(1, 0.5, intervals))})


@pytest.fixture
def few_draws(monkeypatch):
    effect = analysis.effect
    monkeypatch.setattr(leverage.analysis, "effect", lambda *a, **k: effect(*a, **k, draws=300))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.6, 0.5])
def test_two_edits_of_one_curved_response_are_not_told_apart_by_coarse_intervals(few_draws, scale):
    """The planted null. Read off the line between intervals alone, 0 was outside in 13 to 66%."""
    rng, outside, biased = np.random.default_rng(3), [], []
    for _ in range(60):
        found = at_equal_movement(answering(1, 5, rng), answering(scale, 5, rng), ("solved",))["solved"]
        outside.append(not found["low"] <= 0 <= found["high"])
        biased.append(found["effect"])
        assert found["low"] <= found["left open between intervals"][0] <= found["effect"] <= found["high"]
    assert np.mean(outside) < 0.08
    assert scale != 0.5 or np.mean(biased) > 0.1  # what the line would have claimed


@pytest.mark.slow
def test_an_edit_that_does_more_at_equal_movement_is_found_with_intervals_that_are_near(few_draws):
    rng, found = np.random.default_rng(4), []
    for _ in range(12):
        edits = answering(0.45, 25, rng, off=0.15), answering(0.4, 25, rng)
        found.append(at_equal_movement(*edits, ("solved",))["solved"])
    assert np.mean([one["low"] > 0 for one in found]) > 0.9


def test_edits_that_never_move_equally_are_not_compared():
    found = at_equal_movement(edit(1.0), edit(50.0), ("solved",))
    assert found["samples"] == 0 and "give other --until" in found["not compared"]
    one = [e.isel(interval=[0]) for e in (edit(1.0), edit(2.0))]
    assert "not compared" in at_equal_movement(*one, ("solved",))


def test_nothing_that_moves_is_compared_at_no_movement():
    still = edit(0.0)
    found = at_equal_movement(still, still, ("solved",))
    assert found["movement"] == 0 and found["solved"]["effect"] == 0 and found["samples"] == SAMPLES


def test_movement_is_what_the_formula_of_an_averaged_step_says(lens, sample):
    """x0 averaged moves a row by (1 - b / a)(mean x0 - x0) from noise level a to b, a velocity by (b - a)(mean v - v)."""
    batch = lens.batch([(sample, seed) for seed in range(3)], steps=3, cfg_scale=1.0)
    clean = batch.step(0, batch.noise)
    a, b = batch.sigmas[:2]
    moves = {
        "x0": (1 - b / a) * (clean.x0.mean(0) - clean.x0),
        "velocity": (b - a) * (clean.velocity.mean(0) - clean.velocity),
    }
    arms = [[Placed(dl.mean_over_seeds(), dl.at(site=site, step=0))] for site in moves]
    movement = Movement([0, 0], 3)
    run_arms(batch, [*arms], look=movement.look)
    for values, move in zip(movement.values, moves.values(), strict=True):
        np.testing.assert_allclose(values, move.square().mean((1, 2, 3, 4)).sqrt(), rtol=1e-4)
        assert values.min() > 1e-3
    sizes = clean.latents.square().mean((1, 2, 3, 4)).sqrt()
    np.testing.assert_allclose(movement.sizes, [sizes, sizes], rtol=1e-5)


def test_movement_leaves_out_frames_that_are_given(lens, sample):
    batch = lens.batch([(sample, 0)], steps=3, cfg_scale=1.0)
    last = batch.noise.shape[2] - 1
    arms = [[Placed(dl.add_noise(scale=1.0), dl.at(site="latents", step=1, frame=f))] for f in (0, last)]
    whole, free = (Movement([1, 1], 1, given) for given in (0, 1))
    for movement in (whole, free):
        run_arms(batch, arms, look=movement.look)
    assert free.values[1, 0] == pytest.approx(whole.values[1, 0] * ((last + 1) / last) ** 0.5, rel=0.2)
    assert free.values[1, 0] > whole.values[1, 0] and free.values[0, 0] < whole.values[0, 0]
