from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import peak
from dit_lens.errors import DitLensError


def curves(values: np.ndarray, labels: np.ndarray | None = None) -> xr.DataArray:
    """[sample, seed, step]."""
    labels = np.arange(values.shape[-1]) if labels is None else labels
    return xr.DataArray(values, {"step": labels}, ["sample", "seed", "step"])


def planted(n: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Curves with a peak at position 6 of 20, each sample with noise of its own, which its seeds share by half."""
    shape = np.exp(-((np.arange(20) - 6) ** 2) / 30)
    return shape + noise * (rng.standard_normal((n, 1, 20)) + rng.standard_normal((n, 2, 20)))


def test_a_planted_peak_is_found_by_its_label() -> None:
    values = planted(24, 0.02, np.random.default_rng(0))
    found = peak(curves(values, 10 + 5 * np.arange(20)), "step", draws=2000)
    assert found.peak == 10 + 5 * 6 and 30 <= found.low <= found.peak <= found.high <= 50
    assert (found.attrs["n_samples"], found.attrs["n_seeds"]) == (24, 2)


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.6])
def test_the_interval_holds_the_peak_as_often_as_it_says(noise: float) -> None:
    rng = np.random.default_rng(1)
    found = [peak(curves(planted(24, noise, rng)), "step", draws=400) for _ in range(150)]
    held = [bool(f.low <= 6 <= f.high) for f in found]
    assert np.mean(held) > 0.9


@pytest.mark.parametrize("shape", ["falling", "rising", "level"])
def test_a_peak_at_an_end_or_on_a_shallow_curve_is_held_as_often_as_it_says(shape: str) -> None:
    rng, at = np.random.default_rng(3), np.arange(20)
    curve = {"falling": -0.05 * at, "rising": 1 - np.exp(-at / 4), "level": 0.02 * (at == 7)}[shape]
    where = int(curve.argmax())
    held = []
    for _ in range(150):
        found = peak(curves(curve + rng.standard_normal((24, 1, 20))), "step", draws=300)
        held.append(bool(found.low <= where <= found.high))
    assert np.mean(held) > 0.9


def test_a_curve_without_a_peak_has_an_interval_that_spans_it() -> None:
    rng = np.random.default_rng(2)
    widths = [
        float(f.high - f.low)
        for f in (peak(curves(rng.standard_normal((24, 1, 20))), "step", draws=400) for _ in range(30))
    ]
    assert np.mean(widths) > 10


def test_what_has_no_peak_is_refused() -> None:
    good = curves(planted(4, 0.1, np.random.default_rng(0)))
    for bad, message in (
        (good[:1], "2 samples or more"),
        (good.where(good.step > 2), "finite"),
        (good[..., ::-1], "increase"),
        (good.expand_dims(layer=[1, 2]), "layer, too"),
        (good.rename(step="frame"), "step"),
    ):
        with pytest.raises(DitLensError, match=message):
            peak(bad, "step")
