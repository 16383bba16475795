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
    assert float(found.crossing) == pytest.approx(expected)
    assert [float(found.low), float(found.high)] == scaled.step.values[
        5:7
    ].tolist()  # as near as it was measured


@pytest.mark.parametrize("n, noise", [(3, 0.2), (3, 1.0), (4, 0.5), (5, 0.5), (6, 0.5), (24, 0.1), (24, 0.5)])
def test_the_interval_holds_the_crossing_as_often_as_it_says(n: int, noise: float) -> None:
    rng = np.random.default_rng(1)
    found = [crossing(curves(planted(n, noise, rng)), "step", draws=400) for _ in range(200)]
    held = [bool(f.low <= 5.5 <= f.high) for f in found]
    assert np.mean(held) > 0.92


@pytest.mark.parametrize("n", [3, 4, 6, 12])
def test_rates_of_few_samples_that_may_agree_by_chance_are_held(n: int) -> None:
    rates, rng, held = np.array([0.05, 0.2, 0.45, 0.6, 0.9, 1.0]), np.random.default_rng(2), []
    for _ in range(150):
        values = (rng.random((n, 1, 1)) < rates) - 0.5  # once a sample is settled, it stays so
        found = crossing(curves(values), "step", bounds=(-0.5, 0.5), draws=300)
        held.append(bool(found.low <= 2 + 1 / 3 <= found.high))
    assert np.mean(held) > 0.92


def test_samples_that_agree_around_it_leave_the_grid_between_them() -> None:
    values = np.tile(np.array([-1.0, -1.0, 1.0, 1.0]), (8, 1, 1))
    values[:4, :, 0] = -0.5  # they differ elsewhere
    for bounds in (None, (-1.0, 1.0)):
        found = crossing(curves(values, np.array([0, 4, 6, 9])), "step", bounds=bounds)
        assert (found.crossing, found.low, found.high) == (5, 4, 6)
    values[:, :, 1] = 0.0  # at a position, exactly
    found = crossing(curves(values, np.array([0, 4, 6, 9])), "step")
    assert (found.crossing, found.low, found.high) == (4, 0, 4)
    loose = crossing(curves(values[:3], np.array([0, 4, 6, 9])), "step", bounds=(-1.0, 1.0))
    assert loose.low == -np.inf and loose.high == np.inf  # of 3 that agree, a half may be otherwise


def test_samples_that_are_0_everywhere_say_nothing_of_it() -> None:
    values = planted(6, 0.5, np.random.default_rng(3))
    some = crossing(curves(np.concatenate([values, np.zeros((20, 2, 12))])), "step")
    assert some.equals(crossing(curves(values), "step")) and some.attrs["n_samples"] == 6
    few = crossing(curves(np.concatenate([values[:2], np.zeros((20, 2, 12))])), "step")
    assert np.isfinite(few.crossing) and np.isnan(few.low) and np.isnan(few.high)
    assert few.attrs["no_interval"] == "2 samples of 22 that tell where, and it takes 3"


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
