from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens import plot
from dit_lens.analysis import energy_by_layer, energy_by_step
from dit_lens.errors import DitLensError


def test_energy_across_layers_draws_mean_and_band(tokens: xr.DataArray) -> None:
    one = tokens.isel(step=[1], branch=0)
    figure = plot.energy_across_layers(one)
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), one.mean(["frame", "y", "x"])[0], rtol=1e-6)
    assert len(ax.collections) == 1 and ax.get_title("right") == "mean over tokens; band: 95% of the tokens"
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "layer"
    assert figure.get_suptitle() == "Energy across layers · step 5 (σ 0.9) · cond"
    assert plot.energy_across_layers(one, log=False).axes[0].get_ylim()[0] == 0


def test_a_summary_does_as_well(tokens: xr.DataArray) -> None:
    ax = plot.energy_across_layers(energy_by_layer(tokens.isel(step=0), interval=0.5)).axes[0]
    assert [line.get_label() for line in ax.lines] == ["cond", "uncond"]
    assert "50%" in ax.get_title("right")
    with pytest.raises(DitLensError, match="needs mean, low, high"):
        plot.energy_vs_step(energy_by_step(tokens)[["mean"]])


def test_energy_vs_step_is_at_the_steps_and_shows_sigma(tokens: xr.DataArray) -> None:
    ax = plot.energy_vs_step(tokens.isel(branch=0, layer=2)).axes[0]
    assert ax.lines[0].get_xdata().tolist() == [0, 5, 10, 15]
    top = ax.child_axes[0]
    assert [t.get_text() for t in top.get_xticklabels()] == ["1.00", "0.90", "0.70", "0.30"]


def test_many_layers_get_a_colour_scale_and_no_bands(tokens: xr.DataArray) -> None:
    figure = plot.energy_vs_step(tokens.isel(branch=0))
    ax = figure.axes[0]
    assert len(ax.lines) == 8 and not ax.collections and ax.get_legend() is None
    assert figure.axes[-1].get_ylabel() == "layer"


def test_too_many_dimensions(tokens: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match="too much for one picture"):
        plot.energy_vs_step(tokens)
