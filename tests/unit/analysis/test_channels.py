from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import channel_importance, top_channels
from dit_lens.errors import DitLensError


def test_importance_is_the_variance_over_tokens(hidden: xr.DataArray) -> None:
    out = channel_importance(hidden)
    np.testing.assert_allclose(out, hidden.astype(float).var(["frame", "y", "x"]), rtol=1e-9)
    assert out.dims == ("step", "branch", "layer", "channel") and out.attrs["units"] == "1"


def test_a_massive_channel_without_variance_is_not_important(hidden: xr.DataArray) -> None:
    hidden[..., 5] = 3000
    out = channel_importance(hidden)
    assert (out.isel(channel=5) == 0).all()
    assert (out.argmax("channel") != 5).all()


def test_top_channels_are_those_planted(hidden: xr.DataArray) -> None:
    one = hidden.isel(step=0, branch=0, layer=0)
    maps = top_channels(one, k=3)
    assert maps.dims == ("rank", "frame", "y", "x")
    assert maps["channel"].values.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(maps.sel(rank=1), one.isel(channel=2))
    np.testing.assert_allclose(maps["importance"], channel_importance(one)[[0, 2, 4]])


def test_every_state_ranks_its_own_channels(hidden: xr.DataArray) -> None:
    hidden[1, 1, 2, ..., 3] *= 100
    maps = top_channels(hidden, k=2)
    assert maps.dims == ("step", "branch", "layer", "rank", "frame", "y", "x")
    assert maps["channel"].dims == ("step", "branch", "layer", "rank")
    assert maps["channel"][1, 1, 2].values.tolist() == [3, 0] and maps["channel"][0, 0, 0, 0] == 0
    np.testing.assert_array_equal(maps[1, 1, 2, 0], hidden[1, 1, 2, ..., 3])


def test_a_given_importance_follows_the_same_channels(hidden: xr.DataArray) -> None:
    hidden = hidden.assign_coords(channel=[10, 11, 12, 13, 14, 15])
    importance = xr.DataArray([0, 1, 0, 9.0, 0, 1], dims="channel")
    maps = top_channels(hidden, k=3, importance=importance)
    assert maps["channel"].dims == ("rank",)
    assert maps["channel"].values.tolist() == [13, 11, 15]  # of equals, the lower first
    np.testing.assert_array_equal(maps.isel(rank=0), hidden.isel(channel=3))
    by_layer = channel_importance(hidden).mean(["step", "branch"])
    assert top_channels(hidden, k=1, importance=by_layer)["channel"].dims == ("layer", "rank")


def test_errors(hidden: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match="k is 7, but there are 6"):
        top_channels(hidden, k=7)
    with pytest.raises(DitLensError, match="does not fit"):
        top_channels(hidden, importance=channel_importance(hidden.isel(step=[0, 1])))
    hidden[0, 0, 0, 0, 0, 0, 2] = np.inf
    assert np.isnan(channel_importance(hidden)[0, 0, 0, 2])
    with pytest.raises(DitLensError, match="NaN"):
        top_channels(hidden)
