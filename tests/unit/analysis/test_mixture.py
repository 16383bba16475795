"""Weights of a mixture: planted ones come back, a single template is no mixture, and what is not told is refused."""

import numpy as np
import pytest
from scipy.optimize import minimize

from dit_lens.analysis import mixture
from dit_lens.analysis.mixture import apart, bits, divergence
from dit_lens.errors import DitLensError

SHAPE = (4, 3, 5, 5)


@pytest.fixture
def templates():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)) + 3


def test_a_planted_mixture_comes_back_and_is_explained(templates):
    weights = np.random.default_rng(1).dirichlet(np.ones(4), 20)
    found = mixture(np.tensordot(weights, templates, 1), templates)
    np.testing.assert_allclose(found.weight, weights, atol=1e-6)
    np.testing.assert_allclose(found.bits, bits(weights), atol=1e-4)
    assert float(found.explained.min()) > 0.999999 and float(found.mixed.max()) < 1e-6


def test_a_template_is_no_mixture_and_has_nothing_to_explain(templates):
    found = mixture(templates, templates)
    np.testing.assert_allclose(found.weight, np.eye(4), atol=1e-9)
    assert float(found.bits.max()) < 1e-6 and (found.explained == 0).all()


def test_a_template_under_noise_stays_one(templates):
    """The planted null: what no candidate has is taken for little of a mixture."""
    noisy = templates[[2] * 50] + np.random.default_rng(2).normal(size=(50, *SHAPE))
    found = mixture(noisy, templates)
    assert float(found.weight[:, 2].mean()) > 0.9 and float(found.explained.mean()) < 0.02


def test_the_weights_are_the_least_squares_of_the_simplex(templates):
    """Also where x is far from every mixture, and wherever the least is on a face."""
    rows = np.random.default_rng(3).normal(size=(6, *SHAPE)) * 2
    found = mixture(rows, templates).weight.values
    flat, known = rows.reshape(6, -1), templates.reshape(4, -1)
    for row, weights in zip(flat, found, strict=True):
        best = minimize(
            lambda w, row=row: ((row - w @ known) ** 2).sum(),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(weights, best.x, atol=1e-3)
    assert found.min() >= 0 and np.allclose(found.sum(1), 1)


def test_entropies_and_divergences_are_in_bits():
    assert bits([[0.5, 0.5], [1.0, 0.0]]).tolist() == [1, 0]
    np.testing.assert_allclose(divergence([[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.25, 0.75]]), [0, 2])
    assert 19 < float(divergence([[1.0, 0.0]], [[0.0, 1.0]])[0]) < 20  # and not infinite


def test_weights_that_are_not_told_are_refused(templates):
    between = np.concatenate([templates, templates[:2].mean(0, keepdims=True)])
    assert apart(between) < 1e-6 < 0.5 < apart(templates)
    with pytest.raises(DitLensError, match="nearly a mixture of the others"):
        mixture(templates, between)
    with pytest.raises(DitLensError, match="2 templates or more"):
        mixture(templates, templates[:1])
    with pytest.raises(DitLensError, match="of the shape of a row"):
        mixture(templates[:, :2], templates)
    with pytest.raises(DitLensError, match="finite numbers"):
        mixture(np.full((1, *SHAPE), np.nan), templates)


def test_one_answer_that_is_a_little_off_has_bits_too():
    """Why a study needs a floor: weights of what shows one answer are never exactly 0 and 1."""
    rng = np.random.default_rng(0)
    templates = rng.normal(size=(3, 50))
    off = templates[0] + 0.2 * (templates[1:].mean(0) - templates[0])
    found = mixture(off[None], templates)
    assert float(found.bits[0]) > 0.5 and int(found.weight[0].argmax()) == 0


def test_bits_are_within_their_bounds():
    from dit_lens.analysis.mixture import bits

    for count in range(2, 20):
        assert float(bits(np.full(count, 1 / count))) <= np.log2(count)
    assert float(bits(np.eye(3)[0])) == 0
