from __future__ import annotations

import numpy as np
import pytest

from dit_lens.errors import DitLensError
from dit_lens.plot import schedule


def test_schedule_shows_sigma_timestep_and_what_is_removed() -> None:
    sigma = np.array([1.0, 0.9, 0.6])
    figure = schedule(sigma, 1000 * sigma, experts=["high", "high", "low"])
    left, middle, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), sigma)
    np.testing.assert_array_equal(middle.lines[0].get_ydata(), 1000 * sigma)
    assert [p.get_height() for p in right.patches] == pytest.approx([0.1, 0.3, 0.6])
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["high", "low"]
    assert all(ax.get_xlabel() == "step" and ax.get_ylabel() for ax in figure.axes)
    assert len(schedule(sigma).axes) == 2


def test_errors() -> None:
    with pytest.raises(DitLensError, match="3 sigmas but 2 timesteps"):
        schedule([1, 0.5, 0.2], [1000, 500])
    with pytest.raises(DitLensError, match="finite"):
        schedule([1, np.nan])
