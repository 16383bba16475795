"""Inversion and the loss of flow matching: flows that are known in closed form, and the organism."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.analysis import IdealDenoiser, psnr
from dit_lens.engine.stepped import Stepped
from dit_lens.errors import DitLensError, PlanError
from dit_lens.experiments.inversion import generate, invert, require_flow, velocity_loss
from dit_lens.tasks.canvas import EVAL_SEED

SHAPE = (2, 3, 2, 2)  # [channel, frame, y, x]


class ClosedForm:
    """A flow whose E[x0 | x] is known, with Euler's steps: what a model of that data would be."""

    def __init__(self, x0, noise, steps):
        self.x0, self.noise = x0, noise
        self.sigmas = np.linspace(1, 0, steps + 1)[:-1].tolist()

    def step(self, step, latents, /):
        sigma, after = self.sigmas[step], [*self.sigmas, 0.0][step + 1]
        x0 = torch.as_tensor(self.x0(latents, sigma)).to(latents)
        velocity = (latents - x0) / sigma
        return Stepped(velocity, x0, latents + (after - sigma) * velocity)


def drawn(seed, rows=4):
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


def gaussian(scale, steps, rows=4):
    """Data N(0, scale²) of every latent value: x has the variance ((1 - s) scale)² + s², and x0 is linear in it."""

    def x0(x, sigma):
        return (1 - sigma) * scale**2 / (((1 - sigma) * scale) ** 2 + sigma**2) * x

    return ClosedForm(x0, drawn(1, rows), steps)


def answers(seed=0, count=2):
    videos = np.random.default_rng(seed).normal(size=(count, *SHAPE))
    return IdealDenoiser(tuple("abc"[:count]), videos, np.full(count, 1 / count))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_of_gaussian_data_the_noise_is_the_latents_over_their_scale_in_the_limit_of_many_steps(scale):
    clean = scale * drawn(0)
    error = {
        (steps, refine): float((invert(gaussian(scale, steps), clean, refine) - clean / scale).abs().max())
        for steps in (50, 100, 400)
        for refine in (0, 4)
    }
    for refine in (0, 4):  # of first order, as Euler's step itself is
        assert error[100, refine] == pytest.approx(error[50, refine] / 2, rel=0.2)
        assert error[400, refine] < 0.03 * scale


def test_where_refinements_settle_the_samplers_own_steps_are_inverted_exactly():
    flow, noise = gaussian(1.0, 10), drawn(2)
    clean = generate(flow, noise)
    off = [float((invert(flow, clean, refine) - noise).abs().max()) for refine in (0, 1, 3, 40)]
    assert off[0] > off[1] > off[2] > off[3] and off[3] < 1e-4 and off[0] > 0.01
    torch.testing.assert_close(generate(flow, invert(flow, clean, 40)), clean, atol=1e-4, rtol=0)


def test_the_energy_of_the_noise_tells_data_from_what_is_twice_as_large():
    flow, unlike = gaussian(1.0, 200, rows=40), drawn(3, rows=40)
    like, twice = (float(invert(flow, k * unlike, 4).square().mean()) for k in (1, 2))
    assert like == pytest.approx(1, abs=0.1) and twice == pytest.approx(4 * like, rel=1e-4)


def test_an_answer_of_the_ideal_denoiser_comes_back_and_other_noise_makes_either():
    ideal = answers()
    flow = ClosedForm(ideal.x0, drawn(4, rows=20), 40)
    clean = torch.as_tensor(ideal.videos[[0, 1] * 10]).float()
    back = generate(flow, invert(flow, clean, 2))
    assert min(psnr(x, z, np.ptp(z)) for x, z in zip(back.numpy(), clean.numpy(), strict=True)) > 40
    others = generate(flow, flow.noise)
    wrong = [(x - z).square().mean() > 0.5 for x, z in zip(others, clean, strict=True)]
    assert 4 <= sum(wrong) <= 16


def test_what_is_no_answer_does_not_come_back():
    ideal = answers()
    flow = ClosedForm(ideal.x0, drawn(4, rows=1), 40)
    unlike = drawn(6, rows=1)
    back = generate(flow, invert(flow, unlike, 2))
    assert psnr(back.numpy(), unlike.numpy(), np.ptp(unlike.numpy())) < 20


def test_given_frames_are_those_of_the_path_and_are_not_inverted():
    seen = []
    flow = gaussian(1.0, 4)

    def step(number, latents, /, own=flow.step):
        seen.append((number, latents))
        return own(number, latents)

    flow.step = step
    clean = drawn(0)
    noise = invert(flow, clean, refine=1, given=1)
    assert torch.equal(noise[:, :, :1], flow.noise[:, :, :1])
    assert [number for number, _ in seen] == [3, 3, 2, 2, 1, 1, 0, 0]  # one forward and one refinement a step
    for number, latents in seen:
        sigma = flow.sigmas[number]
        between = (1 - sigma) * clean + sigma * flow.noise
        torch.testing.assert_close(latents[:, :, :1], between[:, :, :1])
    torch.testing.assert_close(noise[:, :, 1:], invert(gaussian(1.0, 4), clean, refine=1)[:, :, 1:])


