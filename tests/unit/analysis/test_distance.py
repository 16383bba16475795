from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis.distance import trajectory_distance
from dit_lens.errors import DitLensError

DIMS = ["seed", "step", "frame", "latent_y", "latent_x", "latent_channel"]


@pytest.fixture
def x0() -> xr.DataArray:
    """Clean latents of 2 seeds at 4 steps: 3 frames of 2 x 5 places, with 6 channels."""
    values = np.random.default_rng(0).standard_normal((2, 4, 3, 2, 5, 6)).astype(np.float32)
    coords = {"seed": [0, 7], "step": [0, 5, 10, 15], "sigma": ("step", [1.0, 0.9, 0.7, 0.3])}
    return xr.DataArray(values, coords, DIMS, "x0")


def test_equals_the_definition(x0: xr.DataArray) -> None:
    out = trajectory_distance(x0)
    exact = x0.astype(float)
    for name, other in (("to_previous", exact.shift(step=1)), ("to_final", exact.isel(step=-1, drop=True))):
        squares = np.square(exact - other)
        place = np.sqrt(squares.mean("latent_channel", skipna=False))
        frame = np.sqrt(squares.mean(DIMS[3:], skipna=False))
        np.testing.assert_allclose(out[name], place, rtol=1e-6)
        np.testing.assert_allclose(out[f"{name}_frame"], frame, rtol=1e-6)
    assert out["to_final"].dims == tuple(DIMS[:-1]) and out["to_final_frame"].dims == tuple(DIMS[:3])
    assert out["to_previous"].dtype == np.float32
    xr.testing.assert_equal(out["sigma"], x0["sigma"])
    for name in ("to_previous", "to_final", "to_previous_frame", "to_final_frame"):
        assert out[name].attrs["units"] == "1" and "RMS distance of x0 to the" in out[name].attrs["long_name"]


def test_a_planted_move_is_found_at_its_step_frame_and_place() -> None:
    values = np.ones((5, 3, 2, 4, 6), np.float32)
    values[2:, 1, 0, 3] += 2  # all channels by 2, from step 2 on
    values[4, 2, :, :, 0] -= np.sqrt(6)  # one channel of a whole frame, at the last step
    out = trajectory_distance(xr.DataArray(values, dims=DIMS[1:]))
    expected = np.zeros((5, 3, 2, 4))
    expected[0] = np.nan  # nothing before
    expected[2, 1, 0, 3] = 2
    expected[4, 2] = 1
    np.testing.assert_allclose(out["to_previous"], expected, rtol=1e-6)
    final = np.zeros((5, 3, 2, 4))
    final[:2, 1, 0, 3] = 2
    final[:4, 2] = 1
    np.testing.assert_allclose(out["to_final"], final, rtol=1e-6)
    np.testing.assert_allclose(out["to_final_frame"][0], [0, np.sqrt(4 / 8), 1], rtol=1e-6)


def test_dimensions_go_by_name_and_seeds_are_kept_apart(x0: xr.DataArray) -> None:
    out = trajectory_distance(x0)
    moved = trajectory_distance(x0.transpose("latent_channel", "step", "latent_x", "frame", ...))
    xr.testing.assert_equal(moved, out)
    alone = trajectory_distance(x0.sel(seed=7))
    assert alone["seed"] == 7
    xr.testing.assert_equal(alone, out.sel(seed=7))
    assert out["to_previous"].isel(step=0).isnull().all() and out["to_previous"][:, 1:].notnull().all()


def test_float16_latents_do_not_overflow(x0: xr.DataArray) -> None:
    far = xr.zeros_like(x0, np.float16)
    far[:, -1] = 60000
    out = trajectory_distance(far)
    np.testing.assert_allclose(out["to_final_frame"][:, 0], float(np.float16(60000)), rtol=1e-6)
    assert trajectory_distance(x0.astype(np.float64))["to_final"].dtype == np.float64


def test_a_stored_array_is_not_loaded_as_a_whole(x0: xr.DataArray, tmp_path: object) -> None:
    x0.to_dataset().to_zarr(f"{tmp_path}/run.zarr", consolidated=False, zarr_format=3)
    stored = xr.open_zarr(f"{tmp_path}/run.zarr", chunks=None, consolidated=False)["x0"]
    xr.testing.assert_equal(trajectory_distance(stored), trajectory_distance(x0))
    assert not stored.variable._in_memory


def test_errors(x0: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match="no dimension step"):
        trajectory_distance(x0.isel(step=0))
    with pytest.raises(DitLensError, match="no dimension latent_channel"):
        trajectory_distance(x0.isel(latent_channel=0))
    broken = x0.copy()
    broken[1, 3] = np.nan
    with pytest.raises(DitLensError, match="x0 was not recorded at seed 7, step 15"):
        trajectory_distance(broken)
    broken = x0.copy()
    broken[0, 2, 1, 1, 3, 0] = np.nan  # one value: only its place and frame are lost
    out = trajectory_distance(broken)
    assert int(out["to_final"].isnull().sum()) == 1 and int(out["to_final_frame"].isnull().sum()) == 1
