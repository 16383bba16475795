"""Edits that take x0 of the step before, and noise in place of the latents, mean the same in every way to run a model."""

import os

import numpy as np
import pytest
import torch

import dit_lens as dl
from loops import SAMPLE, SIGMAS, Interrupted, Model, interruptible, own_lens, same, sampled

STEPS = 5
CLOSE = {"rtol": 0, "atol": 2e-5}


def renoised(seed=0, **where):
    return dl.renoise(seed=seed), dl.at(**where)


def noise_at(lens, sample, step, seed=0):
    """Return the noise of a place, read off another edit: what `add_noise` adds there."""
    plain, noisy = (
        lens.run(sample, seed, steps=STEPS, record=[dl.latents], edit=edit)["latents"].sel(step=step)
        for edit in ([], [(dl.add_noise(scale=1.0), dl.at(site="latents", step=step))])
    )
    return noisy - plain


def test_x_s_lies_between_x0_of_the_step_before_and_other_noise(lens, sample):
    clean = lens.run(sample, steps=STEPS, record=[dl.x0, dl.latents])
    run = lens.run(sample, steps=STEPS, record=[dl.x0, dl.latents], edit=[renoised(step=3)])
    sigma = float(clean["latents"].sigma.sel(step=3))
    mixed = (1 - sigma) * clean["x0"].sel(step=2) + sigma * noise_at(lens, sample, 3)
    assert np.allclose(run["latents"].sel(step=3), mixed, **CLOSE)
    assert np.array_equal(run["x0"].sel(step=[0, 1, 2]), clean["x0"].sel(step=[0, 1, 2]))
    assert not np.allclose(run["x0"].sel(step=3), clean["x0"].sel(step=3), atol=1e-3)


def test_in_a_region_and_at_every_step_it_takes_the_runs_own_x0(lens, sample):
    run = lens.run(sample, steps=STEPS, record=[dl.x0, dl.latents], edit=[renoised(step="1-", frame=1)])
    x, x0 = run["latents"], run["x0"]
    for step in range(1, STEPS):
        sigma = float(x.sigma.sel(step=step))
        mixed = (1 - sigma) * x0.sel(step=step - 1) + sigma * noise_at(lens, sample, step)
        assert np.allclose(x.sel(step=step, frame=1), mixed.sel(frame=1), **CLOSE)
        assert not np.allclose(x.sel(step=step, frame=0), mixed.sel(frame=0), atol=1e-2)


def test_an_edited_x0_is_the_one_that_is_mixed(lens, sample):
    edits = [(dl.scale(factor=0.5), dl.at(site="x0", step=1)), renoised(step=2)]
    run = lens.run(sample, steps=STEPS, record=[dl.x0, dl.latents], edit=edits)
    clean = lens.run(sample, steps=STEPS, record=[dl.x0])
    assert np.allclose(run["x0"].sel(step=1), 0.5 * clean["x0"].sel(step=1), **CLOSE)
    sigma = float(run["latents"].sigma.sel(step=2))
    mixed = (1 - sigma) * run["x0"].sel(step=1) + sigma * noise_at(lens, sample, 2)
    assert np.allclose(run["latents"].sel(step=2), mixed, **CLOSE)


@pytest.mark.parametrize("at_once", [64, 3])
def test_batches_and_sweeps_make_the_run(lens, sample, tmp_path, at_once):
    other = sample.with_(prompt="circle the disc", id="b")
    pairs = [(sample, 0), (sample, 1), (other, 0), (other, 1)]
    arms = {
        "one step": [renoised(step=3)],
        "one frame": [renoised(step="1-", frame=1)],
        "later": [renoised(seed=4, step="2-3")],
    }
    alone = {
        (arm, i): lens.run(s, seed, steps=STEPS, record=[dl.x0], edit=edit)["x0"]
        for arm, edit in arms.items()
        for i, (s, seed) in enumerate(pairs)
    }
    lens.sweep(pairs, arms, steps=STEPS, at_once=at_once, record=[dl.x0], store=tmp_path)
    for arm, edit in arms.items():
        batch = lens.batch(pairs, steps=STEPS, at_once=at_once, record=[dl.x0], edit=edit)
        swept = lens.batch(pairs, steps=STEPS, record=[dl.x0], edit=edit, store=tmp_path).run()  # found
        for i, (run, kept) in enumerate(zip(batch.run(), swept, strict=True)):
            assert np.allclose(run["x0"], alone[arm, i], **CLOSE)
            assert np.allclose(kept["x0"], alone[arm, i], **CLOSE)
    assert len(list(dl.open_runs(tmp_path).children)) == 16  # nothing of what was swept was made again


def test_a_batch_in_the_callers_hands_is_given_x0(lens, sample):
    batch, edit = lens.batch([(sample, 0)], steps=STEPS), [renoised(step=2)]
    x, x0 = batch.noise, None
    for step in range(batch.steps):
        now = batch.step(step, x, edits=[edit], x0=x0)
        x, x0 = now.latents, now.x0
    alone = lens.run(sample, steps=STEPS, record=[dl.x0], edit=edit)["x0"].sel(step=STEPS - 1)
    assert np.allclose(now.x0[0].permute(1, 2, 3, 0), alone, **CLOSE)
    with pytest.raises(dl.PlanError, match=r"x0 of the step before is not known here.*x0=stepped\.x0"):
        batch.step(2, x, edits=[edit])
    with pytest.raises(dl.PlanError, match="one of each for every row"):
        batch.step(2, x, edits=[edit], x0=x0[[0, 0]])


