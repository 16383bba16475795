from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import crossing
from dit_lens.errors import DitLensError


def curves(values: np.ndarray, labels: np.ndarray | None = None) -> xr.DataArray:
    """[sample, seed, step]."""
    labels = np.arange(values.shape[-1]) if labels is None else labels
    return xr.DataArray(values, {"step": labels}, ["sample", "seed", "step"])


def planted(n: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """A line through 0 at position 5.5, each sample with an offset and noise of its own."""
    line = (np.arange(12) - 5.5) / 6
    return line + noise * (rng.standard_normal((n, 1, 1)) + 0.3 * rng.standard_normal((n, 2, 12)))


def test_it_is_where_the_mean_line_crosses() -> None:
    values = planted(24, 0.0, np.random.default_rng(0))
    assert float(crossing(curves(values), "step").crossing) == pytest.approx(5.5)
    scaled = curves(values, 100 - 100 * 0.9 ** np.arange(12))
    found = crossing(scaled, "step")
    expected = np.interp(5.5, np.arange(12), scaled.step.values)
    assert float(found.crossing) == pytest.approx(expected) == float(found.low) == float(found.high)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_the_interval_holds_the_crossing_as_often_as_it_says(noise: float) -> None:
    rng = np.random.default_rng(1)
    found = [crossing(curves(planted(24, noise, rng)), "step", draws=400) for _ in range(200)]
    held = [bool(f.low <= 5.5 <= f.high) for f in found]
    assert np.mean(held) > 0.9


def test_a_curve_that_never_comes_up_or_never_was_below() -> None:
    ones = np.ones((4, 1, 5))
    assert float(crossing(curves(ones), "step").crossing) == 0
    assert float(crossing(curves(-ones), "step").crossing) == np.inf
    dips = ones.copy()
    dips[..., 3] = -1  # it counts from where it stays
    assert float(crossing(curves(dips), "step").crossing) == pytest.approx(3.5)


def test_what_has_no_crossing_is_refused() -> None:
    good = curves(planted(4, 0.1, np.random.default_rng(0)))
    for bad, message in (
        (good[:1], "2 samples or more"),
        (good.where(good.step > 2), "finite"),
        (good[..., ::-1], "increase"),
        (good.expand_dims(layer=[1, 2]), "layer, too"),
    ):
        with pytest.raises(DitLensError, match=message):
            crossing(bad, "step")
