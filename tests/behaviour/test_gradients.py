"""Gradients by hand: a step of a batch carries them; the body of a trace has those of its own computations alone."""

import numpy as np
import pytest
import torch

import dit_lens as dl
from gradients import lens_on, slope, starts_of, state, two_rows, weighted
from loops import SAMPLE, own_lens

METRIC = weighted((2, 2, 4, 4), power=3)


def put(leaf):
    return lambda h, at: leaf


@pytest.mark.parametrize("by_blocks", [False, True])
def test_a_step_carries_the_gradient_of_a_state_that_an_edit_puts_in(by_blocks):
    batch = two_rows(lens_on())
    place = "block", 1, "uncond", 1
    leaf = state(batch, 1, place).requires_grad_()
    edits = [[(put(leaf), dl.at(step=1, branch="uncond", layer=1))]]
    out = batch.step(1, starts_of(batch, 1)[1], [1], edits, gradients=True, by_blocks=by_blocks)
    METRIC(out.x0[0]).backward()
    way = state(batch, 0, place) - state(batch, 1, place)
    assert float((leaf.grad * way).sum()) == pytest.approx(slope(batch, METRIC, place, 1, 1e-4), rel=1e-6)
    gain = batch.attribute(METRIC, place=dl.at(step=1))
    expected = (leaf.grad * way).sum(-1)
    np.testing.assert_allclose(
        gain.block.sel(step=1, branch="uncond", layer=1), expected, rtol=1e-7, atol=1e-14
    )


def test_steps_carry_the_gradient_of_the_latents_on():
    batch = two_rows(lens_on())
    noise = batch.noise.requires_grad_()
    with torch.no_grad():  # as a caller may have it
        first = batch.step(0, noise, gradients=True)
        last = batch.step(1, first.latents, gradients=True)
    (gradient,) = torch.autograd.grad(METRIC(last.x0[0]), [noise])
    assert float(abs(gradient[0]).max()) > 0 == float(abs(gradient[1]).max())  # of row 0 alone
    bumped = noise.detach().clone()
    bumped[0, 1, 1, 2, 3] += 1e-5
    ends = [
        float(METRIC(batch.step(1, batch.step(0, x).latents).x0[0].detach()))
        for x in (bumped, noise.detach())
    ]
    assert float(gradient[0, 1, 1, 2, 3]) == pytest.approx((ends[0] - ends[1]) / 1e-5, rel=1e-3)


def test_a_plain_step_carries_none():
    batch = two_rows(lens_on())
    assert not batch.step(0, batch.noise.requires_grad_()).latents.requires_grad


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "the velocity has none"),
        ({"watch": [("block", "cond", 0)]}, "in place of a watched state"),
    ],
)
def test_a_step_without_a_gradient_to_carry_is_refused(options, match):
    batch = two_rows(lens_on())
    with pytest.raises(dl.PlanError, match=match):
        batch.step(0, batch.noise, gradients=True, **options)


def test_more_rows_than_go_at_once_are_refused():
    batch = two_rows(lens_on(), at_once=1)
    with pytest.raises(dl.PlanError, match="as many rows as go at once"):
        batch.step(0, batch.noise.requires_grad_(), gradients=True)


def test_parameters_of_the_model_get_none():
    lens = lens_on()
    lens.pipe.dit.requires_grad_(True)
    batch = two_rows(lens)
    batch.step(0, batch.noise.requires_grad_(), gradients=True).x0.sum().backward()
    assert all(p.grad is None and p.requires_grad for p in lens.pipe.dit.parameters())


def test_the_body_of_a_trace_has_no_gradient_through_the_model():
    lens = own_lens()
    with pytest.raises(dl.CaptureError, match=r"batch.attribute\(metric"):
        with lens.trace(SAMPLE, steps=2, cfg_scale=1.0) as tr:
            for call in tr.calls(step=1):
                with torch.enable_grad():
                    h = call.block(1).output
                    h.requires_grad_()
                    call.block(1).output = h
                    velocity = call.dit.output
                    velocity.sum().backward()
    assert not any(m._forward_hooks for m in lens.pipe.dit.modules())


def test_nnsights_own_block_of_a_backward_pass_neither():
    lens = own_lens()
    with pytest.raises(dl.CaptureError, match="pipeline runs under"):
        with lens.trace(SAMPLE, steps=2, cfg_scale=1.0) as tr:
            for call in tr.calls(step=1):
                h = call.block(1).output
                loss = call.dit.output.sum()
                with loss.backward():
                    h.grad.save()


def test_other_errors_of_the_body_stay_what_they_are():
    lens = own_lens()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with lens.trace(SAMPLE, steps=2, cfg_scale=1.0) as tr:
            for call in tr.calls(step=1):
                call.block(1).output[0] @ torch.zeros(3, 3)


def test_the_body_has_gradients_of_what_it_computes_itself():
    lens = own_lens()
    with lens.trace(SAMPLE, steps=1, cfg_scale=1.0) as tr:
        for call in tr.calls():
            with torch.enable_grad():
                h = call.block(0).output.detach().clone().requires_grad_()
                lens.pipe.dit.blocks[1](h).sum().backward()  # bare: what is placed on the run is not in it
                found = h.grad.abs().max().save()
    assert float(found) > 0
