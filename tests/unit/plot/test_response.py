from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis.statistics import mean
from dit_lens.errors import DitLensError
from dit_lens.plot.response import response

WORDS = {"value_label": "solved (share)", "amount_label": "RMS movement", "title": "Averages"}


def table() -> tuple[xr.Dataset, xr.DataArray]:
    """Outcomes of 12 samples under two averages in three intervals, and how far each moves."""
    rng = np.random.default_rng(0)
    coords = {"average": ["states", "x0"], "interval": ["0", "0-3", "0-9"]}
    values = xr.DataArray(rng.random((12, 2, 3)), coords, ["sample", "average", "interval"])
    amounts = xr.DataArray([[0.01, 0.1, 0.5], [0.005, 0.08, 0.3]], coords, ["average", "interval"])
    return mean(values, bounds=(0, 1)), amounts


def test_every_curve_stands_at_its_own_amounts_with_its_intervals() -> None:
    summary, amounts = table()
    ax = response(summary, amounts, "interval", reference=0.4, **WORDS).axes[0]
    for i, line in enumerate(ax.lines[:2]):
        np.testing.assert_allclose(line.get_xdata(), amounts[i])
        np.testing.assert_allclose(line.get_ydata(), summary["mean"][i])
        ends = np.array([s[:, 1] for s in ax.collections[i].get_segments()])
        np.testing.assert_allclose(ends, np.stack([summary.low[i], summary.high[i]], 1))
    assert ax.get_xscale() == "log" and ax.get_title("right") == "n = 12 samples, 95% CI"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["states", "x0", "clean 0.4"]


def test_no_movement_stands_at_zero_on_a_plain_scale() -> None:
    summary, amounts = table()
    assert response(summary, amounts * 0, "interval", **WORDS).axes[0].get_xscale() == "linear"


def test_amounts_of_other_curves_are_refused() -> None:
    summary, amounts = table()
    with pytest.raises(DitLensError, match="other labels"):
        response(summary, amounts.assign_coords(average=["states", "v"]), "interval", **WORDS)
    with pytest.raises(DitLensError, match="no curves"):
        response(summary.isel(average=0, drop=True), amounts.isel(average=0), "interval", **WORDS)
