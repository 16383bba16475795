"""The ideal denoiser: Bayes' rule over the right answers of a scene."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.analysis import IdealDenoiser, ideal_denoiser
from dit_lens.errors import DitLensError, TaskError
from dit_lens.tasks.canvas import EVAL_SEED

SHAPE = (2, 3, 2, 2)


@pytest.fixture
def three():
    videos = np.random.default_rng(0).normal(size=(3, *SHAPE))
    return IdealDenoiser(("a", "b", "c"), videos, np.array([0.5, 0.3, 0.2]))


def test_of_pure_noise_it_knows_the_prior_alone(three):
    x = np.random.default_rng(1).normal(size=(4, *SHAPE))
    np.testing.assert_allclose(three.weights(x, 1.0), np.tile(three.prior, (4, 1)))
    np.testing.assert_allclose(three.x0(x, 1.0)[0], np.tensordot(three.prior, three.videos, 1))


def test_of_little_noise_it_knows_the_answer(three):
    x = 0.99 * three.videos + 0.01 * np.random.default_rng(1).normal(size=three.videos.shape)
    np.testing.assert_allclose(three.weights(x, 0.01), np.eye(3), atol=1e-12)


def test_its_weights_are_bayes_rule(three):
    x, sigma = np.random.default_rng(2).normal(size=(5, *SHAPE)), 0.6
    density = np.stack(
        [np.exp(-((x - 0.4 * z) ** 2).sum((1, 2, 3, 4)) / (2 * sigma**2)) for z in three.videos], 1
    )
    expected = three.prior * density
    np.testing.assert_allclose(three.weights(x, sigma), expected / expected.sum(1, keepdims=True))


def test_its_mean_is_the_least_squares_guess(three):
    """E[x0 | x_s] has the smallest squared error of all functions of x_s: each answer, and the prior's mean, have more."""
    rng, sigma = np.random.default_rng(3), 0.9
    picks = rng.choice(3, 4000, p=three.prior)
    x = (1 - sigma) * three.videos[picks] + sigma * rng.normal(size=(4000, *SHAPE))
    error = np.square(three.x0(x, sigma) - three.videos[picks]).mean()
    guesses = [*three.videos, np.tensordot(three.prior, three.videos, 1)]
    assert all(error < np.square(guess - three.videos[picks]).mean() for guess in guesses)


def test_its_flow_ends_in_an_answer_as_often_as_the_prior_says(three):
    noise = np.random.default_rng(4).normal(size=(2000, *SHAPE))
    beliefs = three.run(noise, np.linspace(1, 0, 101)[:-1])
    off = np.square(beliefs[-1][:, None] - three.videos).sum((2, 3, 4, 5))
    assert (off.min(1) < 1e-3).mean() > 0.99
    shares = np.bincount(off.argmin(1), minlength=3) / 2000
    np.testing.assert_allclose(shares, three.prior, atol=0.05)


def test_it_is_of_a_scene():
    lens = dl.load("organism")
    sample = dl.tasks.choose(EVAL_SEED + 3)
    ideal = ideal_denoiser(sample, lens.encode)
    assert ideal.texts == tuple(f"goal {n}" for n in range(len(sample.answers)))
    again = lens.decode(lens.encode(sample.truth))
    assert np.abs(again.astype(int) - sample.truth).mean() < 5
    batch = lens.batch([(sample, seed) for seed in range(4)], steps=8)
    assert ideal.videos.shape[1:] == tuple(batch.noise.shape[1:])
    beliefs = ideal.run(batch.noise, batch.sigmas)
    import torch

    videos = batch.decode(torch.from_numpy(beliefs[-1]).float())
    scores = [sample.score(video) for video in videos]
    assert all(score.solved for score in scores)


def test_it_takes_tensors_of_any_type(three):
    import torch

    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    expected = three.weights(x.detach().double().numpy(), 0.5)
    np.testing.assert_array_equal(three.weights(x, torch.tensor(0.5)), expected)
    assert len(three.run(x, torch.linspace(1, 0.1, 4))) == 4


@pytest.mark.parametrize("sigma", [0, -1, 1.5, 700, float("nan")])
def test_what_is_no_noise_level_is_refused(three, sigma):
    with pytest.raises(DitLensError, match="a noise level over 0 and up to 1"):
        three.weights(np.zeros((1, *SHAPE)), sigma)


def test_what_it_is_not_of_is_refused(three, lens):
    with pytest.raises(DitLensError, match="hold NaN"):
        three.weights(np.full((1, *SHAPE), np.nan), 0.5)
    with pytest.raises(DitLensError, match="sigmas is empty"):
        three.run(np.zeros((1, *SHAPE)), [])
    with pytest.raises(DitLensError, match="give latents of the same sample and model"):
        three.weights(np.zeros((1, 2, 3, 2, 3)), 0.5)
    with pytest.raises(TaskError, match="does not say how its scene was made"):
        ideal_denoiser(dl.Sample("a cat", size=(4, 4)), lens.encode)
