"""The affine map is sklearn's ridge regression, fitted in blocks."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dit_lens.analysis import affine
from dit_lens.analysis.affine import AffineFit
from dit_lens.errors import DitLensError


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("block", [affine.BLOCK_BYTES, 8 * 6 * 20])
def test_it_equals_ridge_regression_also_in_blocks_and_far_from_zero(offset, block, monkeypatch):
    monkeypatch.setattr(affine, "BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * [1, 2, 3, 1, 1, 0.1] + offset
    y = x @ rng.normal(size=(6, 4)) + rng.normal(size=(500, 4)) + 3
    fit = AffineFit(6, 4, ridge=0.01)
    for part in np.array_split(np.arange(500), 7):
        fit.add(x[part], y[part])
    weight, bias = fit.solve()
    alpha = 0.01 * np.trace(np.cov(x.T, bias=True)) / 6 * 500
    expected = Ridge(alpha).fit(x, y)
    assert np.allclose(weight, expected.coef_.T, atol=1e-7)
    assert np.allclose(x @ weight + bias, expected.predict(x), atol=1e-6)


def test_it_needs_tokens_that_vary():
    with pytest.raises(DitLensError, match="at least two tokens"):
        AffineFit(2, 2).solve()
    fit = AffineFit(2, 2)
    fit.add(np.ones((5, 2)), np.ones((5, 2)))
    with pytest.raises(DitLensError, match="do not vary"):
        fit.solve()
