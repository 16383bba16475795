from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import energy, energy_by_layer, energy_by_step, temporal_energy
from dit_lens.errors import DitLensError


def test_energy_is_the_norm_over_channels(hidden: xr.DataArray) -> None:
    out = energy(hidden)
    np.testing.assert_allclose(out, np.linalg.norm(hidden.to_numpy().astype(float), axis=-1), rtol=1e-6)
    assert out.dims == hidden.dims[:-1] and out.dtype == np.float32 and out.name == "energy"
    assert out.attrs["units"] == "1" and "L2" in out.attrs["long_name"]
    xr.testing.assert_equal(out["sigma"], hidden["sigma"])


def test_energy_of_a_stored_array_is_the_same(hidden: xr.DataArray, stored: xr.DataArray) -> None:
    xr.testing.assert_equal(energy(stored), energy(hidden))


def test_float16_states_neither_overflow_nor_lose_digits() -> None:
    values = np.full((1, 1, 1, 4096), 60000, np.float16)
    out = energy(xr.DataArray(values, dims=["frame", "y", "x", "channel"]))
    np.testing.assert_allclose(out, 64 * float(np.float16(60000)), rtol=1e-6)
    assert energy(xr.DataArray(values.astype(float), dims=["frame", "y", "x", "channel"])).dtype == np.float64


def test_energy_takes_a_part_of_the_grid(hidden: xr.DataArray) -> None:
    token = hidden.isel(frame=1, y=2, x=3)
    np.testing.assert_allclose(energy(token), energy(hidden).isel(frame=1, y=2, x=3))


def test_temporal_energy_finds_the_planted_frame() -> None:
    values = np.ones((3, 4, 5, 2), np.float32)
    values[1] *= 10
    out = temporal_energy(energy(xr.DataArray(values, dims=["frame", "y", "x", "channel"])))
    np.testing.assert_allclose(out, np.sqrt(40) * np.array([1, 10, 1]), rtol=1e-6)
    assert out.dims == ("frame",) and out.name == "temporal_energy"


def test_temporal_energy_is_the_norm_of_everything_in_a_frame(hidden: xr.DataArray) -> None:
    reference = np.sqrt((hidden.astype(float) ** 2).sum(["y", "x", "channel"]))
    np.testing.assert_allclose(temporal_energy(energy(hidden)), reference, rtol=1e-6)


@pytest.mark.parametrize(("summarise", "last"), [(energy_by_layer, "layer"), (energy_by_step, "step")])
def test_summaries_are_over_tokens(hidden: xr.DataArray, summarise: object, last: str) -> None:
    e = energy(hidden)
    out = summarise(e, interval=0.5)  # type: ignore[operator]
    tokens = ["frame", "y", "x"]
    for name, reference in (
        ("mean", e.mean(tokens)),
        ("low", e.quantile(0.25, tokens)),
        ("high", e.quantile(0.75, tokens)),
    ):
        np.testing.assert_allclose(out[name], reference.transpose(*out[name].dims), rtol=1e-5)
    assert out["mean"].dims[-1] == last and set(out["mean"].dims) == {"step", "branch", "layer"}
    assert out["low"].attrs["quantile"] == 0.25 and out.attrs == {"interval": 0.5, "over": "tokens"}


def test_errors_name_what_is_wrong(hidden: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match="no dimension channel"):
        energy(energy(hidden))
    with pytest.raises(DitLensError, match="no dimension frame"):
        temporal_energy(energy(hidden).isel(frame=0))
    with pytest.raises(DitLensError, match="no dimension layer"):
        energy_by_layer(energy(hidden).isel(layer=0))
    with pytest.raises(DitLensError, match="no tokens"):
        energy_by_step(energy(hidden).mean(["frame", "y", "x"]))
    with pytest.raises(DitLensError, match=r"within \(0, 1\], not 95"):
        energy_by_step(energy(hidden), interval=95)
    hidden[1, 0, 2] = np.nan
    with pytest.raises(DitLensError, match="step 5, branch cond, layer 11"):
        energy(hidden)
