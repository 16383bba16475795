from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from dit_lens.analysis import pca_maps, to_rgb
from dit_lens.errors import DitLensError
from dit_lens.plot import energy_frames, layer_grid, pca_frames


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.images and ax.get_label() != "<colorbar>"]


def test_energy_frames_share_one_scale(tokens: xr.DataArray) -> None:
    one = tokens.sel(step=5, branch="cond", layer=6)
    figure = energy_frames(one)
    axes = panels(figure)
    assert [ax.get_title("left") for ax in axes] == [f"frame {i}" for i in range(5)]
    assert {ax.images[0].get_clim() for ax in axes} == {(float(one.min()), float(one.max()))}
    np.testing.assert_array_equal(axes[3].images[0].get_array(), one[3])
    assert figure.get_suptitle() == "Energy per token · step 5 (σ 0.9) · cond · layer 6"
    assert "dimensionless" in figure.axes[-1].get_ylabel()
    assert axes[0].get_ylabel() == "y (token)" and axes[0].get_xlabel() == "x (token)"


def test_a_step_that_was_not_recorded_is_not_drawn(tokens: xr.DataArray) -> None:
    tokens[1, 0, 6] = np.nan
    with pytest.raises(DitLensError, match="not recorded at step 5, branch cond, layer 6"):
        energy_frames(tokens.sel(step=5, branch="cond", layer=6))


def test_pca_frames_draw_the_colours_given(hidden: xr.DataArray) -> None:
    maps = pca_maps(hidden.sel(layer=6))["maps"]
    rgb = to_rgb(maps)
    axes = panels(pca_frames(rgb.isel(step=2, branch=0)))
    np.testing.assert_array_equal(axes[4].images[0].get_array(), rgb.isel(step=2, branch=0, frame=4))
    assert len(panels(pca_frames(maps.isel(step=2, branch=0)))) == 5


def test_layer_grid_shares_one_scale_and_picks_a_frame(tokens: xr.DataArray) -> None:
    one = tokens.isel(step=0, branch=0)
    axes = panels(layer_grid(one, frame=2))
    assert len(axes) == 8 and len({id(ax.images[0].norm) for ax in axes}) == 1
    assert isinstance(axes[0].images[0].norm, LogNorm)  # the layers differ by a factor of 128
    np.testing.assert_array_equal(axes[7].images[0].get_array(), one.isel(layer=7, frame=2))
    np.testing.assert_allclose(panels(layer_grid(one))[1].images[0].get_array(), one[1].mean("frame"))
    with pytest.raises(DitLensError, match="no frame 9; there are 0 to 4"):
        layer_grid(one, frame=9)


def test_layer_grid_relative_to_the_layer(tokens: xr.DataArray) -> None:
    figure = layer_grid(tokens.isel(step=0, branch=0), relative=True)
    assert all(np.isclose(ax.images[0].get_array().mean(), 1) for ax in panels(figure))
    assert "mean of its layer" in figure.axes[-1].get_ylabel()


def test_layer_grid_of_colours(hidden: xr.DataArray) -> None:
    maps = pca_maps(hidden.isel(step=0, branch=0))["maps"]
    assert panels(layer_grid(maps, frame=0))[0].images[0].get_array().shape == (3, 4, 3)
