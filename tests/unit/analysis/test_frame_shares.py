"""Shares of attention between frames: an even spread has what the formulas say, a planted direction is found."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import frame_shares
from dit_lens.errors import DitLensError

DIMS = ("frame", "key_frame")


@pytest.mark.parametrize("count", [2, 4, 7])
def test_an_even_spread_is_the_null(count):
    found = frame_shares(xr.DataArray(np.full((count, count), 1 / count), dims=DIMS))
    expected = {
        "own": 1 / count,
        "past": (count - 1) / (2 * count),
        "future": (count - 1) / (2 * count),
        "first": 1 / count,
        "distance": (count - 1 / count) / 3,
    }
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected)


def test_directions_that_are_planted_are_told_apart():
    itself, back = np.eye(4), np.eye(4, k=-1)
    back[0, 0] = 1  # the first frame has none before it
    ahead, first = back[::-1, ::-1], np.zeros((4, 4))
    first[:, 0] = 1
    stacked = xr.DataArray(np.stack([itself, back, ahead, first]), dims=("head", *DIMS))
    found = frame_shares(stacked)
    assert found.own.values.tolist() == [1, 0.25, 0.25, 0.25]
    assert found.past.values.tolist() == [0, 0.75, 0, 0.75]
    assert found.future.values.tolist() == [0, 0, 0.75, 0]
    assert found["first"].values.tolist() == [0, 1 / 3, 0, 1]
    assert found.distance.values.tolist() == [0, 0.75, 0.75, 1.5]


def test_what_was_not_recorded_stays_nan_and_one_frame_has_no_first():
    values = xr.DataArray(np.full((2, 3, 3), 1 / 3), dims=("layer", *DIMS))
    values[1] = np.nan
    found = frame_shares(values)
    assert all(np.isfinite(found[n][0]) and np.isnan(found[n][1]) for n in found)
    alone = frame_shares(xr.DataArray([[1.0]], dims=DIMS))
    assert float(alone.own) == 1 and np.isnan(alone["first"])


def test_what_is_no_attention_between_frames_is_refused():
    with pytest.raises(DitLensError, match="key_frame"):
        frame_shares(xr.DataArray(np.ones((2, 2)), dims=("frame", "y")))
    with pytest.raises(DitLensError, match="as many key_frame as frame"):
        frame_shares(xr.DataArray(np.ones((2, 3)), dims=DIMS))