def test_a_loop_of_ones_own_makes_the_run():
    lens, plan = own_lens(), {"record": [dl.x0, dl.latents], "edit": [renoised(step="1-2")]}
    expected = lens.run(SAMPLE, **plan)
    with lens.capture(SIGMAS, branches=("cond", "uncond"), **plan) as loop:
        sampled(lens, loop)
    assert np.array_equal(loop.run["x0"].values, expected["x0"].values)


@pytest.mark.parametrize("verify", ["first", "never"])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_an_interrupted_run_goes_on_with_it(lens, sample, tmp_path, step, verify):
    guarded = interruptible()
    options = {"record": [dl.x0, guarded], "steps": STEPS, "verify": verify, "edit": [renoised(step="1-")]}
    os.environ["CALLS_LEFT"] = str(step * 2 * 3)
    with pytest.raises(Interrupted):
        lens.run(sample, store=tmp_path / "a", **options)
    os.environ["CALLS_LEFT"] = "-1"
    again = lens.run(sample, store=tmp_path / "a", **options)
    assert again.complete
    same(again, lens.run(sample, store=tmp_path / "b", **options))


def test_where_there_is_no_x0_it_is_refused(lens, sample):
    for where, reason in (
        ({}, "step 0 has none"),
        ({"step": "0-2"}, "step 0 has none"),
        ({"site": "block", "step": 2}, "place it at site='latents'"),
        ({"site": "velocity", "step": 2}, "place it at site='latents'"),
    ):
        for run in (
            lambda edit: lens.run(sample, steps=STEPS, edit=edit),
            lambda edit: lens.batch([(sample, 0)], steps=STEPS, edit=edit),
            lambda edit: lens.sweep([(sample, 0)], {"a": edit}, steps=STEPS),
        ):
            with pytest.raises(dl.PlanError, match=reason):
                run([renoised(**where)])
    low = dl.at(sigma=(0.0, 0.9))  # chosen by noise level: step 0 is not among them
    assert lens.run(sample, steps=STEPS, edit=[(dl.renoise(), low)]).complete


def test_an_edit_of_ones_own_takes_x0_where_it_says_so(lens, sample):
    def back(h, at, x0):
        h[:] = x0
        return h

    with pytest.raises(TypeError, match="x0"):
        lens.run(sample, steps=STEPS, edit=[(back, dl.at(site="latents", step=2))])
    back.reads_x0 = True
    run = lens.run(
        sample, steps=STEPS, record=[dl.x0, dl.latents], edit=[(back, dl.at(site="latents", step=2))]
    )
    assert np.allclose(run["latents"].sel(step=2), run["x0"].sel(step=1), **CLOSE)
    back.over_seeds = True
    with pytest.raises(dl.PlanError, match="cannot see several seeds together"):
        lens.batch([(sample, 0)], steps=STEPS, edit=[(back, dl.at(site="latents", step=2))])


def test_noise_in_place_of_the_latents_is_unit_noise_of_the_place(lens, sample):
    at = dl.at(site="latents", step=2, frame=1)
    run = lens.run(sample, steps=STEPS, record=[dl.latents], edit=[(dl.noise(), at)])["latents"].sel(step=2)
    drawn = noise_at(lens, sample, 2)
    assert np.allclose(run.sel(frame=1), drawn.sel(frame=1), **CLOSE)
    assert not np.allclose(run.sel(frame=0), drawn.sel(frame=0), atol=0.1)
    h, spot = torch.zeros(8, 32, 32, 16), None
    spot = dl.Spot("latents", 2, 0.5, 500.0, 0, "dit")
    values = dl.noise(scale=0.5)(h, spot)
    assert abs(float(values.std()) - 0.5) < 0.01 and abs(float(values.mean())) < 0.01
    assert torch.equal(values, dl.add_noise(scale=0.5)(h, spot))


def test_in_few_bits_the_mix_is_rounded_once():
    spot = dl.Spot("latents", 2, 0.3, 300.0, 0, "dit")
    h, x0 = (torch.randn(2, 4, 4, 8).to(torch.bfloat16) for _ in range(2))
    eps = dl.noise()(h.float(), spot)
    mixed = dl.renoise()(h, spot, x0)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, (0.7 * x0.float() + 0.3 * eps).to(torch.bfloat16))


def test_x0_is_held_only_where_an_edit_takes_it():
    """With gradients it holds all that they need of a step."""
    from dit_lens.engine.capture import Capture

    torch.manual_seed(0)
    lens = dl.blocks(
        Model(), "blocks", latent=lambda s: (2, 2, 4, 4), grid=lambda latent: latent[1:], steps=2
    )
    for edit, count in (([], 0), ([renoised(step=1)], 1)):
        with lens.capture(SIGMAS[:2], edit=edit) as loop:
            assert isinstance(loop, Capture)
            x = torch.randn(1, 2, 2, 4, 4)
            for after in (SIGMAS[1], 0.0):
                with loop.step(x) as step:
                    with step.call("cond"):
                        v = lens.pipe.dit(step.latents, torch.tensor([step.timestep]), 0.0)
                    v = step.velocity(v)
                    start = step.latents
                assert len(loop.stepper.x0) == count
                x = (start + v * (after - step.sigma)).detach()
