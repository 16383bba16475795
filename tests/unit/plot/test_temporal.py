from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens import analysis, plot
from dit_lens.errors import DitLensError


def test_one_curve(tokens: xr.DataArray) -> None:
    curve = analysis.temporal_energy(tokens.isel(step=0, branch=0, layer=0))
    ax = plot.temporal_energy(curve).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve)
    assert ax.get_xlabel() == "latent frame" and "dimensionless" in ax.get_ylabel()


@pytest.mark.parametrize(("family", "legend"), [("step", True), ("branch", True), ("layer", False)])
def test_a_family_of_curves_is_named(tokens: xr.DataArray, family: str, legend: bool) -> None:
    fixed = {d: 0 for d in ("step", "branch", "layer") if d != family}
    figure = plot.temporal_energy(analysis.temporal_energy(tokens.isel(fixed)))
    ax = figure.axes[0]
    assert len(ax.lines) == tokens.sizes[family]
    assert (ax.get_legend() is not None) == legend
    assert legend or figure.axes[-1].get_ylabel() == family


def test_heatmap_has_steps_down_and_frames_across(tokens: xr.DataArray) -> None:
    values = analysis.temporal_energy(tokens.isel(branch=0, layer=3))
    figure = plot.temporal_heatmap(values)
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "5", "10", "15"]
    assert "step" in ax.get_ylabel() and ax.get_xlabel() == "latent frame"
    assert figure.get_suptitle() == "Temporal energy · cond · layer 3"
    values[2] = np.nan
    with pytest.raises(DitLensError, match="step 10"):
        plot.temporal_heatmap(values)