def test_the_loss_of_one_answer_is_the_squared_distance_over_sigma_squared():
    """Planted effect: right, the ideal denoiser is never surprised; wrong, by exactly this, whatever the noise."""
    one = answers(count=1)
    flow = ClosedForm(one.x0, drawn(5), 5)
    right = torch.as_tensor(one.videos).float().expand(4, *SHAPE)
    assert float(velocity_loss(flow, right, range(5)).max()) < 1e-9
    wrong = right + 0.3
    expected = 0.09 / torch.tensor(flow.sigmas).square()
    found = velocity_loss(flow, wrong, range(5))
    torch.testing.assert_close(found, expected[:, None].expand(5, 4).float(), rtol=1e-4, atol=1e-5)
    only_first = right.clone()
    only_first[:, :, 0] += 9.0  # in the given frame, which does not count
    assert float(velocity_loss(flow, only_first, range(5), given=1).max()) < 1e-9


def test_the_loss_of_the_ideal_denoiser_is_that_of_its_velocity():
    ideal, noise = answers(count=3), drawn(7)
    flow, clean = ClosedForm(ideal.x0, noise, 6), drawn(8)
    for given in (0, 1):
        found = velocity_loss(flow, clean, [0, 2, 5], given)
        expected = [
            [ideal.loss(z, eps, flow.sigmas[s], given) for z, eps in zip(clean, noise, strict=True)]
            for s in (0, 2, 5)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_two_right_answers_surprise_the_ideal_denoiser_as_much_on_average():
    """Planted null: the mean difference is within what the draws of noise leave open; a third video is far outside."""
    ideal, rng = answers(), np.random.default_rng(9)
    eps = rng.normal(size=(400, *SHAPE))
    a, b, wrong = (
        np.array([ideal.loss(z, e, 0.8) for e in eps]) for z in (*ideal.videos, ideal.videos.sum(0))
    )
    null, broken = b - a, wrong - a
    assert abs(null.mean()) < 3 * null.std() / 20
    assert broken.mean() > 10 * broken.std() / 20


def test_of_noise_alone_the_ideal_denoiser_knows_the_prior():
    ideal = answers()
    expected = np.square(ideal.videos[0] - ideal.videos.mean(0)).mean()
    assert ideal.loss(ideal.videos[0], drawn(0)[0], 1.0) == pytest.approx(expected)
    with pytest.raises(DitLensError, match="a noise level over 0"):
        ideal.loss(ideal.videos[0], drawn(0)[0], 0)


def test_what_cannot_be_inverted_is_refused():
    flow, clean = gaussian(1.0, 3), drawn(0)
    with pytest.raises(PlanError, match="number of frames and a size that the model makes"):
        invert(flow, clean[:, :, :2])
    with pytest.raises(PlanError, match="given=3: of 3 latent frames one at least is not given"):
        velocity_loss(flow, clean, [0], given=3)
    with pytest.raises(PlanError, match="refine=-1: give 0 or more"):
        invert(flow, clean, refine=-1)
    broken = ClosedForm(lambda x, sigma: x * (np.nan if sigma < 0.5 else 1), drawn(1), 4)
    with pytest.raises(PlanError, match=r"velocity at step 3 \(sigma 0.250\) is NaN or Inf"):
        velocity_loss(broken, clean, [0, 3])


@pytest.mark.slow
def test_what_the_organism_made_is_inverted_and_better_with_refinements():
    lens = dl.load("organism-v1")
    batch = lens.batch([(dl.tasks.choose(EVAL_SEED + n), 7) for n in range(2)], steps=8)
    made = generate(batch, batch.noise)
    x = batch.noise
    for step in range(8):
        x = batch.step(step, x).latents
    assert torch.equal(made, x)
    off = {
        refine: float((generate(batch, invert(batch, made, refine, given=1)) - made).square().mean())
        for refine in (0, 3)
    }
    other = lens.batch([(dl.tasks.choose(EVAL_SEED + n), 8) for n in range(2)], steps=8)
    unlike = float((generate(other, other.noise) - made).square().mean())
    assert off[3] < off[0] and off[3] < unlike / 5
    # Of what it made itself the velocity is better known than of the same frames in another order.
    shuffled = made[:, :, [0, 3, 1, 2]]
    right, wrong = (velocity_loss(batch, z, [2, 5, 7], given=1) for z in (made, shuffled))
    assert (right < wrong).all()


def test_a_model_that_does_not_encode_or_is_no_flow_is_refused():
    lens = dl.load("organism-v1")
    require_flow(lens)
    family = lens.family
    for changed, reason in (
        (replace(family, codec=replace(family.codec, encode=None)), "does not say how to encode"),
        (
            replace(family, flow=replace(family.flow, is_flow=lambda pipe: False)),
            "no velocity of flow matching",
        ),
        (
            replace(family, anatomy=replace(family.anatomy, latents=("video", "audio"))),
            "denoises video, audio together",
        ),
    ):
        with pytest.raises(PlanError, match=reason):
            require_flow(SimpleNamespace(family=changed, pipe=lens.pipe))
