from __future__ import annotations

import numpy as np
import pytest

from dit_lens.analysis import moments
from dit_lens.analysis.moments import Moments


@pytest.mark.parametrize("full", [False, True])
def test_blocks_merge_to_the_moments_of_all(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "COVARIANCE_BLOCK_BYTES", 8 * 5 * 7)
    tokens = np.random.default_rng(1).standard_normal((1000, 5)) * [1, 2, 3, 4, 0] + [0, 1e3, -5, 7, 2]
    m = Moments(5, full=full)
    for part in np.split(tokens, [3, 4, 400]):
        m.add(part)
    covariance = np.cov(tokens.T, ddof=0)
    assert m.count == 1000
    np.testing.assert_allclose(m.mean, tokens.mean(0), rtol=1e-12)
    np.testing.assert_allclose(m.scatter / 1000, covariance if full else np.diag(covariance), atol=1e-10)


def test_a_massive_mean_does_not_swallow_the_variance() -> None:
    tokens = np.random.default_rng(2).standard_normal((5000, 1)) + 1e8
    m = Moments(1, full=False)
    m.add(tokens)
    np.testing.assert_allclose(m.scatter / m.count, tokens.var(), rtol=1e-6)
