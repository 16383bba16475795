from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens import analysis, plot
from dit_lens.errors import DitLensError


def test_importance_is_sorted_and_the_largest_are_named() -> None:
    importance = xr.DataArray([1.0, 9, 0, 4, 6], dims="channel", coords={"layer": 3})
    figure = plot.channel_importance(importance, top=2)
    curve, bars = figure.axes
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), [9, 6, 4, 1])
    assert [t.get_text() for t in bars.get_yticklabels()] == ["channel 1", "channel 4"]
    assert [p.get_width() for p in bars.patches] == pytest.approx([45, 30])
    assert bars.get_title("left") == "together 75%"
    assert curve.texts[0].get_text() == "1 channels have no variance"
    assert figure.get_suptitle() == "Channel importance · layer 3"


def test_no_variance_at_all_is_an_error() -> None:
    with pytest.raises(DitLensError, match="no channel has any variance"):
        plot.channel_importance(xr.DataArray(np.zeros(4), dims="channel"))


def test_top_channels_have_a_row_and_a_scale_each(hidden: xr.DataArray) -> None:
    maps = analysis.top_channels(hidden.isel(step=0, branch=0, layer=0), k=2)
    figure = plot.top_channels(maps, most_frames=3)
    axes = figure.axes[:6]
    assert [ax.get_title("left") for ax in axes] == ["frame 0", "frame 2", "frame 4", "", "", ""]
    np.testing.assert_array_equal(axes[4].images[0].get_array(), maps[1, 2])
    assert len({ax.images[0].get_clim() for ax in axes[:3]}) == 1
    names = maps["channel"].values
    assert [axes[i].get_ylabel() for i in (0, 3)] == [f"channel {n}\ny (token)" for n in names]
